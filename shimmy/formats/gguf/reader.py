"""The header of a GGUF file, versions 2 and 3, read without numpy and without trusting one byte of it.

Knows the layout of metadata and tensor infos as ggml/src/gguf.cpp reads them; nothing of weights, tokens or folders.
What the metadata mean, `gguf_header` says. Time and memory are bounded by the limits below, whatever a file claims.
"""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

from shimmy.formats import git_lfs
from shimmy.formats.gguf.header import MAX_KEPT_NUMBERS, Array, GgufHeader, GgufKind, Value, describe
from shimmy.formats.gguf.limits import missing_indexer, refusal
from shimmy.formats.gguf.tensor_types import GGML_TYPES
from shimmy.system.files import NotRegular, open_regular

# Far above any real model; a hostile file costs less than a second.
MAX_HEADER_BYTES = 256 * 1024 * 1024
MAX_KEYS = 4_096
MAX_KEY_BYTES = 1_024
MAX_KEPT_BYTES = 256  # longer strings (templates, licences) are only known to be there
MAX_TENSORS = 65_536
MAX_SHARDS = 1_024
MAX_STRINGS = 2_097_152  # in all string arrays together; gemma-4 has 262 k tokens and 514 k merges
MAX_TENSOR_NAME_BYTES = 63  # GGML_MAX_NAME, less the zero
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
MAX_ELEMENTS = 2**63 - 1
# ggml rounds sizes up to it, which must not wrap around; no less than ggml's own (TENSOR_ALIGNMENT).
MAX_ALIGNMENT = 2**20

_WINDOW_BYTES = 256 * 1024
_LONG_ARRAY = 1_024  # strings; walking fewer is faster than searching behind them
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9

# gguf_type: how one value is stored. Strings (8) and arrays (9) have no fixed size.
_SCALARS = {code: Struct("<" + form) for code, form in zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True)}
_UINT32, _UINT64 = _SCALARS[4], _SCALARS[10]
_ARRAY_HEAD = Struct("<IQ")  # element type, number of elements
_COUNTS = Struct("<QQ")  # tensors, keys
_TENSOR_TAILS = tuple(Struct(f"<{n}QIQ") for n in range(MAX_DIMENSIONS + 1))  # dimensions, ggml type, offset


class InvalidGguf(ValueError):
    """Why a file is no GGUF that can be served, in words for a person. The message does not name the file."""


class StoredTensor(NamedTuple):
    """What a file says of one tensor."""

    shape: tuple[int, ...]  # in ggml's order, the row length first
    code: int  # ggml_type


@dataclass(frozen=True, slots=True)
class Contents:
    """A header, and what it was read from."""

    header: GgufHeader
    metadata: dict[bytes, Value]
    types: dict[bytes, int]  # gguf_type of each key
    tensors: dict[bytes, StoredTensor]
    starts: dict[bytes, int]  # where in the file the bytes of each begin

    @property
    def n_positions(self) -> int | None:
        """Rows of its table of positions, beyond which there are none; None for a model without one."""
        table = self.tensors.get(b"position_embd.weight")
        return table.shape[1] if table is not None and len(table.shape) > 1 else None

    @property
    def longest_token_bytes(self) -> int:
        """Of the text of any token; 0 where no strings were walked."""
        tokens = self.metadata.get(b"tokenizer.ggml.tokens")
        return tokens.longest_bytes if isinstance(tokens, Array) else 0

    @property
    def words(self) -> str:
        """How a model that Shimmy has converted cuts text into words in llama.cpp's place; '' where llama.cpp does."""
        name = self.metadata.get(b"shimmy.tokenizer.words", b"")
        return name.decode("utf-8", "replace") if isinstance(name, bytes) else ""


def read_header(path: Path) -> GgufHeader:
    """The header of `path`, in about a millisecond. Raises InvalidGguf, or OSError when the file cannot be read.

    Everything is checked but the strings of a long vocabulary: those are jumped over by looking for the next key behind
    them. The rest of the header proves the jump right (the number of keys is given, and every tensor has to start where
    the one before it ends); when it does not, the strings are walked one by one.
    """
    with _open(path) as file:
        try:
            return _read(file, _Cursor.jump_strings).header
        except InvalidGguf:
            return _read(file, _Cursor.walk_strings).header


def validate(path: Path) -> GgufHeader:
    """Like `read_header`, with every string of every shard walked: for the worker, before the engine opens them."""
    return validated(path).header


