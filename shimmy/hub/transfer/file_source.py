"""Where a file is that is to be fetched: its link, as long as that holds, its size, and whether there are ranges.

Knows what a reply has to say of the bytes that it brings, and nothing of where they go.
"""

import threading
from dataclasses import dataclass
from pathlib import Path

from shimmy.errors import PullFailed
from shimmy.hub.transfer.events import Meter
from shimmy.hub.transfer.patience import Patience, check
from shimmy.hub.transfer.web import Client, HttpReply, Target, Trouble, Web, host_of

_LINK_STATUSES = {400, 401, 403, 404, 410}  # of a signed link that has expired


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file elsewhere."""

    name: str  # for a person
    url: str
    size_bytes: int | None = None
    digest: str = ""  # SHA-256, or git's of a blob; '' when unknown
    token: str = ""  # for the URL's own origin
    is_public_only: bool = False
    note: Path | None = None  # where it is noted that the target came from `url`; None where its name is its digest


class Transfer:
    """What the files of a pull share."""

    def __init__(self, web: Web, meter: Meter) -> None:
        self.web = web
        self.meter = meter
        self.client = web.client()  # of the main thread


class FileSource:
    """Where a file is in the end, as long as the link to it holds."""

    def __init__(self, file: RemoteFile, transfer: Transfer) -> None:
        self.file = file
        self.transfer = transfer
        self.size_bytes = file.size_bytes
        self.validator = ""  # a strong one, for the content of a URL
        self.has_ranges = False
        self._first = Target(file.url, file.is_public_only)
        self._link = self._first

    def probe(self) -> None:
        """Find the link, the size, and whether there are ranges."""
        patience = Patience(self.transfer.meter, threading.Event())
        while True:
            try:
                reply = self.ask(self.transfer.client, (0, 1))
                check(reply, 200, 206, 416)
                break
            except Trouble as trouble:
                patience.wait(trouble)
        size = self._size_of(reply)
        self.has_ranges = reply.status == 206 and size is not None
        if self.file.size_bytes is not None and size is not None and size != self.file.size_bytes:
            raise self._wrong_size(size)
        self.size_bytes = size if size is not None else self.file.size_bytes
        etag = reply.header("ETag")
        self.validator = "" if etag.startswith("W/") or not etag.isprintable() else etag[:200]
        if reply.status == 206:
            reply.text(16)
        else:
            self.transfer.client.close()

    def ask(self, client: Client, extent: tuple[int, int] | None) -> HttpReply:
        """The reply for an extent, or for the whole; a link that has expired is looked up again."""
        headers = {} if extent is None else {"Range": f"bytes={extent[0]}-{extent[1] - 1}"}
        if extent is not None and self.validator and not self.file.digest:
            headers["If-Range"] = self.validator
        link = self._link
        reply = client.get(link, headers, (self.file.url, self.file.token))
        if reply.status in _LINK_STATUSES and link.url != self._first.url:
            self._link = self._first
            reply = client.get(self._first, headers, (self.file.url, self.file.token))
        elif reply.status < 300:
            self._link = reply.target
        return reply

    def check_extent(self, reply: HttpReply, start: int, end: int) -> None:
        """Raise Trouble or PullFailed where the reply is not the bytes from `start` to `end`."""
        if reply.status == 200:
            raise PullFailed(f"`{self.file.name}` has changed on `{host_of(reply.target.url)}` meanwhile: pull again")
        check(reply, 206)
        size = self._size_of(reply)
        if size != self.size_bytes or not reply.header("Content-Range").startswith(f"bytes {start}-{end - 1}/"):
            raise self._wrong_size(size)
        check_plain(reply)

    def _size_of(self, reply: HttpReply) -> int | None:
        """Of the whole file."""
        check_plain(reply)
        if reply.status == 200:
            return reply.length
        size = reply.header("Content-Range").rpartition("/")[2]
        return int(size) if size.isdecimal() and len(size) < 19 else None

    def _wrong_size(self, size: int | None) -> PullFailed:
        return PullFailed(
            f"`{host_of(self._link.url)}` has another `{self.file.name}` than it said: {size} bytes in place of "
            f"{self.size_bytes}"
        )


def check_plain(reply: HttpReply) -> None:
    if reply.header("Content-Encoding") not in {"", "identity"}:
        raise PullFailed(f"`{host_of(reply.target.url)}` sends a file compressed, though it was asked not to")
