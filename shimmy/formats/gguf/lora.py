"""Whether a LoRA adapter in a GGUF file fits a model: all that llama.cpp takes for granted of it, or refuses.

Knows the rules of src/llama-adapter.cpp, and those of the matrix products that its tensors end up in: a product of
shapes or types that do not go together aborts the process, long after the adapter was loaded.
"""

from collections.abc import Mapping
from pathlib import Path

from shimmy.formats.gguf.header import GgufKind
from shimmy.formats.gguf.reader import Contents, InvalidGguf, StoredTensor, contents

_FLOAT32 = 6  # gguf_type
_PAIR = (b".lora_a", b".lora_b")
# ggml_type: F32, F16, Q8_0 and BF16, which llama.cpp's converter writes. A type without a dot product is a crash.
_TYPES = frozenset((0, 1, 8, 30))
_NVFP4 = 40


def read(path: Path) -> Contents:
    """The contents of an adapter; raises InvalidGguf when the file is none that can be applied to any model."""
    found = contents(path)
    metadata = found.metadata
    if found.header.kind is not GgufKind.ADAPTER:
        raise InvalidGguf(f"it is {found.header.kind.noun}, not an adapter")
    if any(b"\0" in name for name in (*metadata, *found.tensors)):
        raise InvalidGguf("it has a name with a zero byte, which llama.cpp would read as another name")
    for key, expected in ((b"general.type", b"adapter"), (b"adapter.type", b"lora")):
        if metadata.get(key) != expected:
            raise InvalidGguf(f"its `{key.decode()}` is not `{expected.decode()}`")
    if found.types.get(b"adapter.lora.alpha", _FLOAT32) != _FLOAT32:
        raise InvalidGguf("its `adapter.lora.alpha` is no 32-bit float")
    if b"adapter.alora.invocation_tokens" in metadata:
        raise InvalidGguf("it is an activated LoRA, which is not supported")
    return found


def check(adapter: Contents, model: Mapping[bytes, StoredTensor]) -> None:
    """Raises InvalidGguf unless every tensor of `adapter` fits one of the `model`'s tensors."""
    names: set[bytes] = set()
    for name, tensor in adapter.tensors.items():
        if name.endswith(_PAIR):
            names.add(name[: -len(_PAIR[0])])
            if tensor.code not in _TYPES:
                raise InvalidGguf(f"its tensor `{_shown(name)}` has a type that adapters cannot have")
        elif not name.endswith(b"_norm.weight"):  # llama.cpp passes over those
            raise InvalidGguf(f"its tensor `{_shown(name)}` is of no pair")
    if not names:
        raise InvalidGguf("it has no pairs of tensors")
    for name in names:
        pair = [adapter.tensors.get(name + suffix) for suffix in _PAIR]
        if pair[0] is None or pair[1] is None:
            raise InvalidGguf(f"its pair for `{_shown(name)}` is not complete")
        if name not in model:
            raise InvalidGguf(f"the model has no tensor `{_shown(name)}`; it was made for another one")
        _check_pair(_shown(name), _shape(pair[0]), _shape(pair[1]), model[name])
        if name == b"token_embd.weight" and b"output.weight" not in model:
            raise InvalidGguf("it changes the embeddings, which this model uses as its output as well")


def _check_pair(name: str, a: tuple[int, ...], b: tuple[int, ...], target: StoredTensor) -> None:
    """A is (row length, rank) and B (rank, rows), with the experts of the target behind."""
    row_length, n_rows, *experts = _shape(target)
    if name.endswith("token_embd.weight"):  # A is looked up by token: both stand the other way round
        fits = (a[1], b[1]) == (n_rows, row_length) and a[0] == b[0]
    else:
        fits = (a[0], b[1]) == (row_length, n_rows) and a[1] == b[0]
    if not fits or not all(a) or not all(b) or [*a[2:]] != experts or [*b[2:]] != experts:
        raise InvalidGguf(f"its pair for `{name}` has another shape than the model's tensor")
    if target.code == _NVFP4:
        raise InvalidGguf(f"the model's tensor `{name}` is NVFP4, which takes no adapter")


def _shape(tensor: StoredTensor) -> tuple[int, ...]:
    return (*tensor.shape, 1, 1, 1, 1)[:4]


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
