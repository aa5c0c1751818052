"""Qwen2, Qwen3, mixtures of experts, the text part of models with eyes; Qwen3-Next and Qwen3.5: gated delta nets.

A gated delta net is linear attention with a state. How transformers and llama.cpp order the heads of such a layer is in
`Qwen3NextModel` and `_LinearAttentionVReorderBase` of llama.cpp's converter.
"""

from collections.abc import Mapping
from dataclasses import replace

from shimmy.formats.convert.families.family import (
    ADD_ONE,
    ENDS,
    FREE,
    HEAD_NORMS,
    NORMS,
    SILU,
    SQUEEZE,
    Family,
    Row,
    Runs,
    attention,
    classes,
    expert_rows,
    feed_forward,
    plus_one,
    rope_defaults,
)
from shimmy.formats.convert.families.settings import experts, plain_heads, qwen_window
from shimmy.formats.convert.hyperparameters import (
    MAX_LAYERS,
    MAX_WIDTH,
    Hyperparameters,
    MetadataBuilder,
    rope_parameters,
    wrong,
)
from shimmy.formats.convert.transforms import Transform
from shimmy.formats.format_errors import Unconvertible

_QWEN2 = (*ENDS, *NORMS, *attention(bias="required"), *feed_forward())
_QWEN3 = (*ENDS, *NORMS, *attention(), *HEAD_NORMS)

_LINEAR, _FULL = "linear_attention", "full_attention"
_NET = "layers.#.linear_attn."
_MAX_HEADS = 128  # each is a slice of seven tensors of a layer; the largest model that is published has 64


def _parts(sizes: Mapping[str, int]) -> tuple[int, int, int, int]:
    """Heads of keys, heads of values for each of them, elements of a head, rows of all keys."""
    n_heads, size = sizes["key_heads"], sizes["S"]
    return n_heads, sizes["W"] // n_heads, size, n_heads * size


def _tiled(n_heads: int, n_values: int, size: int, first: int = 0) -> Runs:
    """Heads of values, which transformers groups by their keys, in the order in which llama.cpp repeats the keys."""
    return [(first + (head * n_values + value) * size, size) for value in range(n_values) for head in range(n_heads)]


def _tiled_values(sizes: Mapping[str, int]) -> Runs:
    n_heads, n_values, size, _ = _parts(sizes)
    return _tiled(n_heads, n_values, size)


def _tiled_columns(sizes: Mapping[str, int]) -> Runs:
    return () if _parts(sizes)[1] == 1 else _tiled_values(sizes)


def _tiled_numbers(sizes: Mapping[str, int]) -> Runs:
    n_heads, n_values, _, _ = _parts(sizes)
    return _tiled(n_heads, n_values, 1)


def _tiled_behind_keys(sizes: Mapping[str, int]) -> Runs:
    n_heads, n_values, size, n_rows = _parts(sizes)
    return [(0, 2 * n_rows), *_tiled(n_heads, n_values, size, 2 * n_rows)]


def _queries_keys_values(sizes: Mapping[str, int]) -> Runs:
    """Out of rows that begin anew with each head of keys."""
    n_heads, n_values, size, _ = _parts(sizes)
    starts = [head * (2 + 2 * n_values) * size for head in range(n_heads)]
    return [
        *((start, size) for start in starts),
        *((start + size, size) for start in starts),
        *((start + 2 * size, n_values * size) for start in starts),
    ]


def _gates(sizes: Mapping[str, int]) -> Runs:
    n_heads, n_values, size, _ = _parts(sizes)
    return [((head * (2 + 2 * n_values) + 2 + n_values) * size, n_values * size) for head in range(n_heads)]


