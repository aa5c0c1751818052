"""GLM 4; GLM 4.5 to 4.7, MiniMax M2 and Ling 2, whose experts are ranked by sigmoids and a number of each; Ling 1."""

from collections.abc import Mapping
from dataclasses import replace

from shimmy.formats.convert.families.family import (
    ENDS,
    FREE,
    HEAD_NORMS,
    NORMS,
    PERMUTE,
    SILU,
    Family,
    Row,
    Runs,
    attention,
    classes,
    expert_rows,
    feed_forward,
    rope_defaults,
)
from shimmy.formats.convert.families.settings import SIGMOID, expert_groups, experts, plain, plain_heads
from shimmy.formats.convert.hyperparameters import MAX_LAYERS, MAX_WIDTH, Hyperparameters, MetadataBuilder, wrong
from shimmy.formats.format_errors import Unconvertible

_DENSE, _SPARSE, _NORMED = "dense", "sparse", "normed_heads"

_GLM4_AROUND = (
    *ENDS,
    Row("layers.#.input_layernorm", "blk.#.attn_norm.weight", "E"),
    Row("layers.#.post_self_attn_layernorm", "blk.#.post_attention_norm.weight", "E"),
    Row("layers.#.post_attention_layernorm", "blk.#.ffn_norm.weight", "E"),
    Row("layers.#.mlp.gate_up_proj", "blk.#.ffn_up.weight", "GE"),
    Row("layers.#.mlp.down_proj", "blk.#.ffn_down.weight", "EF"),
    Row("layers.#.post_mlp_layernorm", "blk.#.post_ffw_norm.weight", "E"),
)
# Rotated pairs are neighbours. Those of models with eyes have biases, whatever config.json says.
_GLM4 = (*_GLM4_AROUND, *attention())
_GLM4V = (*_GLM4_AROUND, *attention(bias="required"))
_ROUTED = (
    *expert_rows("layers.#.mlp.gate", "layers.#.mlp.experts", "gate_proj", "up_proj", "down_proj"),
    Row("layers.#.mlp.shared_experts.gate_proj", "blk.#.ffn_gate_shexp.weight", "YE"),
    Row("layers.#.mlp.shared_experts.up_proj", "blk.#.ffn_up_shexp.weight", "YE"),
    Row("layers.#.mlp.shared_experts.down_proj", "blk.#.ffn_down_shexp.weight", "EY"),
)
_BIAS = Row(
    "layers.#.mlp.gate.e_score_correction_bias", "blk.#.exp_probs_b.bias", "X", is_named_in_full=True, layers=_SPARSE
)
_GLM4_MOE = (
    *ENDS,
    Row("layers.#.input_layernorm", "blk.#.attn_norm.weight", "E"),
    Row("layers.#.post_attention_layernorm", "blk.#.post_attention_norm.weight", "E"),
    *attention(),
    *(replace(row, layers=_NORMED) for row in HEAD_NORMS),
    *(replace(row, layers=_DENSE) for row in feed_forward()),
    *(replace(row, layers=_SPARSE) for row in _ROUTED),
    _BIAS,
)


def _n_dense(values: Hyperparameters, n_layers: int) -> int:
    return values.integer("first_k_dense_replace", minimum=0, maximum=n_layers - 1)


def _kinds(values: Hyperparameters) -> list[set[str]]:
    n_layers = values.integer("num_hidden_layers", maximum=MAX_LAYERS)
    n_dense = _n_dense(values, n_layers)
    heads = {_NORMED} if values.flag("use_qk_norm") else set()
    return [{_DENSE if layer < n_dense else _SPARSE, *heads} for layer in range(n_layers)]


def _drafting_layers(values: Hyperparameters) -> tuple[str, ...]:
    """Layers behind the last one."""
    n_layers = values.integer("num_hidden_layers", maximum=MAX_LAYERS)
    n_more = values.integer("num_nextn_predict_layers", minimum=0, maximum=MAX_LAYERS)
    return tuple(f"layers.{layer}." for layer in range(n_layers, n_layers + n_more))


