"""The hyperparameters of single families: the metadata that only one has, and the values that are refused.

Knows config.json of transformers and llama.cpp's metadata. Where llama.cpp would compute a setting wrongly without an
error, the context is limited to where it is exact, with a notice, or the model is refused. Each public function is the
`describe` of a family: it gets the metadata so far, the hyperparameters, and the sizes by the letters of `Row.shape`.
"""

import math

from shimmy.formats.convert.hyperparameters import (
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_LAYERS,
    Hyperparameters,
    MetadataBuilder,
    checked_number,
    rope_parameters,
    wrong,
)
from shimmy.formats.format_errors import Unconvertible


def llama(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    """Nothing of its own: `recipe` describes this family."""


def _plain_heads(values: Hyperparameters, sizes: dict[str, int]) -> None:
    """Refuse another size of heads: in these architectures llama.cpp takes E / H for granted."""
    if sizes["Q"] != sizes["E"]:
        raise wrong("head_dim", values.get("head_dim") or values.get("num_attention_heads"))


def _cap_to_window(draft: MetadataBuilder, values: Hyperparameters, *, is_used: bool = True) -> None:
    """Limit the context to a sliding window that llama.cpp does not compute: up to there it is exact."""
    kinds = set(values.names("layer_types") or ("sliding_attention",))
    if kinds - {"full_attention", "sliding_attention"}:
        raise Unconvertible("its `layer_types` has a kind of layer that the engine does not have")
    if is_used and "sliding_attention" in kinds and values.get("sliding_window") is not None:
        window = values.integer("sliding_window", maximum=MAX_CONTEXT)
        draft.cap_context(window, "the engine has no sliding window for this architecture")


def mistral(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del sizes
    _cap_to_window(draft, values)


def mixtral(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _cap_to_window(draft, values)
    _experts(draft, values, sizes, "num_local_experts")
    sizes["M"] = sizes["F"]


def _experts(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int], key: str) -> None:
    sizes["X"] = values.integer(key, "num_experts", "num_local_experts", maximum=MAX_EXPERTS)
    draft.integer("expert_count", sizes["X"])
    draft.integer("expert_used_count", values.integer("num_experts_per_tok", maximum=sizes["X"]))


def smollm3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    qwen_window(draft, values, sizes)
    found = values.get("no_rope_layers")
    if found is None:
        values.require("no_rope_layer_interval", 4, default=4)
    elif found != [int((layer + 1) % 4 != 0) for layer in range(sizes["layers"])]:
        raise Unconvertible("its `no_rope_layers` is not every 4th layer, which is all that the engine computes")


def granite(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del sizes
    for key, source in (
        ("attention.scale", "attention_multiplier"), ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"), ("logit_scale", "logits_scaling"),
    ):  # fmt: skip
        if not (scale := values.number(source, default=1)):  # 0 is how llama.cpp says that there is none
            raise wrong(source, scale)
        draft.number(key, scale)


def qwen_window(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    is_used = values.flag("use_sliding_window")
    first = values.get("max_window_layers")
    if values.get("layer_types") is None and first is not None:
        is_used &= values.integer("max_window_layers", minimum=0, maximum=2**31) < sizes["layers"]
    _cap_to_window(draft, values, is_used=is_used)


def qwen2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _plain_heads(values, sizes)
    qwen_window(draft, values, sizes)


def qwen3_moe(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    qwen_window(draft, values, sizes)
    _experts(draft, values, sizes, "num_experts")
    values.require("norm_topk_prob", True, default=False)
    values.require("decoder_sparse_step", 1, default=1)
    values.require("mlp_only_layers", [], default=[])
    sizes["M"] = values.integer("moe_intermediate_size")
    draft.integer("expert_feed_forward_length", sizes["M"])


def gemma(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del draft, sizes
    values.require("tie_word_embeddings", True, default=True)


def gemma2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    gemma(draft, values, sizes)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if not (cap := values.number(key)):
            raise wrong(key, cap)
        draft.number(key, cap)
    if values.number("query_pre_attn_scalar") != gemma_scalar(sizes, 46):
        raise Unconvertible(
            "its `query_pre_attn_scalar` is not the size of a head, which is all that the engine computes"
        )
    draft.integer("attention.sliding_window", values.integer("sliding_window", maximum=MAX_CONTEXT))
    _window_pattern(draft, values, sizes, 2)


def gemma_scalar(sizes: dict[str, int], n_layers_27b: int) -> int:
    """The number by whose root llama.cpp divides the queries; its 27B models are those with `n_layers_27b` layers."""
    return sizes["E"] // sizes["H"] if sizes["layers"] == n_layers_27b else sizes["D"]


def _window_pattern(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int], usual: int) -> bool:
    """Write which layers have a window, unless it is all but each `usual`-th; False when no layer has one."""
    kinds = values.names("layer_types")
    if kinds is None:
        period = values.integer("sliding_window_pattern", "_sliding_window_pattern", default=usual)
        slides = [(layer + 1) % period != 0 for layer in range(sizes["layers"])]
    else:
        if len(kinds) != sizes["layers"] or set(kinds) - {"full_attention", "sliding_attention"}:
            raise Unconvertible(
                "its `layer_types` has a kind of layer that the engine does not have, or too few layers"
            )
        slides = [kind == "sliding_attention" for kind in kinds]
    if any(slides) and slides != [(layer + 1) % usual != 0 for layer in range(sizes["layers"])]:
        draft.flags("attention.sliding_window_pattern", slides)
    return any(slides)


def gemma3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    if values.get("attn_logit_softcapping") is not None:
        raise Unconvertible("it has `attn_logit_softcapping`, which the engine does not compute for this architecture")
    if values.get("final_logit_softcapping") is not None:
        draft.number("final_logit_softcapping", values.number("final_logit_softcapping"))
    if not _window_pattern(draft, values, sizes, 6):
        return
    draft.integer("attention.sliding_window", values.integer("sliding_window", maximum=MAX_CONTEXT))
    rope = values.get("rope_parameters")
    local = rope.get("sliding_attention") if isinstance(rope, dict) else None
    if isinstance(local, dict):
        Hyperparameters(local, {}).require("rope_type", "default", default="default")
        theta = checked_number("rope_theta", local.get("rope_theta", 10_000.0))
    else:
        theta = values.number("rope_local_base_freq")
    draft.number("rope.freq_base_swa", theta)


def phi3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _plain_heads(values, sizes)
    _cap_to_window(draft, values)
    rope = rope_parameters(values)
    if rope.get("rope_type") == "default":
        return
    n_ctx_original = rope.get("original_max_position_embeddings") or values.get("original_max_position_embeddings")
    if type(n_ctx_original) is not int or not 1 < n_ctx_original <= MAX_CONTEXT:
        raise wrong("original_max_position_embeddings", n_ctx_original)
    factor = rope.number("factor", default=sizes["P"] / n_ctx_original)
    implied = math.sqrt(1 + math.log(factor) / math.log(n_ctx_original)) if factor > 1 else 1.0
    draft.integer("rope.scaling.original_context_length", n_ctx_original)
    draft.number("rope.scaling.attn_factor", rope.number("attention_factor", default=implied))
    for kind in ("long", "short"):
        factors = rope.get(f"{kind}_factor")
        if not isinstance(factors, list) or len(factors) != sizes["R"] // 2:
            raise wrong(f"{kind}_factor", factors)
        numbers = [checked_number(f"{kind}_factor", factor) for factor in factors]
        if not all(numbers):
            raise wrong(f"{kind}_factor", 0)
        draft.computed[f"rope_factors_{kind}.weight"] = numbers
    # llama.cpp takes the long factors for all texts in a context above it, short texts among them.
    draft.cap_context(n_ctx_original, "the engine cannot change between short and long positions within a context")


def same(values: Hyperparameters) -> Hyperparameters:
    """For families whose values have the usual names."""
    return values


def lfm2_renamed(values: Hyperparameters) -> Hyperparameters:
    """Sizes of feed-forward layers and kinds of layers as other families write them."""
    n_layers = values.integer("num_hidden_layers", maximum=MAX_LAYERS)
    kinds = values.names("layer_types")
    if kinds is None:
        attend = values.get("full_attn_idxs")
        if not isinstance(attend, list) or not all(type(layer) is int and 0 <= layer < n_layers for layer in attend):
            raise wrong("layer_types", values.get("layer_types"))
        kinds = ["full_attention" if layer in attend else "conv" for layer in range(n_layers)]
    if len(kinds) != n_layers or set(kinds) - {"full_attention", "conv"}:
        raise Unconvertible("its `layer_types` has a kind of layer that the engine does not have, or too few layers")
    width = values.integer("block_ff_dim", "intermediate_size")
    if values.flag("block_auto_adjust_ff_dim"):
        multiple = values.integer("block_multiple_of")
        width = int(values.number("block_ffn_dim_multiplier") * int(2 * width / 3))
        width = (width + multiple - 1) // multiple * multiple
    is_tied = values.flag("tie_embedding", default=values.flag("tie_word_embeddings", default=True))
    changes = {"intermediate_size": width, "layer_types": kinds, "tie_word_embeddings": is_tied}
    return values.changed({**changes, "rms_norm_eps": values.number("norm_eps")})


def lfm2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _plain_heads(values, sizes)
    values.require("conv_bias", False, default=False)
    if (theta := values.get("theta")) is not None and theta != rope_parameters(values).number("rope_theta"):
        raise wrong("theta", theta)
    sizes |= {"C": 3 * sizes["E"], "1": 1, "L": values.integer("conv_L_cache", minimum=2, maximum=64)}
    draft.integer("shortconv.l_cache", sizes["L"])
    # A layer without keys is one of convolution.
    attends = [kind == "full_attention" for kind in values.names("layer_types") or ()]
    draft.integers("attention.head_count_kv", [sizes["N"] if attend else 0 for attend in attends])


def olmo2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del draft
    _plain_heads(values, sizes)
    values.require("tie_word_embeddings", False, default=False)


def olmo3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    olmo2(draft, values, sizes)
    if not _window_pattern(draft, values, sizes, 4):
        return
    draft.integer("attention.sliding_window", values.integer("sliding_window", maximum=MAX_CONTEXT))
    # Positions are scaled in the layers without a window alone.
    rope, local = rope_parameters(values), values.get("rope_parameters")
    if isinstance(local, dict) and isinstance(local.get("sliding_attention"), dict):
        Hyperparameters(local["sliding_attention"], {"rope_type": "default"}).require("rope_type", "default")
        theta = checked_number("rope_theta", local["sliding_attention"].get("rope_theta"))
        if theta != rope.number("rope_theta"):
            raise wrong("rope_theta", theta)


def gpt_oss(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    values.require("swiglu_limit", 7.0, 7, default=7.0)
    _experts(draft, values, sizes, "num_local_experts")
    draft.integer("expert_feed_forward_length", sizes["F"])
    draft.integer("attention.sliding_window", values.integer("sliding_window", maximum=MAX_CONTEXT))
    _window_pattern(draft, values, sizes, 2)


def gpt2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del draft
    _plain_heads(values, sizes)
    values.require("scale_attn_weights", True, default=True)
    values.require("scale_attn_by_inverse_layer_idx", False, default=False)


def bert(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _plain_heads(values, sizes)
    values.require("position_embedding_type", "absolute", default="absolute")
    sizes["T"] = values.integer("type_vocab_size", default=2)
    draft.flag("attention.causal", False)
