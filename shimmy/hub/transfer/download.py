"""Fetches one file: in ranges where the server has them, resumed where an earlier pull ended, checked by its digest.

Knows locks, room on the disk, and when a file gets its name; where files come from and what they are for is known by
the hub, the registry and `single_file`.
"""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shimmy.errors import PullFailed
from shimmy.hub.transfer import source_note
from shimmy.hub.transfer.digests import Digest, digest_for
from shimmy.hub.transfer.events import Meter
from shimmy.hub.transfer.file_source import FileSource, RemoteFile, Transfer, check_plain
from shimmy.hub.transfer.part_file import PartFile
from shimmy.hub.transfer.patience import Patience, check
from shimmy.hub.transfer.ranges import Ranges
from shimmy.hub.transfer.web import Trouble, host_of

BUFFER_BYTES = 256 << 10
RANGES_FROM_BYTES = 4 << 20  # smaller files take one request
SPARE_BYTES = 64 << 20  # left free on the disk
_LOCKED_POLL_S = 0.5


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
        source = FileSource(file, transfer)
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


def _fetch(source: FileSource, part: PartFile, size_bytes: int | None) -> None:
    """Fill the part file, check it, and give it its name. A digest that is wrong after a resume means a second try."""
    file, meter = source.file, source.transfer.meter
    for is_second in (False, True):
        n_there = part.n_there
        meter.skipped(n_there)
        if source.has_ranges and size_bytes:
            digest = Ranges(source, part, size_bytes).run()
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


def _check_start(source: FileSource, part: PartFile) -> None:
    """A page of errors is no model."""
    start = bytearray(4)
    part.read(memoryview(start), 0)
    if source.file.name.lower().endswith(".gguf") and bytes(start) not in {b"GGUF", b"FUGG"}:
        part.drop()
        raise PullFailed(f"what `{host_of(source.file.url)}` sends as `{source.file.name}` is not a GGUF file")


def _stream(source: FileSource, part: PartFile, size_bytes: int | None) -> Digest | None:
    """The whole file by one request, from its beginning at each try; what computed its digest."""
    meter, client = source.transfer.meter, source.transfer.client
    patience = Patience(meter, threading.Event(), tries=4)
    buffer = memoryview(bytearray(BUFFER_BYTES))
    at = 0
    while True:
        try:
            reply = source.ask(client, None)
            check(reply, 200)
            check_plain(reply)
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
