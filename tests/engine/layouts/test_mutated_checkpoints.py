"""Golden matrices of each layout with one thing wrong: refused by name, or read as before, before anything is written.

Each key of each configuration is left out and given other values; each tensor is left out, cut, reshaped, renamed to
another type, and gets numbers that cannot be.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from shimmy.engine.layouts import unpack
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.safetensors.checkpoint import TensorReader
from tests.engine.layouts.stored import MODULE, cases, config_of, matrix_of, output_of, tensors_of, weights
from tests.engine.layouts.test_mutated_configurations import VALUES, mutated, places
from tests.tiny_checkpoints import Weights

CASES = cases()
N_VALUES = 4  # for each key
N_DRAWN = 2000 // len(CASES) + 1  # with several faults
SAME_SIZE = (
    ("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "BOOL"), ("F16", "BF16", "I16", "U16"), ("F32", "I32", "U32"),
    ("I64", "U64", "F64"),
)  # fmt: skip
# These mean the same, or other numbers that a checkpoint may have.
MAY_BE = {frozenset(("F16", "BF16")), frozenset(("U8", "F8_E8M0"))}
FORMS = {"F16": "<u2", "BF16": "<u2", "F32": "<u4", "F8_E4M3": "u1", "U8": "u1", "I32": "<i4"}
NO_NUMBERS = {"F16": (0x7E00, 0x7C00), "BF16": (0x7FC0, 0xFF80), "F32": (0x7FC00000, 0x7F800000), "F8_E4M3": (0x7F,)}
EXPONENTS = ("weight_scale", "weight_scale_inv", "scales")  # in U8, where 255 is no number


class Golden:
    """One matrix, and whether a changed one is refused or read."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.case = name, CASES[name]
        self.config = config_of(self.case)
        self.tensors = tensors_of(self.case)
        self._path = path
        self._exact = self._read(self.config, self.tensors)
        self.n_refused = self.n_same = 0

    def _read(self, config: dict[str, Any], tensors: dict[str, Weights]) -> bytes:
        """The weights in F32 after the checks that a conversion does first. Raises Unconvertible."""
        matrix = matrix_of(self._path / "model.safetensors", config, tensors, tuple(self.case["shape"]))
        if matrix is None:  # a plain weight, with tensors beside it that no architecture has
            raise Unconvertible
        with TensorReader() as reader:
            unpack.holding(output_of(matrix), reader)
        found: bytes = weights(output_of(matrix)).tobytes()
        return found

    def try_out(self, config: dict[str, Any], tensors: dict[str, Weights], *, may_differ: bool = False) -> bool:
        """Whether it is refused. Fails where it is read otherwise than before."""
        try:
            found = self._read(config, tensors)
        except Unconvertible:
            self.n_refused += 1
            return True
        assert may_differ or found == self._exact
        self.n_same += 1
        return False


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Golden:
    return Golden(request.param, tmp_path)


def is_another_model(config: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether it says in full how else zero points of GPTQ were stored, which no tensor can contradict."""
    settings, old = config.get("quantization_config"), before["quantization_config"]
    if not isinstance(settings, dict) or settings.get("sym") is not False:
        return False
    return any(settings.get(key) != old.get(key) for key in ("checkpoint_format", "format", "meta", "sym"))


def with_each_key_changed(config: dict[str, Any], random: Random) -> Iterator[dict[str, Any]]:
    for index, place in enumerate(places(config)):
        for key in [*place] if isinstance(place, dict) else range(len(place)):
            for turn in range(1 + N_VALUES):
                changed = copy.deepcopy(config)
                (other,) = (found for at, found in enumerate(places(changed)) if at == index)
                if turn:
                    other[key] = copy.deepcopy(random.choice(VALUES))
                else:
                    del other[key]
                yield changed


@pytest.mark.thorough
def test_other_configurations_are_refused_or_read_as_before(golden: Golden) -> None:
    random, config = Random(golden.name), golden.config
    drawn = (mutated(config, random) for _ in range(N_DRAWN))
    for changed in (*with_each_key_changed(config, random), *drawn):
        if changed.get("quantization_config") or changed.get("quantization"):
            golden.try_out(changed, golden.tensors, may_differ=is_another_model(changed, config))
    assert golden.n_refused > N_DRAWN // 20
    assert golden.n_same > N_DRAWN // 20


def other_shapes(tensor: Weights) -> Iterator[Weights]:
    shape, n_bytes = tensor.shape, len(tensor.data)
    for other in (shape[::-1], (*shape, 1), (1, *shape), (int(np.prod(shape)),)):
        if other != shape:
            yield replace(tensor, shape=other)
    if shape and shape[0] > 1:
        row_bytes = n_bytes // shape[0]
        yield Weights((shape[0] - 1, *shape[1:]), tensor.data[:-row_bytes], tensor.dtype)
        yield Weights((shape[0] + 1, *shape[1:]), tensor.data + tensor.data[:row_bytes], tensor.dtype)
        yield Weights((0, *shape[1:]), b"", tensor.dtype)


def other_types(tensor: Weights) -> Iterator[Weights]:
    for dtypes in SAME_SIZE:
        if tensor.dtype in dtypes:
            for other in dtypes:
                if other != tensor.dtype and {other, tensor.dtype} not in MAY_BE:
                    yield replace(tensor, dtype=other)


def test_other_tensors_are_refused_or_read_as_before(golden: Golden) -> None:
    for part, tensor in golden.tensors.items():
        without = {other: found for other, found in golden.tensors.items() if other != part}
        golden.try_out(golden.config, without)
        golden.try_out(golden.config, {**without, f"{part}_": tensor})
        for changed in (*other_shapes(tensor), *other_types(tensor)):
            may_differ = changed.dtype == "I8" and part.endswith("._weight_qdata")  # torchao's other layout
            golden.try_out(golden.config, {**golden.tensors, part: changed}, may_differ=may_differ)
    assert golden.n_refused > 4 * len(golden.tensors)


def impossible_numbers(part: str, tensor: Weights) -> Iterator[Weights]:
    values: tuple[int, ...] = NO_NUMBERS.get(tensor.dtype, ())
    if tensor.dtype == "U8" and part in EXPONENTS:
        values = (255,)
    if part == "g_idx":
        values = (-1, len(tensor.data), 2**31 - 1, -(2**31))
    for value in values:
        for at in (0, -1):
            numbers = np.frombuffer(tensor.data, FORMS[tensor.dtype]).copy()
            numbers[at] = value
            yield replace(tensor, data=numbers.tobytes())


def test_numbers_that_cannot_be_are_refused(golden: Golden) -> None:
    n_tried = 0
    for part, tensor in golden.tensors.items():
        for changed in impossible_numbers(part.removeprefix(f"{MODULE}."), tensor):
            assert golden.try_out(golden.config, {**golden.tensors, part: changed}), part
            n_tried += 1
    assert n_tried