_AROUND = (
    Row("embed_tokens", "token_embd.weight", "VE"),
    Row("lm_head", "output.weight", "VE"),
    *plus_one(
        Row("norm", "output_norm.weight", "E"),
        Row("layers.#.input_layernorm", "blk.#.attn_norm.weight", "E"),
        Row("layers.#.post_attention_layernorm", "blk.#.post_attention_norm.weight", "E"),
    ),
)
# Each head has its query, then its gate.
_ATTENTION = (
    Row("layers.#.self_attn.q_proj", "blk.#.attn_q.weight", "OE", layers=_FULL),
    *(Row(row.source, row.target, row.shape, layers=_FULL) for row in attention(bias="none")[1:]),
    *(Row(row.source, row.target, row.shape, ADD_ONE, layers=_FULL) for row in HEAD_NORMS),
)
_NORM = Row(f"{_NET}norm", "blk.#.ssm_norm.weight", "S", layers=_LINEAR)
_QWEN3_NEXT = (
    *_AROUND, *_ATTENTION, _NORM,
    Row(f"{_NET}in_proj_qkvz", "blk.#.attn_qkv.weight", "CE", layers=_LINEAR, runs=_queries_keys_values, taken="IE"),
    Row(f"{_NET}in_proj_qkvz", "blk.#.attn_gate.weight", "UE", layers=_LINEAR, runs=_gates, taken="IE"),
    Row(f"{_NET}in_proj_ba", "blk.#.ssm_ba.weight", "BE", layers=_LINEAR),
    Row(f"{_NET}conv1d", "blk.#.ssm_conv1d.weight", "C1L", SQUEEZE, layers=_LINEAR),
    Row(f"{_NET}A_log", "blk.#.ssm_a", "W", Transform.NEGATIVE_EXP, is_named_in_full=True, layers=_LINEAR),
    Row(f"{_NET}dt_bias", "blk.#.ssm_dt.bias", "W", is_named_in_full=True, layers=_LINEAR),
    Row(f"{_NET}out_proj", "blk.#.ssm_out.weight", "EU", layers=_LINEAR),
)  # fmt: skip
_QWEN35 = (
    *_AROUND, *_ATTENTION, _NORM,
    Row(f"{_NET}in_proj_qkv", "blk.#.attn_qkv.weight", "CE", layers=_LINEAR, runs=_tiled_behind_keys),
    Row(f"{_NET}in_proj_z", "blk.#.attn_gate.weight", "UE", layers=_LINEAR, runs=_tiled_values),
    Row(f"{_NET}in_proj_b", "blk.#.ssm_beta.weight", "WE", layers=_LINEAR, runs=_tiled_numbers),
    Row(f"{_NET}in_proj_a", "blk.#.ssm_alpha.weight", "WE", layers=_LINEAR, runs=_tiled_numbers),
    Row(f"{_NET}conv1d", "blk.#.ssm_conv1d.weight", "C1L", SQUEEZE, layers=_LINEAR, runs=_tiled_behind_keys),
    Row(
        f"{_NET}A_log", "blk.#.ssm_a", "W", Transform.NEGATIVE_EXP, is_named_in_full=True, layers=_LINEAR,
        runs=_tiled_numbers,
    ),
    Row(f"{_NET}dt_bias", "blk.#.ssm_dt.bias", "W", is_named_in_full=True, layers=_LINEAR, runs=_tiled_numbers),
    Row(f"{_NET}out_proj", "blk.#.ssm_out.weight", "EU", layers=_LINEAR, columns=_tiled_columns),
)  # fmt: skip
_EXPERT_NAMES = "layers.#.mlp.gate", "layers.#.mlp.experts", "gate_proj", "up_proj", "down_proj"
_EXPERTS = (
    *expert_rows(*_EXPERT_NAMES),
    Row("layers.#.mlp.shared_expert_gate", "blk.#.ffn_gate_inp_shexp.weight", "1E", SQUEEZE),
    Row("layers.#.mlp.shared_expert.gate_proj", "blk.#.ffn_gate_shexp.weight", "YE"),
    Row("layers.#.mlp.shared_expert.up_proj", "blk.#.ffn_up_shexp.weight", "YE"),
    Row("layers.#.mlp.shared_expert.down_proj", "blk.#.ffn_down_shexp.weight", "EY"),
)


def describe_qwen2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    plain_heads(values, sizes)
    qwen_window(draft, values, sizes)


