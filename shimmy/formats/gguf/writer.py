"""Writes a GGUF file, version 3, as a stream: metadata, tensor infos, then each tensor's bytes as they come.

Knows the layout that ggml/src/gguf.cpp reads, and nothing of what a key or a tensor means.
"""

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf.tensor_types import GGML_TYPES

ALIGNMENT = 32  # of each tensor's data; what a reader assumes where `general.alignment` does not say otherwise

GGML_CODES = {name: code for code, (name, _, _) in GGML_TYPES.items()}

_VERSION = 3
# With one call. Linux looks for as much memory in one piece, and takes twice the time and more for the same bytes in
# calls of 1 MB where its memory is in pieces.
_WRITTEN_BYTES = 1 << 18
_PROGRESS_S = 0.1  # between two calls of `on_progress`, where threads write


class GgufType(IntEnum):
    """gguf_type: how a value of the metadata is stored."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_FORMS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))

# Key, type and value; an array's value is (type of the items, list of the items).
Metadata = list[tuple[str, GgufType, Any]]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the file says of one tensor."""

    name: str
    shape: tuple[int, ...]  # in ggml's order, the row length first
    code: int  # ggml_type

    @property
    def n_elements(self) -> int:
        n_elements = 1
        for dimension in self.shape:
            n_elements *= dimension
        return n_elements

    @property
    def kind(self) -> str:
        """The type's name."""
        return GGML_TYPES[self.code][0]

    @property
    def n_bytes(self) -> int:
        _, block_elements, block_bytes = GGML_TYPES[self.code]
        return self.n_elements // block_elements * block_bytes


def encode_header(metadata: Metadata, tensors: Sequence[TensorInfo]) -> bytes:
    """The file up to where the tensors' data begins. Raises Unconvertible for a value that cannot be stored."""
    parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, code, value in metadata:
        try:
            parts += [_string(key), struct.pack("<I", code), _value(code, value)]
        except (struct.error, UnicodeEncodeError, OverflowError) as exc:
            raise Unconvertible(f"its `{key}` has a value that no GGUF can hold") from exc
    offset = 0
    for tensor in tensors:
        layout = f"<I{len(tensor.shape)}QIQ"
        parts += [_string(tensor.name), struct.pack(layout, len(tensor.shape), *tensor.shape, tensor.code, offset)]
        offset += _padded(tensor.n_bytes)
    header = b"".join(parts)
    return header.ljust(_padded(len(header)), b"\0")


def data_size(tensors: Iterable[TensorInfo]) -> int:
    """Bytes of all tensors' data behind the header."""
    return sum(_padded(tensor.n_bytes) for tensor in tensors)


def write_file(
    target: Path,
    metadata: Metadata,
    tensors: Sequence[tuple[TensorInfo, Iterable[memoryview]]],
    on_progress: Callable[[float], None],
    n_threads: int = 1,
) -> None:
    """Write the whole file. Each tensor comes in chunks, of which one may be reused once the next is asked for.

    With more than one thread, so many tensors are written at once: each iterable is used by one thread, from its
    beginning to its end. `on_progress` is called by the caller's thread with the share that is done, 0 to 1; what it
    raises ends the writing.
    """
    infos = [tensor for tensor, _ in tensors]
    header = encode_header(metadata, infos)
    with FileIO(target, "w") as file:
        sink = _Sink(file, len(header) + data_size(infos))
        sink.write(header, 0)
        placed, place = [], len(header)
        for tensor, chunks in tensors:
            placed.append((place, tensor, chunks))
            place += _padded(tensor.n_bytes)
        if n_threads == 1:
            on_progress(sink.share)
            for one in placed:
                for _ in sink.writing(*one):
                    on_progress(sink.share)
        else:
            _write_at_once(sink, placed, on_progress, n_threads)


_Placed = tuple[int, TensorInfo, Iterable[memoryview]]  # where in the file, what, and its bytes


def _write_at_once(
    sink: "_Sink", placed: Sequence[_Placed], on_progress: Callable[[float], None], n_threads: int
) -> None:
    from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait  # which plain conversions do without

    def write(one: _Placed) -> None:
        for _ in sink.writing(*one):
            pass

    with ThreadPoolExecutor(n_threads, "convert") as threads:
        try:
            left = {threads.submit(write, one) for one in placed}
            while left:
                done, left = wait(left, _PROGRESS_S, FIRST_EXCEPTION)
                for one in done:
                    one.result()
                on_progress(sink.share)
        except BaseException:
            sink.is_ended = True
            threads.shutdown(cancel_futures=True)
            raise


class _EndedError(Exception):
    """Ends the writing of a tensor where another one has failed."""


class _Sink:
    """Writes whole chunks to their places in a file, for any thread, and knows how far it is."""

    def __init__(self, file: FileIO, size_bytes: int) -> None:
        self._file = file.fileno()
        self._size_bytes = size_bytes
        self._n_done = 0
        self._lock = Lock()
        self.is_ended = False

    @property
    def share(self) -> float:
        """Of the file that is written, 0 to 1."""
        return self._n_done / self._size_bytes

    def write(self, data: bytes | memoryview, place: int) -> None:
        if self.is_ended:
            raise _EndedError
        left = memoryview(data)
        while left:
            n_written = os.pwrite(self._file, left[:_WRITTEN_BYTES], place)
            left, place = left[n_written:], place + n_written
        with self._lock:
            self._n_done += len(data)

    def writing(self, start: int, tensor: TensorInfo, chunks: Iterable[memoryview]) -> Iterator[None]:
        """Write the bytes of a tensor, and what fills it up; yields after each chunk."""
        n_bytes = 0
        for chunk in chunks:
            self.write(chunk, start + n_bytes)
            n_bytes += chunk.nbytes
            yield
        if n_bytes != tensor.n_bytes:
            raise ValueError(f"`{tensor.name}` has {tensor.n_bytes} bytes, and {n_bytes} were written")
        if padding := _padded(n_bytes) - n_bytes:
            self.write(bytes(padding), start + n_bytes)
            yield


def _padded(n_bytes: int) -> int:
    return (n_bytes + ALIGNMENT - 1) & -ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(code: GgufType, value: Any) -> bytes:
    if code is GgufType.STRING:
        return _string(value)
    if code is not GgufType.ARRAY:
        return struct.pack("<" + _FORMS[code], value)
    item_code, items = value
    head = struct.pack("<IQ", item_code, len(items))
    if item_code is GgufType.STRING:
        return head + b"".join(map(_string, items))
    return head + struct.pack(f"<{len(items)}{_FORMS[item_code]}", *items)
