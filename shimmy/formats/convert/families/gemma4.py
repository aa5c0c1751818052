"""Gemma 3n and Gemma 4, whose layers share keys, and have inputs of their own; in Gemma 4 heads have two sizes."""

from dataclasses import replace
from typing import Any

from shimmy.formats.convert.families.family import ENDS, GELU, Family, Row, feed_forward
from shimmy.formats.convert.families.gemma import EYES, SANDWICH, describe_local_rotation
from shimmy.formats.convert.families.settings import experts
from shimmy.formats.convert.hyperparameters import (
    MAX_CONTEXT,
    MAX_LAYERS,
    MAX_WIDTH,
    Hyperparameters,
    MetadataBuilder,
    checked_number,
    rope_parameters,
    wrong,
)
from shimmy.formats.convert.transforms import Transform
from shimmy.formats.format_errors import Unconvertible

_GEMMA3N_OWN_KEYS = 20  # layers that have keys of their own
_SLIDING, _FULL = "sliding_attention", "full_attention"
_SLIDING_KEYS, _FULL_KEYS, _FULL_VALUES = "sliding_keys", "full_keys", "full_values"
_OWN_KEYS, _SHARES_KEYS = "own_keys", "shares_keys"
_NARROW, _WIDE, _EXPERTS, _LAYERED = "narrow", "wide", "experts", "layered_embeddings"
_BLOCK = "layers.#."


def _sized_attention(head: str, queries: str, all_keys: str, layers: str, keys: str, values: str) -> tuple[Row, ...]:
    """With heads of the sizes that these letters have: of a head, of all queries, of all keys."""
    return (
        Row(f"{_BLOCK}self_attn.q_proj", "blk.#.attn_q.weight", f"{queries}E", layers=layers),
        Row(f"{_BLOCK}self_attn.q_norm", "blk.#.attn_q_norm.weight", head, layers=layers),
        Row(f"{_BLOCK}self_attn.o_proj", "blk.#.attn_output.weight", f"E{queries}", layers=layers),
        Row(f"{_BLOCK}self_attn.k_proj", "blk.#.attn_k.weight", f"{all_keys}E", layers=keys),
        Row(f"{_BLOCK}self_attn.k_norm", "blk.#.attn_k_norm.weight", head, layers=keys),
        Row(f"{_BLOCK}self_attn.v_proj", "blk.#.attn_v.weight", f"{all_keys}E", layers=values),
    )


