"""Stands in for `multiprocessing` in the frozen file: hypercorn needs the name of one
class for its annotations. The real one costs each start 4 ms and an idle server 0.5 MB."""
