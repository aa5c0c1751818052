"""Where the numbers of a quantised weight lie in a checkpoint, and which GGUF type can hold them.

Knows names, types and shapes of tensors; nothing of arrays, which `engine/layouts/` computes with.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.safetensors.checkpoint import CheckpointTensor, shown

PLAIN = ("F32", "F16", "BF16")
WEIGHTS = (".weight", ".qweight", ".weight_packed", "_blocks", "._weight_qdata")  # a weight under any name
BLOCK = 32  # elements of a row in a block of GGUF's older types; NVFP4 has 64
ROUNDED = 2.0**-11  # the largest relative error of a number that is rounded to F16
_LADDER = ("MXFP4", "NVFP4", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "BF16", "F16", "F32")
EXACT_INTEGERS = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 128}  # n: its codes are -n to n - 1


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a quantised weight: codes, scales, zero points."""

    tensor: CheckpointTensor
    along: int | None = None  # the dimension that the weight's rows lie along; None: any row needs all of it
    rows: int = 1  # so many rows of the weight
    items: int = 1  # have so many items of that dimension


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A weight of `shape` (rows, row length) as a checkpoint holds it; several experts are one below the other."""

    layout: str  # a module of engine/layouts
    shape: tuple[int, int]
    parts: Mapping[str, Part]  # `codes` are the large one
    label: str  # for a person
    expected: str  # the GGUF type that holds it, if the numbers are what the configuration says
    error: float = 0.0  # of each weight in that type, relative to the weight
    options: Mapping[str, int] = field(default_factory=dict)  # of the layout
    row_step: int = 1  # reading may begin at multiples of it
    apart: str = ""  # the part with one number for all weights, which a GGUF can have beside them
    may_be_divided: bool = False  # by a power of two, as its scales are, which a GGUF has beside the weights then
    doubt: str = ""  # what may be wrong with the numbers, for a person

    def whole(self) -> "StoredMatrix":
        """The same where no number can be beside the weights: `apart` is multiplied with them."""
        expected, error = ("F16", ROUNDED) if self.apart else (self.expected, self.error)
        return replace(self, apart="", may_be_divided=False, expected=expected, error=error)

    def divided(self) -> "StoredMatrix":
        """The same where a GGUF has the number `apart` beside the weights."""
        return replace(self, options={**self.options, "apart": 1})

    def divided_by(self, power: int) -> "StoredMatrix":
        """The same where a GGUF has 2^`power` beside the weights."""
        return replace(self, options={**self.options, "power": power})

    @property
    def has_number_beside(self) -> bool:
        return bool(self.options.keys() & {"apart", "power"})

    def united(self) -> "StoredMatrix":
        """The contrary of `divided`, and not to be divided."""
        options = {key: value for key, value in self.options.items() if key != "apart"}
        return replace(self, options=options, may_be_divided=False)


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows of a quantised weight, in the order of the GGUF."""

    matrix: StoredMatrix
    first: int
    n_rows: int
    stride: int = 1


def with_matrices(
    stored: Sequence[StoredRows], change: Callable[[StoredMatrix], StoredMatrix]
) -> tuple[StoredRows, ...]:
    """The same rows of what `change` makes of their matrices, each of which may be that of many."""
    changed: dict[int, StoredMatrix] = {}
    for rows in stored:
        if id(rows.matrix) not in changed:
            changed[id(rows.matrix)] = change(rows.matrix)
    return tuple(replace(rows, matrix=changed[id(rows.matrix)]) for rows in stored)


@dataclass(frozen=True, slots=True)
class Holding:
    """A GGUF type that holds some weights, and the largest relative error of a weight in it."""

    kind: str
    error: float = 0.0
    spare: str = ""  # another type, which holds them without an error

    def along_with(self, other: "Holding") -> "Holding":
        """What holds both."""
        if self == other or self.spare == other.kind:
            return other
        if other.spare == self.kind:
            return self
        kinds = {self.kind, other.kind}
        if len(kinds) > 1 and not kinds <= EXACT_INTEGERS.keys() and not kinds <= {"F16", "F32"}:
            return Holding("F32")
        return Holding(max(kinds, key=_LADDER.index), max(self.error, other.error))

    def plain(self) -> "Holding":
        """What holds the same as numbers, of whatever order."""
        return self if self.kind in {"F32", "BF16", "F16"} else Holding("F16", ROUNDED)


