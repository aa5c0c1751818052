"""Fetches one file: several ranges of it at once, resumed where an earlier pull ended, and checked by its digest.

Knows ranges, extents and digests; where files come from and what they are for is known by the hub, the registry and
`single_file`.
"""

import fcntl
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from shimmy.errors import PullFailed
from shimmy.hub.transfer import source_note
from shimmy.hub.transfer.digests import Digest, digest_for
from shimmy.hub.transfer.events import Meter
from shimmy.hub.transfer.part_file import PartFile
from shimmy.hub.transfer.patience import Patience, Stopped, check
from shimmy.hub.transfer.web import Client, HttpReply, Target, Trouble, Web, host_of

N_CONNECTIONS = 8
CHUNK_BYTES = 32 << 20  # of a request
NOTE_BYTES = 4 << 20  # what a kill costs each connection
BUFFER_BYTES = 128 << 10
RANGES_FROM_BYTES = 4 << 20  # smaller files take one request
SPARE_BYTES = 64 << 20  # left free on the disk
_POLL_S = 0.1
_LOCKED_POLL_S = 0.5
_JOIN_S = 5.0  # a thread may be looking up a name
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


def fetch(file: RemoteFile, target: Path, lock: Path, transfer: Transfer) -> None:
    """Have `file` at `target`, whole and checked. Another program that fetches it is waited for. Raises PullFailed."""
    transfer.meter.file = file.name
    with locked(lock, transfer.meter):
        if target.exists():
            if file.note is not None:
                source_note.check(file.note, file.url, target, file.digest, transfer.meter)
            if file.size_bytes is not None and target.stat().st_size != file.size_bytes:
                raise PullFailed(f"`{target}` is there already, with another size: remove it first")
            transfer.meter.skipped(target.stat().st_size)
            transfer.meter.tick(is_last=True)
            return
        source = _Source(file, transfer)
        size_bytes = file.size_bytes
        if size_bytes is None or size_bytes >= RANGES_FROM_BYTES:
            source.probe()
            size_bytes = source.size_bytes
        if file.size_bytes is None and size_bytes is not None:
            transfer.meter.total = (transfer.meter.total or 0) + size_bytes
        identity = _identity(file, source.validator)
        with PartFile(target, identity, size_bytes if identity and source.has_ranges else None) as part:
            _check_room(target, size_bytes, part.n_there)
            _fetch(source, part, size_bytes)


def _identity(file: RemoteFile, validator: str) -> str:
    """What a later pull has to ask for to go on; '' where that cannot be known. Queries of signed links change."""
    return file.digest or (f"{validator} {file.url.partition('?')[0]}" if validator else "")


