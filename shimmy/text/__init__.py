"""PARENT AND WORKER. Text and JSON that come in pieces: replies read back, stop strings, large bodies."""
