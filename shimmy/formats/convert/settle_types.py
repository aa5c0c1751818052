"""Which GGUF type each quantised weight becomes, by its numbers, scales and zero points above all, which headers do not
tell.

Knows what is asked of whoever computes with quantised weights: the parent cannot.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from shimmy.formats.convert.transforms import TensorOutput
from shimmy.formats.gguf.writer import GGML_CODES
from shimmy.formats.quantised.stored import Holding, StoredMatrix, with_matrices
from shimmy.formats.safetensors.checkpoint import TensorReader

logger = logging.getLogger(__name__)


class Unpacker(Protocol):
    """Computes with quantised weights, which the parent cannot: `engine/layouts/unpack.py`."""

    def holding(self, output: TensorOutput, reader: TensorReader) -> Holding:
        """What holds the tensor, by its numbers. Raises Unconvertible for such as cannot be."""

    def nearer(self, output: TensorOutput, reader: TensorReader) -> TensorOutput:
        """The same weights, each matrix of which F16 does not hold all divided by a power of two with which F16 may."""

    def chunks(self, output: TensorOutput, reader: TensorReader) -> Iterator[memoryview]:
        """The bytes of the tensor, in its GGUF type. Raises Unconvertible for numbers that cannot be."""

    def n_threads(self, outputs: Sequence[TensorOutput]) -> int:
        """How many tensors are best made at once, of which each takes time and memory."""

    def end(self) -> None:
        """Keep nothing for further tensors."""


def settled(outputs: Sequence[TensorOutput], target_type: str, unpack: Unpacker) -> tuple[TensorOutput, ...]:
    """The tensors with the types that their numbers need; what is made of quantised ones is logged.

    Where something else is made of the GGUF, `target_type`, they become F16, or F32, with no number beside them. Raises
    Unconvertible.
    """
    stored = iter(_all_settled([output for output in outputs if _is_stored(output)], target_type, unpack))
    found = []
    errors: dict[tuple[str, str], float] = {}  # the largest of each layout and type
    for output in outputs:
        if _is_stored(output):
            one, error = next(stored)
            found.append(one)
            key = output.stored[0].matrix.label, one.info.kind
            errors[key] = max(error, errors.get(key, 0.0))
        elif not output.stored:
            found.append(output)
        elif all(rows.matrix.has_number_beside for rows in found[-1].stored):  # its weights, which are in front of it
            found.append(replace(output, stored=found[-1].stored))
    for (label, kind), error in sorted(errors.items()):
        logger.info("%s becomes %s, %s", label, kind, f"within {100 * error:.2g} %" if error else "exactly")
    return tuple(found)


def _is_stored(output: TensorOutput) -> bool:
    """Whether it has quantised weights, and is not the number beside them."""
    return bool(output.stored) and not output.info.name.endswith(".scale")


def _all_settled(
    outputs: Sequence[TensorOutput], target_type: str, unpack: Unpacker
) -> list[tuple[TensorOutput, float]]:
    """`_settled` of each of them, several at once."""
    from concurrent.futures import ThreadPoolExecutor  # which plain conversions do without

    with ThreadPoolExecutor(unpack.n_threads(outputs), "settle") as threads:
        return list(threads.map(lambda output: _settled(output, target_type, unpack), outputs))


def _settled(output: TensorOutput, target_type: str, unpack: Unpacker) -> tuple[TensorOutput, float]:
    """The tensor in the type that holds it, and the largest relative error of a weight."""
    if target_type:
        output = replace(output, stored=with_matrices(output.stored, StoredMatrix.united))
    with TensorReader() as reader:
        held = unpack.holding(output, reader)
        if held.kind != "F16" and all(rows.matrix.may_be_divided for rows in output.stored):
            near = unpack.nearer(output, reader)
            if unpack.holding(near, reader).kind == "F16":
                output, held = near, Holding("F16")
    if output.info.kind == "F32" or target_type == "f32":  # the first as llama.cpp needs it
        held = Holding("F32")
    elif target_type or output.is_reordered:
        held = held.plain()
    return replace(output, info=replace(output.info, code=GGML_CODES[held.kind])), held.error