@contextmanager
def locked(path: Path, meter: Meter) -> Iterator[None]:
    """Hold the lock `path`, which huggingface_hub takes, too; while another program has it, say so and wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        is_said = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not is_said:
                    meter.say("waiting", reason=f"another program fetches `{meter.file}`", seconds=None)
                is_said = True
                threading.Event().wait(_LOCKED_POLL_S)
        yield
    finally:
        os.close(descriptor)


def _check_room(target: Path, size_bytes: int | None, n_there: int) -> None:
    if size_bytes is None:
        return
    free = os.statvfs(target.parent)
    n_free = free.f_bavail * free.f_frsize
    if size_bytes - n_there > n_free - SPARE_BYTES:
        raise PullFailed(
            f"`{target.parent}` has {max(n_free, 0) / 1e9:.1f} GB free, and {(size_bytes - n_there) / 1e9:.1f} GB are "
            "to be fetched: make room, or choose a smaller model"
        )


class _Source:
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
        _check_plain(reply)

    def _size_of(self, reply: HttpReply) -> int | None:
        """Of the whole file."""
        _check_plain(reply)
        if reply.status == 200:
            return reply.length
        size = reply.header("Content-Range").rpartition("/")[2]
        return int(size) if size.isdecimal() and len(size) < 19 else None

    def _wrong_size(self, size: int | None) -> PullFailed:
        return PullFailed(
            f"`{host_of(self._link.url)}` has another `{self.file.name}` than it said: {size} bytes in place of "
            f"{self.size_bytes}"
        )


def _check_plain(reply: HttpReply) -> None:
    if reply.header("Content-Encoding") not in {"", "identity"}:
        raise PullFailed(f"`{host_of(reply.target.url)}` sends a file compressed, though it was asked not to")


def _fetch(source: _Source, part: PartFile, size_bytes: int | None) -> None:
    """Fill the part file, check it, and give it its name. A digest that is wrong after a resume means a second try."""
    file, meter = source.file, source.transfer.meter
    for is_second in (False, True):
        n_there = part.n_there
        meter.skipped(n_there)
        if source.has_ranges and size_bytes:
            digest = _Ranges(source, part, size_bytes).run()
        else:
            digest = _stream(source, part, size_bytes)
        meter.tick(is_last=True)
        if digest is None or digest.hexdigest() == file.digest:
            _check_start(source, part)
            if file.note is not None:
                source_note.write(file.note, file.url, part.status())
            part.finish()
            return
        meter.skipped(-part.status().st_size)
        if is_second or not n_there:
            break
        part.restart()
    part.drop()
    raise PullFailed(f"what `{host_of(file.url)}` sends as `{file.name}` has not the digest that it should have")


def _check_start(source: _Source, part: PartFile) -> None:
    """A page of errors is no model."""
    start = bytearray(4)
    part.read(memoryview(start), 0)
    if source.file.name.lower().endswith(".gguf") and bytes(start) not in {b"GGUF", b"FUGG"}:
        part.drop()
        raise PullFailed(f"what `{host_of(source.file.url)}` sends as `{source.file.name}` is not a GGUF file")


def _stream(source: _Source, part: PartFile, size_bytes: int | None) -> Digest | None:
    """The whole file by one request, from its beginning at each try; what computed its digest."""
    meter, client = source.transfer.meter, source.transfer.client
    patience = Patience(meter, threading.Event(), tries=4)
    buffer = memoryview(bytearray(BUFFER_BYTES))
    at = 0
    while True:
        try:
            reply = source.ask(client, None)
            check(reply, 200)
            _check_plain(reply)
            expected = size_bytes if size_bytes is not None else reply.length
            while n_read := reply.readinto(buffer):
                if expected is not None and at + n_read > expected:
                    raise PullFailed(f"`{source.file.name}` is longer than it should be")
                if size_bytes is None:
                    _check_room(part.target, SPARE_BYTES, 0)
                part.write(buffer[:n_read], at)
                at += n_read
                meter.received(n_read)
                meter.tick()
            if expected is None or at == expected:
                break
            raise Trouble("the connection broke off")
        except Trouble as trouble:
            client.close()
            meter.skipped(-at)
            at = 0
            part.restart()
            patience.wait(trouble)
    digest, position = digest_for(source.file.digest, at), 0
    while digest is not None and (n_read := part.read(buffer, position)):
        digest.update(buffer[:n_read])
        position += n_read
    return digest


class _Task:
    """An extent to fetch; its bytes up to `at` are there."""

    __slots__ = ("at", "end", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = self.at = start
        self.end = end


class _Ranges:
    """Threads fetch extents in order, the main thread reads what is there without a gap and computes the digest."""

    def __init__(self, source: _Source, part: PartFile, size_bytes: int) -> None:
        self._source = source
        self._part = part
        self._size_bytes = size_bytes
        self._tasks = deque(
            _Task(start, min(start + CHUNK_BYTES, end))
            for first, end in part.missing(size_bytes)
            for start in range(first, end, CHUNK_BYTES)
        )
        self._waiting: SimpleQueue[_Task] = SimpleQueue()
        for task in self._tasks:
            self._waiting.put(task)
        self._stop = threading.Event()
        self._moved = threading.Event()
        self._failure: BaseException | None = None
        self._clients: list[Client] = []

    def run(self) -> Digest | None:
        """What computed the digest. Raises what a thread raised."""
        n_threads = min(N_CONNECTIONS, len(self._tasks))
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(n_threads)]
        for thread in threads:
            thread.start()
        try:
            digest = digest_for(self._source.file.digest, self._size_bytes)  # OpenSSL is unpacked meanwhile
            self._follow(digest)
        finally:
            self._stop.set()
            for client in [*self._clients]:
                client.abort()
            for thread in threads:
                thread.join(_JOIN_S)  # what they have fetched is noted
        if self._failure is not None:
            raise self._failure
        return digest

    def _follow(self, digest: Digest | None) -> None:
        buffer = memoryview(bytearray(4 * BUFFER_BYTES))
        at = flushed = 0
        while at < self._size_bytes and not self._stop.is_set():
            end = self._frontier()
            if at == end or (digest is None and end < self._size_bytes):
                self._moved.wait(_POLL_S)
                self._moved.clear()
            elif digest is None:
                at = end
            else:
                n_read = self._part.read(buffer[: end - at], at)
                digest.update(buffer[:n_read])
                at += n_read
                if at - flushed >= CHUNK_BYTES:
                    self._part.begin_flush(flushed, at)
                    flushed = at
            self._source.transfer.meter.tick()

    def _frontier(self) -> int:
        """All bytes before it are there."""
        while self._tasks and self._tasks[0].at == self._tasks[0].end:
            self._tasks.popleft()
        return self._tasks[0].at if self._tasks else self._size_bytes

    def _work(self) -> None:
        client = self._source.transfer.web.client()
        self._clients.append(client)
        buffer = memoryview(bytearray(BUFFER_BYTES))
        try:
            while not self._stop.is_set():
                self._fetch(self._waiting.get_nowait(), client, buffer)
        except (Empty, Stopped):
            pass
        except BaseException as exc:  # noqa: BLE001 - it is raised by the main thread
            self._failure = self._failure or exc
            self._stop.set()
        finally:
            client.close()

    def _fetch(self, task: _Task, client: Client, buffer: memoryview) -> None:
        patience = Patience(self._source.transfer.meter, self._stop)
        while task.at < task.end:
            before = task.at
            try:
                reply = self._source.ask(client, (task.at, task.end))
                self._source.check_extent(reply, task.at, task.end)
                self._receive(task, reply, buffer)
            except Trouble as trouble:
                client.close()
                if task.at > before:
                    patience.went_well()
                patience.wait(trouble)

    def _receive(self, task: _Task, reply: HttpReply, buffer: memoryview) -> None:
        noted = task.at
        try:
            while task.at < task.end:
                n_read = reply.readinto(buffer[: min(len(buffer), task.end - task.at)])
                if not n_read:
                    raise Trouble("the connection broke off")
                self._part.write(buffer[:n_read], task.at)
                task.at += n_read
                self._source.transfer.meter.received(n_read)
                self._moved.set()
                if task.at - noted >= NOTE_BYTES:
                    self._part.note(noted, task.at)
                    noted = task.at
                if self._stop.is_set():
                    raise Stopped
        finally:
            self._part.note(noted, task.at)
