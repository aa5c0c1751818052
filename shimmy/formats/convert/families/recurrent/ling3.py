"""Ling 3: layers of Kimi delta attention beside those of latent attention, all gated, with experts in groups.

As Kimi Linear, but that positions are rotated, each head of latent attention has one gate, and what makes channels fade
is a whole matrix. The reference is transformers, and for queries that are made in two steps, which it does not have,
the code that lies beside Ling-3.0-tiny on the hub.
"""

from dataclasses import replace
from typing import Any

from shimmy.formats.convert.families.family import (
    NEGATIVE_EXP,
    NORMS,
    SILU,
    Family,
    Row,
    expert_rows,
    feed_forward,
    rope_defaults,
)
from shimmy.formats.convert.families.mla import (
    DIRECT,
    LATENT_ATTENTION,
    LOW_RANK,
    describe_latent_attention,
    describe_latent_experts,
    n_layers_of,
)
from shimmy.formats.convert.families.recurrent.kimi import (
    DELTA,
    LATENT,
    NAMES_OF_EXPERTS,
    delta_rows,
    describe_delta_attention,
    of_kind,
    unadapted,
)
from shimmy.formats.convert.families.settings import DENSE, SIGMOID, SPARSE, expert_groups, n_dense_layers
from shimmy.formats.convert.hyperparameters import (
    MAX_LAYERS,
    Hyperparameters,
    MetadataBuilder,
    checked_number,
    wrong,
)
from shimmy.formats.format_errors import Unconvertible

_SELF, _MLP = "layers.#.attention", "layers.#.mlp"


def _minus_one(values: Hyperparameters) -> tuple[float]:
    """llama.cpp takes how fast a state fades as a positive number here."""
    del values
    return (-1.0,)


def _latent(row: Row) -> Row:
    source = row.source.replace("layers.#.self_attn", _SELF).replace(".o_proj", ".dense")
    return replace(row, source=source, stacked=row.stacked.replace("layers.#.self_attn", _SELF))


_ROWS = (
    Row("word_embeddings", "token_embd.weight", "VE"),
    Row("norm", "output_norm.weight", "E"),
    *unadapted((Row("lm_head", "output.weight", "VE"),)),
    *NORMS,
    *unadapted(of_kind(LATENT, tuple(map(_latent, LATENT_ATTENTION)))),
    *unadapted(of_kind(LATENT, (Row(f"{_SELF}.g_proj", "blk.#.attn_gate.weight", "HE"),))),
    *unadapted(of_kind(DELTA, (
        *delta_rows(_SELF),
        Row(f"{_SELF}.f_proj", "blk.#.ssm_f_a.weight", "iE"),
        Row(f"{_SELF}.g_proj", "blk.#.ssm_g_a.weight", "iE"),
        Row(f"{_SELF}.A_log", "blk.#.ssm_a", "H", NEGATIVE_EXP, is_named_in_full=True, kept="H1", factors=_minus_one),
    ))),
    *of_kind(DENSE, feed_forward()),
    *of_kind(SPARSE, (
        *expert_rows(f"{_MLP}.gate", f"{_MLP}.experts", "gate_proj", "up_proj", "down_proj"),
        Row(f"{_MLP}.gate.expert_bias", "blk.#.exp_probs_b.bias", "X", is_named_in_full=True),
        Row(f"{_MLP}.shared_experts.gate_proj", "blk.#.ffn_gate_shexp.weight", "YE"),
        Row(f"{_MLP}.shared_experts.up_proj", "blk.#.ffn_up_shexp.weight", "YE"),
        Row(f"{_MLP}.shared_experts.down_proj", "blk.#.ffn_down_shexp.weight", "EY"),
    )),
)  # fmt: skip
# What its own code can also do, and llama.cpp cannot.
_OFF = (
    "use_bias", "use_qkv_bias", "use_mla_nope", "use_kda_lora", "use_nGPT", "value_norm", "up_proj_norm",
    "scale_router_input", "pregate_inference",
)  # fmt: skip


def _kinds_of_attention(values: Hyperparameters) -> list[str]:
    """The last layer of each group is latent, and so are those behind the last whole group."""
    n_layers, kinds = n_layers_of(values), values.names("layer_types")
    if kinds is None:
        n_together = values.integer("layer_group_size", maximum=MAX_LAYERS)
        n_grouped = n_layers // n_together * n_together
        kinds = [LATENT if layer >= n_grouped or (layer + 1) % n_together == 0 else DELTA for layer in range(n_layers)]
    if len(kinds) != n_layers or {*kinds} != {DELTA, LATENT}:
        raise Unconvertible("its `layer_types` has another kind of layer than the two that the engine needs, or one")
    return kinds


