"""Writes a GGUF file, version 3, as a stream: metadata, tensor infos, then each tensor's bytes as they come.

Knows the layout that ggml/src/gguf.cpp reads, and nothing of what a key or a tensor means.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from io import FileIO
from pathlib import Path
from typing import Any

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf.reader import GGML_TYPES

ALIGNMENT = 32  # of each tensor's data; what a reader assumes where `general.alignment` does not say otherwise

GGML_CODES = {name: code for code, (name, _, _) in GGML_TYPES.items()}

_VERSION = 3


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
) -> None:
    """Write the whole file. Each tensor comes in chunks, of which one may be reused once the next is asked for.

    `on_progress` is called with the share that is done, 0 to 1; what it raises ends the writing.
    """
    infos = [tensor for tensor, _ in tensors]
    header = encode_header(metadata, infos)
    with FileIO(target, "w") as file:
        sink = _Sink(file, len(header) + data_size(infos), on_progress)
        sink.write(header)
        for tensor, chunks in tensors:
            _write_tensor(sink, tensor, chunks)


class _Sink:
    """Writes whole chunks to a file, and tells how far it is."""

    def __init__(self, file: FileIO, size_bytes: int, on_progress: Callable[[float], None]) -> None:
        self._file = file
        self._size_bytes = size_bytes
        self._n_done = 0
        self._on_progress = on_progress

    def write(self, data: bytes | memoryview) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        self._n_done += len(data)
        self._on_progress(self._n_done / self._size_bytes)


def _write_tensor(sink: _Sink, tensor: TensorInfo, chunks: Iterable[memoryview]) -> None:
    """Write the bytes of the next tensor, and what fills it up."""
    n_bytes = 0
    for chunk in chunks:
        sink.write(chunk)
        n_bytes += chunk.nbytes
    if n_bytes != tensor.n_bytes:
        raise ValueError(f"`{tensor.name}` has {tensor.n_bytes} bytes, and {n_bytes} were written")
    if padding := _padded(n_bytes) - n_bytes:
        sink.write(bytes(padding))


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
