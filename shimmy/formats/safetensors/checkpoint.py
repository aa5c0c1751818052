"""Checkpoints in SafeTensors, one file or many: where each tensor's bytes are, without trusting one byte of a header.

Knows the layout of the files (https://huggingface.co/docs/safetensors) and of `model.safetensors.index.json`, and
nothing of what the tensors mean. Time and memory are bounded by the limits below, whatever a file claims. Files are
read and not mapped: truncating a mapped file ends the process that looks at it with SIGBUS.
"""

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeGuard

from shimmy.formats import git_lfs
from shimmy.formats.safetensors import huggingface
from shimmy.system.files import NotRegular, open_regular

# Far above any real model; a hostile file costs less than a second.
MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_HEADERS_BYTES = 64 * 1024 * 1024  # of all files together
MAX_TENSORS = 131_072
MAX_FILES = 1_024
MAX_NAME_CHARACTERS = 256
MAX_DIMENSIONS = 8
MAX_DIMENSION = 2**40

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SUFFIX = ".safetensors"

# Bits of one element, from the `Dtype` of the safetensors crate.
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class InvalidSafetensors(ValueError):
    """Why a folder holds no sound checkpoint in SafeTensors, in words for a person. It does not name the folder."""


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """One file of a checkpoint, as it was when its header was read."""

    path: Path
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class CheckpointTensor:
    """Where the bytes of one tensor are: rows of `shape`'s last dimension, little-endian, without gaps."""

    dtype: str
    shape: tuple[int, ...]
    file: CheckpointFile
    offset: int  # in the file
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All tensors of a model by their names."""

    tensors: dict[str, CheckpointTensor]
    files: tuple[CheckpointFile, ...]


class TensorReader:
    """Reads tensors' bytes into buffers of the caller, with one file open at a time. Not thread-safe."""

    def __init__(self) -> None:
        self._opened: CheckpointFile | None = None
        self._file: FileIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = self._opened = None

    def read(self, tensor: CheckpointTensor, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the tensor's bytes from `start` on; InvalidSafetensors when the file is not as it was."""
        if self._file is None or self._opened is not tensor.file:
            self.close()
            self._file, found = _open(tensor.file.path)
            if found != tensor.file:
                raise InvalidSafetensors(f"its file `{shown(tensor.file.path.name)}` was changed while it was read")
            self._opened = tensor.file
        self._file.seek(tensor.offset + start)
        while buffer:
            n_read = self._file.readinto(buffer)
            if not n_read:
                raise InvalidSafetensors(f"its file `{shown(tensor.file.path.name)}` was cut off while it was read")
            buffer = buffer[n_read:]


def read_folder(folder: Path) -> Checkpoint:
    """The tensors of the model in `folder`; raises InvalidSafetensors, or OSError when a file cannot be read.

    Shards are looked for in the folder itself. They may be links, as in the cache of the Hugging Face hub.
    """
    if (folder / _SINGLE).exists():
        return read_file(folder / _SINGLE)
    return _read_shards(folder, _shards(folder))


def weight_files(folder: Path) -> list[Path]:
    """The files that `read_folder` reads; raises what it does."""
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    return [folder / name for name in dict.fromkeys(_shards(folder).values())]


def _shards(folder: Path) -> dict[str, str]:
    if not (folder / _INDEX).exists():
        raise InvalidSafetensors(huggingface.without_weights([path.name for path in folder.iterdir()]))
    return _shard_of_each_tensor(folder / _INDEX)


def read_file(path: Path) -> Checkpoint:
    """The tensors in one file; raises InvalidSafetensors, or OSError when it cannot be read."""
    tensors, file = _read_file(path, MAX_HEADER_BYTES)
    return Checkpoint(tensors, (file,))


def read_json(path: Path, max_bytes: int = MAX_HEADER_BYTES, kind: type[Any] = dict) -> Any:
    """What a file holds, of the given kind; raises InvalidSafetensors, or OSError when it cannot be read."""
    file, found = _open(path)
    with file:
        if found.size_bytes > max_bytes:
            raise InvalidSafetensors(f"its `{path.name}` has {found.size_bytes} bytes, more than {max_bytes}")
        return _parse(_take(file, found.size_bytes, path.name), f"its `{path.name}`", kind)


def shown(name: str) -> str:
    """A name out of a file as it may be shown: on one line, and short."""
    return repr(name[:96])[1:-1]


def shown_value(value: object) -> str:
    """A value of a JSON file likewise, as JSON writes it; a text is without its quotes."""
    if isinstance(value, str):
        return shown(value)
    try:
        return shown(json.dumps(value, ensure_ascii=False))
    except RecursionError:  # it was read a few frames further up, where that much depth was still left
        return "lists within lists"


def _read_shards(folder: Path, shard_names: dict[str, str]) -> Checkpoint:
    names = dict.fromkeys(shard_names.values())
    if len(names) > MAX_FILES:
        raise InvalidSafetensors(f"its `{_INDEX}` lists {len(names)} files, more than {MAX_FILES}")
    tensors: dict[str, CheckpointTensor] = {}
    files = []
    left_bytes = MAX_HEADERS_BYTES
    for shard_name in names:
        path = folder / shard_name
        if not path.exists():
            raise InvalidSafetensors(f"its shard `{shown(shard_name)}` is missing; is the download complete?")
        found, file = _read_file(path, min(left_bytes, MAX_HEADER_BYTES))
        left_bytes -= min((tensor.offset for tensor in found.values()), default=8)
        files.append(file)
        for name, tensor in found.items():
            if name in tensors:
                raise InvalidSafetensors(f"its tensor `{shown(name)}` is in two of its files")
            tensors[name] = tensor
        if len(tensors) > MAX_TENSORS:
            raise InvalidSafetensors(f"it has more than {MAX_TENSORS} tensors")
    for name, shard_name in shard_names.items():
        if name not in tensors or tensors[name].file.path.name != shard_name:
            raise InvalidSafetensors(f"its tensor `{shown(name)}` is not in `{shown(shard_name)}`, as its index says")
    return Checkpoint(tensors, tuple(files))


def _shard_of_each_tensor(index: Path) -> dict[str, str]:
    shard_names = read_json(index).get("weight_map")
    if not isinstance(shard_names, dict) or not shard_names:
        raise InvalidSafetensors(f"its `{_INDEX}` has no `weight_map`")
    for name in shard_names.values():
        if not isinstance(name, str) or not _is_plain(name):
            raise InvalidSafetensors(f"its `{_INDEX}` names `{shown_value(name)}`, which is not a file of this folder")
    return shard_names


def _is_plain(name: str) -> bool:
    """Whether `name` is one component of a path; a name with a slash or a backslash could lead out of the folder."""
    return name.endswith(_SUFFIX) and name.isprintable() and len(name) <= 255 and not set(name) & {"/", "\\"}


def _read_file(path: Path, max_header_bytes: int) -> tuple[dict[str, CheckpointTensor], CheckpointFile]:
    opened, file = _open(path)
    with opened:
        if file.size_bytes < 8:
            raise InvalidSafetensors(
                f"its file `{shown(path.name)}` has {file.size_bytes} bytes, too few for SafeTensors"
            )
        start = _take(opened, min(file.size_bytes, git_lfs.NOTE_START_BYTES), path.name)
        if git_lfs.is_note(start):
            raise InvalidSafetensors(git_lfs.reason(f"its `{shown(path.name)}`"))
        (header_bytes,) = struct.unpack_from("<Q", start)
        opened.seek(8)
        if header_bytes > file.size_bytes - 8:
            raise InvalidSafetensors(f"its file `{shown(path.name)}` is cut off, or no SafeTensors file")
        if header_bytes > max_header_bytes:
            raise InvalidSafetensors(f"the header of `{shown(path.name)}` has {header_bytes} bytes, too many")
        header = _parse(_take(opened, header_bytes, path.name), f"the header of `{shown(path.name)}`")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(name, entry, file, 8 + header_bytes) for name, entry in header.items()}
    _check_overlap(tensors)
    return tensors, file


