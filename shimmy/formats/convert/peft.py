"""A LoRA adapter in SafeTensors, as PEFT writes it, becomes a GGUF adapter for one model.

Knows PEFT's settings and names (peft/tuners/lora) and what llama.cpp computes of an adapter (src/llama-adapter.cpp; the
reference is its own convert_lora_to_gguf.py). Which tensor a name means, and in which order its rows are, the table of
the model's family tells. An adapter does not say what architecture it is for: the loaded model does. What would not be
computed exactly is refused by name, and all of it is untrusted.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shimmy.formats.convert import cache
from shimmy.formats.convert.adaptable import Adaptable
from shimmy.formats.convert.families.family import Row
from shimmy.formats.convert.families.table import FAMILIES
from shimmy.formats.convert.tensor_table import CODES
from shimmy.formats.convert.transforms import ELEMENT_BYTES, TensorOutput, TensorSlice, Transform, chunks
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf import reader as gguf
from shimmy.formats.gguf.header import Array, GgufHeader, GgufKind
from shimmy.formats.gguf.reader import Contents
from shimmy.formats.gguf.writer import GgufType, Metadata, TensorInfo, data_size, write_file
from shimmy.formats.safetensors.checkpoint import (
    CheckpointTensor,
    TensorReader,
    read_file,
    read_json,
    shown,
    shown_value,
)
from shimmy.formats.safetensors.huggingface import ADAPTER_CONFIG, ADAPTER_WEIGHTS, MAX_CONFIG_BYTES

CONVERTER_VERSION = 1  # another one makes another file of the same folder

_PREFIX = "base_model.model."
_PARTS = {".lora_A.weight": "a", ".lora_B.weight": "b", ".lora_embedding_A": "a", ".lora_embedding_B": "b"}
_FROZEN = ".base_layer.weight"  # PEFT stores embeddings beside what it learned for them; they are the model's
# What these do is not in A and B; each of them is off where it is absent, null, false or empty.
_REFUSED = (
    "use_dora", "lora_bias", "modules_to_save", "target_parameters", "trainable_token_indices", "layer_replication",
    "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "megatron_config",
)  # fmt: skip
# Starts that leave the model's own weights as they are; PiSSA, OLoRA, LoftQ and others change them as well.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_LEAST_ALPHA, _MOST_ALPHA = 1e-6, 1e6  # llama.cpp takes 0 for no alpha at all
_LITERAL = re.compile(r"[\w.]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Pair:
    """What is added to one weight: B of shape (rows, rank) times A of shape (rank, row length).

    For embeddings, A is (rank, tokens) and B is (length of a vector, rank).
    """

    a: CheckpointTensor
    b: CheckpointTensor
    is_embedding: bool

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """What a folder holds; whether it suits a model is another question."""

    folder: Path
    pairs: Mapping[str, Pair]  # by the name of the module that each changes
    alpha: float
    rank: int
    is_rank_stabilized: bool  # the product is scaled by alpha / sqrt(rank) and not by alpha / rank
    alphas: Mapping[str, tuple[int, float]]  # of modules whose names are, or end with, these; the first one counts

    @property
    def size_bytes(self) -> int:
        return sum(pair.a.n_bytes + pair.b.n_bytes for pair in self.pairs.values())

    def header(self) -> GgufHeader:
        """As a catalog wants to know it; the architecture is that of a model that it suits."""
        return GgufHeader(
            kind=GgufKind.ADAPTER, architecture="", name=self.folder.name, quantization="", n_params=0, n_ctx_train=0,
            n_vocab=0, n_layers=0, n_embd=0, n_ff=0, n_expert_params=0, n_heads=0, n_kv=0, n_state=0,
            has_chat_template=False, is_embedding=False, is_causal=True, pooling="", shard=0, n_shards=1,
            size_bytes=self.size_bytes,
        )  # fmt: skip

    def suits(self, architecture: str, n_embd: int | None = None) -> bool:
        """Whether models of this architecture, whose vectors have `n_embd` numbers, have all that it changes."""
        table = Adaptable.of(architecture)
        rows = {name: table.row(name)[0] for name in self.pairs if not table.ignores(name)}
        return bool(rows) and all(
            row is not None and (n_embd is None or _agrees(row, self.pairs[name], n_embd)) for name, row in rows.items()
        )

    def alpha_of(self, name: str) -> float:
        """As llama.cpp has it, which divides it by the rank of each pair."""
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        _, alpha = min((self.alphas[end] for end in ends if end in self.alphas), default=(0, self.alpha))
        rank = self.pairs[name].rank if name in self.pairs else self.rank
        return alpha * math.sqrt(rank) if self.is_rank_stabilized else alpha


@dataclass(frozen=True, slots=True)
class Base:
    """The model that an adapter is for, as its GGUF tells it."""

    architecture: str
    n_head: int  # 0 where layers differ, as the next one
    n_head_kv: int
    tensors: Mapping[bytes, gguf.StoredTensor]

    @classmethod
    def of(cls, model: Contents, tensors: Mapping[bytes, gguf.StoredTensor]) -> "Base":
        """Of a model's first file, and of the tensors in all of its files."""
        architecture = model.header.architecture
        n_head = _n_heads(model, "head_count")
        has_own = f"{architecture}.attention.head_count_kv".encode() in model.metadata
        return cls(architecture, n_head, _n_heads(model, "head_count_kv") if has_own else n_head, tensors)


