"""Stands in for `logging.config` in the frozen file: hypercorn imports two names of it and calls neither, because its
logger is given to it. The real one brings handlers for files and sockets, and pickle: 4 ms and
0.8 MB of every start."""

from typing import NoReturn


def dictConfig(config: object) -> NoReturn:  # noqa: N802 - the name it has there
    raise NotImplementedError("logging is set up by shimmy.log")


fileConfig = dictConfig  # noqa: N816
