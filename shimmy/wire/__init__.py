"""PARENT AND WORKER. What the two say to each other over their socket."""