@dataclass(frozen=True, slots=True)
class AdapterPlan:
    """How an adapter becomes a GGUF."""

    metadata: Metadata
    outputs: tuple[TensorOutput, ...]

    @property
    def size_bytes(self) -> int:
        return data_size(output.info for output in self.outputs)


def read(folder: Path) -> PeftAdapter:
    """The adapter in `folder`. Reads the config and a header only.

    Raises Unconvertible or InvalidSafetensors with the reason, OSError when a file cannot be read.
    """
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).exists():
            raise Unconvertible(f"it has no `{name}`, so it is not a SafeTensors adapter as PEFT writes it")
    config = read_json(folder / ADAPTER_CONFIG, MAX_CONFIG_BYTES)
    _refuse(config)
    rank = config.get("r")
    if type(rank) is not int or not 0 < rank < 2**20:
        raise _wrong("r")
    is_rank_stabilized = config.get("use_rslora")
    if not isinstance(is_rank_stabilized, bool | None):
        raise _wrong("use_rslora")
    return PeftAdapter(
        folder=folder,
        pairs=_pairs(read_file(folder / ADAPTER_WEIGHTS).tensors),
        alpha=_alpha(config.get("lora_alpha"), "lora_alpha"),
        rank=rank,
        is_rank_stabilized=bool(is_rank_stabilized),
        alphas=_alphas(config.get("alpha_pattern")),
    )


def version(folder: Path) -> tuple[int, int]:
    """What `cache.version` tells of both files of `folder`."""
    return cache.version(_sources(folder))


def plan(adapter: PeftAdapter, base: Base) -> AdapterPlan:
    """The GGUF of `adapter` for the model `base`; raises Unconvertible with the reason."""
    table = Adaptable.of(base.architecture)
    if not table.rows:
        known = ", ".join(dict.fromkeys(family.architecture for family in FAMILIES))
        raise Unconvertible(
            f"adapters in SafeTensors are not supported for the architecture `{shown(base.architecture)}`; these are: "
            f"{known}. It may be there as GGUF already"
        )
    taken: dict[str, tuple[Row, dict[int, str]]] = {}  # the names of the experts' modules; of others there is one
    for name in adapter.pairs:
        row, (layer, expert) = table.row(name)
        if row is None:
            if table.ignores(name):
                continue
            raise Unconvertible(f"its `{shown(name)}` is nothing that an adapter can change in `{base.architecture}`")
        target = row.target.replace("#", str(layer))
        names = taken.setdefault(target, (row, {}))[1]
        if expert in names:
            raise Unconvertible(f"it changes `{target}` twice, under two names")
        names[expert] = name
    metadata: Metadata = [
        ("general.architecture", GgufType.STRING, base.architecture),
        ("general.type", GgufType.STRING, "adapter"),
        ("adapter.type", GgufType.STRING, "lora"),
        ("adapter.lora.alpha", GgufType.FLOAT32, adapter.alpha_of("")),
    ]
    outputs = [output for target, found in taken.items() for output in _outputs(adapter, base, target, *found)]
    return AdapterPlan(metadata, tuple(outputs))


