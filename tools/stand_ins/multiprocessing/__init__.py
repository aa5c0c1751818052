"""Stands in for `multiprocessing` in the frozen file: hypercorn needs the name of one class for its annotations."""