_LAYER_INPUTS = (
    Row("embed_tokens_per_layer", "per_layer_token_embd.weight", "vJ", layers=_LAYERED),
    Row("per_layer_model_projection", "per_layer_model_proj.weight", "JE", layers=_LAYERED),
    Row("per_layer_projection_norm", "per_layer_proj_norm.weight", "I", layers=_LAYERED),
    Row(f"{_BLOCK}per_layer_input_gate", "blk.#.inp_gate.weight", "IE", layers=_LAYERED),
    Row(f"{_BLOCK}per_layer_projection", "blk.#.proj.weight", "EI", layers=_LAYERED),
    Row(f"{_BLOCK}post_per_layer_input_norm", "blk.#.post_norm.weight", "E", layers=_LAYERED),
)
_AROUND = (
    *ENDS,
    Row(f"{_BLOCK}input_layernorm", "blk.#.attn_norm.weight", "E"),
    *(replace(row, transform=Transform.COPY) for row in SANDWICH),
    *_LAYER_INPUTS,
)
_SHARED_ATTENTION = _sized_attention("D", "Q", "K", "", _OWN_KEYS, _OWN_KEYS)
_GEMMA3N = (
    *_AROUND,
    *_SHARED_ATTENTION,
    # The engine wants keys of all layers, and does not compute with those of layers that share them: which ones stand
    # there is all the same, and newer files have none.
    *(
        replace(row, source=row.source.replace("#", str(_GEMMA3N_OWN_KEYS - 1)), layers=_SHARES_KEYS)
        for row in _SHARED_ATTENTION
        if row.layers == _OWN_KEYS
    ),
    *feed_forward(),
    Row("altup_projections.@", "altup_proj.weight", "3EE"),
    Row("altup_unembed_projections.@", "altup_unembd_proj.weight", "3EE"),
    Row(f"{_BLOCK}altup.correct_output_scale", "blk.#.altup_correct_scale.weight", "E", is_named_in_full=True),
    Row(f"{_BLOCK}altup.correction_coefs", "blk.#.altup_correct_coef.weight", "44"),
    Row(f"{_BLOCK}altup.prediction_coefs", "blk.#.altup_predict_coef.weight", "Z4"),
    Row(f"{_BLOCK}altup.modality_router", "blk.#.altup_router.weight", "4E"),
    Row(f"{_BLOCK}altup.router_norm", "blk.#.altup_router_norm.weight", "E"),
    Row(f"{_BLOCK}laurel.linear_left", "blk.#.laurel_l.weight", "LE"),
    Row(f"{_BLOCK}laurel.linear_right", "blk.#.laurel_r.weight", "EL"),
    Row(f"{_BLOCK}laurel.post_laurel_norm", "blk.#.laurel_post_norm.weight", "E"),
)
_GEMMA4 = (
    *_AROUND,
    *_sized_attention("D", "Q", "K", _SLIDING, _SLIDING_KEYS, _SLIDING_KEYS),
    *_sized_attention("d", "q", "k", _FULL, _FULL_KEYS, _FULL_VALUES),
    *(replace(row, layers=_NARROW) for row in feed_forward()),
    *(replace(row, layers=_WIDE, shape=row.shape.replace("F", "W")) for row in feed_forward()),
    Row(f"{_BLOCK}layer_scalar", "blk.#.layer_output_scale.weight", "1", is_named_in_full=True),
    *(
        replace(row, layers=_EXPERTS)
        for row in (
            Row(f"{_BLOCK}router.proj", "blk.#.ffn_gate_inp.weight", "XE"),
            Row(f"{_BLOCK}router.scale", "blk.#.ffn_gate_inp.scale", "E", is_named_in_full=True),
            Row(f"{_BLOCK}router.per_expert_scale", "blk.#.ffn_down_exps.scale", "X", is_named_in_full=True),
            Row(f"{_BLOCK}post_feedforward_layernorm_1", "blk.#.post_ffw_norm_1.weight", "E"),
            Row(f"{_BLOCK}pre_feedforward_layernorm_2", "blk.#.pre_ffw_norm_2.weight", "E"),
            Row(f"{_BLOCK}post_feedforward_layernorm_2", "blk.#.post_ffw_norm_2.weight", "E"),
            *(
                Row(
                    f"{_BLOCK}experts.@.{kind}_proj", f"blk.#.ffn_{kind}_exps.weight", "XME",
                    fused=(f"{_BLOCK}experts.gate_up_proj", part, 2), stacked=f"{_BLOCK}experts.switch_glu.{kind}_proj",
                )
                for part, kind in enumerate(("gate", "up"))
            ),
            Row(
                f"{_BLOCK}experts.@.down_proj", "blk.#.ffn_down_exps.weight", "XEM",
                fused=(f"{_BLOCK}experts.down_proj", 0, 1), stacked=f"{_BLOCK}experts.switch_glu.down_proj",
            ),
        )
    ),
)  # fmt: skip


def _tokens_with_inputs(values: Hyperparameters) -> int:
    """Those behind them stand for pictures and sounds: they have embeddings, and no inputs of the layers."""
    return min(values.integer(key, maximum=2**31) for key in ("vocab_size", "vocab_size_per_layer_input"))


