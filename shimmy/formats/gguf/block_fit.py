"""Which weights do not fit a quantised type: rows that are no multiple of its blocks become a type of shorter blocks.

Knows how long the blocks of a file type are, and how to say what became of the others. Which type these get is the
engine's choice (`tensor_type_fallback` in llama-quant.cpp): it is read from the file that was written.
"""

from collections import Counter
from collections.abc import Iterable

from shimmy.formats.gguf.reader import StoredTensor
from shimmy.formats.gguf.tensor_types import GGML_TYPES

_SHORTEST_ROW = 32  # of what is quantised at all: convolutions have rows of a few numbers
_LONGEST_BLOCK = 256  # of the mixtures of K and I types, which are not among ggml's types by their own names


def block_length(file_type: str) -> int:
    """The numbers in a block of most weights of `file_type`, which is named as in SAFETENSORS_TYPES."""
    lengths = {name.lower(): n_elements for name, n_elements, _ in GGML_TYPES.values()}
    return lengths.get(file_type.removesuffix("_moe"), _LONGEST_BLOCK)


def foreseen(file_type: str, shapes: Iterable[tuple[int, ...]]) -> tuple[str, ...]:
    """What a person has to know before weights of these `shapes` (row length first) become `file_type`."""
    block = block_length(file_type)
    lengths = sorted({shape[0] for shape in shapes if len(shape) > 1 and shape[0] % block})
    lengths = [length for length in lengths if length >= _SHORTEST_ROW]
    if not lengths:
        return ()
    rows = ", ".join(map(str, lengths[:3])) + (", ..." if len(lengths) > 3 else "")
    told = (
        f"not all of its weights become {file_type.upper()}, whose blocks have {block} numbers: rows of {rows} numbers "
        "become types of shorter blocks, which are larger"
    )
    return (told,)


def written(file_type: str, tensors: Iterable[StoredTensor]) -> tuple[str, ...]:
    """What a person has to know of a file of `file_type` that has these tensors."""
    block = block_length(file_type)
    names = {code: name for code, (name, _, _) in GGML_TYPES.items()}
    weights = [tensor for tensor in tensors if len(tensor.shape) > 1 and names[tensor.code] != "F32"]
    others = Counter(names[tensor.code] for tensor in weights if tensor.shape[0] % block)
    if not others:
        return ()
    kinds = ", ".join(f"{name} ({n_weights})" for name, n_weights in others.most_common())
    told = (
        f"{others.total()} of {len(weights)} weights are not {file_type.upper()}, whose blocks of {block} numbers do "
        f"not fit their rows, but {kinds}"
    )
    return (told,)
