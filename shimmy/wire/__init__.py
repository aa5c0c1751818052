"""PARENT AND WORKER. What parent and worker say to each other over their socket, and how each message is checked."""
