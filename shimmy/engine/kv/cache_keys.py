"""Which cells a worker computes: keys that are equal where the same tokens give the same cells.

Knows files by their bytes, and reads a few milliseconds' worth of them. Two files count as one when they have the same
size and time of change, begin with the same 8 MiB (metadata and the list of tensors of a GGUF file) and are the same in
512 places spread over the rest. So cells computed with one file are never used with another, unless a person edits
single weights and sets the clock back.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from struct import pack

from shimmy import __version__
from shimmy.formats.gguf import reader
from shimmy.formats.safetensors import huggingface
from shimmy.messages.model_info import Adapter

_BEGINNING_BYTES = 8 * 2**20
_N_SAMPLES = 512
_SAMPLE_BYTES = 4096


class OpenFiles:
    """Files that are opened before the engine loads them, so that the digest is never that of a replacement."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Raises OSError when one cannot be opened."""
        with contextlib.ExitStack() as stack:
            self._files = [(path, stack.enter_context(path.open("rb", buffering=0))) for path in paths]
            self._states = [_state(os.fstat(file.fileno())) for _, file in self._files]
            self.close = stack.pop_all().close
        self._digest: bytes | None = None

    def are_in_place(self) -> bool:
        """Whether the names still lead to these files: then the engine, which opened the names, has loaded them."""
        try:
            return all(os.path.samestat(path.stat(), os.fstat(file.fileno())) for path, file in self._files)
        except OSError:
            return False

    def are_unchanged(self) -> bool:
        """Whether the files have not been written to since they were opened."""
        return [_state(os.fstat(file.fileno())) for _, file in self._files] == self._states

    def digest(self) -> bytes:
        """32 bytes that stand for all of them, in this order. Raises OSError when they cannot be read."""
        if self._digest is None:
            self._digest = self._read()
        return self._digest

    def try_digest(self) -> None:
        """Read now what `digest` will tell, or raise."""
        with contextlib.suppress(OSError):
            self.digest()

    def _read(self) -> bytes:
        result = hashlib.blake2b(digest_size=32)
        for (_, file), (size, modified_ns) in zip(self._files, self._states, strict=True):
            result.update(pack("<QQ", size, modified_ns))
            result.update(os.pread(file.fileno(), _BEGINNING_BYTES, 0))
            step = max(_SAMPLE_BYTES, (size - _BEGINNING_BYTES) // _N_SAMPLES)
            for start in range(_BEGINNING_BYTES, size, step):
                result.update(os.pread(file.fileno(), _SAMPLE_BYTES, start))
        return result.digest()


class Sources:
    """The files that a worker is about to load. Make it before the load, and call `keys` after the load."""

    def __init__(self, model: Path, adapters: Iterable[Path]) -> None:
        """For the GGUF file `model` with its shards, and adapters it may take. Raises OSError or InvalidGguf."""
        self._model = OpenFiles(reader.shard_paths(model, reader.read_header(model)))
        self._reading = threading.Thread(target=self._model.try_digest)  # while the engine loads them
        self._reading.start()
        self._adapters: dict[str, OpenFiles] = {}
        for path in adapters:
            with contextlib.suppress(OSError):  # it is refused, or its scale stays 0
                parts = (huggingface.adapter_file(path), path / huggingface.ADAPTER_CONFIG)
                self._adapters[str(path)] = OpenFiles(parts if path.is_dir() else parts[:1])

    def close(self) -> None:
        """Let go of the files; the keys are of no use after that."""
        self._reading.join()
        for files in (self._model, *self._adapters.values()):
            files.close()

    def keys(self, adapters: Sequence[Adapter], *others: bytes) -> "Keys":
        """For the loaded `adapters`; `others` is what else the cells depend on. Raises OSError where a file was
        replaced meanwhile: the engine may have loaded either of the two."""
        self._reading.join()
        loaded = {adapter.path: self._adapters[adapter.path] for adapter in adapters if adapter.path in self._adapters}
        if not all(files.are_in_place() for files in (self._model, *loaded.values())):
            raise OSError(0, "a file was replaced while it was loaded")
        return Keys(self._model, [loaded.get(adapter.path) for adapter in adapters], others)


class Keys:
    """One key for each setting of the adapters."""

    def __init__(self, model: OpenFiles, adapters: Sequence[OpenFiles | None], others: Sequence[bytes]) -> None:
        self._files = [model, *(files for files in adapters if files is not None)]
        self._base = _digest(__version__.encode(), model.digest(), *others)
        self._adapters = [None if files is None else files.digest() for files in adapters]

    def of(self, scales: Sequence[float]) -> bytes | None:
        """32 bytes for these scales of the adapters; None where the files have changed, or are not known."""
        used = [(adapter, scale) for adapter, scale in zip(self._adapters, scales, strict=True) if scale]
        if not all(files.are_unchanged() for files in self._files):
            return None
        parts = [self._base]
        for adapter, scale in used:
            if adapter is None:
                return None
            parts += [adapter, pack("<d", scale)]
        return _digest(*parts)


def digest_of(path: Path) -> bytes:
    """32 bytes that stand for the whole content of a file; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).digest()


def _digest(*parts: bytes) -> bytes:
    """Of parts that may have any length."""
    result = hashlib.blake2b(digest_size=32)
    for part in parts:
        result.update(pack("<Q", len(part)) + part)
    return result.digest()


def _state(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
