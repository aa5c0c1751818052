"""Models with layers of Kimi delta attention beside those of latent attention: Kimi Linear and Kimi K3.

Kimi delta attention (https://arxiv.org/abs/2510.26692) keeps one matrix for each head, however long the text is, and
lets each of its channels fade by itself. The other layers keep one vector a token, as in `mla`, and no position is
rotated anywhere. K3 mixes the outputs of earlier layers into each of them, lets its experts work in a narrower space,
and has an activation of its own. The reference for K3 is the code that lies beside it on the hub.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shimmy.formats.convert.families.family import (
    ENDS,
    NEGATIVE_EXP,
    NORMS,
    SILU,
    Family,
    Row,
    expert_rows,
    feed_forward,
)
from shimmy.formats.convert.families.mla import (
    DIRECT,
    LATENT_ATTENTION,
    LOW_RANK,
    describe_latent_attention,
    describe_latent_experts,
    n_layers_of,
)
from shimmy.formats.convert.families.settings import DENSE, SIGMOID, SPARSE, expert_groups, n_dense_layers
from shimmy.formats.convert.hyperparameters import (
    MAX_LAYERS,
    MAX_WIDTH,
    Hyperparameters,
    MetadataBuilder,
    checked_number,
    wrong,
)
from shimmy.formats.convert.transforms import Transform
from shimmy.formats.format_errors import Unconvertible

DELTA, LATENT = "linear_attention", "full_attention"  # as transformers has them
_GATED, _MIXED, _NARROW, _NORMED = "gated_attention", "mixed_residuals", "narrow_experts", "normed_experts"

_SELF, _MOE = "layers.#.self_attn", "layers.#.block_sparse_moe"
# By which names config.json may say what other families say by the first one.
NAMES_OF_EXPERTS = (
    ("max_position_embeddings", ("model_max_length",)), ("n_routed_experts", ("num_experts", "num_local_experts")),
    ("num_experts_per_tok", ("num_experts_per_token",)), ("n_shared_experts", ("num_shared_experts",)),
    ("n_group", ("num_expert_group",)), ("norm_topk_prob", ("moe_renormalize",)),
)  # fmt: skip


def delta_rows(module: str) -> tuple[Row, ...]:
    """What all have; what makes a channel fade, and the gate, differ."""
    return (
        *(Row(f"{module}.{name}_proj", f"blk.#.attn_{name}.weight", "iE") for name in "qkv"),
        *(Row(f"{module}.{name}_conv1d", f"blk.#.ssm_conv1d_{name}.weight", "i1k") for name in "qkv"),
        Row(f"{module}.dt_bias", "blk.#.ssm_dt.bias", "i", is_named_in_full=True),
        Row(f"{module}.b_proj", "blk.#.ssm_beta.weight", "HE"),
        Row(f"{module}.o_norm", "blk.#.ssm_norm.weight", "d"),
        Row(f"{module}.o_proj", "blk.#.attn_output.weight", "Ei"),
    )


_SHARED = tuple(
    Row(f"{_MOE}.shared_experts.{name}_proj", f"blk.#.ffn_{name}_shexp.weight", shape)
    for name, shape in (("gate", "YE"), ("up", "YE"), ("down", "EY"))
)
_ROUTER = (
    Row(f"{_MOE}.gate", "blk.#.ffn_gate_inp.weight", "XE"),
    Row(f"{_MOE}.gate.e_score_correction_bias", "blk.#.exp_probs_b.bias", "X", is_named_in_full=True),
)
_EXPERTS = expert_rows(f"{_MOE}.gate", f"{_MOE}.experts", "w1", "w3", "w2")[1:]


def unadapted(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """llama.cpp multiplies with these without a thought for adapters."""
    return tuple(replace(row, is_adaptable=False) for row in rows)


def of_kind(kind: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple(replace(row, layers=row.layers or kind) for row in rows)


_BOTH = (
    *ENDS[:2], *unadapted(ENDS[2:]), *NORMS,
    *unadapted(of_kind(LATENT, LATENT_ATTENTION)),
    *unadapted(of_kind(DELTA, (
        *delta_rows(_SELF),
        Row(f"{_SELF}.f_a_proj", "blk.#.ssm_f_a.weight", "dE"),
        Row(f"{_SELF}.f_b_proj", "blk.#.ssm_f_b.weight", "id"),
    ))),
)  # fmt: skip
_LINEAR = (
    *_BOTH,
    *unadapted(of_kind(DELTA, (
        Row(f"{_SELF}.A_log", "blk.#.ssm_a", "11H1", NEGATIVE_EXP, is_named_in_full=True, kept="H1"),
        Row(f"{_SELF}.g_a_proj", "blk.#.ssm_g_a.weight", "dE"),
        Row(f"{_SELF}.g_b_proj", "blk.#.ssm_g_b.weight", "id"),
    ))),
    *of_kind(DENSE, feed_forward()),
    *of_kind(SPARSE, (*_ROUTER, *_EXPERTS, *_SHARED)),
)  # fmt: skip
_NARROW_EXPERTS = tuple(replace(row, shape=row.shape.replace("E", "l"), fused=None, stacked="") for row in _EXPERTS)
_K3 = (
    *_BOTH,
    *unadapted(of_kind(DELTA, (
        Row(f"{_SELF}.A_log", "blk.#.ssm_a", "H", NEGATIVE_EXP, is_named_in_full=True, is_padded=True),
        Row(f"{_SELF}.g_proj", "blk.#.ssm_g.weight", "iE"),
    ))),
    *unadapted(of_kind(_GATED, (Row(f"{_SELF}.g_proj", "blk.#.attn_gate.weight", "oE"),))),
    *unadapted(of_kind(_MIXED, tuple(
        Row(f"{norm}_norm", target, "E", Transform.PRODUCT, times=f"{norm}_proj")
        for norm, target in (
            ("layers.#.self_attention_res", "blk.#.attn_res_score.weight"),
            ("layers.#.mlp_res", "blk.#.ffn_res_score.weight"),
            ("output_attn_res", "output_res_score.weight"),
        )
    ))),
    *unadapted(of_kind(DENSE, feed_forward())),
    *of_kind(SPARSE, (*unadapted(_ROUTER), *_NARROW_EXPERTS, *unadapted(_SHARED))),
    *unadapted(of_kind(_NARROW, (
        Row(f"{_MOE}.routed_expert_down_proj", "blk.#.ffn_routed_down.weight", "lE"),
        Row(f"{_MOE}.routed_expert_up_proj", "blk.#.ffn_routed_up.weight", "El"),
    ))),
    *unadapted(of_kind(_NORMED, (Row(f"{_MOE}.routed_expert_norm", "blk.#.ffn_routed_norm.weight", "l"),))),
)  # fmt: skip


def _delta_settings(values: Hyperparameters) -> Mapping[str, Any]:
    found = values.get("linear_attn_config")
    if found is not None and not isinstance(found, dict):
        raise wrong("linear_attn_config", found)
    return found or {}


def _kinds_of_attention(values: Hyperparameters) -> list[str]:
    """Of each layer; config.json of the hub counts them from one."""
    n_layers, settings = n_layers_of(values), _delta_settings(values)
    kinds = values.names("layer_types")
    if kinds is None:
        found = [settings.get(key) for key in ("full_attn_layers", "kda_layers")]
        latent, delta = (places if isinstance(places, list) else [] for places in found)
        numbers = latent + delta
        if not all(type(number) is int for number in numbers) or sorted(numbers) != list(range(1, n_layers + 1)):
            raise Unconvertible("its `full_attn_layers` and `kda_layers` are not all of its layers, each of them once")
        kinds = [LATENT if number in latent else DELTA for number in range(1, n_layers + 1)]
    if len(kinds) != n_layers or {*kinds} != {DELTA, LATENT}:
        raise Unconvertible("its `layer_types` has another kind of layer than the two that the engine needs, or one")
    return kinds


def _renamed(values: Hyperparameters) -> Hyperparameters:
    """By the names that other families have."""
    settings = _delta_settings(values)
    changes: dict[str, Any] = {
        "layer_types": _kinds_of_attention(values),
        "head_dim": values.integer("qk_rope_head_dim"),
    }
    for name, keys in NAMES_OF_EXPERTS:
        if (value := values.get(*keys)) is not None:
            changes[name] = value
    for name, key in (
        ("linear_head_dim", "head_dim"), ("linear_num_heads", "num_heads"),
        ("linear_conv_kernel_dim", "short_conv_kernel_size"),
    ):  # fmt: skip
        if settings.get(key) is not None:
            changes[name] = settings[key]
    return values.changed(changes)


def _kinds(values: Hyperparameters) -> list[set[str]]:
    n_dense = n_dense_layers(values)
    queries = DIRECT if values.get("q_lora_rank") is None else LOW_RANK
    of_all = {_MIXED} if values.get("attn_res_block_size") is not None else set()
    of_latent = {queries, *({_GATED} if values.flag("mla_use_output_gate") else ())}
    of_sparse = {SPARSE}
    if values.get("routed_expert_hidden_size") is not None:
        of_sparse |= {_NARROW, *({_NORMED} if values.flag("latent_moe_use_norm") else ())}
    return [
        {kind, *of_all, *(of_latent if kind == LATENT else ()), *({DENSE} if layer < n_dense else of_sparse)}
        for layer, kind in enumerate(values.names("layer_types") or [])
    ]


def _describe_both(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    """llama.cpp aborts the process for some of what is refused here."""
    n_rotated = sizes["R"] = values.integer("qk_rope_head_dim")
    describe_latent_attention(draft, values, sizes)
    draft.integer("rope.dimension_count", n_rotated)  # of which nothing is rotated
    values.require("mla_use_nope", True, default=True)
    values.require("tie_word_embeddings", False, default=False)  # the engine wants a matrix of its own
    describe_delta_attention(draft, values, sizes)
    describe_latent_experts(draft, values, sizes, SIGMOID)
    expert_groups(draft, values, sizes)
    values.require("moe_router_activation_func", "sigmoid", default="sigmoid")
    values.require("topk_method", "noaux_tc", default="noaux_tc")


def describe_delta_attention(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    """After what says how layers of latent attention are, of which others have one head of keys."""
    kinds = values.names("layer_types") or []
    draft.integers("attention.head_count_kv", [int(kind == LATENT) for kind in kinds])
    size = values.integer("linear_head_dim")
    values.require("linear_num_heads", sizes["H"])
    if sizes["H"] * size > MAX_WIDTH:
        raise wrong("linear_head_dim", size)
    kernel = values.integer("linear_conv_kernel_dim", minimum=2, maximum=64)
    sizes |= {"d": size, "i": sizes["H"] * size, "k": kernel, "1": 1}
    draft.integer("kda.head_dim", size)
    draft.integer("ssm.conv_kernel", kernel)


def describe_kimi_linear(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    values.require("q_lora_rank", None)
    values.require("norm_topk_prob", True, default=True)
    for key in ("attn_res_block_size", "routed_expert_hidden_size"):
        values.require(key, None)
    values.require("mla_use_output_gate", False, default=False)
    settings = Hyperparameters(_delta_settings(values), {})
    settings.require("use_full_rank_gate", False, default=False)
    settings.require("gate_lower_bound", None)
    _describe_both(draft, values, sizes)


def describe_kimi_k3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _describe_both(draft, values, sizes)
    settings = Hyperparameters(_delta_settings(values), {})
    settings.require("use_full_rank_gate", True)
    if (bound := settings.get("gate_lower_bound")) is not None:
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not -math.inf < bound < 0:
            raise wrong("gate_lower_bound", bound)
        draft.number("kda.gate_lower_bound", -checked_number("gate_lower_bound", -bound))
    beta, linear_beta = values.number("activation_situ_beta", default=0), values.get("activation_situ_linear_beta")
    if linear_beta is not None and not checked_number("activation_situ_linear_beta", linear_beta):
        raise wrong("activation_situ_linear_beta", linear_beta)
    draft.number("activation.situ_beta", beta or 1)
    draft.number("activation.situ_linear_beta", linear_beta or 0)  # 0: none
    mixes = values.get("attn_res_block_size") is not None
    draft.integer("attn_res.block_size", values.integer("attn_res_block_size", maximum=MAX_LAYERS) if mixes else 0)
    sizes["l"] = values.integer("routed_expert_hidden_size", default=sizes["E"])
    if values.get("routed_expert_hidden_size") is not None:
        draft.integer("expert_latent_length", sizes["l"])
    is_normed = values.flag("norm_topk_prob", default=True) and values.integer("num_experts_per_tok") > 1
    draft.flag("expert_weights_norm", is_normed)


def _is_k3(config: Mapping[str, Any]) -> bool:
    return config.get("hidden_act") == "situ" or config.get("attn_res_block_size") is not None


def _is_linear(config: Mapping[str, Any]) -> bool:
    return not _is_k3(config)


_BY_MLX = {
    **{f".mlp.{part}.": f".block_sparse_moe.{part}." for part in ("switch_mlp", "shared_experts", "gate")},
    ".mlp.e_score_correction_bias": ".block_sparse_moe.gate.e_score_correction_bias",
    **{f".{name}_conv.conv.": f".{name}_conv1d." for name in "qkv"},
}
_CLASSES, _EYES = ("KimiLinearForCausalLM",), ("vision_tower.", "mm_projector.")

FAMILIES = (
    Family(
        "Kimi Linear", "kimi_linear", _CLASSES, "kimi-linear", _LINEAR, SILU, None, describe_kimi_linear,
        {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
         "first_k_dense_replace": 1, "num_experts_per_token": 8, "num_shared_experts": 1, "moe_intermediate_size": 1024,
         "routed_scaling_factor": 2.446, "linear_head_dim": 128, "linear_num_heads": 32, "linear_conv_kernel_dim": 4,
         "rms_norm_eps": 1e-5},
        kinds=_kinds, renamed=_renamed, suits=_is_linear, mlx_names=_BY_MLX,
    ),
    Family(
        "Kimi K3", "kimi_linear", (*_CLASSES, "KimiK3ForConditionalGeneration"), "kimi-k3", _K3, frozenset(("situ",)),
        None, describe_kimi_k3,
        {"first_k_dense_replace": 0, "routed_scaling_factor": 1.0, "rms_norm_eps": 1e-6},
        ignored_prefixes=_EYES, kinds=_kinds, renamed=_renamed, suits=_is_k3,
    ),
)  # fmt: skip