def _gemma4_renamed(values: Hyperparameters) -> Hyperparameters:
    """With the kind of each layer's attention, and the sizes of those without a window by one name each."""
    values.require("use_bidirectional_attention", False, "vision", default=False)  # which is for pictures alone
    n_layers = values.integer("num_hidden_layers", maximum=MAX_LAYERS)
    kinds = values.names("layer_types")
    if kinds is None:
        kinds = [_FULL if layer % 6 == 5 or layer == n_layers - 1 else _SLIDING for layer in range(n_layers)]
    if len(kinds) != n_layers or set(kinds) - {_FULL, _SLIDING} or kinds[-1] != _FULL:
        raise Unconvertible("its `layer_types` has a kind of layer that the engine does not have, or too few layers")
    changes: dict[str, Any] = {"layer_types": kinds, "use_bidirectional_attention": False}
    if values.integer("hidden_size_per_layer_input", minimum=0):
        changes["vocab_size"] = _tokens_with_inputs(values)
    if isinstance(own := values.get("per_layer_config"), dict):  # as transformers writes it since version 5.20
        wanted = {str(layer) for layer, kind in enumerate(kinds) if kind == _FULL}
        found = list(own.values())
        if own and (own.keys() != wanted or not all(isinstance(one, dict) and one == found[0] for one in found)):
            raise Unconvertible("its `per_layer_config` is not one for all layers without a window")
        differs = found[0] if found else {}
        for key, name in (("head_dim", "global_head_dim"), ("num_key_value_heads", "num_global_key_value_heads")):
            changes[name] = differs.get(key, values.get(key))
        if differs.keys() - {"head_dim", "num_key_value_heads"}:
            raise Unconvertible("its `per_layer_config` has settings that the engine does not know")
    return values.changed({key: value for key, value in changes.items() if value is not None})


def _own_keys(values: Hyperparameters) -> int:
    """How many layers have keys of their own; the ones behind them use theirs."""
    n_layers = values.integer("num_hidden_layers", maximum=MAX_LAYERS)
    return n_layers - values.integer("num_kv_shared_layers", minimum=0, maximum=n_layers - 1, default=0)


def _gemma4_kinds(values: Hyperparameters) -> list[set[str]]:
    n_own = _own_keys(values)
    is_wide, shares = values.flag("use_double_wide_mlp"), values.flag("attention_k_eq_v")
    always = {_LAYERED} if values.integer("hidden_size_per_layer_input", minimum=0) else set()
    always |= {_EXPERTS} if values.flag("enable_moe_block") else set()
    found = []
    for layer, kind in enumerate(values.names("layer_types") or ()):
        kinds = {kind, _WIDE if is_wide and layer >= n_own else _NARROW, *always}
        if layer < n_own:
            kinds |= {_SLIDING_KEYS} if kind == _SLIDING else {_FULL_KEYS} if shares else {_FULL_KEYS, _FULL_VALUES}
        found.append(kinds)
    return found


def _unused_keys(values: Hyperparameters) -> tuple[str, ...]:
    """Keys and values of layers that use those of others: published files have them."""
    layers = range(_own_keys(values), values.integer("num_hidden_layers", maximum=MAX_LAYERS))
    parts = ("k_proj", "v_proj", "k_norm", "v_norm")
    return tuple(f"layers.{layer}.self_attn.{part}." for layer in layers for part in parts)


