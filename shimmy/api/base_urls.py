"""Base URLs as people type them: with a slash at the end, with two slashes, without `/v1`, with two of it, or with the
path of a route. Knows which paths are served, and writes a request's as the route table has it; others stay unknown.
"""

import re
from collections.abc import Sequence

from shimmy.api.http_exchange import ASGIApp, Receive, Scope, Send

_VERSION = "/v1"
_SLASHES = re.compile("//+")


class BaseUrls:
    """Gives the application a path of `paths`, the route table's, where one was meant."""

    def __init__(self, app: ASGIApp, paths: Sequence[str]) -> None:
        self._app = app
        self._paths = frozenset(path for path in paths if "{" not in path)
        versioned = [path for path in self._paths if path.startswith(f"{_VERSION}/")]
        # The first words of what is under `/v1` and nowhere else: `chat`, `models`, …
        self._words = frozenset(path.split("/")[2] for path in versioned)
        # What people take for a base URL, so that their clients put a path behind it: nothing of ours is there.
        self._ends = tuple(path for path in versioned if not any(other.startswith(f"{path}/") for other in paths))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._paths:
            scope["path"] = self.meant(scope["path"])
        await self._app(scope, receive, send)

    def meant(self, path: str) -> str:
        """The path as the route table would have it; the same where nothing is wrong with it, or everything."""
        if not path.startswith("/"):
            return path
        path = _SLASHES.sub("/", path)
        if len(path) > 1:
            path = path.removesuffix("/")
        while path.startswith(f"{_VERSION}{_VERSION}/"):
            path = path.removeprefix(_VERSION)
        if path.split("/", 2)[1] in self._words:
            path = _VERSION + path
        return self._behind_an_end(path)

    def _behind_an_end(self, path: str) -> str:
        for end in self._ends:
            rest = path.removeprefix(end)
            if rest != path:
                meant = rest if rest.startswith(f"{_VERSION}/") else _VERSION + rest
                return meant if meant in self._paths else path
        return path
