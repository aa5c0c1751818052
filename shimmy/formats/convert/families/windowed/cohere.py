"""Command R and R+, Command R7B and A, Aya: one norm before attention and a feed-forward layer side by side."""

from dataclasses import replace

from shimmy.formats.convert.families.family import (
    ENDS,
    SILU,
    Family,
    Row,
    attention,
    classes,
    feed_forward,
)
from shimmy.formats.convert.families.settings import plain_heads, window_pattern
from shimmy.formats.convert.hyperparameters import MAX_CONTEXT, MAX_LAYERS, Hyperparameters, MetadataBuilder, wrong
from shimmy.formats.format_errors import Unconvertible

_NORMED = "normed_heads"
_N_LAYERS_WITH_NORMS = 64  # from which on llama.cpp wants norms of heads in a Command R

_COHERE = (
    *ENDS,
    Row("layers.#.input_layernorm", "blk.#.attn_norm.weight", "E"),
    *attention(bias="none"),  # rotated pairs are neighbours
    *feed_forward(),
)
_NORMS_OF_HEADS = (
    Row("layers.#.self_attn.q_norm", "blk.#.attn_q_norm.weight", "HD"),
    Row("layers.#.self_attn.k_norm", "blk.#.attn_k_norm.weight", "ND"),
)


def _renamed(values: Hyperparameters) -> Hyperparameters:
    """With the context that it was trained for, which stands beside a smaller one."""
    return values.changed({"max_position_embeddings": values.get("model_max_length", "max_position_embeddings")})


def _kinds(values: Hyperparameters) -> list[set[str]]:
    n_layers = values.integer("num_hidden_layers", maximum=MAX_LAYERS)
    return [{_NORMED} if values.flag("use_qk_norm") else set()] * n_layers


def _describe_both(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    plain_heads(values, sizes)
    values.require("tie_word_embeddings", True, default=True)
    for key in ("use_parallel_block", "use_gated_activation"):
        values.require(key, True, default=True)
    values.require("attention_bias", False, default=False)
    values.require("rotary_pct", 1.0, 1, default=1)
    if not (scale := values.number("logit_scale")):  # 0 is how llama.cpp says that there is none
        raise wrong("logit_scale", scale)
    draft.number("logit_scale", scale)


def describe_cohere(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _describe_both(draft, values, sizes)
    has_norms, n_layers = values.flag("use_qk_norm"), sizes["layers"]
    if has_norms != (n_layers >= _N_LAYERS_WITH_NORMS):
        raise Unconvertible(
            f"its `use_qk_norm` is {str(has_norms).lower()} with {n_layers} layers: the engine has norms of heads from "
            f"{_N_LAYERS_WITH_NORMS} layers on, and in smaller models none"
        )


def describe_cohere2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    """The layers with a window are those that rotate."""
    _describe_both(draft, values, sizes)
    values.require("use_qk_norm", False, default=False)
    values.require("order_of_interleaved_layers", "local_attn_first", default="local_attn_first")
    draft.integer("attention.sliding_window", values.integer("sliding_window", maximum=MAX_CONTEXT))
    if not window_pattern(draft, values, sizes, 4):
        raise wrong("layer_types", values.get("layer_types"))


_EYES = ("vision_tower.", "multi_modal_projector.")
_DEFAULTS = {"layer_norm_eps": 1e-5, "logit_scale": 0.0625, "tie_word_embeddings": True}

FAMILIES = (
    Family(
        "Command R", "cohere", (*classes("Cohere"), "AyaVisionForConditionalGeneration"), "command-r",
        (*_COHERE, *(replace(row, layers=_NORMED) for row in _NORMS_OF_HEADS)),
        SILU, frozenset(), describe_cohere, _DEFAULTS,
        ignored_prefixes=_EYES, kinds=_kinds, renamed=_renamed, is_layer_norm=True,
    ),
    Family(
        "Command R7B and A", "cohere2",
        (*classes("Cohere2"), "Cohere2VisionForConditionalGeneration", "AyaVisionForConditionalGeneration"),
        "cohere2", _COHERE, SILU, frozenset(), describe_cohere2, {"sliding_window": 4096, **_DEFAULTS},
        ignored_prefixes=_EYES, is_layer_norm=True,
    ),
)  # fmt: skip
