"""PARENT AND WORKER. Several machines for one model: the channel between them, what passes through, both ends."""