def validated(path: Path) -> "Contents":
    """All that the file at `path` says, once `validate` has nothing against it and its shards."""
    found = contents(path)
    header, names = found.header, set(found.tensors)
    for index, shard_path in enumerate(shard_paths(path, header) if header.n_shards > 1 else ()):
        shard = contents(shard_path)
        if (shard.header.shard, shard.header.n_shards) != (index, header.n_shards):
            raise InvalidGguf(f"its shard `{shard_path.name}` is not what its name says")
        names |= shard.tensors.keys()
    if reason := missing_indexer(found.metadata, header.architecture, names):
        raise InvalidGguf(reason)
    return found


def contents(path: Path) -> "Contents":
    """All that one file says of itself and of its tensors, with every string walked."""
    with _open(path) as file:
        return _read(file, _Cursor.walk_strings)


def tensors(path: Path, header: GgufHeader) -> "dict[bytes, StoredTensor]":
    """The tensors of all shards of the model at `path`, by their names."""
    return {name: tensor for part in shard_paths(path, header) for name, tensor in contents(part).tensors.items()}


def shard_paths(path: Path, header: GgufHeader) -> tuple[Path, ...]:
    """All files of the model that `path` with this `header` is a part of, as llama_split_path names them.

    Raises InvalidGguf when the name of `path` is another one: llama.cpp would not find the others.
    """
    if header.n_shards == 1:
        return (path,)
    suffix = f"-{header.shard + 1:05d}-of-{header.n_shards:05d}.gguf"
    if not path.name.endswith(suffix):
        raise InvalidGguf(f"it is shard {header.shard + 1} of {header.n_shards}: its name has to end with `{suffix}`")
    stem = path.name.removesuffix(suffix)
    return tuple(path.with_name(f"{stem}-{n:05d}-of-{header.n_shards:05d}.gguf") for n in range(1, header.n_shards + 1))


def _open(path: Path) -> FileIO:
    try:
        return open_regular(path)
    except NotRegular as exc:
        raise InvalidGguf("it is not a regular file") from exc


class _Cursor:
    """A position in a file and a window of bytes around it.

    Read and not mapped: truncating a mapped file ends the process that looks at it with SIGBUS.
    """

    __slots__ = ("_buffer", "_end", "_file", "_index", "_n_strings_left", "_start", "size_bytes")

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self.size_bytes = os.fstat(file.fileno()).st_size
        self._end = min(self.size_bytes, MAX_HEADER_BYTES)
        self._buffer = b""
        self._start = 0  # where in the file the buffer begins
        self._index = 0  # position in the buffer; may lie behind its end
        self._n_strings_left = MAX_STRINGS

    @property
    def position(self) -> int:
        return self._start + self._index

    def _fill(self, n_bytes: int) -> None:
        """Move the window so that it starts at the position and holds at least `n_bytes`."""
        self._start += self._index
        self._index = 0
        if self._start + n_bytes <= self._end:
            self._file.seek(self._start)
            self._buffer = self._file.read(max(n_bytes, _WINDOW_BYTES))
            if len(self._buffer) >= n_bytes:
                return
        raise InvalidGguf(f"it is cut off or broken: its header does not end within {self._end} bytes")

    def unpack(self, layout: Struct) -> tuple[Any, ...]:
        if self._index + layout.size > len(self._buffer):
            self._fill(layout.size)
        values = layout.unpack_from(self._buffer, self._index)
        self._index += layout.size
        return values

    def skip(self, n_bytes: int) -> None:
        if n_bytes > self._end - self.position:
            raise InvalidGguf(f"it is cut off or broken: its header does not end within {self._end} bytes")
        self._index += n_bytes

    def take(self, n_bytes: int) -> bytes:
        if self._index + n_bytes > len(self._buffer):
            self._fill(n_bytes)
        value = self._buffer[self._index : self._index + n_bytes]
        self._index += n_bytes
        return value

    def name(self, what: str, max_bytes: int) -> bytes:
        (n_bytes,) = self.unpack(_UINT64)
        if n_bytes > max_bytes:
            raise InvalidGguf(f"the {what} at byte {self.position} has {n_bytes} bytes, more than {max_bytes}")
        return self.take(n_bytes)

    def value(self, code: int, skip_strings: Callable[["_Cursor", int], int]) -> Value:
        """One value of the gguf_type `code`; of an array only what `Array` tells is kept."""
        if layout := _SCALARS.get(code):
            scalar: int | float = self.unpack(layout)[0]
            return scalar
        if code == _STRING:
            (n_bytes,) = self.unpack(_UINT64)
            if n_bytes <= MAX_KEPT_BYTES:
                return self.take(n_bytes)
            self.skip(n_bytes)
            return None
        if code != _ARRAY:
            raise InvalidGguf(f"the value at byte {self.position} has the unknown type {code}")
        code, n_items = self.unpack(_ARRAY_HEAD)
        start = self.position
        if layout := _SCALARS.get(code):
            if n_items <= MAX_KEPT_NUMBERS:
                numbers = tuple(n for (n,) in layout.iter_unpack(self.take(n_items * layout.size)))
                return Array(n_items, numbers, code=code, start=start)
            self.skip(n_items * layout.size)
        elif code == _STRING:
            return Array(n_items, (), self._skip_strings(n_items, skip_strings), code, start)
        else:  # ggml knows no arrays of arrays either
            raise InvalidGguf(f"the array at byte {self.position} has items of the unsupported type {code}")
        return Array(n_items, code=code, start=start)

    def _skip_strings(self, n_strings: int, skip_strings: Callable[["_Cursor", int], int]) -> int:
        """Go behind so many strings; how long the longest is, 0 where they were jumped over."""
        self._n_strings_left -= n_strings
        if self._n_strings_left < 0:
            raise InvalidGguf(f"its arrays claim more than {MAX_STRINGS} strings")
        return self.walk_strings(n_strings) if n_strings < _LONG_ARRAY else skip_strings(self, n_strings)

    def walk_strings(self, n_strings: int) -> int:
        """Skip strings one by one: 0.1 µs each. Returns the length of the longest."""
        length_at = _UINT64.unpack_from
        longest = 0
        while n_strings:
            buffer, index = self._buffer, self._index
            try:
                for n_left in range(n_strings, 0, -1):
                    n_strings = n_left
                    (n_bytes,) = length_at(buffer, index)
                    index += 8 + n_bytes
                    if n_bytes > longest:  # noqa: PLR1730 - `max` would double the time of the walk
                        longest = n_bytes
                n_strings = 0
            except (struct.error, OverflowError):  # the next length lies behind the window
                pass
            self.skip(index - self._index)
            if n_strings:
                self._fill(8)
        return longest

    def jump_strings(self, n_strings: int) -> int:
        """Go to the next `tokenizer.*` key at the speed of a byte search. It may be a wrong one: see `read_header`."""
        self.skip(8 * n_strings)  # each string has at least its length
        end = self.position + 64 * n_strings
        key = bytes(7) + b"tokenizer."  # the upper bytes of the key's length, and how it begins
        while (found := self._buffer.find(key, self._index)) < 0:
            if self.position > end:
                raise InvalidGguf("no key follows its vocabulary")
            self._index = max(self._index, len(self._buffer) - len(key))
            self._fill(len(key) + 1)
        self._index = max(found - 1, 0)
        return 0


