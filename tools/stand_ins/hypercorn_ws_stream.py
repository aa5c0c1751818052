"""Stands in for `hypercorn.protocol.ws_stream` in the frozen file: there are no websockets here, and
no wsproto, which costs each start 10 ms and an idle server 0.4 MB."""


class WSStream:
    """Named by hypercorn.protocol.h11; never made, as an offer to change to a websocket is passed over."""