def _open(path: Path) -> tuple[FileIO, CheckpointFile]:
    try:
        file = open_regular(path)
    except NotRegular as exc:
        raise InvalidSafetensors(f"its `{shown(path.name)}` is not a regular file") from exc
    status = os.fstat(file.fileno())
    return file, CheckpointFile(path, status.st_size, status.st_mtime_ns)


def _take(file: FileIO, n_bytes: int, name: str) -> bytes:
    parts = []
    while n_bytes:
        part = file.read(n_bytes)
        if not part:
            raise InvalidSafetensors(f"its file `{shown(name)}` was cut off while it was read")
        parts.append(part)
        n_bytes -= len(part)
    return b"".join(parts)


def _parse(content: bytes, what: str, kind: type[Any] = dict) -> Any:
    # Each tensor has one object and two lists: more brackets only cost memory.
    if content.count(b"{") > MAX_TENSORS + 1_024 or content.count(b"[") > 2 * MAX_TENSORS + 1_024:
        raise InvalidSafetensors(f"{what} is larger than any model's")
    try:
        parsed = json.loads(content.decode(), object_pairs_hook=_unique)
    except _TwiceError as exc:
        raise InvalidSafetensors(f"{what} has the key `{shown(exc.key)}` twice") from exc
    except (ValueError, RecursionError) as exc:
        raise InvalidSafetensors(f"{what} is not valid JSON") from exc
    if not isinstance(parsed, kind):
        raise InvalidSafetensors(f"{what} is not a JSON {'object' if kind is dict else kind.__name__}")
    return parsed


class _TwiceError(Exception):
    """A key that an object has twice."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _TwiceError(key)
        found[key] = value
    return found


def _tensor(name: str, entry: Any, file: CheckpointFile, data_start: int) -> CheckpointTensor:
    what = f"its tensor `{shown(name)}`"
    if not name or len(name) > MAX_NAME_CHARACTERS:
        raise InvalidSafetensors(f"{what} has a name of {len(name)} characters")
    if not isinstance(entry, dict):
        raise InvalidSafetensors(f"{what} is not described")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise InvalidSafetensors(f"{what} has the unknown type `{shown_value(dtype)}`")
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise InvalidSafetensors(f"{what} has an impossible shape")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InvalidSafetensors(f"{what} has impossible offsets")
    n_bits = _DTYPE_BITS[dtype]
    for dimension in shape:
        n_bits *= dimension
    start, end = offsets
    if n_bits != 8 * (end - start):
        raise InvalidSafetensors(f"{what} has another number of bytes than its shape and type need")
    if data_start + end > file.size_bytes:
        raise InvalidSafetensors(f"{what} ends behind the end of `{shown(file.path.name)}`; is the download complete?")
    return CheckpointTensor(dtype, tuple(shape), file, data_start + start, end - start)


def _are_sizes(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= MAX_DIMENSION for value in values)


def _check_overlap(tensors: dict[str, CheckpointTensor]) -> None:
    end = 0
    for name, tensor in _by_offset(tensors.items()):
        if tensor.n_bytes and tensor.offset < end:
            raise InvalidSafetensors(f"its tensor `{shown(name)}` overlaps with another one")
        end = max(end, tensor.offset + tensor.n_bytes)


def _by_offset(items: Iterable[tuple[str, CheckpointTensor]]) -> list[tuple[str, CheckpointTensor]]:
    return sorted(items, key=lambda item: (item[1].offset, item[1].n_bytes))
