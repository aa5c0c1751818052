"""See the package."""


class Event:
    """Named by hypercorn in annotations."""
