"""Models that keep one compressed vector a token for the keys and values of all heads: DeepSeek V2 to V3.2, GLM 4.7
Flash and GLM 5, Mistral 4.

Multi-head latent attention (https://arxiv.org/abs/2405.04434, 2.1). The matrix that unfolds the vector is stored for
each head: llama.cpp multiplies queries with its part for keys, which it wants transposed, and results with its part for
values, so that its cache has the vector alone.

DeepSeek V3.2 and GLM 5 attend to a few tokens alone (https://arxiv.org/abs/2512.02556, 2.1): a layer's indexer, which
has small keys of its own, scores all tokens before, and the best ones are selected. Layers of GLM 5.2 that have none
attend to what the layer before them has selected.
"""

from collections.abc import Mapping
from dataclasses import replace

from shimmy.formats.convert.families.family import (
    ENDS,
    NORMS,
    SILU,
    Family,
    Row,
    Runs,
    classes,
    expert_rows,
    feed_forward,
    rope_defaults,
)
from shimmy.formats.convert.families.settings import (
    DENSE,
    SIGMOID,
    SOFTMAX,
    SPARSE,
    expert_groups,
    experts,
    n_dense_layers,
)
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
from shimmy.formats.gguf.header import INDEXED

DIRECT, LOW_RANK = "queries_at_once", "queries_in_two_steps"
_FULL, _SHARED = "full", "shared"  # which tokens a layer attends to: those its own indexer selects, or those of another
_MIN_INDEX_SIZE = 64  # of the smallest matrix that llama.cpp rotates keys of indexers with: a power of two, like all
_MAX_HEADS = 1024  # each is a slice of two tensors of a layer; the largest model that is published has 128


def _head_parts(sizes: Mapping[str, int], first: int, n_rows: int) -> Runs:
    size = sizes["n"] + sizes["v"]
    return [(head * size + first, n_rows) for head in range(sizes["H"])]


def _key_parts(sizes: Mapping[str, int]) -> Runs:
    return _head_parts(sizes, 0, sizes["n"])


def _value_parts(sizes: Mapping[str, int]) -> Runs:
    return _head_parts(sizes, sizes["n"], sizes["v"])


# Rotated pairs are neighbours, as in llama.cpp.
LATENT_ATTENTION = (
    Row("layers.#.self_attn.q_proj", "blk.#.attn_q.weight", "qE", layers=DIRECT),
    Row("layers.#.self_attn.q_a_proj", "blk.#.attn_q_a.weight", "JE", layers=LOW_RANK),
    Row("layers.#.self_attn.q_a_layernorm", "blk.#.attn_q_a_norm.weight", "J", layers=LOW_RANK),
    Row("layers.#.self_attn.q_b_proj", "blk.#.attn_q_b.weight", "qJ", layers=LOW_RANK),
    Row("layers.#.self_attn.kv_a_proj_with_mqa", "blk.#.attn_kv_a_mqa.weight", "aE"),
    Row("layers.#.self_attn.kv_a_layernorm", "blk.#.attn_kv_a_norm.weight", "L"),
    Row(
        "layers.#.self_attn.kv_b_proj", "blk.#.attn_k_b.weight", "HLn", Transform.TRANSPOSE_RUNS,
        runs=_key_parts, taken="bL", stacked="layers.#.self_attn.embed_q",
    ),
    Row(
        "layers.#.self_attn.kv_b_proj", "blk.#.attn_v_b.weight", "HvL",
        runs=_value_parts, taken="bL", stacked="layers.#.self_attn.unembed_out",
    ),
    Row("layers.#.self_attn.o_proj", "blk.#.attn_output.weight", "Eo"),
)  # fmt: skip
_INDEXER = (
    Row("layers.#.self_attn.indexer.wq_b", "blk.#.indexer.attn_q_b.weight", "iJ", layers=_FULL),
    Row("layers.#.self_attn.indexer.wk", "blk.#.indexer.attn_k.weight", "dE", layers=_FULL),
    Row("layers.#.self_attn.indexer.k_norm", "blk.#.indexer.k_norm.weight", "d", bias="required", layers=_FULL),
    Row("layers.#.self_attn.indexer.weights_proj", "blk.#.indexer.proj.weight", "hE", layers=_FULL),
)
_SHARED_EXPERTS = tuple(
    Row(f"layers.#.mlp.shared_experts.{name}_proj", f"blk.#.ffn_{name}_shexp.weight", shape)
    for name, shape in (("gate", "YE"), ("up", "YE"), ("down", "EY"))
)
_BIAS = Row("layers.#.mlp.gate.e_score_correction_bias", "blk.#.exp_probs_b.bias", "X", is_named_in_full=True)


