"""Falcon-H1: attention and Mamba-2 side by side in each layer, and numbers that much of it is multiplied with.

llama.cpp's converter multiplies the matrices. Here they stay as they are, to the bit: the numbers go beside them, into
norms and into the kernel of the convolution, all of which are in F32. That leaves one of a feed-forward layer's: what
all layers add up is a common factor smaller instead, which the norms take away again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from shimmy.formats.convert.families.family import (
    ENDS,
    SILU,
    Family,
    Row,
    Runs,
    attention,
    classes,
)
from shimmy.formats.convert.families.recurrent.hybrid import MAMBA, describe_mamba, mamba_rows
from shimmy.formats.convert.hyperparameters import (
    MAX_LAYERS,
    Hyperparameters,
    MetadataBuilder,
    checked_number,
    wrong,
)
from shimmy.formats.format_errors import Unconvertible


def _several(values: Hyperparameters, key: str, n: int) -> list[float]:
    found = values.get(key)
    found = [1.0] * n if found is None else found
    if not isinstance(found, list) or len(found) != n:
        raise wrong(key, found)
    return [_checked(key, factor) for factor in found]


def _one(values: Hyperparameters, key: str) -> float:
    return _checked(key, values.number(key, default=1))


def _checked(key: str, value: object) -> float:
    factor = checked_number(key, value)
    if not 1e-6 <= factor <= 1e6:
        raise wrong(key, value)
    return factor


def _shrinking(values: Hyperparameters) -> float:
    """By what all that layers add up is divided: what the results of feed-forward layers are multiplied with."""
    gate, down = _several(values, "mlp_multipliers", 2)
    return down / gate  # the norm in front of the layer has the gate's, which reaches the other product, too


def _embedding(values: Hyperparameters) -> Sequence[float]:
    return (_one(values, "embedding_multiplier") / _shrinking(values),)


def _head(values: Hyperparameters) -> Sequence[float]:
    factor = _one(values, "lm_head_multiplier")
    return (factor / _embedding(values)[0] if values.flag("tie_word_embeddings") else factor,)


def _gate(values: Hyperparameters) -> Sequence[float]:
    return _several(values, "mlp_multipliers", 2)[:1]


def _convolved(sizes: Mapping[str, int]) -> Runs:
    inner, state = sizes["i"], (sizes["c"] - sizes["i"]) // 2
    return (0, inner), (inner, state), (inner + state, state)


def _of_convolved(values: Hyperparameters) -> Sequence[float]:
    """What comes out of the first matrix has the factor of its gates already."""
    gate, *others = _several(values, "ssm_multipliers", 5)[:4]
    return [factor / gate for factor in others]


def _folded(values: Hyperparameters) -> Hyperparameters:
    """What is left to multiply where MLX has multiplied the matrices: values, and keys with the factor of their own.

    A head that is the embeddings has their factor, which is taken away again.
    """
    is_tied, head = values.flag("tie_word_embeddings"), _one(values, "lm_head_multiplier")
    return values.changed({
        **dict.fromkeys((
            "embedding_multiplier", "attention_in_multiplier", "attention_out_multiplier", "ssm_in_multiplier",
            "ssm_out_multiplier", "ssm_multipliers", "mlp_multipliers",
        )),
        "value_multiplier": _one(values, "attention_in_multiplier"),
        "lm_head_multiplier": head / _one(values, "embedding_multiplier") if is_tied else 1,
    })  # fmt: skip


_EMBEDDINGS, _NORM, _HEAD = ENDS
_ROWS = (
    replace(_EMBEDDINGS, factors=_embedding),
    replace(_NORM, source="final_layernorm", factors=_head),
    _HEAD,
    Row("layers.#.input_layernorm", "blk.#.attn_norm.weight", "E"),
    Row("layers.#.pre_ff_layernorm", "blk.#.ffn_norm", "E", factors=_gate),
    *attention(bias="none"),
    *(
        replace(row, runs=_convolved, factors=_of_convolved) if row.source.endswith(".conv1d") else row
        for row in mamba_rows("mamba")
        if not row.source.endswith(".norm")
    ),
    Row("layers.#.feed_forward.gate_proj", "blk.#.ffn_gate.weight", "FE"),
    Row("layers.#.feed_forward.up_proj", "blk.#.ffn_up.weight", "FE"),
    Row("layers.#.feed_forward.down_proj", "blk.#.ffn_down.weight", "EF"),
)


def _kinds(values: Hyperparameters) -> list[set[str]]:
    return [{MAMBA}] * values.integer("num_hidden_layers", maximum=MAX_LAYERS)


def describe_falcon(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    describe_mamba(draft, values, sizes)
    inner = values.get("mamba_d_ssm")
    if inner is not None and inner != sizes["i"]:
        raise wrong("mamba_d_ssm", inner)
    for key in ("attention_bias", "mlp_bias", "projectors_bias", "mamba_rms_norm"):
        values.require(key, False, default=False)
    gate, *_, step = _several(values, "ssm_multipliers", 5)
    if step != gate:
        raise Unconvertible("the first and the last of its `ssm_multipliers` differ, which the engine has no place for")
    shrinking = _shrinking(values)
    draft.number("attention.layer_norm_rms_epsilon", values.number("rms_norm_eps") / shrinking**2)
    before = _one(values, "attention_in_multiplier")
    for layer in range(sizes["layers"]):
        for name, factor in (
            ("attn_q", before), ("attn_k", before * _one(values, "key_multiplier")),
            ("attn_v", before * _one(values, "value_multiplier")),
            ("attn_output", _one(values, "attention_out_multiplier") / shrinking),
            ("ssm_in", _one(values, "ssm_in_multiplier") * gate),
            ("ssm_out", _one(values, "ssm_out_multiplier") / shrinking),
        ):  # fmt: skip
            draft.computed[f"blk.{layer}.{name}.scale"] = [factor]


_FALCON = Family(
    "Falcon-H1", "falcon_h1", classes("FalconH1"), "falcon-h1",
    tuple(replace(row, is_adaptable=False) for row in _ROWS),  # adapters would be added behind the numbers
    SILU, frozenset(), describe_falcon,
    {"tie_word_embeddings": False, "rms_norm_eps": 1e-5}, kinds=_kinds,
)  # fmt: skip

FAMILIES = (replace(_FALCON, by_mlx=replace(_FALCON, renamed=_folded)),)
