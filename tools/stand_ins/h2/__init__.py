"""Stands in for `h2` in the frozen file: hypercorn's module of types names it. Shimmy speaks HTTP/1.1."""
