"""Prompts that were computed before, on the disk: their tokens and their cells, in a folder of bounded size.

Knows files, tokens and sizes; nothing of what cells are, nor of jobs. Several processes may share the folder.
Format of a file: a head (magic, form, number of tokens, bytes of the cells, key), the tokens (int32), the cells, and a
BLAKE2b of all that, keyed with the secret of the folder; all numbers little-endian. The engine does not check the cells
it is given, and any program can compute a plain checksum: so cells whose file lacks the right keyed hash are never
returned. The keyed hash takes as long as a plain one. Files that are cut off, damaged or foreign are removed.
"""

import contextlib
import hashlib
import hmac
import logging
import os
import sys
import threading
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from struct import Struct
from typing import Final

from shimmy.engine.kv.prefix_tree import n_common
from shimmy.system.private_folder import UNFINISHED, PrivateFolder, Worthless, create_private, open_own, remove

logger = logging.getLogger(__name__)

# Reading fewer tokens is hardly faster than computing them.
MIN_TOKENS: Final = 256

_MAGIC = b"shimmyPC"
_FORM = 1
_HEAD = Struct("<8sIIQ32s")
_TOKEN_BYTES = 4
_MAC_BYTES = 32
_SUFFIX = ".prompt"
_NICENESS = 10

Cells = Sequence[bytes | memoryview]  # in parts


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of the cache."""

    key: bytes
    name: str
    tokens: "array[int]" = field(compare=False)


@dataclass(frozen=True, slots=True)
class Found:
    """A file, and how many tokens of a prompt its cells begin with."""

    stored: Stored
    n_tokens: int


@dataclass(slots=True)
class _Shelf:
    """The files of one key, as the folder was when it had been changed last."""

    by_name: dict[str, Stored] = field(default_factory=dict)
    by_beginning: dict[bytes, list[Stored]] = field(default_factory=dict)  # the first MIN_TOKENS tokens
    changed_ns: int = -1

    def add(self, stored: Stored) -> None:
        if self.by_name.setdefault(stored.name, stored) is stored:
            self.by_beginning.setdefault(_beginning(stored.tokens), []).append(stored)

    def remove(self, name: str) -> None:
        stored = self.by_name.pop(name, None)
        if stored is not None:
            self.by_beginning[_beginning(stored.tokens)].remove(stored)

    def like(self, tokens: "array[int]") -> list[Stored]:
        return self.by_beginning.get(_beginning(tokens), [])


class PromptFiles:
    """The folder. Workers with the same key (32 bytes) compute the same cells from the same tokens (`cache_keys`).

    `keep` writes on a thread of its own; any thread may call the other methods.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        *,
        max_tokens: int,
        in_part: bool = True,
        on_written: Callable[[int, int], None] = lambda _written, _all: None,
    ) -> None:
        """Use `folder`, or make it, for `max_bytes` of all models together; OSError says why that cannot be.

        Prompts of more than `max_tokens` are not looked at. `in_part`: the first tokens of a stored prompt can be used
        without the others. `on_written` gets the bytes that were written and those of all files, on another thread.
        """
        self._folder = folder
        self.max_bytes = max_bytes
        self._max_tokens = max_tokens
        self._in_part = in_part
        self._on_written = on_written
        self._shelves: dict[bytes, _Shelf] = {}
        self._lock = threading.Lock()  # of the shelves
        self._writing: threading.Thread | None = None
        self._can_write = True
        self._private = PrivateFolder(folder)

    # -- looking up ----------------------------------------------------------------------------------------------

    def find(self, key: bytes, prompt: Sequence[int]) -> Found | None:
        """The file with the most first tokens of `prompt`, without its last token; None where these are too few."""
        n_wanted = len(prompt) - 1
        tokens = array("i", prompt[:n_wanted])
        with self._lock:
            alike = [(self._n_usable(stored, tokens), stored) for stored in self._shelf(key).like(tokens)]
        n_tokens, best = max(alike, key=lambda pair: pair[0], default=(0, None))
        return Found(best, n_tokens) if best is not None and n_tokens >= MIN_TOKENS else None

    def lacks(self, key: bytes, tokens: Sequence[int]) -> bool:
        """Whether the disk lacks so many of `tokens` that they are worth writing."""
        if not self._can_write or len(tokens) < MIN_TOKENS:
            return False
        found = self.find(key, [*tokens, 0])
        return len(tokens) - (found.n_tokens if found else 0) >= MIN_TOKENS

    def read(self, stored: Stored) -> memoryview | None:
        """The cells, in writable memory; None, and the file is removed, where it is not what was stored."""
        path = self._folder / stored.name
        try:
            with open_own(path) as file:
                cells = self._verified(file, stored)
            with contextlib.suppress(OSError):
                os.utime(path)  # the least recently used go first
        except FileNotFoundError:
            logger.debug("the stored prompt `%s` has gone", stored.name)
        except Worthless as exc:
            logger.warning("the stored prompt `%s` is %s and is removed", stored.name, exc)
            remove(path)
        except (OSError, MemoryError) as exc:
            logger.warning("the stored prompt `%s` cannot be read: %s", stored.name, exc)
        else:
            return cells
        with self._lock:
            self._shelf(stored.key, look=False).remove(stored.name)
        return None

    def _n_usable(self, stored: Stored, tokens: "array[int]") -> int:
        n_tokens = n_common(stored.tokens, tokens)
        return n_tokens if self._in_part or n_tokens == len(stored.tokens) else 0

    def _shelf(self, key: bytes, *, look: bool = True) -> _Shelf:
        """The files of `key`; reads the folder again where another process may have changed it."""
        shelf = self._shelves.setdefault(key, _Shelf())
        if not look:
            return shelf
        try:
            changed_ns = self._folder.stat().st_mtime_ns
            if changed_ns != shelf.changed_ns:
                prefix = _prefix(key)
                with os.scandir(self._folder) as entries:
                    names = {entry.name for entry in entries if entry.name.startswith(prefix)}
                names = set(filter(_is_finished, names))
                for name in shelf.by_name.keys() - names:
                    shelf.remove(name)
                for name in names - shelf.by_name.keys():
                    stored = self._described(key, name)
                    if stored is not None:
                        shelf.add(stored)
                shelf.changed_ns = changed_ns
        except OSError as exc:
            logger.debug("the folder of stored prompts cannot be read: %s", exc)
        return shelf

    def _described(self, key: bytes, name: str) -> Stored | None:
        """A file as its head describes it; `read` verifies the rest."""
        path = self._folder / name
        try:
            with open_own(path) as file:
                n_tokens, _ = _read_head(file, key)
                if n_tokens > self._max_tokens:
                    return None
                tokens = _as_tokens(file.read(n_tokens * _TOKEN_BYTES))
                return Stored(key, name, tokens)
        except Worthless as exc:
            logger.warning("the stored prompt `%s` is %s and is removed", name, exc)
            remove(path)
        except OSError as exc:
            logger.debug("the stored prompt `%s` cannot be read: %s", name, exc)
        return None

    def _verified(self, file: FileIO, stored: Stored) -> memoryview:
        n_tokens, n_bytes = _read_head(file, stored.key)
        start = _HEAD.size + n_tokens * _TOKEN_BYTES
        if start + n_bytes + _MAC_BYTES > self.max_bytes:
            raise Worthless("larger than all may be together")
        # Read and not mapped, so that no process can change the cells once they are verified.
        data = memoryview(bytearray(start + n_bytes + _MAC_BYTES))
        file.seek(0)
        n_read = 0
        while n_read < len(data):
            n_new = file.readinto(data[n_read:])
            if not n_new:
                raise Worthless("cut off")
            n_read += n_new
        mac = hashlib.blake2b(data[:-_MAC_BYTES], key=self._private.secret, digest_size=_MAC_BYTES)
        if not hmac.compare_digest(mac.digest(), data[-_MAC_BYTES:]):
            raise Worthless("damaged, or was written by another program")
        if _HEAD.unpack_from(data)[1:] != (_FORM, n_tokens, n_bytes, stored.key):
            raise Worthless("not the one it was")
        if _as_tokens(data[_HEAD.size : start]) != stored.tokens:
            raise Worthless("another one than it was")
        return data[start:-_MAC_BYTES]

    # -- writing -------------------------------------------------------------------------------------------------

    @property
    def is_writing(self) -> bool:
        """Whether `keep` would return False."""
        return self._writing is not None and self._writing.is_alive()

    def keep(self, key: bytes, tokens: Sequence[int], cells: Cells) -> bool:
        """Begin to store `cells` of `tokens`; False while another file is written, so that none pile up in memory.

        The parts of `cells` must not be changed afterwards.
        """
        if self.is_writing or not self._can_write:
            return False
        arguments = (key, array("i", tokens), cells)
        writing = threading.Thread(target=self._write, args=arguments, daemon=True)
        try:
            writing.start()
        except RuntimeError:  # the system allows no more of them now
            return False
        self._writing = writing
        return True

    def flush(self, timeout_s: float) -> None:
        """Wait for what is being written."""
        if self._writing is not None:
            self._writing.join(max(0.0, timeout_s))

    def _write(self, key: bytes, tokens: "array[int]", cells: Cells) -> None:
        if sys.platform == "linux":  # elsewhere it would be that of the whole process
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
        try:
            with self._private.locked():
                self._add_file(key, tokens, cells)
        except OSError as exc:
            self._can_write = False
            logger.warning("prompts are not stored in `%s` any more: %s", self._folder, exc.strerror)

    def _add_file(self, key: bytes, tokens: "array[int]", cells: Cells) -> None:
        n_bytes = sum(map(len, cells))
        head = _HEAD.pack(_MAGIC, _FORM, len(tokens), n_bytes, key)
        written = _as_bytes(tokens)
        size_bytes = len(head) + len(written) + n_bytes + _MAC_BYTES
        if size_bytes > self.max_bytes:
            return
        stored = Stored(key, _name(key, written), tokens)
        if self._in_part:
            self._remove_beginnings(stored)
        n_others_bytes = self._make_room(size_bytes)
        target = self._folder / stored.name
        unfinished = target.with_name(stored.name + UNFINISHED)
        mac = hashlib.blake2b(key=self._private.secret, digest_size=_MAC_BYTES)
        try:
            with open(unfinished, "xb", opener=create_private) as file:
                for part in (head, written, *cells):
                    mac.update(part)
                    file.write(part)
                file.write(mac.digest())
            unfinished.replace(target)
        except OSError:
            remove(unfinished)
            raise
        with self._lock:
            self._shelf(key, look=False).add(stored)
        self._on_written(size_bytes, n_others_bytes + size_bytes)

    def _remove_beginnings(self, stored: Stored) -> None:
        """Remove the files of prompts that are beginnings of `stored`."""
        with self._lock:
            shelf = self._shelf(stored.key)
            for other in shelf.like(stored.tokens).copy():
                if other.tokens == stored.tokens[: len(other.tokens)]:
                    remove(self._folder / other.name)
                    shelf.remove(other.name)

    def _make_room(self, n_bytes: int) -> int:
        """Remove what was used longest ago, until a file of `n_bytes` fits; returns the bytes of those that stay.

        Only the process with the lock writes: what is unfinished now was left behind by a process that has ended.
        """
        files = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIX + UNFINISHED):
                    remove(Path(entry.path))
                elif _is_finished(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        files.append((status.st_mtime_ns, status.st_size, entry.path))
        n_all = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if n_all + n_bytes <= self.max_bytes:
                break
            remove(Path(path))
            n_all -= size
        return n_all


def _beginning(tokens: "array[int]") -> bytes:
    return tokens[:MIN_TOKENS].tobytes()


def _prefix(key: bytes) -> str:
    return key[:8].hex() + "-"


def _name(key: bytes, tokens: bytes) -> str:
    return _prefix(key) + hashlib.blake2b(key + tokens, digest_size=16).hexdigest() + _SUFFIX


def _is_finished(name: str) -> bool:
    return name.endswith(_SUFFIX)


def _as_tokens(data: bytes | memoryview) -> "array[int]":
    tokens = array("i", bytes(data))
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens


def _as_bytes(tokens: "array[int]") -> bytes:
    if sys.byteorder == "big":
        tokens = tokens[:]
        tokens.byteswap()
    return tokens.tobytes()


def _read_head(file: FileIO, key: bytes) -> tuple[int, int]:
    """The number of tokens, and the bytes of the cells; raises Worthless where these do not fit the file."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise Worthless("cut off")
    magic, form, n_tokens, n_bytes, found_key = _HEAD.unpack(head)
    if magic != _MAGIC or form != _FORM or found_key != key or n_tokens < MIN_TOKENS:
        raise Worthless("not what its name says")
    if _HEAD.size + n_tokens * _TOKEN_BYTES + n_bytes + _MAC_BYTES != os.fstat(file.fileno()).st_size:
        raise Worthless("cut off or damaged")
    return n_tokens, n_bytes
