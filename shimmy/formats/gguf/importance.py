"""An importance matrix: how much each column of a weight counts, by the activations that a text has brought to it.

Knows both forms in which llama.cpp's `llama-imatrix` writes one (tools/imatrix, common/imatrix-loader.cpp) and what
fits a model, and writes the newer form; nothing of computing one, nor of quantising. The file is not trusted.
"""

import contextlib
import hashlib
import math
import os
import re
from array import array
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from struct import Struct

from shimmy.formats.gguf.reader import MAX_TENSOR_NAME_BYTES, MAX_TENSORS, InvalidGguf, contents
from shimmy.formats.gguf.writer import GgufType, Metadata, TensorInfo, write_file
from shimmy.system.files import NotRegular, open_regular

SUMS, COUNTS = ".in_sum2", ".counts"  # what the newer form appends to a weight's name
MAX_COUNTS = 65_536  # of a weight: one, or one for each expert

_LARGEST = 1e20  # mean square of a column: far above any activation, and below what the quantisers' sums overflow with
_INT = Struct("<i")
_F32 = 0  # ggml_type
_LAYER = re.compile(r"\d+")

Sums = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # by weight: the sums of squares, and the counts


class InvalidMatrix(ValueError):
    """Why a file is no importance matrix, or none for a model, in words for a person. Does not name the file."""


@dataclass(frozen=True, slots=True)
class MatrixEntry:
    """What a file has for one weight: sums of squares, of each column, those of each expert behind one another."""

    start: int  # where in the file they lie, in F32
    n_values: int
    counts: tuple[float, ...]  # by which they are divided, for each of as many equal parts; 0: nothing is known of it


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """A file of which everything but the sums has been read."""

    path: Path
    entries: dict[str, MatrixEntry]  # by the names of weights
    state: tuple[int, ...]  # of the file, when the entries were read

    def digest(self) -> str:
        """SHA-256 of the file. Raises InvalidMatrix where the file has changed, OSError when it cannot be read."""
        with self._opened() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def values(self, names: Container[str]) -> Iterator["tuple[str, array[float]]"]:
        """The name of each weight in `names`, and the mean square of each column; 1 for an expert of which nothing is
        known.

        Raises InvalidMatrix for sums that cannot be, and where the file has changed; OSError when it cannot be read.
        """
        with self._opened() as file:
            for name, entry in self.entries.items():
                if name not in names:
                    continue
                file.seek(entry.start)
                sums = array("f")
                sums.frombytes(_read(file, entry.n_values * sums.itemsize))
                n_part = entry.n_values // len(entry.counts)
                means = array("f")
                for index, count in enumerate(entry.counts):
                    part = sums[index * n_part : (index + 1) * n_part]
                    means.extend(part if count == 1 else (x / count for x in part) if count else [1.0] * n_part)
                if math.isnan(sum(means)) or not 0 <= min(means) <= max(means) <= _LARGEST:
                    raise InvalidMatrix(f"its sums for {_shown(name)} are none of squares: negative, or far too large")
                yield name, means

    @contextlib.contextmanager
    def _opened(self) -> Iterator[FileIO]:
        """The file; raises InvalidMatrix where it has changed since `read`, or does so until the end of the `with`."""
        with open_regular(self.path) as file:
            _refuse_change(file, self.state)
            yield file
            _refuse_change(file, self.state)


def read(path: Path) -> ImportanceMatrix:
    """The matrix in the file at `path`. Raises InvalidMatrix, or OSError when the file cannot be read."""
    try:
        with open_regular(path) as file:
            state = _state(file)
            entries = _gguf_entries(path) if file.read(4) == b"GGUF" else _legacy_entries(file)
        with open_regular(path) as file:  # its parts were read one after the other
            _refuse_change(file, state)
    except NotRegular as exc:
        raise InvalidMatrix("it is not a regular file") from exc
    except InvalidGguf as exc:
        raise InvalidMatrix(str(exc)) from exc
    if any("\0" in name for name in entries):
        raise InvalidMatrix("it has a name with a zero byte, which llama.cpp would read as another name")
    return ImportanceMatrix(path, entries, state)