def cached(adapter: PeftAdapter, base: Base, cache_folder: Path | None) -> cache.Converted | None:
    """The GGUF of `adapter` for the model `base`, made now or found in the cache. Raises what `plan` raises.

    None when what it changes is what another architecture has, and not this one. Where the cache cannot be written, the
    file is made in memory (Linux only).
    """
    if _is_for_another(adapter, base.architecture):
        return None
    found = plan(adapter, base)
    embeddings = base.tensors.get(b"token_embd.weight")
    n_tokens = embeddings.shape[-1] if embeddings and embeddings.shape else 0
    kind = f"lora_{base.architecture}_{base.n_head}_{base.n_head_kv}_{n_tokens}"
    key = (CONVERTER_VERSION, kind, _sources(adapter.folder))
    target = None if cache_folder is None else cache_folder / cache.name(adapter.folder, kind, *key)
    if target is not None and cache.is_finished(target):
        return cache.Converted(target)

    def write(path: Path) -> None:
        with TensorReader() as reader:
            tensors = [(output.info, chunks(output, reader)) for output in found.outputs]
            write_file(path, found.metadata, tensors, _ignore)

    return cache.make(target, found.size_bytes, write, _ignore)


def _is_for_another(adapter: PeftAdapter, architecture: str) -> bool:
    others = {family.architecture for family in FAMILIES}
    if architecture not in others or adapter.suits(architecture):
        return False
    # Where this one has all the modules, the adapter may be for it and change what no adapter can.
    return not all(map(Adaptable.of(architecture).has, adapter.pairs)) and any(map(adapter.suits, others))


def _ignore(share: float) -> None:
    """Adapters are small: nobody waits for their progress."""
    del share


def _sources(folder: Path) -> list[cache.Source]:
    return cache.sources(folder, (folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS))


# adapter_config.json.