def describe_gemma4(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    values.require("attention_bias", False, default=False)
    kinds = values.names("layer_types") or []
    if _SLIDING not in kinds:  # llama.cpp aborts the process
        raise Unconvertible("its `layer_types` has no layer with a window: the engine needs one")
    n_own = _own_keys(values)
    if n_own < 2 or (n_own < len(kinds) and kinds[n_own - 2 : n_own] != [_SLIDING, _FULL]):
        raise Unconvertible("the last layers that have keys of their own are not those whose keys the engine shares")
    head = values.integer("global_head_dim")
    n_head_kv = sizes["N"]
    if values.flag("attention_k_eq_v"):
        n_head_kv = values.integer("num_global_key_value_heads", default=n_head_kv, maximum=sizes["H"])
    if sizes["H"] % n_head_kv or head % 2 or sizes["H"] * head > MAX_WIDTH:
        raise wrong("global_head_dim", head)
    width = values.integer("hidden_size_per_layer_input", minimum=0, maximum=MAX_WIDTH // sizes["layers"])
    sizes |= {
        "d": head, "q": sizes["H"] * head, "k": n_head_kv * head, "W": 2 * sizes["F"], "1": 1,
        "I": width, "J": width * sizes["layers"], "v": values.integer("vocab_size_per_layer_input", maximum=2**31),
    }  # fmt: skip
    for key in ("key_length", "value_length"):
        draft.integer(f"attention.{key}", head)
        draft.integer(f"attention.{key}_swa", sizes["D"])
    draft.integers("attention.head_count_kv", [sizes["N"] if kind == _SLIDING else n_head_kv for kind in kinds])
    draft.flags("attention.sliding_window_pattern", [kind == _SLIDING for kind in kinds])
    draft.integer("attention.sliding_window", values.integer("sliding_window", maximum=MAX_CONTEXT))
    draft.integer("attention.shared_kv_layers", len(kinds) - n_own)
    draft.integer("embedding_length_per_layer_input", width)
    if values.flag("use_double_wide_mlp"):
        lengths = [sizes["F"] if layer < n_own else sizes["W"] for layer in range(len(kinds))]
        draft.integers("feed_forward_length", lengths)
    if (cap := values.get("final_logit_softcapping")) is not None:
        if not (cap := checked_number("final_logit_softcapping", cap)):
            raise wrong("final_logit_softcapping", cap)
        draft.number("final_logit_softcapping", cap)
    _gemma4_positions(draft, values, sizes)
    if values.flag("enable_moe_block"):
        experts(draft, values.changed({"num_experts_per_tok": values.get("top_k_experts")}), sizes, "num_experts")
        sizes["M"] = values.integer("moe_intermediate_size")
        draft.integer("expert_feed_forward_length", sizes["M"])


def _gemma4_positions(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    """A part of each head is rotated in layers without a window: the frequencies of the rest become as good as 0."""
    full, local = rope_parameters(values), rope_parameters(values, _SLIDING)
    full.require("rope_type", "proportional")
    full.require("factor", 1, 1.0, default=1)
    local.require("rope_type", "default")
    local.require("partial_rotary_factor", 1, 1.0, default=1)
    share = full.number("partial_rotary_factor", default=1)
    n_pairs = sizes["d"] // 2
    n_rotated = min(int(share * sizes["d"] // 2), n_pairs)
    draft.computed["rope_freqs.weight"] = [1.0] * n_rotated + [1e30] * (n_pairs - n_rotated)
    draft.integer("rope.dimension_count", sizes["d"])
    draft.integer("rope.dimension_count_swa", sizes["D"])
    draft.number("rope.freq_base_swa", local.number("rope_theta"))


def _gemma3n_kinds(values: Hyperparameters) -> list[set[str]]:
    n_layers = values.integer("num_hidden_layers", maximum=MAX_LAYERS)
    return [{_LAYERED, _OWN_KEYS if layer < _GEMMA3N_OWN_KEYS else _SHARES_KEYS} for layer in range(n_layers)]


def _gemma3n_renamed(values: Hyperparameters) -> Hyperparameters:
    """With one width of all feed-forward layers, and without the tokens that stand for no text."""
    changes: dict[str, Any] = {"vocab_size": _tokens_with_inputs(values)}
    widths = values.get("intermediate_size")
    if isinstance(widths, list) and widths and all(width == widths[0] for width in widths):
        changes["intermediate_size"] = widths[0]
    return values.changed(changes)


def describe_gemma3n(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    """What llama.cpp has as constants is what both published models have."""
    n_layers = sizes["layers"]
    n_own = n_layers - values.integer("num_kv_shared_layers", minimum=0, maximum=n_layers - 1)
    if n_own != _GEMMA3N_OWN_KEYS:
        raise wrong("num_kv_shared_layers", n_layers - n_own)
    sparsity = values.get("activation_sparsity_pattern")
    if sparsity is not None and sparsity != [0.95] * 10 + [0.0] * (n_layers - 10):
        raise wrong("activation_sparsity_pattern", sparsity)
    kinds = values.names("layer_types")
    if kinds is not None and kinds != [_SLIDING if (layer + 1) % 5 else _FULL for layer in range(n_layers)]:
        raise Unconvertible("its `layer_types` is not a window in all but each 5th layer")
    for key, value in (("altup_num_inputs", 4), ("altup_active_idx", 0), ("laurel_rank", 64),
                       ("hidden_size_per_layer_input", 256), ("altup_correct_scale", True),
                       ("final_logit_softcapping", 30.0)):  # fmt: skip
        values.require(key, value)
    sizes |= {
        "I": 256, "J": 256 * n_layers, "v": values.integer("vocab_size_per_layer_input", maximum=2**31),
        "3": 3, "4": 4, "Z": 16, "L": 64,
    }  # fmt: skip
    draft.integer("attention.sliding_window", values.integer("sliding_window", maximum=MAX_CONTEXT))
    draft.flags("attention.sliding_window_pattern", [(layer + 1) % 5 != 0 for layer in range(n_layers)])
    describe_local_rotation(draft, values)


_GEMMA4_DEFAULTS = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "global_head_dim": 512, "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6, "sliding_window": 512, "vocab_size": 262_144, "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256, "tie_word_embeddings": True,
    "rope_parameters": {
        _SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
        _FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
    },
}  # fmt: skip
_GEMMA3N_DEFAULTS = {
    "hidden_size": 2048, "intermediate_size": 16_384, "num_hidden_layers": 35, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 256, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0, "sliding_window": 512, "num_kv_shared_layers": 15,
    "vocab_size": 262_400, "vocab_size_per_layer_input": 262_144, "hidden_size_per_layer_input": 256,
    "final_logit_softcapping": 30.0,
    "altup_num_inputs": 4, "altup_active_idx": 0, "altup_correct_scale": True, "laurel_rank": 64,
    "tie_word_embeddings": True,
}  # fmt: skip
_IGNORED = (*EYES, "audio_tower.", "embed_vision.", "embed_audio.")

FAMILIES = (
    Family(
        "Gemma 3n", "gemma3n_text", ("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"), "gemma3n", _GEMMA3N,
        GELU, frozenset(), describe_gemma3n, _GEMMA3N_DEFAULTS,
        ignored_prefixes=_IGNORED, kinds=_gemma3n_kinds, unused=_unused_keys, renamed=_gemma3n_renamed,
    ),
    Family(
        "Gemma 4", "gemma4_text", ("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"), "gemma4", _GEMMA4, GELU,
        frozenset(("proportional",)), describe_gemma4, _GEMMA4_DEFAULTS,
        ignored_prefixes=_IGNORED, rotates_partly=True,
        kinds=_gemma4_kinds, unused=_unused_keys, renamed=_gemma4_renamed,
    ),
    Family(
        "Gemma 4", "gemma4_unified_text", ("Gemma4UnifiedForConditionalGeneration",), "gemma4", _GEMMA4, GELU,
        frozenset(("proportional",)), describe_gemma4,
        {**_GEMMA4_DEFAULTS, "hidden_size_per_layer_input": 0, "max_position_embeddings": 262_144,
         "sliding_window": 1024},
        ignored_prefixes=_IGNORED, rotates_partly=True,
        kinds=_gemma4_kinds, unused=_unused_keys, renamed=_gemma4_renamed,
    ),
)  # fmt: skip
