"""Llama and what is built like it: Mistral, the text part of Mistral 3, Granite, Phi-3, OLMo, ERNIE and others."""

import math
from dataclasses import replace

from shimmy.formats.convert.families.family import (
    ALL,
    ENDS,
    FREE,
    HEAD_NORMS,
    NORMS,
    PERMUTE,
    SILU,
    Family,
    Row,
    attention,
    classes,
    expert_rows,
    feed_forward,
    rope_defaults,
)
from shimmy.formats.convert.families.settings import (
    cap_to_window,
    experts,
    plain,
    plain_heads,
    qwen_window,
    rotation_of_each_kind,
    window_pattern,
)
from shimmy.formats.convert.hyperparameters import (
    MAX_CONTEXT,
    MAX_EXPERTS,
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

_LLAMA = (*ENDS, *NORMS, *attention(PERMUTE, output_bias="attention_bias"), *feed_forward("mlp_bias"))
_MISTRAL = (*ENDS, *NORMS, *attention(PERMUTE, bias="none"), *feed_forward())

_MISTRAL_3 = "Mistral3ForConditionalGeneration"
_EYES = ("vision_tower.", "multi_modal_projector.")


def describe_mistral(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del sizes
    cap_to_window(draft, values)


def describe_ministral3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del sizes
    cap_to_window(draft, values)
    # Queries grow with the logarithm of how many times the original context fits before them; nothing below it.
    rope = rope_parameters(values)
    if beta := rope.number("llama_4_scaling_beta", default=0):
        n_original = rope.integer("original_max_position_embeddings", maximum=MAX_CONTEXT)
        draft.integer("rope.scaling.original_context_length", n_original)  # what the engine divides by
        draft.number("attention.temperature_scale", beta)


def internlm3_renamed(values: Hyperparameters) -> Hyperparameters:
    """With the names that the hub has for the settings of biases, where transformers has others."""
    return values.changed({
        "qkv_bias": values.get("qkv_bias", "attention_bias"), "bias": values.get("bias", "mlp_bias"),
    })  # fmt: skip


def describe_mixtral(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    cap_to_window(draft, values)
    experts(draft, values, sizes, "num_local_experts")
    sizes["M"] = sizes["F"]


def describe_smollm3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    qwen_window(draft, values, sizes)
    found = values.get("no_rope_layers")
    if found is None:
        values.require("no_rope_layer_interval", 4, default=4)
    elif found != [int((layer + 1) % 4 != 0) for layer in range(sizes["layers"])]:
        raise Unconvertible("its `no_rope_layers` is not every 4th layer, which is all that the engine computes")


def describe_granite(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del sizes
    for key, source in (
        ("attention.scale", "attention_multiplier"), ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"), ("logit_scale", "logits_scaling"),
    ):  # fmt: skip
        if not (scale := values.number(source, default=1)):  # 0 is how llama.cpp says that there is none
            raise wrong(source, scale)
        draft.number(key, scale)


def hunyuan_renamed(values: Hyperparameters) -> Hyperparameters:
    """What it calls dynamic scaling, with a fixed `alpha`, is another base of the rotation."""
    rope = rope_parameters(values)
    alpha = rope.get("alpha")
    if rope.get("rope_type") != "dynamic" or alpha is None:
        return values
    size, stretch = values.integer("head_dim", minimum=4), checked_number("alpha", alpha)
    if not 1 <= stretch <= 1e6:
        raise wrong("alpha", alpha)
    theta = rope.number("rope_theta") * stretch ** (size / (size - 2))
    return values.changed({"rope_parameters": {"rope_type": "default", "rope_theta": theta}})


def describe_hunyuan(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del draft, sizes
    values.require("use_qk_norm", True, default=True)
    values.require("use_cla", False, default=False)
    values.require("num_experts", 1, default=1)


def hunyuan_moe_renamed(values: Hyperparameters) -> Hyperparameters:
    """With one number where there is one for each layer, if all are the same."""
    changes = {}
    for key, name in (("num_experts", "num_experts"), ("moe_topk", "num_experts_per_tok")):
        found = values.get(key)
        if isinstance(found, list):
            if not found or any(number != found[0] for number in found):
                raise Unconvertible(f"its `{key}` is not the same for all layers, which the engine cannot compute")
            found = found[0]
        changes[name] = found
    return hunyuan_renamed(values.changed(changes))


def describe_hunyuan_moe(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    values.require("use_cla", False, default=False)
    for key in ("use_qk_norm", "use_mixed_mlp_moe"):
        values.require(key, True, default=True)
    n_shared = values.get("num_shared_expert")
    if n_shared is not None and n_shared != 1 and n_shared != [1] * sizes["layers"]:
        raise Unconvertible("its `num_shared_expert` is not 1 for all layers, which the engine cannot compute")
    experts(draft, values, sizes, "num_experts")
    sizes["M"] = sizes["F"]
    draft.integer("expert_feed_forward_length", sizes["F"])
    draft.integer("expert_shared_feed_forward_length", sizes["F"])


_XIELU = tuple(
    Row(f"layers.#.mlp.act_fn.{name}", f"xielu.{name}", shape, is_named_in_full=True, is_metadata=True)
    for name, shape in (("alpha_n", "1"), ("alpha_p", "1"), ("beta", ""), ("eps", ""))
)


def describe_apertus(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del draft
    sizes["1"] = 1
    values.require("tie_word_embeddings", False, default=False)
    values.require("qk_norm", True, default=True)
    values.require("post_norm", False, default=False)
    # Without a word of them transformers scales positions as Llama 3 does.
    if values.get("rope_parameters", "rope_scaling") is None:
        raise wrong("rope_scaling", None)


def describe_phi3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    plain_heads(values, sizes)
    cap_to_window(draft, values)
    rope = rope_parameters(values)
    if rope.get("rope_type") == "default":
        return
    # What stands within `rope_parameters` does not count in transformers, which always has one beside it.
    n_ctx_original = values.get("original_max_position_embeddings")
    if type(n_ctx_original) is not int or not 1 < n_ctx_original <= MAX_CONTEXT:
        raise wrong("original_max_position_embeddings", n_ctx_original)
    factor = rope.number("factor", default=sizes["P"] / n_ctx_original)
    implied = math.sqrt(1 + math.log(factor) / math.log(n_ctx_original)) if factor > 1 else 1.0
    draft.integer("rope.scaling.original_context_length", n_ctx_original)
    draft.number("rope.scaling.attn_factor", rope.number("attention_factor", default=implied))
    for kind in ("long", "short"):
        factors = rope.get(f"{kind}_factor")
        if not isinstance(factors, list) or len(factors) != sizes["R"] // 2:
            raise wrong(f"{kind}_factor", factors)
        numbers = [checked_number(f"{kind}_factor", factor) for factor in factors]
        if not all(numbers):
            raise wrong(f"{kind}_factor", 0)
        draft.computed[f"rope_factors_{kind}.weight"] = numbers
    # llama.cpp takes the long factors for all texts in a context above it, short texts among them.
    draft.cap_context(n_ctx_original, "the engine cannot change between short and long positions within a context")


# -- with norms behind attention and feed-forward layers alone: OLMo 2 and 3, and elsewhere Exaone 4

BEHIND = (
    Row("layers.#.post_attention_layernorm", "blk.#.post_attention_norm.weight", "E"),
    Row("layers.#.post_feedforward_layernorm", "blk.#.post_ffw_norm.weight", "E"),
)
_OLMO2 = (
    *ENDS,
    *attention(),
    Row("layers.#.self_attn.q_norm", "blk.#.attn_q_norm.weight", "Q"),  # of all heads together
    Row("layers.#.self_attn.k_norm", "blk.#.attn_k_norm.weight", "K"),
    *BEHIND,
    *feed_forward(),
)


def describe_olmo2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del draft
    plain_heads(values, sizes)
    values.require("tie_word_embeddings", False, default=False)


def describe_olmo3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    describe_olmo2(draft, values, sizes)
    rotation_of_each_kind(values)
    if not window_pattern(draft, values, sizes, 4):
        return
    draft.integer("attention.sliding_window", values.integer("sliding_window", maximum=MAX_CONTEXT))
    # Positions are scaled in the layers without a window alone.
    rope, local = rope_parameters(values), values.get("rope_parameters")
    if isinstance(local, dict) and isinstance(local.get("sliding_attention"), dict):
        Hyperparameters(local["sliding_attention"], {"rope_type": "default"}).require("rope_type", "default")
        theta = checked_number("rope_theta", local["sliding_attention"].get("rope_theta"))
        if theta != rope.number("rope_theta"):
            raise wrong("rope_theta", theta)


# -- mixtures of experts that are ranked by a softmax: OLMoE, ERNIE 4.5


def describe_olmoe(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    plain_heads(values, sizes)
    for key, only in (("norm_topk_prob", False), ("attention_bias", False), ("tie_word_embeddings", False)):
        values.require(key, only, default=only)
    values.require("clip_qkv", None)
    values.require("num_key_value_heads", sizes["H"], default=sizes["H"])  # for the norm of all keys
    experts(draft, values, sizes, "num_experts")
    sizes["M"] = sizes["F"]


_DENSE, _SPARSE = "dense", "sparse"
_ERNIE = (*ENDS, *NORMS, *attention(bias="use_bias", output_bias="use_bias"))  # rotated pairs are neighbours
_ERNIE_EXPERTS = (
    *expert_rows("layers.#.mlp.gate", "layers.#.mlp.experts", "gate_proj", "up_proj", "down_proj"),
    Row(
        "layers.#.mlp.moe_statics.e_score_correction_bias", "blk.#.exp_probs_b.bias", "1X", Transform.SQUEEZE,
        is_named_in_full=True, not_beside="layers.#.mlp.switch_mlp.gate_proj",
    ),
    Row("layers.#.mlp.shared_experts.gate_proj", "blk.#.ffn_gate_shexp.weight", "YE"),
    Row("layers.#.mlp.shared_experts.up_proj", "blk.#.ffn_up_shexp.weight", "YE"),
    Row("layers.#.mlp.shared_experts.down_proj", "blk.#.ffn_down_shexp.weight", "EY"),
)  # fmt: skip


def _ernie_kinds(values: Hyperparameters) -> list[set[str]]:
    n_layers = values.integer("num_hidden_layers", maximum=MAX_LAYERS)
    n_dense = values.integer("moe_layer_start_index", minimum=0, maximum=n_layers - 1)
    return [{_DENSE if layer < n_dense else _SPARSE} for layer in range(n_layers)]


def describe_ernie_moe(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    values.require("use_bias", False, default=False)
    values.require("moe_layer_interval", 1, default=1)
    values.require("moe_layer_end_index", -1, sizes["layers"] - 1, default=-1)
    n_experts = sizes["X"] = values.integer("moe_num_experts", maximum=MAX_EXPERTS)
    width = sizes["M"] = values.integer("moe_intermediate_size")
    n_shared = values.integer("moe_num_shared_experts", maximum=MAX_WIDTH // width)
    sizes |= {"Y": n_shared * width, "1": 1}
    draft.integer("expert_count", n_experts)
    draft.integer("expert_used_count", values.integer("moe_k", maximum=n_experts))
    draft.integer("expert_feed_forward_length", width)
    draft.integer("expert_shared_count", n_shared)
    draft.integer("expert_shared_feed_forward_length", sizes["Y"])
    draft.integer("interleave_moe_layer_step", 1)
    draft.integer("leading_dense_block_count", values.integer("moe_layer_start_index", minimum=0))


FAMILIES = (
    Family("Llama", "llama", classes("Llama"), "llama", _LLAMA, SILU, ALL, plain, rope_defaults()),
    Family(
        "Mistral", "mistral", (*classes("Mistral"), _MISTRAL_3), "llama", _MISTRAL, SILU, ALL, describe_mistral,
        rope_defaults(), ignored_prefixes=_EYES,
    ),
    Family(
        "InternLM 3", "internlm3", (*classes("InternLM3"), "LlamaForCausalLM"), "llama",
        (*ENDS, *NORMS, *attention(PERMUTE, bias="qkv_bias", output_bias="bias"), *feed_forward("bias")),
        SILU, ALL, plain, {"head_dim": 128, **rope_defaults(rms_norm_eps=1e-5)}, renamed=internlm3_renamed,
    ),
    Family(
        "Ministral 3", "ministral3", ("Ministral3ForCausalLM", _MISTRAL_3), "mistral3", _MISTRAL, SILU,
        frozenset(("yarn",)), describe_ministral3, {"head_dim": 128, "rms_norm_eps": 1e-5}, ignored_prefixes=_EYES,
    ),
    Family(
        "Mixtral", "mixtral", classes("Mixtral"), "llama",
        (*ENDS, *NORMS, *attention(PERMUTE, bias="none"),
         *expert_rows("layers.#.block_sparse_moe.gate", "layers.#.block_sparse_moe.experts", "w1", "w3", "w2")),
        SILU, ALL, describe_mixtral, rope_defaults(1_000_000.0, 1e-5),
    ),
    Family(
        "SmolLM3", "smollm3", classes("SmolLM3"), "smollm3",
        (*ENDS, *NORMS, *attention(PERMUTE), *feed_forward()),
        SILU, FREE, describe_smollm3, rope_defaults(2_000_000.0),
    ),
    Family("Granite", "granite", classes("Granite"), "granite", _LLAMA, SILU, ALL, describe_granite, rope_defaults()),
    Family(
        "ERNIE 4.5", "ernie4_5", classes("Ernie4_5"), "ernie4_5",
        (*_ERNIE, *feed_forward()),
        SILU, FREE, plain, {"head_dim": 128, "tie_word_embeddings": True, **rope_defaults(500_000.0, 1e-5)},
    ),
    Family(
        "ERNIE 4.5", "ernie4_5_moe", classes("Ernie4_5_Moe"), "ernie4_5-moe",
        (*_ERNIE, *(replace(row, layers=_DENSE) for row in feed_forward()),
         *(replace(row, layers=_SPARSE) for row in _ERNIE_EXPERTS)),
        SILU, FREE, describe_ernie_moe,
        {"moe_layer_start_index": 1, "moe_num_experts": 64, "moe_k": 6, "moe_num_shared_experts": 2,
         "moe_intermediate_size": 1536, "tie_word_embeddings": True, **rope_defaults(500_000.0, 1e-5)},
        ignored_prefixes=("mtp_",), kinds=_ernie_kinds,
    ),
    Family(
        "Apertus", "apertus", classes("Apertus"), "apertus",
        (*ENDS, *attention(bias="none"), *HEAD_NORMS, *_XIELU,
         Row("layers.#.attention_layernorm", "blk.#.attn_norm.weight", "E"),
         Row("layers.#.feedforward_layernorm", "blk.#.ffn_norm.weight", "E"),
         Row("layers.#.mlp.up_proj", "blk.#.ffn_up.weight", "FE"),
         Row("layers.#.mlp.down_proj", "blk.#.ffn_down.weight", "EF")),
        frozenset(("xielu",)), ALL, describe_apertus, rope_defaults(12_000_000.0, 1e-5),
    ),
    Family(
        "Hunyuan", "hunyuan_v1_dense", classes("HunYuanDenseV1"), "hunyuan-dense",
        (*ENDS, *NORMS, *attention(bias="none"), *feed_forward(),
         Row("layers.#.self_attn.query_layernorm", "blk.#.attn_q_norm.weight", "D"),
         Row("layers.#.self_attn.key_layernorm", "blk.#.attn_k_norm.weight", "D")),
        SILU, frozenset(), describe_hunyuan, rope_defaults(rms_norm_eps=1e-5), renamed=hunyuan_renamed,
    ),
    Family(
        "Hunyuan", "hunyuan_v1_moe", classes("HunYuanMoEV1"), "hunyuan-moe",
        (*ENDS, *NORMS, *attention(bias="none"),
         Row("layers.#.self_attn.query_layernorm", "blk.#.attn_q_norm.weight", "D"),
         Row("layers.#.self_attn.key_layernorm", "blk.#.attn_k_norm.weight", "D"),
         *expert_rows("layers.#.mlp.gate.wg", "layers.#.mlp.experts", "gate_proj", "up_proj", "down_proj"),
         *(Row(f"layers.#.mlp.shared_mlp.{name}_proj", f"blk.#.ffn_{name}_shexp.weight", shape)
           for name, shape in (("gate", "FE"), ("up", "FE"), ("down", "EF")))),
        SILU, frozenset(), describe_hunyuan_moe, rope_defaults(rms_norm_eps=1e-5), renamed=hunyuan_moe_renamed,
    ),
    Family(
        "Arcee", "arcee", classes("Arcee"), "arcee",
        (*ENDS, *NORMS, *attention(PERMUTE, bias="none"),
         Row("layers.#.mlp.up_proj", "blk.#.ffn_up.weight", "FE"),
         Row("layers.#.mlp.down_proj", "blk.#.ffn_down.weight", "EF")),
        frozenset(("relu2",)), ALL, plain, rope_defaults(1e4, 1e-5),
    ),
    Family(
        "Seed-OSS", "seed_oss", classes("SeedOss"), "seed_oss",
        (*ENDS,
         Row("layers.#.input_layernorm", "blk.#.attn_norm.weight", "E"),
         Row("layers.#.post_attention_layernorm", "blk.#.post_attention_norm.weight", "E"),
         *attention(), *feed_forward()),
        SILU, FREE, plain, {"head_dim": 128, "attention_bias": True, **rope_defaults()},
    ),
    Family(
        "Phi-3", "phi3", classes("Phi3"), "phi3",
        (*ENDS, *NORMS,
         Row("layers.#.self_attn.qkv_proj", "blk.#.attn_qkv.weight", "AE"),
         Row("layers.#.self_attn.o_proj", "blk.#.attn_output.weight", "EQ"),
         Row("layers.#.mlp.gate_up_proj", "blk.#.ffn_up.weight", "GE"),
         Row("layers.#.mlp.down_proj", "blk.#.ffn_down.weight", "EF")),
        SILU, frozenset(("longrope", "su")), describe_phi3,
        {"original_max_position_embeddings": 4096, **rope_defaults(1e4, 1e-5)},
        rotates_partly=True,
    ),
    Family("OLMo 2", "olmo2", classes("Olmo2"), "olmo2", _OLMO2, SILU, FREE, describe_olmo2, rope_defaults(1e4, 1e-5)),
    Family(
        "OLMo 3", "olmo3", classes("Olmo3"), "olmo2", _OLMO2, SILU, FREE, describe_olmo3,
        {"rms_norm_eps": 1e-5, "sliding_window": 4096},  # versions of transformers do not agree on `rope_theta`
    ),
    Family(
        "OLMoE", "olmoe", classes("Olmoe"), "olmoe",
        (*ENDS, *NORMS, *attention(bias="none"),
         Row("layers.#.self_attn.q_norm", "blk.#.attn_q_norm.weight", "Q"),  # of all heads together
         Row("layers.#.self_attn.k_norm", "blk.#.attn_k_norm.weight", "K"),
         *expert_rows("layers.#.mlp.gate", "layers.#.mlp.experts", "gate_proj", "up_proj", "down_proj")),
        SILU, FREE, describe_olmoe, {"num_experts": 64, "num_experts_per_tok": 8, **rope_defaults(1e4, 1e-5)},
    ),
)  # fmt: skip
