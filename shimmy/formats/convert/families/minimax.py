"""MiniMax M3: attention to a few blocks of tokens, which an index of small keys chooses for each group of heads.

Minimax sparse attention. llama.cpp has the index in all layers with experts and in no other, and one head of it for
each head of keys. M2, without an index, is in `glm`.
"""

from dataclasses import replace

from shimmy.formats.convert.families.family import (
    ENDS,
    FREE,
    NORMS,
    Family,
    Row,
    attention,
    expert_rows,
    feed_forward,
    plus_one,
    rope_defaults,
)
from shimmy.formats.convert.families.glm import minimax_m2_renamed
from shimmy.formats.convert.families.settings import DENSE, SIGMOID, SPARSE, experts
from shimmy.formats.convert.hyperparameters import (
    MAX_CONTEXT,
    MAX_LAYERS,
    MAX_WIDTH,
    Hyperparameters,
    MetadataBuilder,
    wrong,
)
from shimmy.formats.format_errors import Unconvertible

_MOE, _INDEX = "layers.#.block_sparse_moe", "layers.#.self_attn.index"
_ACTIVATION = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}  # constants in llama.cpp

_ROWS = (
    ENDS[0], *plus_one(ENDS[1]), ENDS[2],
    *plus_one(
        *NORMS,
        Row("layers.#.self_attn.q_norm", "blk.#.attn_q_norm.weight", "D"),
        Row("layers.#.self_attn.k_norm", "blk.#.attn_k_norm.weight", "D"),
    ),
    *attention(bias="none"),
    *(replace(row, layers=DENSE) for row in feed_forward()),
    *(
        replace(row, layers=SPARSE)
        for row in (
            *expert_rows(f"{_MOE}.gate", f"{_MOE}.experts", "w1", "w3", "w2"),
            Row(f"{_MOE}.e_score_correction_bias", "blk.#.exp_probs_b.bias", "X", is_named_in_full=True),
            Row(f"{_MOE}.shared_experts.gate_proj", "blk.#.ffn_gate_shexp.weight", "ME"),
            Row(f"{_MOE}.shared_experts.up_proj", "blk.#.ffn_up_shexp.weight", "ME"),
            Row(f"{_MOE}.shared_experts.down_proj", "blk.#.ffn_down_shexp.weight", "EM"),
            Row(f"{_INDEX}_q_proj", "blk.#.indexer.q_proj.weight", "qE"),
            Row(f"{_INDEX}_k_proj", "blk.#.indexer.k_proj.weight", "kE"),
            *plus_one(
                Row(f"{_INDEX}_q_norm", "blk.#.indexer.q_norm.weight", "k"),
                Row(f"{_INDEX}_k_norm", "blk.#.indexer.k_norm.weight", "k"),
            ),
        )
    ),
)  # fmt: skip
# What transformers has beside the rest, by the names of the hub's `sparse_attention_config`.
_OF_THE_INDEX = {
    "sparse_num_index_heads": "index_n_heads", "sparse_index_dim": "index_head_dim",
    "sparse_block_size": "index_block_size", "sparse_topk_blocks": "index_topk_blocks",
    "sparse_local_block": "index_local_blocks",
}  # fmt: skip


def _are_sparse(values: Hyperparameters, key: str, names: tuple[str, str], freq: object) -> list[bool]:
    """Of each layer, by transformers' names of both kinds or by the hub's zeros and ones."""
    found = values.names(key)
    kinds: list[object] = [] if found is None else [*found]
    if found is None and isinstance(freq, list):
        kinds = [names[1] if flag else names[0] for flag in freq]
    if len(kinds) != values.integer("num_hidden_layers", maximum=MAX_LAYERS) or {*kinds} - {*names}:
        raise Unconvertible(f"its `{key}` has another kind of layer than the two that the engine has, or too few")
    return [kind == names[1] for kind in kinds]


