"""The GGUF files that the program under test makes of folders in SafeTensors: which is whose, and what is in it.

Knows the files' names in the cache and the bytes of their tensors; starts nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shimmy.formats.convert.converted import cache_name
from shimmy.formats.gguf import reader
from shimmy.formats.gguf.tensor_types import GGML_TYPES
from tests.engine.layouts.stored import decoded


def converted_file(folder: Path, cache: Path, target_type: str = "") -> Path:
    """What became of `folder`, in the cache folder of the program; the only file that was made of it."""
    made_of = cache_name(folder, target_type).rpartition("-")[0]  # the rest is what it depends on, the program too
    (path,) = (cache / "converted").glob(f"{made_of}-*.gguf")
    return path


@dataclass(frozen=True)
class Tensor:
    """One tensor as the file has it; `shape` with the row length first."""

    shape: tuple[int, ...]
    kind: str
    data: bytes

    def numbers(self) -> NDArray[np.float32]:
        """As rows, in F32."""
        return decoded(self.data, self.kind).reshape(self.shape[::-1])


def tensors_of(path: Path) -> dict[str, Tensor]:
    """All tensors of a GGUF file, by their names."""
    found, content = reader.contents(path), path.read_bytes()
    tensors: dict[str, Tensor] = {}
    for name, (shape, code) in found.tensors.items():
        kind, n_elements, n_bytes = GGML_TYPES[code]
        start = found.starts[name]
        data = content[start : start + int(np.prod(shape)) // n_elements * n_bytes]
        tensors[name.decode()] = Tensor(shape, kind, data)
    return tensors


def weights_of(tensors: dict[str, Tensor], name: str) -> NDArray[Any]:
    """A matrix with what it is multiplied with beside it, if that is so."""
    beside = tensors.get(f"{name.removesuffix('.weight')}.scale")
    numbers = tensors[name].numbers()
    return numbers if beside is None else numbers * beside.numbers()


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """The same numbers in F32, to the last bit but the sign of 0."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name].kind, found[name].shape) == ("F32", tensor.shape)
        assert (found[name].numbers() == tensor.numbers()).all(), name
