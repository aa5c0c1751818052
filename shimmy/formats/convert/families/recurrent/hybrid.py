"""Models with layers of Mamba-2 beside those of attention: Granite 4 and Nemotron-H."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shimmy.formats.convert.families.family import (
    ALL,
    ENDS,
    NEGATIVE_EXP,
    NORMS,
    PERMUTE,
    SILU,
    SQUEEZE,
    Family,
    Row,
    Runs,
    always,
    attention,
    classes,
    rope_defaults,
)
from shimmy.formats.convert.families.llama import describe_granite
from shimmy.formats.convert.families.settings import experts
from shimmy.formats.convert.hyperparameters import (
    MAX_LAYERS,
    MAX_WIDTH,
    Hyperparameters,
    MetadataBuilder,
    wrong,
)
from shimmy.formats.format_errors import Unconvertible

MAMBA, _ATTENTION, _MLP, _MOE = "mamba", "full_attention", "mlp", "moe"
_LATENT = "narrow_experts"
_KINDS = {
    "mamba": MAMBA,
    "linear_attention": MAMBA,
    "attention": _ATTENTION,
    **{k: k for k in (_ATTENTION, _MLP, _MOE)},
}
_LETTERS = {"M": MAMBA, "*": _ATTENTION, "-": _MLP, "E": _MOE}


def mamba_rows(module: str) -> tuple[Row, ...]:
    source = f"layers.#.{module}"
    rows = (
        Row(f"{source}.in_proj", "blk.#.ssm_in.weight", "pE"),
        Row(f"{source}.conv1d", "blk.#.ssm_conv1d.weight", "c1k", SQUEEZE, "required"),
        Row(f"{source}.dt_bias", "blk.#.ssm_dt.bias", "h", is_named_in_full=True),
        Row(f"{source}.A_log", "blk.#.ssm_a", "h", NEGATIVE_EXP, is_named_in_full=True, kept="h1"),
        Row(f"{source}.D", "blk.#.ssm_d", "h", is_named_in_full=True, kept="h1"),
        Row(f"{source}.norm", "blk.#.ssm_norm.weight", "i", kept="gn"),
        Row(f"{source}.out_proj", "blk.#.ssm_out.weight", "Ei"),
    )
    return tuple(replace(row, layers=MAMBA) for row in rows)


def _describe_mixed(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    """Layers of Mamba-2, which are those without keys, among others."""
    kinds = values.names("layer_types") or []
    if not {MAMBA, _ATTENTION} <= {*kinds}:
        raise Unconvertible("its `layer_types` has no layer of attention, or none of Mamba: the engine needs both")
    describe_mamba(draft, values, sizes)
    draft.integers("attention.head_count_kv", [sizes["N"] if kind == _ATTENTION else 0 for kind in kinds])


def describe_mamba(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    """What is in a layer of Mamba-2. llama.cpp aborts the process for what is refused here."""
    n_heads, n_groups = values.integer("mamba_n_heads"), values.integer("mamba_n_groups", default=1)
    inner, state = n_heads * values.integer("mamba_d_head"), values.integer("mamba_d_state", maximum=4096)
    if n_heads % n_groups or inner > MAX_WIDTH or n_groups * state > MAX_WIDTH:
        raise wrong("mamba_n_heads", n_heads)
    kernel = values.integer("mamba_d_conv", minimum=2, maximum=64)
    values.require("mamba_conv_bias", True, default=True)
    values.require("mamba_proj_bias", False, default=False)
    limit = values.get("time_step_limit")
    if limit is not None and limit not in ([0, math.inf], [0, {"__float__": "Infinity"}]):
        raise Unconvertible("it has a `time_step_limit`, which the engine does not compute")
    channels = inner + 2 * n_groups * state
    sizes |= {
        "h": n_heads, "g": n_groups, "i": inner, "n": inner // n_groups, "k": kernel, "c": channels, "1": 1,
        "p": inner + channels + n_heads,
    }  # fmt: skip
    for key, size in (
        ("conv_kernel", kernel), ("inner_size", inner), ("state_size", state), ("time_step_rank", n_heads),
        ("group_count", n_groups),
    ):  # fmt: skip
        draft.integer(f"ssm.{key}", size)


def _kinds(values: Hyperparameters, found: object, known: Mapping[str, str], allowed: frozenset[str]) -> list[str]:
    """The kind of each layer, by letters or words of transformers."""
    n_layers = values.integer("num_hidden_layers", maximum=MAX_LAYERS)
    kinds = [known.get(str(kind)) for kind in found] if isinstance(found, list | str) and len(found) == n_layers else []
    checked = [kind for kind in kinds if kind in allowed]
    if len(checked) != n_layers:
        raise Unconvertible("its `layer_types` has a kind of layer that the engine does not have, or too few layers")
    return checked


# -- Granite 4 -------------------------------------------------------------------------------------------------------


def _gates(sizes: Mapping[str, int]) -> Runs:
    return ((0, sizes["S"]),)


def _ups(sizes: Mapping[str, int]) -> Runs:
    return ((sizes["S"], sizes["S"]),)


def _granite_rows(*, has_experts: bool) -> tuple[Row, ...]:
    """With experts, what else is the feed-forward layer is added to what they compute."""
    beside, moe = "_shexp" if has_experts else "", "layers.#.block_sparse_moe"
    shared, fused = "layers.#.shared_mlp", f"{moe}.input_linear.weight"
    experts_rows = (
        Row(f"{moe}.router.layer", "blk.#.ffn_gate_inp.weight", "XE"),
        *(
            Row(
                f"{moe}.experts.@.{name}_proj", f"blk.#.ffn_{name}_exps.weight", "XFE", fused=(fused, part, 2),
                stacked=f"{moe}.switch_mlp.{name}_proj",
            )
            for part, name in enumerate(("gate", "up"))
        ),
        Row(
            f"{moe}.experts.@.down_proj", "blk.#.ffn_down_exps.weight", "XEF",
            fused=(f"{moe}.output_linear.weight", 0, 1), stacked=f"{moe}.switch_mlp.down_proj",
        ),
    )  # fmt: skip
    return (
        *ENDS,
        *NORMS,
        *(replace(row, layers=_ATTENTION) for row in attention(PERMUTE, output_bias="attention_bias")),
        *mamba_rows("mamba"),
        *(
            Row(
                f"{shared}.input_linear", f"blk.#.ffn_{name}{beside}.weight", "SE", runs=runs, taken="TE",
                stacked=f"layers.#.mlp.{name}_proj",
            )
            for name, runs in (("gate", _gates), ("up", _ups))
        ),
        Row(f"{shared}.output_linear", f"blk.#.ffn_down{beside}.weight", "ES", stacked="layers.#.mlp.down_proj"),
        *(experts_rows if has_experts else ()),
    )  # fmt: skip


def granite_renamed(values: Hyperparameters) -> Hyperparameters:
    """Kinds of layers by one name each; without experts, the shared feed-forward layer is the only one."""
    kinds = _kinds(values, values.get("layer_types", "layers_block_type"), _KINDS, frozenset((MAMBA, _ATTENTION)))
    changes: dict[str, Any] = {"layer_types": kinds}
    if not values.get("num_local_experts"):
        changes["intermediate_size"] = values.integer("shared_intermediate_size")
    return values.changed(changes)


def describe_granite_attention(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    describe_granite(draft, values, sizes)
    sizes |= {"S": values.integer("shared_intermediate_size"), "T": 2 * values.integer("shared_intermediate_size")}
    values.require("position_embedding_type", "rope", "nope", default="nope")
    draft.flag("rope.scaling.finetuned", values.get("position_embedding_type") == "rope")


def describe_granite_hybrid(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    describe_granite_attention(draft, values, sizes)
    if values.get("mamba_d_head") == "auto":
        n_heads = values.integer("mamba_n_heads")
        values = values.changed({"mamba_d_head": 2 * sizes["E"] // n_heads})
    _describe_mixed(draft, values, sizes)
    values.require("mamba_expand", 2, 2.0, default=2)
    if sizes["i"] != 2 * sizes["E"]:
        raise wrong("mamba_n_heads", values.get("mamba_n_heads"))
    if values.get("num_local_experts"):
        experts(draft, values, sizes, "num_local_experts")
        draft.integer("expert_feed_forward_length", sizes["F"])
        draft.integer("expert_shared_feed_forward_length", sizes["S"])


def _has_experts(config: Mapping[str, Any]) -> bool:
    return bool(config.get("num_local_experts"))


def _has_no_experts(config: Mapping[str, Any]) -> bool:
    return not _has_experts(config)


def _is_attention_alone(config: Mapping[str, Any]) -> bool:
    kinds = config.get("layer_types")
    return (
        not _has_experts(config)
        and isinstance(kinds, list)
        and not {"mamba", "linear_attention"}.intersection(kind for kind in kinds if isinstance(kind, str))
    )


# -- Nemotron-H ------------------------------------------------------------------------------------------------------

_NEMOTRON = (
    Row("embeddings", "token_embd.weight", "VE"),
    Row("norm_f", "output_norm.weight", "E"),
    Row("lm_head", "output.weight", "VE"),
    Row("layers.#.norm", "blk.#.attn_norm.weight", "E"),
    *(
        replace(row, source=row.source.replace("self_attn", "mixer"), layers=_ATTENTION)
        for row in attention(bias="none")
    ),
    *mamba_rows("mixer"),
    Row("layers.#.mixer.up_proj", "blk.#.ffn_up.weight", "FE", layers=_MLP),
    Row("layers.#.mixer.down_proj", "blk.#.ffn_down.weight", "EF", layers=_MLP),
)
_NEMOTRON_EXPERTS = tuple(
    replace(row, layers=_MOE)
    for row in (
        Row("layers.#.mixer.gate", "blk.#.ffn_gate_inp.weight", "XE"),
        Row("layers.#.mixer.gate.e_score_correction_bias", "blk.#.exp_probs_b.bias", "X", is_named_in_full=True),
        Row("layers.#.mixer.experts.@.up_proj", "blk.#.ffn_up_exps.weight", "XMl",
            fused=("layers.#.mixer.experts.up_proj", 0, 1), stacked="layers.#.mixer.switch_mlp.fc1"),
        Row("layers.#.mixer.experts.@.down_proj", "blk.#.ffn_down_exps.weight", "XlM",
            fused=("layers.#.mixer.experts.down_proj", 0, 1), stacked="layers.#.mixer.switch_mlp.fc2"),
        Row("layers.#.mixer.shared_experts.up_proj", "blk.#.ffn_up_shexp.weight", "SE"),
        Row("layers.#.mixer.shared_experts.down_proj", "blk.#.ffn_down_shexp.weight", "ES"),
    )
)  # fmt: skip
_NEMOTRON_LATENT = (
    Row("layers.#.mixer.fc1_latent_proj", "blk.#.ffn_latent_down.weight", "lE", layers=_LATENT),
    Row("layers.#.mixer.fc2_latent_proj", "blk.#.ffn_latent_up.weight", "El", layers=_LATENT),
)


def nemotron_renamed(values: Hyperparameters) -> Hyperparameters:
    """Kinds of layers, and the sizes of Mamba-2, as Granite has them."""
    found, known = values.get("layers_block_type", "layer_types"), _KINDS
    if found is None:
        found, known = values.get("hybrid_override_pattern"), _LETTERS
    if values.get("num_hidden_layers") is None and isinstance(found, list):
        values = values.changed({"num_hidden_layers": len(found)})
    changes: dict[str, Any] = {
        "tie_word_embeddings": False,  # transformers never ties them, whatever config.json says
        "layer_types": _kinds(values, found, known, frozenset(_KINDS.values())),
        "head_dim": values.integer("head_dim", "attention_head_dim", default=128),
        "rms_norm_eps": values.number("layer_norm_epsilon"),
    }
    for name, keys in (
        ("mamba_n_heads", ("mamba_num_heads",)), ("mamba_d_head", ("mamba_head_dim",)),
        ("mamba_d_state", ("ssm_state_size",)), ("mamba_n_groups", ("mamba_n_groups", "n_groups")),
        ("mamba_d_conv", ("mamba_d_conv", "conv_kernel")), ("mamba_conv_bias", ("mamba_conv_bias", "use_conv_bias")),
        ("time_step_limit", ("mamba_dt_limit", "time_step_limit")),
    ):  # fmt: skip
        changes[name] = values.get(*keys)
    return values.changed(changes)


def _nemotron_kinds(values: Hyperparameters) -> list[set[str]]:
    narrow = set() if values.get("moe_latent_size") is None else {_LATENT}
    return [{kind, *(narrow if kind == _MOE else ())} for kind in values.names("layer_types") or ()]


def describe_nemotron(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _describe_mixed(draft, values, sizes)
    draft.number("attention.layer_norm_epsilon", values.number("rms_norm_eps"))
    values.require("mlp_hidden_act", "relu2", default="relu2")
    values.require("mamba_hidden_act", "silu", default="silu")
    for key in ("use_bias", "mlp_bias", "attention_bias"):
        values.require(key, False, default=False)
    values.require("sliding_window", None)
    kinds = values.names("layer_types") or []
    width = sizes["F"]
    if _MOE in kinds:
        if _MLP in kinds:
            raise Unconvertible("its `layer_types` has feed-forward layers with experts and without")
        width = _describe_nemotron_experts(draft, values, sizes)
    draft.integers("feed_forward_length", [width if kind in {_MLP, _MOE} else 0 for kind in kinds])


def _describe_nemotron_experts(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> int:
    experts(draft, values, sizes, "n_routed_experts")
    values.require("n_group", 1, default=1)
    values.require("n_shared_experts", 1, default=1)
    sizes["M"] = values.integer("moe_intermediate_size")
    sizes["S"] = values.integer("moe_shared_expert_intermediate_size")
    sizes["l"] = values.integer("moe_latent_size", default=sizes["E"])
    if not (scale := values.number("routed_scaling_factor", default=1)):  # 0 is how llama.cpp says that there is none
        raise wrong("routed_scaling_factor", scale)
    if sizes["l"] != sizes["E"]:
        draft.integer("moe_latent_size", sizes["l"])
    draft.integer("expert_feed_forward_length", sizes["M"])
    draft.integer("expert_shared_count", 1)
    draft.integer("expert_shared_feed_forward_length", sizes["S"])
    draft.flag("expert_weights_norm", values.flag("norm_topk_prob", default=True))
    draft.number("expert_weights_scale", scale)
    return sizes["M"]


def _has_nemotron_experts(config: Mapping[str, Any]) -> bool:
    keys = ("layers_block_type", "layer_types", "hybrid_override_pattern")
    found = next((config[key] for key in keys if config.get(key) is not None), "")
    return isinstance(found, list | str) and ("E" in found or _MOE in found)


_NEMOTRON_DEFAULTS = {
    "layer_norm_epsilon": 1e-5, "n_groups": 8, "conv_kernel": 4, "use_conv_bias": True, "rope_theta": 1e4
}  # fmt: skip

FAMILIES = (
    Family(
        "Granite 4", "granitemoehybrid", classes("GraniteMoeHybrid"), "granite", _granite_rows(has_experts=False),
        SILU, ALL, describe_granite_attention, rope_defaults(), renamed=granite_renamed, suits=_is_attention_alone,
    ),
    *(
        Family(
            "Granite 4", "granitemoehybrid", classes("GraniteMoeHybrid"), "granitehybrid",
            _granite_rows(has_experts=has_experts), SILU, ALL, describe_granite_hybrid,
            {"mamba_n_groups": 1, "mamba_d_conv": 4, **rope_defaults()}, renamed=granite_renamed,
            suits=suits,
        )
        for has_experts, suits in ((False, _has_no_experts), (True, _has_experts))
    ),
    *(
        Family(
            "Nemotron-H", "nemotron_h", ("NemotronHForCausalLM",), architecture, rows, SILU, frozenset(),
            describe_nemotron, _NEMOTRON_DEFAULTS, prefixes=("backbone.", "model."),
            ignored_prefixes=("mtp.",), renamed=nemotron_renamed,  # layers that only draft, which the engine skips
            kinds=_nemotron_kinds, suits=suits,
        )
        for architecture, rows, suits in (
            ("nemotron_h_moe", (*_NEMOTRON, *_NEMOTRON_EXPERTS, *_NEMOTRON_LATENT), _has_nemotron_experts),
            ("nemotron_h", _NEMOTRON, always),
        )
    ),
)  # fmt: skip