class Tensors:
    """The tensors of a checkpoint by the names that the families' tables have, and which of them are left over."""

    def __init__(self, tensors: Mapping[str, CheckpointTensor], full_names: Mapping[str, str]) -> None:
        self._tensors = tensors
        self._full_names = full_names
        self.left = dict.fromkeys(tensors)

    def get(self, name: str) -> CheckpointTensor | None:
        return self._tensors.get(name)

    def has_module(self, module: str) -> bool:
        """Whether there is a weight of this module, in whatever layout."""
        return any(f"{module}{suffix}" in self._tensors for suffix in WEIGHTS)

    def full_name(self, name: str) -> str:
        """The name in the checkpoint, with its prefix: configurations have that one."""
        return self._full_names.get(name, name)

    def use(self, name: str) -> None:
        self.left.pop(name, None)

    def part(
        self,
        name: str,
        dtypes: Collection[str],
        *shapes: tuple[int, ...],
        along: int | None = None,
        rows: int = 1,
        items: int = 1,
    ) -> Part:
        """The tensor `name`, which must be of one of these types and shapes; raises Unconvertible."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise missing(name)
        if tensor.dtype not in dtypes:
            raise Unconvertible(f"its tensor `{shown(name)}` is in {tensor.dtype}, where {listed(dtypes)} belongs")
        if tensor.shape not in shapes:
            wanted = " or ".join(str([*shape]) for shape in shapes)
            raise Unconvertible(
                f"its tensor `{shown(name)}` has the shape {[*tensor.shape]}; its configuration implies {wanted}"
            )
        self.use(name)
        return Part(tensor, along, rows, items)

    def only(self, *names: str) -> str:
        """The one of these names that is there; raises Unconvertible when it is none or several."""
        found = [name for name in names if name in self._tensors]
        if not found:
            raise missing(names[0])
        if len(found) > 1:
            raise Unconvertible(f"its tensors `{shown(found[0])}` and `{shown(found[1])}` contradict each other")
        return found[0]


class Scheme(Protocol):
    """How the weights of one checkpoint are quantised."""

    @property
    def ignored_suffixes(self) -> tuple[str, ...]:
        """Tensors that do not change the weights, such as scales of activations."""

    @property
    def stacks_experts(self) -> bool:
        """Whether `find` also takes all experts of a layer together: [experts, rows, row length]."""

    def find(self, module: str, shape: tuple[int, ...], tensors: Tensors) -> StoredMatrix | None:
        """The weight of `module`, a name of a family's table; None where it is plain. Raises Unconvertible."""


def flat(part: Part, n_rows: int) -> Part:
    """The same tensor of several dimensions as rows: those of one expert behind those of the one before."""
    tensor = part.tensor
    n_items = math.prod(tensor.shape) // n_rows
    return replace(part, tensor=replace(tensor, shape=(n_rows, n_items)))


def is_plain(name: str, tensors: Tensors) -> bool:
    """Whether the weight `name` is there as plain numbers."""
    tensor = tensors.get(name)
    return tensor is not None and tensor.dtype in PLAIN


def missing(name: str) -> Unconvertible:
    return Unconvertible(f"its tensor `{shown(name)}` is missing; is the download complete?")


def listed(names: Collection[str]) -> str:
    return " or ".join(names)


def integer_type(low: int, high: int, row_length: int) -> str:
    """The smallest GGUF type whose codes include all numbers from `low` to `high`; F16 where none does."""
    if row_length % BLOCK:
        return "F16"
    return next((name for name, n in EXACT_INTEGERS.items() if low >= -n and high < n), "F16")