def _rows(*, is_biased: bool) -> tuple[Row, ...]:
    """`is_biased`: experts are ranked by their scores and a number of each."""
    routed = expert_rows("layers.#.mlp.gate", "layers.#.mlp.experts", "gate_proj", "up_proj", "down_proj")
    return (
        *ENDS, *NORMS, *LATENT_ATTENTION,
        *(replace(row, layers=DENSE) for row in feed_forward()),
        *(replace(row, layers=SPARSE) for row in (*routed, *((_BIAS,) if is_biased else ()), *_SHARED_EXPERTS)),
    )  # fmt: skip


def n_layers_of(values: Hyperparameters) -> int:
    return values.integer("num_hidden_layers", maximum=MAX_LAYERS)


def _kinds(values: Hyperparameters) -> list[set[str]]:
    n_dense = n_dense_layers(values)
    queries = DIRECT if values.get("q_lora_rank") is None else LOW_RANK
    return [{queries, DENSE if layer < n_dense else SPARSE} for layer in range(n_layers_of(values))]


def _indexers(values: Hyperparameters) -> list[str]:
    """Of each layer of GLM 5, by `GlmMoeDsaConfig`."""
    n_layers, kinds = n_layers_of(values), values.names("indexer_types")
    if kinds is None and isinstance(pattern := values.get("index_topk_pattern"), str):
        kinds = [{"F": _FULL, "S": _SHARED}.get(letter, letter) for letter in pattern]
    elif kinds is None:
        kinds = values.names("index_topk_pattern")
    if kinds is None:
        period = max(1, values.integer("index_topk_freq", minimum=0, default=1))
        first = values.integer("index_skip_topk_offset", minimum=0, default=2) - 1
        kinds = [_SHARED if max(0, layer - first) % period else _FULL for layer in range(n_layers)]
    kinds = kinds[:n_layers]
    if len(kinds) < n_layers or set(kinds) - {_FULL, _SHARED} or kinds[0] != _FULL:
        raise Unconvertible("its `indexer_types` are not `full` for the first layer, and `full` or `shared` for others")
    return kinds


def _kinds_of_deepseek32(values: Hyperparameters) -> list[set[str]]:
    return [kinds - {DIRECT} | {LOW_RANK, _FULL} for kinds in _kinds(values)]


def _kinds_of_glm5(values: Hyperparameters) -> list[set[str]]:
    both = zip(_kinds(values), _indexers(values), strict=True)
    return [kinds - {DIRECT} | {LOW_RANK, indexer} for kinds, indexer in both]


def _unused_of_glm5(values: Hyperparameters) -> tuple[str, ...]:
    """Layers behind the last one, and indexers that are passed over."""
    indexers = enumerate(_indexers(values))
    passed = (f"layers.{layer}.self_attn.indexer." for layer, indexer in indexers if indexer == _SHARED)
    return (*_drafting_layers(values), *passed)


def _drafting_layers(values: Hyperparameters) -> tuple[str, ...]:
    """Layers behind the last one."""
    n_layers = n_layers_of(values)
    n_more = values.integer("num_nextn_predict_layers", minimum=0, maximum=MAX_LAYERS, default=0)
    return tuple(f"layers.{layer}." for layer in range(n_layers, n_layers + n_more))


def _renamed(values: Hyperparameters) -> Hyperparameters:
    """What is rotated of each head is what the recipe takes for the whole of it."""
    return values.changed({"head_dim": values.integer("qk_rope_head_dim")})


