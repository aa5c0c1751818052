"""Stands in for `h2` in the frozen file: hypercorn's module of types names it. Shimmy speaks HTTP/1.1; the
real one costs each start 6 ms and an idle server 0.4 MB."""
