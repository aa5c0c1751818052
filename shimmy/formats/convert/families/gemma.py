"""Gemma 1 to 3 and EmbeddingGemma, whose norms are stored as their distance from 1."""

import math
from dataclasses import replace

from shimmy.formats.convert.families.family import (
    FREE,
    GELU,
    HEAD_NORMS,
    Family,
    Row,
    attention,
    classes,
    feed_forward,
    plus_one,
)
from shimmy.formats.convert.families.settings import rotation_of_each_kind, window_pattern, windows_in_turn
from shimmy.formats.convert.hyperparameters import (
    MAX_CONTEXT,
    MAX_LAYERS,
    Hyperparameters,
    MetadataBuilder,
    checked_number,
    wrong,
)
from shimmy.formats.format_errors import Unconvertible

_GEMMA = (
    Row("embed_tokens", "token_embd.weight", "VE"),
    Row("lm_head", "output.weight", "VE"),
    *plus_one(Row("norm", "output_norm.weight", "E"), Row("layers.#.input_layernorm", "blk.#.attn_norm.weight", "E")),
    *attention(bias="none"),
    *feed_forward(),
)
SANDWICH = plus_one(
    Row("layers.#.post_attention_layernorm", "blk.#.post_attention_norm.weight", "E"),
    Row("layers.#.pre_feedforward_layernorm", "blk.#.ffn_norm.weight", "E"),
    Row("layers.#.post_feedforward_layernorm", "blk.#.post_ffw_norm.weight", "E"),
)
EYES = ("vision_tower.", "multi_modal_projector.")


def _query_factors(values: Hyperparameters) -> tuple[float]:
    """Gemma 3 divides its queries by the root of a number of its own; what differs goes into their norm."""
    scalar = values.number("query_pre_attn_scalar")
    if not scalar:
        raise wrong("query_pre_attn_scalar", scalar)
    n_embd, n_head = values.integer("hidden_size"), values.integer("num_attention_heads")
    sizes = {
        "E": n_embd, "H": n_head, "D": values.integer("head_dim"),
        "layers": values.integer("num_hidden_layers", maximum=MAX_LAYERS),
    }  # fmt: skip
    return (math.sqrt(gemma_scalar(sizes, N_LAYERS_27B) / scalar),)


_GEMMA3_HEAD_NORMS = tuple(
    replace(row, factors=_query_factors) if row.target.endswith(".attn_q_norm.weight") else row
    for row in plus_one(*HEAD_NORMS)
)
_GEMMA3_DEFAULTS = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0, "sliding_window": 4096,
    "query_pre_attn_scalar": 256, "tie_word_embeddings": True,
}  # fmt: skip
N_LAYERS_27B = 62
_GEMMA_DEFAULTS = {"head_dim": 256, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": True}


def describe_gemma(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del draft, sizes
    values.require("tie_word_embeddings", True, default=True)


def describe_gemma2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    describe_gemma(draft, values, sizes)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if not (cap := values.number(key)):
            raise wrong(key, cap)
        draft.number(key, cap)
    if values.number("query_pre_attn_scalar") != gemma_scalar(sizes, 46):
        raise Unconvertible(
            "its `query_pre_attn_scalar` is not the size of a head, which is all that the engine computes"
        )
    windows_in_turn(draft, values, sizes)


def gemma_scalar(sizes: dict[str, int], n_layers_27b: int) -> int:
    """The number by whose root llama.cpp divides the queries; its 27B models are those with `n_layers_27b` layers."""
    return sizes["E"] // sizes["H"] if sizes["layers"] == n_layers_27b else sizes["D"]


def describe_embedding_gemma(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    values.require("use_bidirectional_attention", True, default=False)
    if sizes["layers"] == N_LAYERS_27B:  # for which `query_pre_attn_scalar` would be taken for that of Gemma 3
        raise wrong("num_hidden_layers", N_LAYERS_27B)
    if not window_pattern(draft, values, sizes, 6):
        raise Unconvertible("its `layer_types` has no layer with a window: the engine needs one")
    describe_gemma3(draft, values, sizes)


def describe_gemma3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    if values.get("attn_logit_softcapping") is not None:
        raise Unconvertible("it has `attn_logit_softcapping`, which the engine does not compute for this architecture")
    if values.get("final_logit_softcapping") is not None:
        draft.number("final_logit_softcapping", values.number("final_logit_softcapping"))
    rotation_of_each_kind(values)
    if not window_pattern(draft, values, sizes, 6):
        return
    draft.integer("attention.sliding_window", values.integer("sliding_window", maximum=MAX_CONTEXT))
    describe_local_rotation(draft, values)


def describe_local_rotation(draft: MetadataBuilder, values: Hyperparameters) -> None:
    """That of layers with a window, which is never scaled."""
    rope = values.get("rope_parameters")
    local = rope.get("sliding_attention") if isinstance(rope, dict) else None
    if isinstance(local, dict):
        Hyperparameters(local, {}).require("rope_type", "default", default="default")
        theta = checked_number("rope_theta", local.get("rope_theta", 10_000.0))
    else:
        theta = values.number("rope_local_base_freq")
    draft.number("rope.freq_base_swa", theta)


FAMILIES = (
    Family(
        "Gemma", "gemma", classes("Gemma"), "gemma",
        (*_GEMMA, *plus_one(Row("layers.#.post_attention_layernorm", "blk.#.ffn_norm.weight", "E"))),
        GELU, FREE, describe_gemma, _GEMMA_DEFAULTS,
    ),
    Family(
        "Gemma 2", "gemma2", classes("Gemma2"), "gemma2", (*_GEMMA, *SANDWICH), GELU, FREE, describe_gemma2,
        {**_GEMMA_DEFAULTS, "query_pre_attn_scalar": 256, "sliding_window": 4096},
    ),
    Family(
        "EmbeddingGemma", "gemma3_text", ("Gemma3TextModel",), "gemma-embedding",
        (*_GEMMA, *SANDWICH, *_GEMMA3_HEAD_NORMS),
        GELU, frozenset(("linear",)), describe_embedding_gemma, _GEMMA3_DEFAULTS, is_encoder=True, has_dense=True,
    ),
    *(
        Family(
            "Gemma 3", model_type, ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"), "gemma3",
            (*_GEMMA, *SANDWICH, *_GEMMA3_HEAD_NORMS),
            GELU, frozenset(("linear",)), describe_gemma3, _GEMMA3_DEFAULTS,
            ignored_prefixes=EYES,
        )
        for model_type in ("gemma3_text", "gemma3")
    ),
)  # fmt: skip