def _refuse(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise Unconvertible(f"its `peft_type` is `{shown_value(config.get('peft_type'))}`; what works is `LORA`")
    for key in _REFUSED:
        if config.get(key):
            raise Unconvertible(f"it has `{key}`, which is more than LoRA's two matrices")
    if config.get("bias", "none") != "none":
        raise Unconvertible("its `bias` is not `none`: it changes biases, which no GGUF adapter can")
    start = config.get("init_lora_weights")
    if not any(type(start) is type(known) and start == known for known in _STARTS):
        raise Unconvertible(
            f"its `init_lora_weights` is `{shown_value(start)}`, which may have changed the model's own weights as well"
        )


def _alphas(patterns: Any) -> dict[str, tuple[int, float]]:
    """PEFT takes the first pattern that matches the end of a name, from a dot on."""
    if patterns is None:
        return {}
    if not isinstance(patterns, dict):
        raise _wrong("alpha_pattern")
    for pattern in patterns:
        if not _LITERAL.fullmatch(pattern):
            raise Unconvertible(f"its `alpha_pattern` has `{shown(pattern)}`; only plain names work")
    return {pattern: (place, _alpha(value, "alpha_pattern")) for place, (pattern, value) in enumerate(patterns.items())}


def _alpha(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _LEAST_ALPHA <= value <= _MOST_ALPHA:
        raise _wrong(key)
    return float(value)


def _wrong(key: str) -> Unconvertible:
    return Unconvertible(f"its `{ADAPTER_CONFIG}` has an impossible `{key}`, or none")


# Names and tensors.


def _pairs(tensors: Mapping[str, CheckpointTensor]) -> dict[str, Pair]:
    halves: dict[tuple[str, bool], dict[str, CheckpointTensor]] = {}
    frozen = {name.removesuffix(_FROZEN) for name in tensors if name.endswith(_FROZEN)}
    for name, tensor in tensors.items():
        end = next((end for end in _PARTS if name.endswith(end)), None)
        if end is not None and name.startswith(_PREFIX):
            if tensor.dtype not in CODES:
                raise Unconvertible(f"its tensor `{shown(name)}` is in {tensor.dtype}; what works are BF16, F16, F32")
            halves.setdefault((name.removesuffix(end), "embedding" in end), {})[_PARTS[end]] = tensor
        elif not name.endswith(_FROZEN):
            raise Unconvertible(f"its tensor `{shown(name)}` is none of LoRA's two matrices")
    pairs: dict[str, Pair] = {}
    for (full_name, is_embedding), found in halves.items():
        module = full_name.removeprefix(_PREFIX)
        a, b = found.get("a"), found.get("b")
        if a is None or b is None or module in pairs:
            raise Unconvertible(f"its pair of tensors for `{shown(module)}` is not complete, or there twice")
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not (a.n_bytes and b.n_bytes):
            raise Unconvertible(f"its pair of tensors for `{shown(module)}` has shapes that do not go together")
        pairs[module] = Pair(a, b, is_embedding)
    if not pairs:
        raise Unconvertible("it has no pairs of tensors")
    if missing := next((name for name in frozen if name.removeprefix(_PREFIX) not in pairs), None):
        raise Unconvertible(f"its tensor `{shown(missing + _FROZEN)}` is none of LoRA's two matrices")
    return pairs


def _agrees(row: Row, pair: Pair, n_embd: int) -> bool:
    n_out, n_in = row.shape[-2], row.shape[-1]
    if pair.is_embedding != (row.transform is Transform.TRANSPOSE):
        n_out, n_in = n_in, n_out
    return (n_out != "E" or pair.b.shape[0] == n_embd) and (n_in != "E" or pair.a.shape[1] == n_embd)


def _outputs(
    adapter: PeftAdapter, base: Base, target: str, row: Row, names: Mapping[int, str]
) -> tuple[TensorOutput, TensorOutput]:
    """Both tensors for `target`, of one module or of those of all experts in it."""
    if target.encode() not in base.tensors:
        raise Unconvertible(f"the model has no tensor `{target}`; it was made for another one")
    row_length, n_rows, n_experts = (*base.tensors[target.encode()].shape, 1, 1, 1)[:3]
    if sorted(names) != [*range(n_experts)]:
        raise Unconvertible(f"it changes some of the experts in `{target}` but not all of them, or too many")
    pairs = [adapter.pairs[names[expert]] for expert in range(n_experts)]
    scales = {adapter.alpha_of(name) / adapter.alpha_of("") for name in names.values()}
    if len({(pair.rank, pair.a.dtype, pair.b.dtype) for pair in pairs}) > 1 or len(scales) > 1:
        raise Unconvertible(f"its pairs for the experts in `{target}` differ in rank, scale or type")
    (scale,) = scales
    is_embedding = target == "token_embd.weight"
    lengths = (n_rows, row_length) if is_embedding else (row_length, n_rows)
    # Embeddings may have rows behind the vocabulary, which a GGUF does not have.
    may_be_longer = (is_embedding, target == "output.weight")
    for pair in pairs:
        found = (pair.a.shape[1], pair.b.shape[0])
        for n_found, length, longer in zip(found, lengths, may_be_longer, strict=True):
            if pair.is_embedding != is_embedding or n_found < length or (n_found > length and not longer):
                raise Unconvertible(f"its pair for `{target}` has another shape than the model's tensor")
    rank, experts = pairs[0].rank, (n_experts,) * (len(row.shape) == 3)
    a_shape, a_transform = ((rank, n_rows), Transform.TRANSPOSE) if is_embedding else ((row_length, rank), _COPY)
    b_transform, n_heads = _COPY, 1
    if row.transform is Transform.PERMUTE:
        b_transform, n_heads = Transform.PERMUTE, base.n_head_kv if row.shape[0] == "K" else base.n_head
        if not n_heads or n_rows % (2 * n_heads):
            raise Unconvertible(f"the model does not say how many heads are in `{target}`")
    return (
        _output(f"{target}.lora_a", (*a_shape, *experts), [pair.a for pair in pairs], a_transform),
        _output(
            f"{target}.lora_b", (rank, lengths[1], *experts), [pair.b for pair in pairs], b_transform, n_heads, scale
        ),
    )


_COPY = Transform.COPY


def _output(
    name: str,
    shape: tuple[int, ...],
    tensors: list[CheckpointTensor],
    transform: Transform,
    n_heads: int = 1,
    scale: float = 1.0,
) -> TensorOutput:
    dtype = tensors[0].dtype
    info = TensorInfo(name, shape, CODES["F32" if scale != 1 else dtype])
    n_bytes = shape[0] * shape[1] * ELEMENT_BYTES[dtype]
    pieces = tuple(TensorSlice(tensor, 0, n_bytes, scale=scale) for tensor in tensors)
    return TensorOutput(info, pieces, transform, n_heads)


def _n_heads(model: Contents, key: str) -> int:
    value = model.metadata.get(f"{model.header.architecture}.attention.{key}".encode())
    # A layer without attention has 0.
    numbers = {*value.numbers} - {0} if isinstance(value, Array) else {value}
    number = numbers.pop() if len(numbers) == 1 else 0
    return number if isinstance(number, int) and 0 < number < 2**31 else 0
