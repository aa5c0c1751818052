"""Exaone 3.5, Exaone 4 and 4.5, and K-EXAONE with its experts."""

from dataclasses import replace

from shimmy.formats.convert.families.family import (
    ALL,
    ENDS,
    HEAD_NORMS,
    NORMS,
    SILU,
    Family,
    Row,
    attention,
    classes,
    expert_rows,
    feed_forward,
    rope_defaults,
)
from shimmy.formats.convert.families.llama import BEHIND
from shimmy.formats.convert.families.settings import (
    DENSE,
    SIGMOID,
    SPARSE,
    expert_groups,
    experts,
    n_dense_layers,
    plain,
    plain_heads,
    window_pattern,
)
from shimmy.formats.convert.hyperparameters import (
    MAX_CONTEXT,
    MAX_LAYERS,
    MAX_WIDTH,
    Hyperparameters,
    MetadataBuilder,
    wrong,
)

# -- Exaone 3 and 3.5: a Llama under the names of its own code

_EXAONE3 = (
    Row("wte", "token_embd.weight", "VE"),
    Row("ln_f", "output_norm.weight", "E"),
    Row("lm_head", "output.weight", "VE"),
    Row("h.#.ln_1", "blk.#.attn_norm.weight", "E"),
    Row("h.#.attn.attention.q_proj", "blk.#.attn_q.weight", "QE"),
    Row("h.#.attn.attention.k_proj", "blk.#.attn_k.weight", "KE"),
    Row("h.#.attn.attention.v_proj", "blk.#.attn_v.weight", "KE"),
    Row("h.#.attn.attention.out_proj", "blk.#.attn_output.weight", "EQ"),
    Row("h.#.ln_2", "blk.#.ffn_norm.weight", "E"),
    Row("h.#.mlp.c_fc_0", "blk.#.ffn_gate.weight", "FE"),
    Row("h.#.mlp.c_fc_1", "blk.#.ffn_up.weight", "FE"),
    Row("h.#.mlp.c_proj", "blk.#.ffn_down.weight", "EF"),
)


def exaone3_renamed(values: Hyperparameters) -> Hyperparameters:
    """Under the names that other families have."""
    return values.changed({
        "num_hidden_layers": values.get("num_layers", "num_hidden_layers"),
        "rms_norm_eps": values.get("layer_norm_epsilon"),
    })  # fmt: skip


# -- Exaone 4 and 4.5

_N_LAYERS_WITH_WINDOWS = 64


def exaone4_renamed(values: Hyperparameters) -> Hyperparameters:
    """Kinds of layers as other families write them, where they are letters to be repeated."""
    letters = values.get("sliding_window_pattern")
    if not isinstance(letters, str) or values.get("layer_types") is not None:
        return values
    if not letters or len(letters) > MAX_LAYERS or set(letters) - {"L", "G"}:
        raise wrong("sliding_window_pattern", letters)
    n_layers = values.integer("num_hidden_layers", maximum=MAX_LAYERS)
    kinds = [letters[layer % len(letters)] for layer in range(n_layers)]
    return values.changed({"layer_types": ["sliding_attention" if kind == "L" else "full_attention" for kind in kinds]})