def describe_qwen3_moe(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    qwen_window(draft, values, sizes)
    experts(draft, values, sizes, "num_experts")
    values.require("norm_topk_prob", True, default=False)
    values.require("decoder_sparse_step", 1, default=1)
    values.require("mlp_only_layers", [], default=[])
    sizes["M"] = values.integer("moe_intermediate_size")
    draft.integer("expert_feed_forward_length", sizes["M"])


def describe_qwen2_moe(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    describe_qwen2(draft, values, sizes)
    _describe_experts(draft, values, sizes, is_normed=False)
    values.require("tie_word_embeddings", False, default=False)  # the engine wants a matrix of its own


def _renamed(values: Hyperparameters) -> Hyperparameters:
    """With the kind of each layer, where config.json has only how often attention comes."""
    n_layers = values.integer("num_hidden_layers", maximum=MAX_LAYERS)
    kinds = values.names("layer_types")
    if kinds is None:
        period = values.integer("full_attention_interval", default=4)
        kinds = [_LINEAR if (layer + 1) % period else _FULL for layer in range(n_layers)]
    if len(kinds) != n_layers or set(kinds) != {_LINEAR, _FULL}:
        raise Unconvertible("its `layer_types` are not one of attention and linear attention for each layer")
    return values.changed({"layer_types": kinds})


def _describe_net(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    n_heads = values.integer("linear_num_key_heads", maximum=_MAX_HEADS)
    n_values = values.integer("linear_num_value_heads", maximum=_MAX_HEADS)
    size = values.integer("linear_key_head_dim")
    if n_values % n_heads or n_values * size > MAX_WIDTH // 8:
        raise wrong("linear_num_value_heads", n_values)
    values.require("linear_value_head_dim", size)  # the engine has one size for both
    values.require("attention_bias", False, default=False)
    sizes |= {
        "key_heads": n_heads, "W": n_values, "B": 2 * n_values, "S": size, "U": n_values * size,
        "C": (2 * n_heads + n_values) * size, "I": 2 * (n_heads + n_values) * size, "O": 2 * sizes["Q"],
        "1": 1, "L": values.integer("linear_conv_kernel_dim", minimum=2, maximum=64),
    }  # fmt: skip
    draft.integer("ssm.conv_kernel", sizes["L"])
    draft.integer("ssm.state_size", size)
    draft.integer("ssm.group_count", n_heads)
    draft.integer("ssm.time_step_rank", n_values)
    draft.integer("ssm.inner_size", sizes["U"])
    draft.flags("attention.recurrent_layers", [kind == _LINEAR for kind in values.names("layer_types") or ()])


def _describe_experts(
    draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int], *, is_normed: bool = True
) -> None:
    experts(draft, values, sizes, "num_experts")
    values.require("norm_topk_prob", is_normed, default=is_normed)
    values.require("decoder_sparse_step", 1, default=1)
    values.require("mlp_only_layers", [], default=[])
    sizes["M"], sizes["Y"] = values.integer("moe_intermediate_size"), values.integer("shared_expert_intermediate_size")
    sizes["1"] = 1
    draft.integer("expert_feed_forward_length", sizes["M"])
    draft.integer("expert_shared_feed_forward_length", sizes["Y"])


def describe_qwen3_next(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _describe_net(draft, values, sizes)
    _describe_experts(draft, values, sizes)


def describe_qwen35(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _describe_net(draft, values, sizes)
    # A text's token has one position, which config.json writes as three: whatever its `mrope_section` says, each pair
    # turns by it. The engine does not turn a pair that is in no section.
    n_pairs = -(-sizes["R"] // 6)
    draft.integers("rope.dimension_sections", [n_pairs, n_pairs, n_pairs, 0])


def describe_qwen35_moe(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    describe_qwen35(draft, values, sizes)
    _describe_experts(draft, values, sizes)


def vl_renamed(values: Hyperparameters) -> Hyperparameters:
    """A text's token has one position, which these models write as three: they turn as in models without eyes."""
    rope = rope_parameters(values)
    if rope.get("rope_type") not in {"mrope", "default"}:
        return values
    return values.changed({"rope_parameters": {"rope_type": "default", "rope_theta": rope.number("rope_theta")}})


_YARN = frozenset(("yarn",))
_DEFAULTS = {
    "head_dim": 256, "partial_rotary_factor": 0.25, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32, **rope_defaults(),
}  # fmt: skip
_EXPERT_DEFAULTS = {
    **_DEFAULTS, "num_experts_per_tok": 8, "num_experts": 256, "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}  # fmt: skip
_UNUSED = ("mtp.", "visual.", "vision_tower.")  # a layer that drafts, and eyes, as MLX calls them, too


def _of_delta_nets(family: Family) -> Family:
    """With its norms as MLX has them: added to 1 already."""
    rows = (replace(row, transform=Transform.COPY) if row.transform is ADD_ONE else row for row in family.rows)
    return replace(family, by_mlx=replace(family, rows=tuple(rows)))


FAMILIES = (
    Family(
        "Qwen2", "qwen2", classes("Qwen2"), "qwen2", _QWEN2,
        SILU, FREE, describe_qwen2, rope_defaults(),
    ),
    Family(
        "Qwen2-MoE", "qwen2_moe", classes("Qwen2Moe"), "qwen2moe",
        (*ENDS, *NORMS, *attention(bias="qkv_bias"), *_EXPERTS),
        SILU, FREE, describe_qwen2_moe,
        {"num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408,
         "shared_expert_intermediate_size": 5632, "qkv_bias": True, **rope_defaults()},
    ),
    Family(
        "Qwen3", "qwen3", classes("Qwen3"), "qwen3", (*_QWEN3, *feed_forward()),
        SILU, FREE, qwen_window, {"head_dim": 128, **rope_defaults()},
    ),
    Family(
        "Qwen3-MoE", "qwen3_moe", classes("Qwen3Moe"), "qwen3moe",
        (*_QWEN3, *expert_rows(*_EXPERT_NAMES)),
        SILU, FREE, describe_qwen3_moe, rope_defaults(),
    ),
    *(
        Family(
            title, model_type, (f"{stem}ForConditionalGeneration",), "qwen2",
            _QWEN2, SILU, FREE, describe_qwen2,
            rope_defaults(1e6, 1e-5), ignored_prefixes=_UNUSED, renamed=vl_renamed,
        )
        for title, stem, name in (("Qwen2-VL", "Qwen2VL", "qwen2_vl"), ("Qwen2.5-VL", "Qwen2_5_VL", "qwen2_5_vl"))
        for model_type in (name, f"{name}_text")
    ),
    Family(
        "Qwen3-VL", "qwen3_vl_text", ("Qwen3VLForConditionalGeneration",), "qwen3", (*_QWEN3, *feed_forward()),
        SILU, FREE, qwen_window, {"head_dim": 128, **rope_defaults(5e5)}, ignored_prefixes=_UNUSED, renamed=vl_renamed,
    ),
    Family(
        "Qwen3-VL", "qwen3_vl_moe_text", ("Qwen3VLMoeForConditionalGeneration",), "qwen3moe",
        (*_QWEN3, *expert_rows(*_EXPERT_NAMES, turned="either")), SILU, FREE, describe_qwen3_moe,
        {"norm_topk_prob": True, "rms_norm_eps": 1e-6},  # versions of transformers do not agree on `rope_theta`
        ignored_prefixes=_UNUSED, renamed=vl_renamed,
    ),
    _of_delta_nets(Family(
        "Qwen3-Next", "qwen3_next", classes("Qwen3Next"), "qwen3next", (*_QWEN3_NEXT, *_EXPERTS),
        SILU, _YARN, describe_qwen3_next, _EXPERT_DEFAULTS | {"num_experts": 512, "num_experts_per_tok": 10},
        ignored_prefixes=_UNUSED, rotates_partly=True, renamed=_renamed,
    )),
    _of_delta_nets(Family(
        "Qwen3.5", "qwen3_5_text", ("Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"), "qwen35",
        (*_QWEN35, *feed_forward()), SILU, _YARN, describe_qwen35, _DEFAULTS,
        ignored_prefixes=_UNUSED, rotates_partly=True, renamed=_renamed,
    )),
    _of_delta_nets(Family(
        "Qwen3.5", "qwen3_5_moe_text", ("Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"), "qwen35moe",
        (*_QWEN35, *_EXPERTS), SILU, _YARN, describe_qwen35_moe, _EXPERT_DEFAULTS,
        ignored_prefixes=_UNUSED, rotates_partly=True, renamed=_renamed,
    )),
)  # fmt: skip