def _read(file: FileIO, skip_strings: Callable[[_Cursor, int], int]) -> Contents:
    cursor = _Cursor(file)
    _check_version(cursor)
    n_tensors, n_keys = cursor.unpack(_COUNTS)
    if n_tensors > MAX_TENSORS or n_keys > MAX_KEYS:
        raise InvalidGguf(f"it claims {n_tensors} tensors and {n_keys} keys, more than any model has")
    # Without tensors nothing behind the vocabulary would prove a jump right.
    metadata, types = _read_metadata(cursor, n_keys, skip_strings if n_tensors else _Cursor.walk_strings)
    alignment = _alignment(metadata)
    tensors, offsets, n_params = _read_tensors(cursor, n_tensors, alignment)
    data_start = _align(cursor.position, alignment)
    header = describe(metadata, n_tensors, n_params, cursor.size_bytes)
    _check_header(header)
    if header.kind is GgufKind.MODEL:
        sorts = ((name, len(tensor.shape), tensor.code) for name, tensor in tensors.items())
        if reason := refusal(metadata, header.architecture, sorts):
            raise InvalidGguf(reason)
    return Contents(header, metadata, types, tensors, {name: data_start + at for name, at in offsets.items()})


def _check_version(cursor: _Cursor) -> None:
    if cursor.size_bytes < 24:
        raise InvalidGguf(f"it has {cursor.size_bytes} bytes, too few for a GGUF file")
    if (magic := cursor.take(4)) != b"GGUF":
        is_note = git_lfs.is_note(magic + cursor.take(git_lfs.NOTE_START_BYTES - 4))
        raise InvalidGguf(git_lfs.reason("it") if is_note else "it does not begin with `GGUF`")
    (version,) = cursor.unpack(_UINT32)
    if version == 1:
        raise InvalidGguf("it is GGUF version 1, which is no longer supported; convert the model anew")
    if version and version & 0xFFFF == 0:
        raise InvalidGguf("it is a big-endian GGUF file; convert it with `gguf-convert-endian`")
    if version not in (2, 3):
        raise InvalidGguf(f"it is GGUF version {version}; versions 2 and 3 are supported")


