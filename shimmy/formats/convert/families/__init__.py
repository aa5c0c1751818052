"""PARENT AND WORKER. What sets each family of models apart: its tensors, its settings, what is refused."""
