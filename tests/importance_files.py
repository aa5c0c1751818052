"""Writes importance matrices in both forms that llama.cpp's `llama-imatrix` has."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.tiny_models import ARRAY, STRING, UINT32, Items, Metadata, Tensor, encode_gguf

Sums = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # by weight: the sums of squares, and the counts

METADATA: Metadata = [
    ("general.type", STRING, "imatrix"),
    ("imatrix.datasets", ARRAY, Items(STRING, ["text.txt"])),
    ("imatrix.chunk_count", UINT32, 3),
    ("imatrix.chunk_size", UINT32, 512),
]


def matrix_tensors(sums: Sums) -> list[Tensor]:
    tensors = []
    for name, (values, counts) in sums.items():
        for suffix, numbers, n_columns in (("in_sum2", values, len(values) // len(counts)), ("counts", counts, 1)):
            data = struct.pack(f"<{len(numbers)}f", *numbers)
            tensors.append(Tensor(f"{name}.{suffix}", (n_columns, len(counts)), data))
    return tensors


def write_gguf_matrix(path: Path, sums: Sums) -> Path:
    path.write_bytes(encode_gguf(METADATA, matrix_tensors(sums)))
    return path


def write_legacy_matrix(path: Path, sums: Sums) -> Path:
    """As `llama-imatrix` writes `.dat`; a weight has one count there."""
    path.write_bytes(encode_legacy(sums) + struct.pack("<ii", 3, 8) + b"text.txt")
    return path


def encode_legacy(sums: Sums) -> bytes:
    """Without what comes behind the last weight."""
    data = struct.pack("<i", len(sums))
    for name, (values, (count,)) in sums.items():
        head = struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", int(count), len(values))
        data += head + struct.pack(f"<{len(values)}f", *values)
    return data