def _read_metadata(
    cursor: _Cursor, n_keys: int, skip_strings: Callable[[_Cursor, int], int]
) -> tuple[dict[bytes, Value], dict[bytes, int]]:
    """The value of each key, and its gguf_type."""
    metadata: dict[bytes, Value] = {}
    types: dict[bytes, int] = {}
    for _ in range(n_keys):
        key = cursor.name("key", MAX_KEY_BYTES)
        if not key:
            raise InvalidGguf(f"the key at byte {cursor.position} is empty")
        if key in metadata:
            raise InvalidGguf(f"its key {_quoted(key)} appears twice")
        (types[key],) = cursor.unpack(_UINT32)
        metadata[key] = cursor.value(types[key], skip_strings)
    return metadata, types


def _alignment(metadata: dict[bytes, Value]) -> int:
    alignment = metadata.get(b"general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise InvalidGguf("its `general.alignment` is not a power of two")
    if not _DEFAULT_ALIGNMENT <= alignment <= MAX_ALIGNMENT:
        raise InvalidGguf(f"its `general.alignment` is {alignment}, not {_DEFAULT_ALIGNMENT} to {MAX_ALIGNMENT} bytes")
    return alignment


def _read_tensors(
    cursor: _Cursor, n_tensors: int, alignment: int
) -> tuple[dict[bytes, StoredTensor], dict[bytes, int], int]:
    """All tensors, each checked, their offsets, and the number of elements; ggml wants their data without gaps."""
    tensors: dict[bytes, StoredTensor] = {}
    offsets: dict[bytes, int] = {}
    n_params = end = padded_end = 0
    for _ in range(n_tensors):
        name = cursor.name("tensor name", MAX_TENSOR_NAME_BYTES)
        if name in tensors:
            raise InvalidGguf(f"its tensor {_quoted(name)} appears twice")
        tensors[name], n_elements, n_bytes, offsets[name] = _read_tensor(cursor, name)
        if offsets[name] != padded_end:
            raise InvalidGguf(f"its tensor {_quoted(name)} is at offset {offsets[name]} and belongs at {padded_end}")
        n_params += n_elements
        end = padded_end + n_bytes
        padded_end = _align(end, alignment)
    if n_tensors and (needed_bytes := _align(cursor.position, alignment) + end) > cursor.size_bytes:
        raise InvalidGguf(f"it is cut off: its tensors need {needed_bytes} bytes and it has {cursor.size_bytes}")
    return tensors, offsets, n_params


def _read_tensor(cursor: _Cursor, name: bytes) -> tuple[StoredTensor, int, int, int]:
    """One tensor, its elements, bytes and offset."""
    (n_dimensions,) = cursor.unpack(_UINT32)
    if n_dimensions > MAX_DIMENSIONS:
        raise InvalidGguf(f"its tensor {_quoted(name)} has {n_dimensions} dimensions, more than {MAX_DIMENSIONS}")
    *dimensions, code, offset = cursor.unpack(_TENSOR_TAILS[n_dimensions])
    if code not in GGML_TYPES:
        raise InvalidGguf(f"its tensor {_quoted(name)} has the unknown type {code}")
    type_name, block_elements, block_bytes = GGML_TYPES[code]
    n_elements = 1
    for dimension in dimensions:
        n_elements *= dimension
        if n_elements > MAX_ELEMENTS or dimension > MAX_ELEMENTS:
            raise InvalidGguf(f"its tensor {_quoted(name)} has an impossible shape")
    if (dimensions[0] if dimensions else 1) % block_elements:
        raise InvalidGguf(f"rows of its tensor {_quoted(name)} do not consist of whole {type_name} blocks")
    return StoredTensor(tuple(dimensions), code), n_elements, n_elements // block_elements * block_bytes, offset


def _check_header(header: GgufHeader) -> None:
    if not 0 <= header.shard < header.n_shards <= MAX_SHARDS:
        raise InvalidGguf(f"it says it is shard {header.shard + 1} of {header.n_shards}")
    if not header.architecture and header.shard == 0 and header.kind is not GgufKind.IMPORTANCE_MATRIX:
        raise InvalidGguf("its `general.architecture` is missing")


def _align(position: int, alignment: int) -> int:
    return (position + alignment - 1) & -alignment


def _quoted(name: bytes) -> str:
    return f"`{name[:64].decode('utf-8', 'backslashreplace')}`"