def describe_glm4_moe(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    experts(draft, values, sizes, "n_routed_experts")
    values.require("n_group", 1, default=1)
    values.require("topk_group", 1, default=1)
    sizes["M"] = values.integer("moe_intermediate_size")
    n_shared = values.integer("n_shared_experts", maximum=MAX_WIDTH // sizes["M"])
    sizes["Y"] = n_shared * sizes["M"]
    if not (scale := values.number("routed_scaling_factor")):  # 0 is how llama.cpp says that there is none
        raise wrong("routed_scaling_factor", scale)
    draft.integer("expert_feed_forward_length", sizes["M"])
    draft.integer("expert_shared_count", n_shared)
    draft.integer("leading_dense_block_count", _n_dense(values, sizes["layers"]))
    draft.integer("expert_gating_func", SIGMOID)
    draft.number("expert_weights_scale", scale)
    draft.flag("expert_weights_norm", values.flag("norm_topk_prob", default=True))


_DOTS1 = (
    *ENDS,
    *NORMS,
    *attention(bias="none"),
    *HEAD_NORMS,
    *(replace(row, layers=_DENSE) for row in feed_forward()),
    *(replace(row, layers=_SPARSE) for row in _ROUTED),
    _BIAS,
)
_N_LAYERS_BEFORE_WINDOWS = 62  # of dots.llm1, unless it says otherwise


def describe_dots1(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    describe_glm4_moe(draft, values, sizes)
    values.require("num_key_value_heads", sizes["H"], default=sizes["H"])  # for which the engine has no other number
    values.require("attention_bias", False, default=False)
    values.require("tie_word_embeddings", False, default=False)  # the engine wants a matrix of its own
    values.require("scoring_func", "sigmoid", "noaux_tc", default="sigmoid")
    kinds = values.names("layer_types")
    if kinds is None and values.get("sliding_window") is not None:
        first = values.integer("max_window_layers", minimum=0, default=_N_LAYERS_BEFORE_WINDOWS)
        kinds = ["sliding_attention"] * max(0, sizes["layers"] - first)
    if {*(kinds or ())} - {"full_attention"}:
        raise Unconvertible("some of its layers have a window, which the engine does not have for this architecture")


_MINIMAX_M2 = (
    *ENDS,
    *NORMS,
    *attention(bias="none"),
    Row("layers.#.self_attn.q_norm", "blk.#.attn_q_norm.weight", "Q"),  # of all heads together
    Row("layers.#.self_attn.k_norm", "blk.#.attn_k_norm.weight", "K"),
    *expert_rows("layers.#.block_sparse_moe.gate", "layers.#.block_sparse_moe.experts", "w1", "w3", "w2"),
    Row("layers.#.block_sparse_moe.e_score_correction_bias", "blk.#.exp_probs_b.bias", "X", is_named_in_full=True),
)


def minimax_m2_renamed(values: Hyperparameters) -> Hyperparameters:
    """Which part of a head is rotated, as others say it."""
    if values.get("rotary_dim") is None:
        return values
    size = values.integer("head_dim")
    return values.changed({"partial_rotary_factor": values.integer("rotary_dim", maximum=size) / size})


def describe_minimax_m2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    experts(draft, values, sizes, "num_local_experts")
    values.require("scoring_func", "sigmoid", default="sigmoid")
    values.require("qk_norm_type", "per_layer", default="per_layer")
    for key in ("use_qk_norm", "use_routing_bias"):
        values.require(key, True, default=True)
    values.require("shared_intermediate_size", 0, default=0)
    values.require("tie_word_embeddings", False, default=False)  # the engine wants a matrix of its own
    kinds = values.get("attn_type_list")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != 1 for kind in kinds)):
        raise Unconvertible("its `attn_type_list` has layers of linear attention, which the engine does not have")
    sizes["M"] = sizes["F"]
    draft.integer("expert_feed_forward_length", sizes["M"])
    draft.integer("expert_gating_func", SIGMOID)


LING_BY_MLX = {".mlp.gate.gate_proj.": ".mlp.gate."}
_LING_ENDS = (
    Row("word_embeddings", "token_embd.weight", "VE"),
    Row("norm", "output_norm.weight", "E"),
    Row("lm_head", "output.weight", "VE"),
)
_LING2 = (
    *_LING_ENDS,
    *NORMS,
    Row("layers.#.attention.query_key_value", "blk.#.attn_qkv.weight", "AE"),
    Row("layers.#.attention.query_layernorm", "blk.#.attn_q_norm.weight", "D"),
    Row("layers.#.attention.key_layernorm", "blk.#.attn_k_norm.weight", "D"),
    Row("layers.#.attention.dense", "blk.#.attn_output.weight", "EQ"),
    *(replace(row, layers=_DENSE) for row in feed_forward()),
    *(replace(row, layers=_SPARSE) for row in _ROUTED),
    Row("layers.#.mlp.gate.expert_bias", "blk.#.exp_probs_b.bias", "X", is_named_in_full=True, layers=_SPARSE),
)


def _queries(sizes: Mapping[str, int]) -> Runs:
    return ((0, sizes["Q"]),)


def _keys(sizes: Mapping[str, int]) -> Runs:
    return ((sizes["Q"], sizes["K"]),)


def _values(sizes: Mapping[str, int]) -> Runs:
    return ((sizes["Q"] + sizes["K"], sizes["K"]),)


_FUSED = "layers.#.attention.query_key_value"
_LING1 = (
    *_LING_ENDS,
    *NORMS,
    Row(_FUSED, "blk.#.attn_q.weight", "QE", PERMUTE, runs=_queries, taken="AE"),
    Row(_FUSED, "blk.#.attn_k.weight", "KE", PERMUTE, runs=_keys, taken="AE"),
    Row(_FUSED, "blk.#.attn_v.weight", "KE", runs=_values, taken="AE"),
    Row("layers.#.attention.dense", "blk.#.attn_output.weight", "EQ"),
    *_ROUTED,
)


def describe_ling1(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    for key in ("use_bias", "use_qkv_bias", "tie_word_embeddings", "norm_head", "norm_softmax", "use_sliding_window"):
        values.require(key, False, default=False)
    values.require("first_k_dense_replace", 0, default=0)
    experts(draft, values, sizes, "num_experts")
    width = sizes["M"] = values.integer("moe_intermediate_size")
    n_shared = values.integer("num_shared_experts", maximum=MAX_WIDTH // width)
    sizes["Y"] = n_shared * width
    is_normed = values.flag("norm_topk_prob", default=True)
    if is_normed and values.get("num_experts_per_tok") == 1:  # its share is as it is then, and 1 for the engine
        raise wrong("num_experts_per_tok", 1)
    draft.integer("expert_feed_forward_length", width)
    draft.integer("expert_shared_count", n_shared)
    draft.flag("expert_weights_norm", is_normed)


def describe_ling2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    plain_heads(values, sizes)
    for key in ("use_bias", "use_qkv_bias", "tie_word_embeddings"):
        values.require(key, False, default=False)
    for key in ("use_qk_norm", "norm_topk_prob", "moe_router_enable_expert_bias", "use_rmsnorm"):
        values.require(key, True, default=True)
    values.require("score_function", "sigmoid", default="sigmoid")
    experts(draft, values, sizes, "num_experts")
    expert_groups(draft, values, sizes)
    width = sizes["M"] = values.integer("moe_intermediate_size")
    n_shared = values.integer("num_shared_experts", maximum=MAX_WIDTH // width)
    values.require("moe_shared_expert_intermediate_size", width, default=width)
    sizes["Y"] = n_shared * width
    if not (scale := values.number("routed_scaling_factor", default=1)):  # 0 is how llama.cpp says that there is none
        raise wrong("routed_scaling_factor", scale)
    draft.integer("expert_feed_forward_length", width)
    draft.integer("expert_shared_count", n_shared)
    draft.integer("leading_dense_block_count", _n_dense(values, sizes["layers"]))
    draft.integer("expert_gating_func", SIGMOID)
    draft.number("expert_weights_scale", scale)
    draft.flag("expert_weights_norm", True)


_GLM4_MOE_DEFAULTS = {
    "partial_rotary_factor": 0.5, "first_k_dense_replace": 1, "n_shared_experts": 1, "n_routed_experts": 128,
    "num_experts_per_tok": 8, "moe_intermediate_size": 1408, "routed_scaling_factor": 1.0,
    "num_nextn_predict_layers": 1, **rope_defaults(1e4, 1e-5),
}  # fmt: skip

FAMILIES = (
    Family(
        "GLM 4", "glm4", classes("Glm4")[:1], "glm4", _GLM4, SILU, FREE, plain,
        {"head_dim": 128, "partial_rotary_factor": 0.5, "attention_bias": True, **rope_defaults(1e4, 1.5625e-07)},
        rotates_partly=True,
    ),
    Family(
        "GLM 4.5", "glm4_moe", classes("Glm4Moe")[:1], "glm4moe", _GLM4_MOE, SILU, FREE, describe_glm4_moe,
        _GLM4_MOE_DEFAULTS, rotates_partly=True, kinds=_kinds, unused=_drafting_layers,
    ),
    Family(
        "GLM 4V", "glm4v_text", ("Glm4vForConditionalGeneration", "Glm46VForConditionalGeneration"),
        "glm4", _GLM4V, SILU, FREE, plain, rope_defaults(1e4, 1e-5), ignored_prefixes=("visual.", "vision_tower."),
        rotates_partly=True,
    ),
    Family(
        "GLM 4V", "glm4v_moe_text", ("Glm4vMoeForConditionalGeneration", "Glm46VForConditionalGeneration"),
        "glm4moe", _GLM4_MOE, SILU, FREE, describe_glm4_moe,
        _GLM4_MOE_DEFAULTS | {"attention_bias": True}, ignored_prefixes=("visual.", "vision_tower."),
        rotates_partly=True, kinds=_kinds, unused=_drafting_layers,
    ),
    Family(
        "dots.llm1", "dots1", classes("Dots1"), "dots1", _DOTS1, SILU, FREE, describe_dots1,
        {"first_k_dense_replace": 0, "num_nextn_predict_layers": 0, "routed_scaling_factor": 1.0,
         "norm_topk_prob": False, **rope_defaults()},
        kinds=_kinds, unused=_drafting_layers,
        mlx_names={f".mlp.experts.{name}_proj.": f".mlp.switch_mlp.{name}_proj." for name in ("gate", "up", "down")},
    ),
    Family(
        "MiniMax M2", "minimax_m2", classes("MiniMaxM2")[:1], "minimax-m2", _MINIMAX_M2, SILU, FREE,
        describe_minimax_m2,
        {"head_dim": 128, "num_local_experts": 256, "num_experts_per_tok": 8, **rope_defaults(5e6)},
        rotates_partly=True, renamed=minimax_m2_renamed,
    ),
    Family(
        "Ling 1", "bailing_moe", ("BailingMoeForCausalLM", "BailingMoeModel"), "bailingmoe", _LING1, SILU,
        frozenset(("linear", "dynamic")), describe_ling1, {"use_bias": True, **rope_defaults(1e4, 1e-5)},
        mlx_names=LING_BY_MLX,
    ),
    *(
        Family(
            "Ling 2", model_type, ("BailingMoeV2ForCausalLM", "BailingMoeV2Model"), "bailingmoe2", _LING2, SILU, FREE,
            describe_ling2,
            {"partial_rotary_factor": 0.5, "first_k_dense_replace": 0, "num_shared_experts": 1, "n_group": 8,
             "topk_group": 4, "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 0, **rope_defaults(6e5)},
            rotates_partly=True, kinds=_kinds, unused=_drafting_layers, mlx_names=LING_BY_MLX,
        )
        for model_type in ("bailing_moe", "bailing_moe_v2")
    ),
)  # fmt: skip