def _mistral4_renamed(values: Hyperparameters) -> Hyperparameters:
    """The same; that this is a part of the head need not be said then."""
    n_rotated, rope = values.integer("qk_rope_head_dim"), values.get("rope_parameters", "rope_scaling")
    if rope is None:
        raise wrong("rope_parameters", None)  # transformers scales positions then, though nothing says so
    if (size := values.get("head_dim")) not in (None, n_rotated + values.integer("qk_nope_head_dim")):
        raise wrong("head_dim", size)
    if isinstance(rope, dict) and rope.get("partial_rotary_factor") is not None:
        share = checked_number("partial_rotary_factor", rope["partial_rotary_factor"])
        if int((values.integer("qk_nope_head_dim") + n_rotated) * min(share, 1)) != n_rotated:
            raise wrong("partial_rotary_factor", share)
        rope = {key: value for key, value in rope.items() if key != "partial_rotary_factor"}
    return values.changed({"head_dim": n_rotated, "rope_parameters": rope})


def describe_latent_attention(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    n_plain, n_value = values.integer("qk_nope_head_dim"), values.integer("v_head_dim")
    n_latent, n_rotated = values.integer("kv_lora_rank"), sizes["R"]
    if not sizes["H"] == sizes["N"] <= _MAX_HEADS:
        raise wrong("num_key_value_heads", sizes["N"])
    if sizes["H"] * (n_plain + n_value + n_rotated) > MAX_WIDTH:
        raise wrong("qk_nope_head_dim", n_plain)
    values.require("attention_bias", False, default=False)
    values.require("rope_interleave", True, default=True)
    sizes |= {
        "n": n_plain, "v": n_value, "L": n_latent, "a": n_latent + n_rotated, "b": sizes["H"] * (n_plain + n_value),
        "q": sizes["H"] * (n_plain + n_rotated), "o": sizes["H"] * n_value,
    }  # fmt: skip
    n_low_rank = 0
    if values.get("q_lora_rank") is not None:
        n_low_rank = sizes["J"] = values.integer("q_lora_rank")
        n_layers = sizes["layers"] if draft.architecture not in INDEXED else 0
        if n_layers in {26, 27} or (n_layers == 48 and values.get("vocab_size") == 128_256):
            raise Unconvertible(f"it has {n_layers} layers and a `q_lora_rank`, which the engine does not read then")
    draft.integer("attention.q_lora_rank", n_low_rank)
    draft.integer("attention.kv_lora_rank", n_latent)
    draft.integer("attention.head_count_kv", 1)  # each head reads the same vector
    draft.integer("attention.key_length", n_latent + n_rotated)
    draft.integer("attention.value_length", n_latent)
    draft.integer("attention.key_length_mla", n_plain + n_rotated)
    draft.integer("attention.value_length_mla", n_value)
    _describe_scaling(draft, values)


def _describe_scaling(draft: MetadataBuilder, values: Hyperparameters) -> None:
    """Of YaRN, which in these models scales the attention, and not what is rotated."""
    rope = rope_parameters(values)
    if rope.get("rope_type") != "yarn":
        return
    scale = rope.number("mscale_all_dim", default=0)
    is_known = scale == 1 or (scale and draft.architecture == "deepseek2")
    if not is_known or rope.number("mscale", default=0) != scale or rope.get("attention_factor") is not None:
        raise Unconvertible("its `mscale` and `mscale_all_dim` are not one number that the engine can compute with")
    draft.number("rope.scaling.attn_factor", 1)
    draft.number("rope.scaling.yarn_log_multiplier", 0.1 * scale)


def describe_latent_experts(
    draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int], gating: int
) -> None:
    experts(draft, values, sizes, "n_routed_experts")
    values.require("moe_layer_freq", 1, default=1)
    sizes["M"] = values.integer("moe_intermediate_size")
    n_shared = values.integer("n_shared_experts", maximum=MAX_WIDTH // sizes["M"])
    sizes["Y"] = n_shared * sizes["M"]
    if not (scale := values.number("routed_scaling_factor", default=1)):  # 0 is how llama.cpp says that there is none
        raise wrong("routed_scaling_factor", scale)
    draft.integer("expert_feed_forward_length", sizes["M"])
    draft.integer("expert_shared_count", n_shared)
    draft.integer("leading_dense_block_count", n_dense_layers(values))
    draft.integer("expert_gating_func", gating)
    draft.number("expert_weights_scale", scale)


def describe_deepseek2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    describe_latent_attention(draft, values, sizes)
    describe_latent_experts(draft, values, sizes, SOFTMAX)
    values.require("scoring_func", "softmax", default="softmax")
    values.require("norm_topk_prob", False, default=False)
    n_groups = values.integer("n_group", default=1)
    # Otherwise groups are ranked by the best of each, and not by two.
    if values.get("topk_method") != "greedy" and n_groups != values.integer("topk_group", default=1):
        raise Unconvertible(f"its experts are in {n_groups} groups, which the engine would rank otherwise")


def describe_deepseek3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    describe_latent_attention(draft, values, sizes)
    describe_latent_experts(draft, values, sizes, SIGMOID)
    values.require("scoring_func", "sigmoid", default="sigmoid")
    values.require("topk_method", "noaux_tc", default="noaux_tc")
    expert_groups(draft, values, sizes)
    draft.flag("expert_weights_norm", values.flag("norm_topk_prob", default=True))


def _describe_indexer(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    values.integer("q_lora_rank")  # the queries of indexers are made of the same vector
    n_heads, size = values.integer("index_n_heads", maximum=_MAX_HEADS), values.integer("index_head_dim")
    if size.bit_count() != 1 or not max(_MIN_INDEX_SIZE, sizes["R"]) <= size <= MAX_WIDTH // n_heads:
        raise Unconvertible(
            f"its `index_head_dim` is `{size}`: the engine needs a power of two of {_MIN_INDEX_SIZE} or more, and at "
            "least `qk_rope_head_dim`"
        )
    sizes |= {"h": n_heads, "d": size, "i": n_heads * size}
    draft.integer("attention.indexer.head_count", n_heads)
    draft.integer("attention.indexer.key_length", size)
    draft.integer("attention.indexer.top_k", values.integer("index_topk", maximum=MAX_CONTEXT))


def describe_deepseek32(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    describe_deepseek3(draft, values, sizes)
    _describe_indexer(draft, values, sizes)
    values.require("indexer_rope_interleave", False, default=False)


def describe_glm5(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    describe_deepseek3(draft, values, sizes)
    _describe_indexer(draft, values, sizes)
    values.require("indexer_rope_interleave", True, default=True)
    # Said of all: without it, llama.cpp goes by the length of the context.
    draft.flags("attention.indexer.types", [kind == _FULL for kind in _indexers(values)])


def describe_mistral4(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    describe_latent_attention(draft, values, sizes)
    describe_latent_experts(draft, values, sizes, SOFTMAX)
    expert_groups(draft, values, sizes)
    draft.flag("expert_weights_norm", values.flag("norm_topk_prob", default=True))
    # Queries grow with the logarithm of how many times the original context fits before them; nothing below it.
    rope = rope_parameters(values)
    if beta := rope.number("llama_4_scaling_beta", default=0):
        n_original = rope.integer("original_max_position_embeddings", maximum=MAX_CONTEXT)
        draft.integer("attention.temperature_length", n_original)
        draft.number("attention.temperature_scale", beta)


_UNADAPTED = ("attn_q.", "attn_q_a.", "attn_q_b.", "attn_kv_a_mqa.", "indexer.", "output.weight")


def _rows_of(*, is_biased: bool, is_indexed: bool = False) -> tuple[Row, ...]:
    return tuple(
        replace(row, is_adaptable=not row.target.removeprefix("blk.#.").startswith(_UNADAPTED))
        for row in (*_rows(is_biased=is_biased), *(_INDEXER if is_indexed else ()))
    )


_SIZES = {"n_shared_experts": 1, "kv_lora_rank": 512, "qk_rope_head_dim": 64, **rope_defaults()}
_OF_DEEPSEEK = {**_SIZES, "qk_nope_head_dim": 128, "v_head_dim": 128}
_V3 = {
    **_OF_DEEPSEEK, "first_k_dense_replace": 3, "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8,
    "topk_group": 4, "moe_intermediate_size": 2048, "routed_scaling_factor": 2.5,
}  # fmt: skip
_SPARSE_ATTENTION = {"index_topk": 2048, "index_head_dim": 128}
_YARN = frozenset(("yarn",))
_KIMI_25 = ("KimiK25ForConditionalGeneration", "Kimi_K25ForConditionalGeneration")  # on the hub, and of transformers

FAMILIES = (
    Family(
        "DeepSeek V2", "deepseek_v2", classes("DeepseekV2")[:1], "deepseek2", _rows_of(is_biased=False),
        SILU, _YARN, describe_deepseek2,
        {**_OF_DEEPSEEK, "first_k_dense_replace": 0, "n_shared_experts": 2, "n_routed_experts": 64,
         "moe_intermediate_size": 1407},
        kinds=_kinds, renamed=_renamed,
    ),
    *(
        Family(
            title, model_type, (*classes("DeepseekV3")[:1], *_KIMI_25), "deepseek2", _rows_of(is_biased=True),
            SILU, _YARN, describe_deepseek3, _V3, ignored_prefixes=("vision_tower.", "mm_projector."),
            kinds=_kinds, unused=_drafting_layers, renamed=_renamed,
        )
        for title, model_type in (("DeepSeek V3", "deepseek_v3"), ("Kimi K2", "kimi_k2"))
    ),
    Family(
        "GLM 4.7 Flash", "glm4_moe_lite", classes("Glm4MoeLite")[:1], "deepseek2", _rows_of(is_biased=True),
        SILU, _YARN, describe_deepseek3,
        {**_SIZES, "first_k_dense_replace": 1, "n_routed_experts": 64, "num_experts_per_tok": 4,
         "qk_nope_head_dim": 192, "v_head_dim": 256, "moe_intermediate_size": 1536, "routed_scaling_factor": 1.8,
         "rms_norm_eps": 1e-5},
        kinds=_kinds, unused=_drafting_layers, renamed=_renamed,
    ),
    Family(
        "DeepSeek V3.2", "deepseek_v32", classes("DeepseekV32")[:1], "deepseek32",
        _rows_of(is_biased=True, is_indexed=True), SILU, _YARN, describe_deepseek32,
        {**_V3, **_SPARSE_ATTENTION, "q_lora_rank": 1536, "index_n_heads": 64},
        kinds=_kinds_of_deepseek32, unused=_drafting_layers, renamed=_renamed,
    ),
    Family(
        "GLM 5", "glm_moe_dsa", classes("GlmMoeDsa")[:1], "glm-dsa", _rows_of(is_biased=True, is_indexed=True),
        SILU, frozenset(), describe_glm5,
        {**_SIZES, **_SPARSE_ATTENTION, "first_k_dense_replace": 3, "n_routed_experts": 256, "num_experts_per_tok": 8,
         "q_lora_rank": 2048, "qk_nope_head_dim": 192, "v_head_dim": 256, "moe_intermediate_size": 2048,
         "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-5, "index_n_heads": 32},
        kinds=_kinds_of_glm5, unused=_unused_of_glm5, renamed=_renamed,
    ),
    Family(
        "Mistral 4", "mistral4", ("Mistral4ForCausalLM", "Mistral3ForConditionalGeneration"), "mistral4",
        _rows_of(is_biased=False), SILU, _YARN, describe_mistral4,
        {**_SIZES, "first_k_dense_replace": 0, "n_routed_experts": 128, "num_experts_per_tok": 4,
         "kv_lora_rank": 256, "qk_nope_head_dim": 64, "v_head_dim": 128, "moe_intermediate_size": 2048},
        ignored_prefixes=("vision_tower.", "multi_modal_projector."), kinds=_kinds, renamed=_mistral4_renamed,
    ),
)  # fmt: skip
