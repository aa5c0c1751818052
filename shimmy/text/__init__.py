"""PARENT AND WORKER. Text and JSON that come in pieces."""
