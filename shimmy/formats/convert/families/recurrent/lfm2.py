"""LFM2, with experts or without: short convolutions in most layers, attention in the others."""

from dataclasses import replace

from shimmy.formats.convert.families.family import (
    FREE,
    SILU,
    SQUEEZE,
    Family,
    Row,
    attention,
    classes,
    expert_rows,
)
from shimmy.formats.convert.families.settings import SIGMOID, experts, plain_heads
from shimmy.formats.convert.hyperparameters import (
    MAX_LAYERS,
    Hyperparameters,
    MetadataBuilder,
    rope_parameters,
    wrong,
)
from shimmy.formats.format_errors import Unconvertible

_DENSE, _SPARSE = "dense", "sparse"

_AROUND = (
    Row("embed_tokens", "token_embd.weight", "VE"),
    Row("embedding_norm", "token_embd_norm.weight", "E"),  # behind the last layer, for all its name
    Row("lm_head", "output.weight", "VE"),
    Row("layers.#.operator_norm", "blk.#.attn_norm.weight", "E"),
    Row("layers.#.ffn_norm", "blk.#.ffn_norm.weight", "E"),
    *(
        replace(row, source=row.source.replace("o_proj", "out_proj"), layers="full_attention")
        for row in attention(bias="none")
    ),
    Row("layers.#.self_attn.q_layernorm", "blk.#.attn_q_norm.weight", "D", layers="full_attention"),
    Row("layers.#.self_attn.k_layernorm", "blk.#.attn_k_norm.weight", "D", layers="full_attention"),
    Row("layers.#.conv.in_proj", "blk.#.shortconv.in_proj.weight", "CE", layers="conv"),
    Row("layers.#.conv.conv", "blk.#.shortconv.conv.weight", "E1L", SQUEEZE, layers="conv"),
    Row("layers.#.conv.out_proj", "blk.#.shortconv.out_proj.weight", "EE", layers="conv"),
)
_FEED_FORWARD = (
    Row("layers.#.feed_forward.w1", "blk.#.ffn_gate.weight", "FE"),
    Row("layers.#.feed_forward.w3", "blk.#.ffn_up.weight", "FE"),
    Row("layers.#.feed_forward.w2", "blk.#.ffn_down.weight", "EF"),
)


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


def describe_lfm2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    plain_heads(values, sizes)
    values.require("conv_bias", False, default=False)
    if (theta := values.get("theta")) is not None and theta != rope_parameters(values).number("rope_theta"):
        raise wrong("theta", theta)
    sizes |= {"C": 3 * sizes["E"], "1": 1, "L": values.integer("conv_L_cache", minimum=2, maximum=64)}
    draft.integer("shortconv.l_cache", sizes["L"])
    # A layer without keys is one of convolution.
    attends = [kind == "full_attention" for kind in values.names("layer_types") or ()]
    if len(set(attends)) != 2:  # llama.cpp aborts the process
        raise Unconvertible("its `layer_types` has no attention, or no convolution: the engine needs both")
    draft.integers("attention.head_count_kv", [sizes["N"] if attend else 0 for attend in attends])


def _n_dense(values: Hyperparameters) -> int:
    """The first layers have no experts."""
    n_layers = values.integer("num_hidden_layers", maximum=MAX_LAYERS)
    return values.integer("num_dense_layers", minimum=0, maximum=n_layers - 1)


def _kinds(values: Hyperparameters) -> list[set[str]]:
    kinds, n_dense = values.names("layer_types") or [], _n_dense(values)
    return [{kind, _DENSE if layer < n_dense else _SPARSE} for layer, kind in enumerate(kinds)]


def describe_lfm2_moe(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    describe_lfm2(draft, values, sizes)
    experts(draft, values, sizes, "num_experts")
    for key in ("norm_topk_prob", "use_expert_bias"):
        values.require(key, True, default=True)
    values.require("routed_scaling_factor", 1, 1.0, default=1)
    sizes["M"] = values.integer("moe_intermediate_size")
    draft.integer("expert_feed_forward_length", sizes["M"])
    draft.integer("leading_dense_block_count", _n_dense(values))
    draft.integer("expert_gating_func", SIGMOID)


_BY_MLX = {
    f".feed_forward.{name}_proj.": f".feed_forward.{own}."
    for name, own in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
}
_DEFAULTS = {"rope_theta": 1e6, "norm_eps": 1e-5, "conv_L_cache": 3}

FAMILIES = (
    Family(
        "LFM2", "lfm2", classes("Lfm2")[:1], "lfm2", (*_AROUND, *_FEED_FORWARD), SILU, FREE, describe_lfm2,
        {**_DEFAULTS, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": True},
        renamed=lfm2_renamed,
    ),
    Family(
        "LFM2", "lfm2_moe", classes("Lfm2Moe")[:1], "lfm2moe",
        (*_AROUND,
         *(replace(row, layers=_DENSE) for row in _FEED_FORWARD),
         *(replace(row, layers=_SPARSE) for row in (
             *expert_rows("layers.#.feed_forward.gate", "layers.#.feed_forward.experts", "w1", "w3", "w2"),
             Row("layers.#.feed_forward.expert_bias", "blk.#.exp_probs_b.bias", "X", is_named_in_full=True)))),
        SILU, FREE, describe_lfm2_moe,
        {**_DEFAULTS, "num_dense_layers": 2, "num_experts": 32, "num_experts_per_tok": 4,
         "moe_intermediate_size": 1792},
        renamed=lfm2_renamed, kinds=_kinds, mlx_names=_BY_MLX,
    ),
)  # fmt: skip