def _renamed(values: Hyperparameters) -> Hyperparameters:
    """Width of the layers without experts, kinds of layers, and the index, in one style."""
    settings = values.get("sparse_attention_config")
    if settings is not None and not isinstance(settings, dict):
        raise wrong("sparse_attention_config", settings)
    settings = settings or {}
    experts_in = _are_sparse(values, "mlp_layer_types", (DENSE, SPARSE), values.get("moe_layer_freq"))
    kinds = ("full_attention", "minimax_m3_sparse")
    indexed = _are_sparse(values, "layer_types", kinds, settings.get("sparse_attention_freq"))
    n_dense = experts_in.count(False)
    if experts_in != indexed or experts_in != [False] * n_dense + [True] * (len(experts_in) - n_dense):
        raise Unconvertible(
            "not all of its layers behind the first ones have both experts and an index, or some before"
        )
    if n_dense == len(experts_in):
        raise Unconvertible("none of its layers has experts, which the engine needs")
    Hyperparameters(settings, {}).require("use_sparse_attention", True, default=True)
    Hyperparameters(settings, {}).require("sparse_score_type", "max", default="max")
    Hyperparameters(settings, {}).require("sparse_init_block", 0, default=0)
    values_only = settings.get("sparse_disable_index_value")
    if values_only is not None and (not isinstance(values_only, list) or not all(values_only[n_dense:])):
        raise Unconvertible("its index has values (`sparse_disable_index_value`), which the engine does not have")
    changes = {key: settings[name] for name, key in _OF_THE_INDEX.items() if settings.get(name) is not None}
    width = values.integer("intermediate_size")
    return minimax_m2_renamed(values).changed({
        **changes, "moe_intermediate_size": width, "first_k_dense_replace": n_dense,
        "intermediate_size": values.integer("dense_intermediate_size", default=width), "layer_types": None,
    })  # fmt: skip


def _kinds(values: Hyperparameters) -> list[set[str]]:
    n_dense = values.integer("first_k_dense_replace", minimum=0)
    return [{DENSE if layer < n_dense else SPARSE} for layer in range(values.integer("num_hidden_layers"))]


def describe_minimax_m3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    experts(draft, values, sizes, "num_local_experts")
    values.require("scoring_func", "sigmoid", default="sigmoid")
    values.require("qk_norm_type", "per_head", default="per_head")
    for key in ("use_qk_norm", "use_routing_bias", "use_gemma_norm"):
        values.require(key, True, default=True)
    for key in ("attention_output_gate", "tie_word_embeddings"):  # for the latter the engine wants its own matrix
        values.require(key, False, default=False)
    for key, constant in _ACTIVATION.items():
        if values.number(key, default=constant) != constant:
            raise Unconvertible(f"its `{key}` is not {constant:g}, which is what the engine computes with")
    width = sizes["M"] = values.integer("moe_intermediate_size")
    values.require("n_shared_experts", 1, default=1)
    values.require("shared_intermediate_size", width, default=width)
    if not (scale := values.number("routed_scaling_factor")):  # 0 is how llama.cpp says that there is none
        raise wrong("routed_scaling_factor", scale)
    draft.integer("expert_feed_forward_length", width)
    draft.integer("expert_shared_count", 1)
    draft.integer("expert_gating_func", SIGMOID)
    draft.number("expert_weights_scale", scale)
    draft.flag("expert_weights_norm", True)
    draft.integer("leading_dense_block_count", values.integer("first_k_dense_replace", minimum=0))
    _describe_index(draft, values, sizes)


def _describe_index(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    """llama.cpp aborts the process for another number of heads."""
    n_heads, size = values.integer("index_n_heads"), values.integer("index_head_dim")
    if n_heads != sizes["N"] or n_heads * size > MAX_WIDTH:
        raise wrong("index_n_heads", n_heads)
    if size < sizes["R"]:
        raise wrong("index_head_dim", size)
    sizes |= {"q": n_heads * size, "k": size}
    draft.integer("attention.indexer.head_count", n_heads)
    draft.integer("attention.indexer.key_length", size)
    for key, name, minimum in (
        ("block_size", "index_block_size", 1), ("top_k", "index_topk_blocks", 1),
        ("local_blocks", "index_local_blocks", 0),
    ):  # fmt: skip
        draft.integer(f"attention.indexer.{key}", values.integer(name, minimum=minimum, maximum=MAX_CONTEXT))


FAMILIES = tuple(
    Family(
        "MiniMax M3", model_type,
        ("MiniMaxM3SparseForConditionalGeneration", "MiniMaxM3SparseForCausalLM", "MiniMaxM3VLForCausalLM"),
        "minimax-m3", _ROWS, frozenset(("silu", "swigluoai")), FREE, describe_minimax_m3,
        {"head_dim": 128, "num_local_experts": 128, "num_experts_per_tok": 4, "intermediate_size": 3072,
         "dense_intermediate_size": 12288, "routed_scaling_factor": 2.0, "rotary_dim": 64, "index_n_heads": 4,
         "index_head_dim": 128, "index_block_size": 128, "index_topk_blocks": 16, "index_local_blocks": 1,
         **rope_defaults(5e6)},
        ignored_prefixes=("mtp.", "vision_tower.", "multi_modal_projector.", "patch_merge_mlp."),
        rotates_partly=True, kinds=_kinds, renamed=_renamed,
    )
    for model_type in ("minimax_m3_vl", "minimax_m3_vl_text")
)  # fmt: skip
