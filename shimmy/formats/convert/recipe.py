"""A checkpoint and its config.json become a recipe for a GGUF: its metadata, and what each of its tensors is made of.

Knows what config.json says of all models, and goes through the table of the family row by row. What a row becomes is
known by `tensor_table`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shimmy.formats.convert.families.family import Family
from shimmy.formats.convert.hyperparameters import (
    MAX_CONTEXT,
    MAX_LAYERS,
    MAX_WIDTH,
    Hyperparameters,
    MetadataBuilder,
    describe_rope,
    refuse_two_rotations,
    rope_parameters,
    wrong,
)
from shimmy.formats.convert.tensor_table import CODES, TensorTable
from shimmy.formats.convert.tied_head import TiedHead
from shimmy.formats.convert.transforms import TensorOutput, TensorSlice
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf.header import CONTEXT_LIMIT
from shimmy.formats.gguf.limits import MIN_CONTEXT
from shimmy.formats.gguf.writer import GgufType, Metadata, TensorInfo
from shimmy.formats.quantised.schemes import scheme_of
from shimmy.formats.quantised.stored import Scheme, Tensors
from shimmy.formats.safetensors.checkpoint import Checkpoint, CheckpointTensor, shown, shown_value
from shimmy.formats.safetensors.sentence_transformers import MEAN


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a checkpoint becomes a GGUF, but for its vocabulary. The context length is in the metadata already."""

    architecture: str
    metadata: Metadata
    outputs: tuple[TensorOutput, ...]
    n_ctx: int
    notices: tuple[str, ...]
    roundings: tuple[str, ...] = ()  # what a person has to know besides, where the weights become these types
    vocab_size: Any = None  # as the vocabulary is to have it, which checks it; None where config.json does not say
    zeros: Mapping[str, CheckpointTensor] = field(default_factory=dict)  # that the architecture has not: to be checked
    # Lists of the metadata, of F32, each number of which is a tensor.
    numbers: Mapping[str, Sequence[CheckpointTensor]] = field(default_factory=dict)
    tied_head: TiedHead | None = None  # which is left out where it is the embeddings


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the part that reads and writes text, with what stands beside it."""
    nested = config.get("text_config")
    merged = {**config, **nested} if isinstance(nested, dict) else dict(config)
    merged["architectures"] = config.get("architectures") or merged.get("architectures")
    outer, inner = config.get("tie_word_embeddings"), merged.get("tie_word_embeddings")
    if isinstance(outer, bool) and isinstance(inner, bool) and outer != inner:
        # transformers 4 believes the inner one, 5 the outer one: whether the checkpoint has a head says what was meant.
        merged["tie_word_embeddings"] = None
    return merged


def recipe(
    family: Family,
    checkpoint: Checkpoint,
    config: Mapping[str, Any],
    pooling_type: int | None,
    dense: Sequence[CheckpointTensor] = (),
) -> Recipe:
    """How a checkpoint of `family` with this `text_config` is converted. Raises Unconvertible with the reason.

    `dense` are the matrices behind the pooling, as `sentence_transformers` reads them.
    """
    scheme = scheme_of(config, checkpoint)
    if family.by_mlx is not None and _has_turned_convolutions(checkpoint):
        family = family.by_mlx
    found = Hyperparameters(config, family.defaults)
    refuse_two_rotations(found)
    values = family.renamed(found)
    draft = MetadataBuilder(family.architecture)
    sizes = _describe(draft, values, family)
    if pooling_type is None and family.is_encoder:
        draft.notices.append("it does not say how to pool its vectors: their mean is taken")
        pooling_type = MEAN
    if pooling_type is not None:
        draft.integer("pooling_type", pooling_type)
    table = _table(_canonical(checkpoint, family, values), scheme, family, values, sizes)
    outputs, zeros = _in_order(table.outputs), table.zero_biases()
    table.refuse_others(family)
    outputs += _dense(draft, family, sizes["E"], dense)
    draft.notices += sorted({rows.matrix.doubt for output in outputs for rows in output.stored} - {""})
    for name, computed in draft.computed.items():
        outputs.append(TensorOutput(TensorInfo(name, (len(computed),), CODES["F32"]), values=tuple(computed)))
    if draft.n_ctx < MIN_CONTEXT:
        raise Unconvertible(f"its context is limited to {draft.n_ctx} tokens, too few to read and write any")
    draft.integer("context_length", draft.n_ctx)
    if draft.is_limited:
        draft.metadata.append((CONTEXT_LIMIT, GgufType.UINT32, draft.n_ctx))
    return Recipe(
        family.architecture, draft.metadata, tuple(outputs), draft.n_ctx, tuple(draft.notices),
        _roundings(outputs), values.get("vocab_size"), zeros, table.numbers, table.tied_head,
    )  # fmt: skip


def _describe(draft: MetadataBuilder, values: Hyperparameters, family: Family) -> dict[str, int]:
    """Write what all families have, then what only this one has; returns the sizes that shapes are made of."""
    n_embd = values.integer("hidden_size", "n_embd")
    n_head = values.integer("num_attention_heads", "n_head")
    n_head_kv = values.integer("num_key_value_heads", default=n_head)
    n_embd_head = values.integer("head_dim", default=n_embd // n_head)
    if n_head % n_head_kv:
        raise wrong("num_key_value_heads", n_head_kv)
    if n_head * n_embd_head > MAX_WIDTH:
        raise wrong("head_dim", n_embd_head)
    sizes = {
        "layers": values.integer("num_hidden_layers", "n_layer", maximum=MAX_LAYERS),
        "E": n_embd, "F": values.integer("intermediate_size", "n_inner", default=4 * n_embd),
        "H": n_head, "N": n_head_kv, "D": n_embd_head, "Q": n_head * n_embd_head, "K": n_head_kv * n_embd_head,
    }  # fmt: skip
    draft.n_ctx = values.integer("max_position_embeddings", "n_positions", "n_ctx", maximum=MAX_CONTEXT)
    sizes |= {"P": draft.n_ctx, "A": sizes["Q"] + 2 * sizes["K"], "G": 2 * sizes["F"]}
    activation = values.get("hidden_activation", "hidden_act", "activation_function")
    if activation is not None and str(activation) not in family.activations:
        raise Unconvertible(f"its activation `{shown_value(activation)}` is not the one that the engine computes")
    for key in ("add_cross_attention", "is_decoder" if family.is_encoder else "use_bidirectional_attention"):
        values.require(key, False, default=False)
    draft.integer("block_count", sizes["layers"])
    draft.integer("embedding_length", n_embd)
    draft.integer("feed_forward_length", sizes["F"])
    draft.integer("attention.head_count", n_head)
    draft.integer("attention.head_count_kv", n_head_kv)
    if family.scalings is not None:
        if n_embd_head % 2:
            raise wrong("head_dim", n_embd_head)
        draft.integer("attention.key_length", n_embd_head)
        draft.integer("attention.value_length", n_embd_head)
        sizes["R"] = _n_rotated(values, family, n_embd_head)
        draft.integer("rope.dimension_count", sizes["R"])
        describe_rope(draft, values, family.scalings, sizes["R"])
    if family.is_layer_norm:
        draft.number("attention.layer_norm_epsilon", values.number("layer_norm_eps", "layer_norm_epsilon"))
    else:
        draft.number("attention.layer_norm_rms_epsilon", values.number("rms_norm_eps"))
    if family.is_encoder:
        draft.flag("attention.causal", False)
    family.describe(draft, values, sizes)
    return sizes


def _n_rotated(values: Hyperparameters, family: Family, n_embd_head: int) -> int:
    share = rope_parameters(values).number("partial_rotary_factor", default=1)
    n_rotated = int(n_embd_head * min(share, 1))
    if n_rotated != n_embd_head and (not family.rotates_partly or n_rotated < 2 or n_rotated % 2):
        raise wrong("partial_rotary_factor", share)
    return n_rotated


def _dense(
    draft: MetadataBuilder, family: Family, n_embd: int, matrices: Sequence[CheckpointTensor]
) -> list[TensorOutput]:
    """The two matrices that pooled vectors are multiplied with; what comes out is as long as what goes in."""
    if not matrices:
        return []
    widths = [n_embd, *(tensor.shape[0] for tensor in matrices)]
    if not family.has_dense or len(matrices) != 2 or widths[2] != n_embd:
        raise Unconvertible("its vectors go through a module `Dense`, which the engine does not have for this model")
    outputs = []
    for number, tensor, n_in, n_out in zip((2, 3), matrices, widths, widths[1:], strict=False):
        if tensor.shape != (n_out, n_in) or n_out > MAX_WIDTH or tensor.dtype not in CODES:
            raise Unconvertible("a matrix of its modules `Dense` has another size than its vectors, or no plain type")
        draft.integer(f"dense_{number}_feat_in", n_in)
        draft.integer(f"dense_{number}_feat_out", n_out)
        info = TensorInfo(f"dense_{number}.weight", (n_in, n_out), CODES[tensor.dtype])
        outputs.append(TensorOutput(info, (TensorSlice(tensor, 0, tensor.n_bytes),)))
    return outputs


def _roundings(outputs: list[TensorOutput]) -> tuple[str, ...]:
    """What is said of quantised weights that no GGUF type holds without loss."""
    found = {
        (rows.matrix.label, output.info.kind, rows.matrix.error)
        for output in outputs
        for rows in output.stored
        if rows.matrix.error
    }
    return tuple(
        f"its weights in {label} are converted to {kind}: each is off by {100 * error:.2g} % at most"
        for label, kind, error in sorted(found)
    )


def _has_turned_convolutions(checkpoint: Checkpoint) -> bool:
    """Whether the kernels are [channels, numbers, 1], as MLX has them, and not [channels, 1, numbers].

    MLX itself knows by this whether it has changed the other weights already.
    """
    kernels = [tensor.shape for name, tensor in checkpoint.tensors.items() if name.endswith(".conv1d.weight")]
    return bool(kernels) and all(len(shape) == 3 and shape[1] > shape[2] == 1 for shape in kernels)


def _canonical(checkpoint: Checkpoint, family: Family, values: Hyperparameters) -> Tensors:
    """The text model's tensors by the names that the table has."""
    ignored = family.ignored_prefixes + family.unused(values)
    tensors: dict[str, CheckpointTensor] = {}
    full_names: dict[str, str] = {}
    for full_name, tensor in checkpoint.tensors.items():
        prefix = next((prefix for prefix in family.prefixes if full_name.startswith(prefix)), "")
        name = full_name.removeprefix(prefix)
        if name.startswith(ignored) or name.endswith(family.ignored_suffixes):
            continue
        if family.is_encoder:  # as checkpoints that were once TensorFlow's have them
            name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        for part, own in family.mlx_names.items():
            name = name.replace(part, own)
        if name in tensors:
            raise Unconvertible(f"its tensor `{shown(name)}` is there twice, under two names")
        tensors[name] = tensor
        full_names[name] = full_name
    return Tensors(tensors, full_names)


def _table(
    tensors: Tensors, scheme: Scheme | None, family: Family, values: Hyperparameters, sizes: dict[str, int]
) -> TensorTable:
    """With all that the rows of the family take."""
    table = TensorTable(tensors, scheme, family.architecture, values, sizes)
    kinds = family.kinds(values)
    for row in family.rows:
        if row.target == "output.weight":
            table.add_head(row)
        elif row.target == "token_embd.weight":
            table.add_embeddings(row)
        else:
            for layer in range(row.first_layer, sizes["layers"]) if "#" in row.source + row.target else (0,):
                if not row.layers or row.layers in kinds[layer]:
                    table.add(row, layer)
    return table


def _in_order(outputs: Sequence[TensorOutput]) -> list[TensorOutput]:
    """In the order of the files."""
    return sorted(outputs, key=lambda output: (str(output.first.file.path), output.first.offset))
