"""WORKER. Which rows of which jobs the next decode has."""