def check(matrix: ImportanceMatrix, weights: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """What a person has to know of this `matrix` for a model with these `weights`: names, and shapes in ggml's order.

    Raises InvalidMatrix for one of another model.
    """
    known = [name for name in matrix.entries if name in weights]
    if not known:
        (example,) = list(matrix.entries)[:1]
        raise InvalidMatrix(f"it is of another model: of its {len(matrix.entries)} weights, such as {_shown(example)}, "
                            "the model has none")  # fmt: skip
    for name in known:
        shape, n_values = weights[name], matrix.entries[name].n_values
        n_wanted = shape[0] * (shape[2] if len(shape) > 2 else 1)
        if n_values != n_wanted:
            raise InvalidMatrix(f"it is of another model: it has {n_values} columns of {_shown(name)}, not {n_wanted}")
    kinds = {_LAYER.sub("", name) for name in known}
    missing = [name for name in weights if name not in matrix.entries and _LAYER.sub("", name) in kinds]
    foreign = [name for name in matrix.entries if name not in weights]
    unseen = [name for name in known if 0 in matrix.entries[name].counts]
    return tuple(
        f"the importance matrix {what}: {len(names)}, such as {_shown(names[0])}"
        for names, what in (
            (missing, "says nothing of some weights, whose columns count alike"),
            (foreign, "has weights that the model has not"),
            (
                unseen,
                "was made without activations of some experts, whose columns count alike; weights with such experts",
            ),
        )
        if names
    )


def write(target: Path, sums: Sums, *, dataset: str, n_pieces: int, n_piece: int) -> None:
    """Write a matrix in the newer form, made of so many pieces of a text called `dataset`, of `n_piece` tokens each.

    Raises OSError.
    """
    metadata: Metadata = [
        ("general.type", GgufType.STRING, "imatrix"),
        ("imatrix.datasets", GgufType.ARRAY, (GgufType.STRING, [dataset.encode("utf-8", "replace").decode()])),
        ("imatrix.chunk_count", GgufType.UINT32, n_pieces),
        ("imatrix.chunk_size", GgufType.UINT32, n_piece),
    ]
    tensors = []
    for name, (values, counts) in sums.items():
        for suffix, numbers, n_columns in ((SUMS, values, len(values) // len(counts)), (COUNTS, counts, 1)):
            info = TensorInfo(name + suffix, (n_columns, len(counts)), _F32)
            tensors.append((info, [memoryview(array("f", numbers)).cast("B")]))
    write_file(target, metadata, tensors, lambda _: None)


def _state(file: FileIO) -> tuple[int, ...]:
    """What tells an open file, as it is now, from another one and from what it becomes."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _refuse_change(file: FileIO, state: tuple[int, ...]) -> None:
    if _state(file) != state:
        raise InvalidMatrix("it has changed while it was read")


def _gguf_entries(path: Path) -> dict[str, MatrixEntry]:
    found = contents(path)
    entries = {}
    with open_regular(path) as file:
        for key, sums in found.tensors.items():
            name = key.removesuffix(SUMS.encode())
            if name == key:
                continue
            counts = found.tensors.get(name + COUNTS.encode())
            if counts is None or (sums.code, counts.code) != (_F32, _F32):
                raise InvalidMatrix(f"its sums for {_shown(name)} have no counts, or are not in F32")
            n_values, n_counts = math.prod(sums.shape), math.prod(counts.shape)
            if not 0 < n_counts <= MAX_COUNTS or not n_values or n_values % n_counts:
                raise InvalidMatrix(f"it has {n_values} sums and {n_counts} counts for {_shown(name)}")
            file.seek(found.starts[name + COUNTS.encode()])
            numbers = array("f")
            numbers.frombytes(_read(file, n_counts * numbers.itemsize))
            if not all(0 <= number < math.inf for number in numbers):
                raise InvalidMatrix(f"its counts for {_shown(name)} are none: {min(numbers):g}")
            entries[_text(name)] = MatrixEntry(found.starts[key], n_values, tuple(map(float, map(round, numbers))))
    if not entries:
        raise InvalidMatrix(f"it has no importance matrix: no tensor's name ends with `{SUMS}`")
    return entries


def _legacy_entries(file: FileIO) -> dict[str, MatrixEntry]:
    """Of the older form: names, counts and sums one behind the other, then what does not matter here."""
    file.seek(0)
    n_entries = _integer(file)
    if not 0 < n_entries <= MAX_TENSORS:
        raise InvalidMatrix("it is neither a GGUF file nor an importance matrix of the older form")
    entries: dict[str, MatrixEntry] = {}
    for _ in range(n_entries):
        n_bytes = _integer(file)
        if not 0 < n_bytes <= MAX_TENSOR_NAME_BYTES:
            raise InvalidMatrix(
                f"it is no importance matrix, or broken: a name at byte {file.tell()} has {n_bytes} bytes"
            )
        name = _read(file, n_bytes)
        count, n_values = _integer(file), _integer(file)
        if count < 0 or n_values < 1 or _text(name) in entries:
            raise InvalidMatrix(
                f"it is broken: it has {n_values} sums of {count} for {_shown(name)}, or has them twice"
            )
        entries[_text(name)] = MatrixEntry(file.tell(), n_values, (float(count or 1),))
        end = file.seek(4 * n_values, 1)
        if end > file.seek(0, 2):
            raise InvalidMatrix(f"it is cut off within {_shown(name)}")
        file.seek(end)
    return entries


def _integer(file: FileIO) -> int:
    (number,) = _INT.unpack(_read(file, _INT.size))
    return int(number)


def _read(file: FileIO, n_bytes: int) -> bytes:
    parts = []
    while n_bytes:
        part = file.read(n_bytes)
        if not part:
            raise InvalidMatrix("it is cut off")
        parts.append(part)
        n_bytes -= len(part)
    return b"".join(parts)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _shown(name: bytes | str) -> str:
    return f"`{name if isinstance(name, str) else _text(name)}`"