def describe_exaone4(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    plain_heads(values, sizes)
    # llama.cpp knows models with windows, which do not rotate in the other layers, by their number of layers.
    if sizes["layers"] != _N_LAYERS_WITH_WINDOWS:
        values.require("sliding_window", None)
        return
    _describe_windows(draft, values, sizes)


def _describe_windows(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    draft.integer("attention.sliding_window", values.integer("sliding_window", maximum=MAX_CONTEXT))
    if not window_pattern(draft, values, sizes, 4):
        raise wrong("layer_types", values.get("layer_types"))


# -- K-EXAONE

_SHARED = tuple(
    Row(f"layers.#.mlp.shared_experts.{name}_proj", f"blk.#.ffn_{name}_shexp.weight", shape)
    for name, shape in (("gate", "YE"), ("up", "YE"), ("down", "EY"))
)
_EXAONE_MOE = (
    *ENDS, *NORMS, *attention(bias="none"), *HEAD_NORMS,
    *(replace(row, layers=DENSE) for row in feed_forward()),
    *(
        replace(row, layers=SPARSE)
        for row in (
            *expert_rows("layers.#.mlp.gate", "layers.#.mlp.experts", "gate_proj", "up_proj", "down_proj"),
            Row("layers.#.mlp.e_score_correction_bias", "blk.#.exp_probs_b.bias", "X", is_named_in_full=True),
            *_SHARED,
        )
    ),
)  # fmt: skip


def _kinds(values: Hyperparameters) -> list[set[str]]:
    n_layers, n_dense = values.integer("num_hidden_layers", maximum=MAX_LAYERS), n_dense_layers(values)
    return [{DENSE if layer < n_dense else SPARSE} for layer in range(n_layers)]


def describe_exaone_moe(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _describe_windows(draft, values, sizes)
    values.require("tie_word_embeddings", False, default=False)  # the engine wants a matrix of its own
    values.require("scoring_func", "sigmoid", default="sigmoid")
    experts(draft, values, sizes, "num_experts")
    expert_groups(draft, values, sizes)
    width = sizes["M"] = values.integer("moe_intermediate_size")
    n_shared = values.integer("num_shared_experts", maximum=MAX_WIDTH // width)
    sizes["Y"] = n_shared * width
    if not (scale := values.number("routed_scaling_factor")):  # 0 is how llama.cpp says that there is none
        raise wrong("routed_scaling_factor", scale)
    draft.integer("expert_feed_forward_length", width)
    draft.integer("expert_shared_count", n_shared)
    draft.integer("expert_shared_feed_forward_length", sizes["Y"])
    draft.integer("leading_dense_block_count", n_dense_layers(values))
    draft.integer("expert_gating_func", SIGMOID)
    draft.number("expert_weights_scale", scale)
    draft.flag("expert_weights_norm", values.flag("norm_topk_prob", default=True))


_BESIDE = ("visual.", "mtp.")  # eyes, and layers that draft

FAMILIES = (
    Family(
        "Exaone 3.5", "exaone", ("ExaoneForCausalLM", "ExaoneModel"), "exaone", _EXAONE3, SILU, ALL, plain,
        {"layer_norm_epsilon": 1e-5, "rope_theta": 10_000.0}, prefixes=("transformer.",),
        ignored_suffixes=(".rotary.inv_freq", ".rotary_emb.inv_freq"), renamed=exaone3_renamed,
    ),
    *(
        Family(
            "Exaone 4", model_type, (*classes("Exaone4"), "Exaone4_5_ForConditionalGeneration"), "exaone4",
            (*ENDS, *attention(bias="none"), *HEAD_NORMS, *BEHIND, *feed_forward()),
            SILU, ALL, describe_exaone4, rope_defaults(1e4, 1e-5), ignored_prefixes=_BESIDE, renamed=exaone4_renamed,
        )
        for model_type in ("exaone4", "exaone4_5_text")
    ),
    Family(
        "K-EXAONE", "exaone_moe", ("ExaoneMoEForCausalLM", *classes("ExaoneMoe")), "exaone-moe", _EXAONE_MOE,
        SILU, frozenset(), describe_exaone_moe,
        {"sliding_window": 4096, "first_k_dense_replace": 1, "moe_intermediate_size": 1024, "num_experts": 64,
         "num_experts_per_tok": 8, "num_shared_experts": 1, "routed_scaling_factor": 2.5, **rope_defaults(1e4, 1e-5)},
        mlx_names={".mlp.gate.e_score_correction_bias": ".mlp.e_score_correction_bias"},
        ignored_prefixes=_BESIDE, kinds=_kinds, renamed=exaone4_renamed,
    ),
)  # fmt: skip