def _renamed(values: Hyperparameters) -> Hyperparameters:
    """By the names that other families have; what is rotated is said as the part of a head for that."""
    n_rotated, size = values.integer("qk_rope_head_dim"), values.integer("linear_head_dim", "head_dim")
    rope = values.get("rope_parameters")
    if rope is not None and not isinstance(rope, dict):
        raise wrong("rope_parameters", rope)
    share = (rope or {}).get("partial_rotary_factor", values.get("partial_rotary_factor"))
    if share is not None and (share := checked_number("partial_rotary_factor", share)) not in {1, n_rotated / size}:
        raise wrong("partial_rotary_factor", share)
    changes: dict[str, Any] = {
        "layer_types": _kinds_of_attention(values), "linear_head_dim": size, "head_dim": n_rotated,
        "rope_parameters": rope and {key: value for key, value in rope.items() if key != "partial_rotary_factor"},
        "partial_rotary_factor": None, "linear_num_heads": values.integer("num_attention_heads"),
        "linear_conv_kernel_dim": values.integer("linear_conv_kernel_dim", "short_conv_kernel_size"),
    }  # fmt: skip
    for name, keys in NAMES_OF_EXPERTS:
        if (value := values.get(*keys)) is not None:
            changes[name] = value
    return values.changed(changes)


def _kinds(values: Hyperparameters) -> list[set[str]]:
    n_dense = n_dense_layers(values)
    queries = DIRECT if values.get("q_lora_rank") is None else LOW_RANK
    return [
        {kind, DENSE if layer < n_dense else SPARSE, *([queries] if kind == LATENT else [])}
        for layer, kind in enumerate(values.names("layer_types") or [])
    ]


def _drafting_layers(values: Hyperparameters) -> tuple[str, ...]:
    """Layers behind the last one."""
    n_layers = n_layers_of(values)
    n_more = values.integer("num_nextn_predict_layers", minimum=0, maximum=MAX_LAYERS, default=0)
    return tuple(f"layers.{layer}." for layer in range(n_layers, n_layers + n_more))


def describe_ling3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    describe_latent_attention(draft, values, sizes)
    describe_delta_attention(draft, values, sizes)
    describe_latent_experts(draft, values, sizes, SIGMOID)
    expert_groups(draft, values, sizes)
    draft.flag("expert_weights_norm", values.flag("norm_topk_prob", default=True))
    draft.integer("expert_shared_feed_forward_length", sizes["Y"])
    values.require("moe_shared_expert_intermediate_size", sizes["M"], default=sizes["M"])
    for key in ("score_function", "scoring_func"):
        values.require(key, "sigmoid", default="sigmoid")
    values.require("topk_method", "noaux_tc", default="noaux_tc")
    values.require("gated_attention_proj_granularity_type", "head_wise", default="head_wise")
    for key in ("no_kda_lora", "kda_safe_gate", "moe_router_enable_expert_bias"):
        values.require(key, True, default=True)
    for key in _OFF:
        values.require(key, False, default=False)
    for key in ("expert_swiglu_limit_list", "share_expert_swiglu_limit_list"):
        limits = values.get(key)
        if limits is not None and (not isinstance(limits, list) or any(limits)):
            raise Unconvertible(f"its `{key}` limits what experts compute, which the engine has not been tried with")
    bound = values.get("kda_lower_bound")
    if isinstance(bound, bool) or not isinstance(bound, int | float) or not bound < 0:
        raise wrong("kda_lower_bound", bound)
    draft.number("kda.gate_lower_bound", -checked_number("kda_lower_bound", -bound))
    draft.flag("kda.safe_gate", True)


FAMILIES = (
    Family(
        "Ling 3", "bailing_hybrid", ("BailingMoeV3ForCausalLM", "BailingHybridForCausalLM"), "bailingmoe3", _ROWS,
        SILU, frozenset(), describe_ling3,
        {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "head_dim": 128,
         "first_k_dense_replace": 2, "num_experts_per_tok": 8, "num_shared_experts": 1, "moe_intermediate_size": 768,
         "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "layer_group_size": 6,
         "short_conv_kernel_size": 4, "kda_lower_bound": -5.0, **rope_defaults(6e6)},
        kinds=_kinds, unused=_drafting_layers, renamed=_renamed,
    ),
)  # fmt: skip
