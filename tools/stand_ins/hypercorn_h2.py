"""Stands in for `hypercorn.protocol.h2` in the frozen file: Shimmy speaks HTTP/1.1, and `shimmy.http` sees to that.

h2 and what it brings cost each start 30 ms and an idle process more than a megabyte.
"""


class H2Protocol:
    """Named by hypercorn.protocol; never made, as no connection changes to HTTP/2."""
