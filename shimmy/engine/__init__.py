"""WORKER. A process that has one model loaded and runs its jobs; nothing in here is imported by the parent."""
