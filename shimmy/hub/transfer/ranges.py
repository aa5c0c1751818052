"""Fetches what is missing of a file in several ranges at once, and computes the digest of the whole meanwhile.

Knows threads, connections and their pace; what a range is to be, `file_source` knows, and `part_file` what is there.
"""

import threading
from collections import deque
from queue import Empty, SimpleQueue
from time import monotonic

from shimmy.hub.transfer.digests import Digest, digest_for
from shimmy.hub.transfer.file_source import FileSource
from shimmy.hub.transfer.part_file import PartFile
from shimmy.hub.transfer.patience import Patience, Stopped
from shimmy.hub.transfer.web import Client, HttpReply, Trouble

N_CONNECTIONS = 8
CHUNK_BYTES = 32 << 20  # of a request
NOTE_BYTES = 4 << 20  # what a kill costs each connection
BUFFER_BYTES = 512 << 10  # of the first connection: a byte costs half of what it does at 128 KB
LATER_BUFFER_BYTES = 128 << 10  # of those that join it because the line is slow
MORE_EVERY_S = 0.1  # how often one more connection is tried
# Connections that spend more than this part of their time on what they got are as fast as this machine, and not as the
# line: more of them would only cost. Writing what 1 Gbit/s brings takes a twentieth of the time.
BUSY_SHARE = 0.1
_READ_S = 0.1  # what a slow line is read for at a time, so that it is seen to move
_MIN_READ_BYTES = 16 << 10
_POLL_S = 0.1
_JOIN_S = 5.0  # a thread may be looking up a name


class _Task:
    """An extent to fetch; its bytes up to `at` are there."""

    __slots__ = ("at", "end", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start = self.at = start
        self.end = end


class Ranges:
    """Threads fetch extents in order, the main thread reads what is there without a gap and computes the digest.

    One connection begins, and others join it for as long as all wait for the line. Where one brings all that this
    machine can take, as from a mirror in the house, more would only wait for each other's locks. None joins while one
    has been told to come back later.
    """

    def __init__(self, source: FileSource, part: PartFile, size_bytes: int) -> None:
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
        self._threads: list[threading.Thread] = []
        # What all connections have spent on what they got since `_joined_s`; an addition may get lost to another one.
        self._busy_s = 0.0
        self._joined_s = monotonic()
        self._paused: set[_Task] = set()  # whose connections leave the server alone for a while, after trouble

    def run(self) -> Digest | None:
        """What computed the digest. Raises what a thread raised."""
        try:
            self._join()
            digest = digest_for(self._source.file.digest, self._size_bytes)  # OpenSSL is unpacked meanwhile
            self._follow(digest)
        finally:
            self._stop.set()
            for client in self._clients:
                client.abort()
            for thread in self._threads:
                thread.join(_JOIN_S)  # what they have fetched is noted
        if self._failure is not None:
            raise self._failure
        return digest

    def _join_if_slow(self) -> None:
        """Have one more connection where those that there are have waited for the line for a while."""
        now_s = monotonic()
        if now_s - self._joined_s < MORE_EVERY_S or len(self._threads) == N_CONNECTIONS or self._waiting.empty():
            return
        if not self._paused and self._busy_s <= BUSY_SHARE * len(self._threads) * (now_s - self._joined_s):
            self._join()
        self._joined_s, self._busy_s = now_s, 0.0

    def _join(self) -> None:
        transfer = self._source.transfer
        if self._threads:
            client, buffer_bytes = transfer.web.client(), LATER_BUFFER_BYTES
        else:
            client, buffer_bytes = transfer.client, BUFFER_BYTES  # it has asked for the size already
        thread = threading.Thread(target=self._work, args=(client, buffer_bytes), daemon=True)
        self._clients.append(client)
        self._threads.append(thread)
        thread.start()

    def _follow(self, digest: Digest | None) -> None:
        buffer = memoryview(bytearray(BUFFER_BYTES))
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
            self._join_if_slow()

    def _frontier(self) -> int:
        """All bytes before it are there."""
        while self._tasks and self._tasks[0].at == self._tasks[0].end:
            self._tasks.popleft()
        return self._tasks[0].at if self._tasks else self._size_bytes

    def _work(self, client: Client, buffer_bytes: int) -> None:
        buffer = memoryview(bytearray(buffer_bytes))
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
        patience = Patience(self._source.transfer.meter, self._stop, has_others=True)
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
                self._paused.add(task)
                patience.wait(trouble)
                self._paused.discard(task)

    def _receive(self, task: _Task, reply: HttpReply, buffer: memoryview) -> None:
        noted = task.at
        n_wanted = _MIN_READ_BYTES
        done_s = monotonic()  # with what was read before
        try:
            while task.at < task.end:
                began_s = monotonic()
                self._busy_s += began_s - done_s
                n_read = reply.readinto(buffer[: min(n_wanted, task.end - task.at)])
                if not n_read:
                    raise Trouble("the connection broke off")
                done_s = monotonic()
                took_s = done_s - began_s
                n_wanted = min(max(_MIN_READ_BYTES, int(n_read * _READ_S / max(took_s, 1e-6))), len(buffer))
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
