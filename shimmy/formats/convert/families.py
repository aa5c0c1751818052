"""The families of models that can be converted: a table of each one's tensors, and what sets its numbers apart.

Knows the names of transformers and those of llama.cpp, and what llama.cpp would compute wrongly without a word: the
context is then limited to where it is exact, with a notice, or the model is refused. The reference is llama.cpp's own
converter (`conversion/`), and what src/models/*.cpp computes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shimmy.formats.convert.hyperparameters import (
    MAX_CONTEXT,
    MAX_EXPERTS,
    Hyperparameters,
    MetadataBuilder,
    checked_number,
    rope_parameters,
    wrong,
)
from shimmy.formats.convert.transforms import Transform
from shimmy.formats.format_errors import Unconvertible


@dataclass(frozen=True, slots=True)
class Row:
    """A weight, and its bias where there may be one: `#` is a layer, `@` an expert, a letter of the shape a size."""

    source: str
    target: str
    shape: str  # as the checkpoint has it, the row length last
    transform: Transform = Transform.COPY
    bias: str = "none"  # or optional, or required
    weight: str = "required"  # or optional
    fused: tuple[str, int, int] | None = (
        None  # all experts in one tensor: its name, which part of its rows, of how many
    )


@dataclass(frozen=True, slots=True)
class Family:
    """All that sets one family apart from the others."""

    title: str
    model_type: str
    classes: tuple[str, ...]  # of transformers; another one computes something else
    architecture: str  # llama.cpp's name
    rows: tuple[Row, ...]
    activations: frozenset[str]
    scalings: frozenset[str] | None  # of rotary positions; None where there are none
    describe: Callable[[MetadataBuilder, Hyperparameters, dict[str, int]], None]
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of the family's class, where config.json may be silent
    prefixes: tuple[str, ...] = ("model.language_model.", "language_model.model.", "language_model.", "model.")
    ignored_prefixes: tuple[str, ...] = ()
    ignored_suffixes: tuple[str, ...] = (".rotary_emb.inv_freq",)


# What one family has and the others have not.


def _llama(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    """Nothing: this is what `_describe` was made for."""


def _plain_heads(values: Hyperparameters, sizes: dict[str, int]) -> None:
    """llama.cpp takes it for granted in these architectures."""
    if sizes["Q"] != sizes["E"]:
        raise wrong("head_dim", values.get("head_dim") or values.get("num_attention_heads"))


def _cap_to_window(draft: MetadataBuilder, values: Hyperparameters, *, is_used: bool = True) -> None:
    """A window that llama.cpp does not have: exact while no token is out of its sight."""
    kinds = set(values.names("layer_types") or ("sliding_attention",))
    if kinds - {"full_attention", "sliding_attention"}:
        raise Unconvertible("its `layer_types` has a kind of layer that the engine does not have")
    if is_used and "sliding_attention" in kinds and values.get("sliding_window") is not None:
        window = values.integer("sliding_window", maximum=MAX_CONTEXT)
        draft.cap_context(window, "the engine has no sliding window for this architecture")


def _mistral(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del sizes
    _cap_to_window(draft, values)


def _mixtral(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _cap_to_window(draft, values)
    _experts(draft, values, sizes, "num_local_experts")
    sizes["M"] = sizes["F"]


def _experts(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int], key: str) -> None:
    sizes["X"] = values.integer(key, "num_experts", "num_local_experts", maximum=MAX_EXPERTS)
    draft.integer("expert_count", sizes["X"])
    draft.integer("expert_used_count", values.integer("num_experts_per_tok", maximum=sizes["X"]))


def _smollm3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _qwen_window(draft, values, sizes)
    found = values.get("no_rope_layers")
    if found is None:
        values.require("no_rope_layer_interval", 4, default=4)
    elif found != [int((layer + 1) % 4 != 0) for layer in range(sizes["layers"])]:
        raise Unconvertible("its `no_rope_layers` is not every 4th layer, which is all that the engine computes")


def _granite(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del sizes
    for key, source in (
        ("attention.scale", "attention_multiplier"), ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"), ("logit_scale", "logits_scaling"),
    ):  # fmt: skip
        if not (scale := values.number(source, default=1)):  # 0 is how llama.cpp says that there is none
            raise wrong(source, scale)
        draft.number(key, scale)


def _qwen_window(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    is_used = values.flag("use_sliding_window")
    first = values.get("max_window_layers")
    if values.get("layer_types") is None and first is not None:
        is_used &= values.integer("max_window_layers", minimum=0, maximum=2**31) < sizes["layers"]
    _cap_to_window(draft, values, is_used=is_used)


def _qwen2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _plain_heads(values, sizes)
    _qwen_window(draft, values, sizes)


def _qwen3_moe(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _qwen_window(draft, values, sizes)
    _experts(draft, values, sizes, "num_experts")
    values.require("norm_topk_prob", True, default=False)
    values.require("decoder_sparse_step", 1, default=1)
    values.require("mlp_only_layers", [], default=[])
    sizes["M"] = values.integer("moe_intermediate_size")
    draft.integer("expert_feed_forward_length", sizes["M"])


def _gemma(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del draft, sizes
    values.require("tie_word_embeddings", True, default=True)


def _gemma2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _gemma(draft, values, sizes)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if not (cap := values.number(key)):
            raise wrong(key, cap)
        draft.number(key, cap)
    if values.number("query_pre_attn_scalar") != gemma_scalar(sizes, 46):
        raise Unconvertible(
            "its `query_pre_attn_scalar` is not the size of a head, which is all that the engine computes"
        )
    draft.integer("attention.sliding_window", values.integer("sliding_window", maximum=MAX_CONTEXT))
    _window_pattern(draft, values, sizes, 2)


def gemma_scalar(sizes: dict[str, int], n_layers_27b: int) -> int:
    """By whose root llama.cpp divides the queries; it knows the 27B models by their number of layers."""
    return sizes["E"] // sizes["H"] if sizes["layers"] == n_layers_27b else sizes["D"]


def _window_pattern(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int], usual: int) -> bool:
    """Say which layers have a window where it is not every one but each `usual`-th; False when none has."""
    kinds = values.names("layer_types")
    if kinds is None:
        period = values.integer("sliding_window_pattern", "_sliding_window_pattern", default=usual)
        slides = [(layer + 1) % period != 0 for layer in range(sizes["layers"])]
    else:
        if len(kinds) != sizes["layers"] or set(kinds) - {"full_attention", "sliding_attention"}:
            raise Unconvertible(
                "its `layer_types` has a kind of layer that the engine does not have, or too few layers"
            )
        slides = [kind == "sliding_attention" for kind in kinds]
    if any(slides) and slides != [(layer + 1) % usual != 0 for layer in range(sizes["layers"])]:
        draft.flags("attention.sliding_window_pattern", slides)
    return any(slides)


def _gemma3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    if values.get("attn_logit_softcapping") is not None:
        raise Unconvertible("it has `attn_logit_softcapping`, which the engine does not compute for this architecture")
    if values.get("final_logit_softcapping") is not None:
        draft.number("final_logit_softcapping", values.number("final_logit_softcapping"))
    if not _window_pattern(draft, values, sizes, 6):
        return
    draft.integer("attention.sliding_window", values.integer("sliding_window", maximum=MAX_CONTEXT))
    rope = values.get("rope_parameters")
    local = rope.get("sliding_attention") if isinstance(rope, dict) else None
    if isinstance(local, dict):
        Hyperparameters(local, {}).require("rope_type", "default", default="default")
        theta = checked_number("rope_theta", local.get("rope_theta", 10_000.0))
    else:
        theta = values.number("rope_local_base_freq")
    draft.number("rope.freq_base_swa", theta)


def _phi3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _plain_heads(values, sizes)
    _cap_to_window(draft, values)
    rope = rope_parameters(values)
    if rope.get("rope_type") == "default":
        return
    n_ctx_original = rope.get("original_max_position_embeddings") or values.get("original_max_position_embeddings")
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


def _gpt2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del draft
    _plain_heads(values, sizes)
    values.require("scale_attn_weights", True, default=True)
    values.require("scale_attn_by_inverse_layer_idx", False, default=False)


def _bert(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    _plain_heads(values, sizes)
    values.require("position_embedding_type", "absolute", default="absolute")
    sizes["T"] = values.integer("type_vocab_size", default=2)
    draft.flag("attention.causal", False)


# The families.

_SILU, _GELU = frozenset(("silu", "swish")), frozenset(("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"))
_PERMUTE, _TRANSPOSE, _ADD_ONE = Transform.PERMUTE, Transform.TRANSPOSE, Transform.ADD_ONE

_ENDS = (
    Row("embed_tokens", "token_embd.weight", "VE"),
    Row("norm", "output_norm.weight", "E"),
    Row("lm_head", "output.weight", "VE"),
)
_NORMS = (
    Row("layers.#.input_layernorm", "blk.#.attn_norm.weight", "E"),
    Row("layers.#.post_attention_layernorm", "blk.#.ffn_norm.weight", "E"),
)


def _attention(
    transform: Transform = Transform.COPY, *, bias: str = "optional", output_bias: str = "none"
) -> tuple[Row, ...]:
    return (
        Row("layers.#.self_attn.q_proj", "blk.#.attn_q.weight", "QE", transform, bias),
        Row("layers.#.self_attn.k_proj", "blk.#.attn_k.weight", "KE", transform, bias),
        Row("layers.#.self_attn.v_proj", "blk.#.attn_v.weight", "KE", bias=bias),
        Row("layers.#.self_attn.o_proj", "blk.#.attn_output.weight", "EQ", bias=output_bias),
    )


def _feed_forward(bias: str = "none") -> tuple[Row, ...]:
    return (
        Row("layers.#.mlp.gate_proj", "blk.#.ffn_gate.weight", "FE", bias=bias),
        Row("layers.#.mlp.up_proj", "blk.#.ffn_up.weight", "FE", bias=bias),
        Row("layers.#.mlp.down_proj", "blk.#.ffn_down.weight", "EF", bias=bias),
    )


def _expert_rows(router: str, experts: str, gate: str, up: str, down: str) -> tuple[Row, ...]:
    fused = "layers.#.mlp.experts."
    return (
        Row(router, "blk.#.ffn_gate_inp.weight", "XE"),
        Row(f"{experts}.@.{gate}", "blk.#.ffn_gate_exps.weight", "XME", fused=(f"{fused}gate_up_proj", 0, 2)),
        Row(f"{experts}.@.{up}", "blk.#.ffn_up_exps.weight", "XME", fused=(f"{fused}gate_up_proj", 1, 2)),
        Row(f"{experts}.@.{down}", "blk.#.ffn_down_exps.weight", "XEM", fused=(f"{fused}down_proj", 0, 1)),
    )


_HEAD_NORMS = (
    Row("layers.#.self_attn.q_norm", "blk.#.attn_q_norm.weight", "D"),
    Row("layers.#.self_attn.k_norm", "blk.#.attn_k_norm.weight", "D"),
)


def _plus_one(*rows: Row) -> tuple[Row, ...]:
    return tuple(Row(row.source, row.target, row.shape, _ADD_ONE) for row in rows)


_GEMMA = (
    Row("embed_tokens", "token_embd.weight", "VE"),
    Row("lm_head", "output.weight", "VE"),
    *_plus_one(Row("norm", "output_norm.weight", "E"), Row("layers.#.input_layernorm", "blk.#.attn_norm.weight", "E")),
    *_attention(bias="none"),
    *_feed_forward(),
)
_SANDWICH = _plus_one(
    Row("layers.#.post_attention_layernorm", "blk.#.post_attention_norm.weight", "E"),
    Row("layers.#.pre_feedforward_layernorm", "blk.#.ffn_norm.weight", "E"),
    Row("layers.#.post_feedforward_layernorm", "blk.#.post_ffw_norm.weight", "E"),
)
_LLAMA = (*_ENDS, *_NORMS, *_attention(_PERMUTE, output_bias="optional"), *_feed_forward("optional"))
_QWEN3 = (*_ENDS, *_NORMS, *_attention(), *_HEAD_NORMS)

_FREE = frozenset(("linear", "yarn", "dynamic"))  # what llama.cpp computes without a tensor of factors
_ALL = _FREE | {"llama3"}
_GEMMA_VISION = ("vision_tower.", "multi_modal_projector.")
_GEMMA3_DEFAULTS = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0, "sliding_window": 4096,
    "query_pre_attn_scalar": 256, "tie_word_embeddings": True,
}  # fmt: skip
_GEMMA_DEFAULTS = {"head_dim": 256, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": True}


def _defaults(rope_theta: float = 10_000.0, rms_norm_eps: float = 1e-6) -> dict[str, Any]:
    return {"rope_theta": rope_theta, "rms_norm_eps": rms_norm_eps}


def _classes(stem: str) -> tuple[str, ...]:
    return (f"{stem}ForCausalLM", f"{stem}Model")


FAMILIES = (
    Family("Llama", "llama", _classes("Llama"), "llama", _LLAMA, _SILU, _ALL, _llama, _defaults()),
    Family("Mistral", "mistral", _classes("Mistral"), "llama", _LLAMA, _SILU, _ALL, _mistral, _defaults()),
    Family(
        "Mixtral", "mixtral", _classes("Mixtral"), "llama",
        (*_ENDS, *_NORMS, *_attention(_PERMUTE),
         *_expert_rows("layers.#.block_sparse_moe.gate", "layers.#.block_sparse_moe.experts", "w1", "w3", "w2")),
        _SILU, _ALL, _mixtral, _defaults(1_000_000.0, 1e-5),
    ),
    Family(
        "SmolLM3", "smollm3", _classes("SmolLM3"), "smollm3",
        (*_ENDS, *_NORMS, *_attention(_PERMUTE), *_feed_forward()), _SILU, _FREE, _smollm3, _defaults(2_000_000.0),
    ),
    Family("Granite", "granite", _classes("Granite"), "granite", _LLAMA, _SILU, _ALL, _granite, _defaults()),
    Family(
        "Qwen2", "qwen2", _classes("Qwen2"), "qwen2", (*_ENDS, *_NORMS, *_attention(), *_feed_forward()),
        _SILU, _FREE, _qwen2, _defaults(),
    ),
    Family(
        "Qwen3", "qwen3", _classes("Qwen3"), "qwen3", (*_QWEN3, *_feed_forward()),
        _SILU, _FREE, _qwen_window, {"head_dim": 128, **_defaults()},
    ),
    Family(
        "Qwen3-MoE", "qwen3_moe", _classes("Qwen3Moe"), "qwen3moe",
        (*_QWEN3, *_expert_rows("layers.#.mlp.gate", "layers.#.mlp.experts", "gate_proj", "up_proj", "down_proj")),
        _SILU, _FREE, _qwen3_moe, _defaults(),
    ),
    Family(
        "Gemma", "gemma", _classes("Gemma"), "gemma",
        (*_GEMMA, *_plus_one(Row("layers.#.post_attention_layernorm", "blk.#.ffn_norm.weight", "E"))),
        _GELU, _FREE, _gemma, _GEMMA_DEFAULTS,
    ),
    Family(
        "Gemma 2", "gemma2", _classes("Gemma2"), "gemma2", (*_GEMMA, *_SANDWICH), _GELU, _FREE, _gemma2,
        {**_GEMMA_DEFAULTS, "query_pre_attn_scalar": 256, "sliding_window": 4096},
    ),
    *(
        Family(
            "Gemma 3", model_type, ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"), "gemma3",
            (*_GEMMA, *_SANDWICH, *_plus_one(*_HEAD_NORMS)), _GELU, frozenset(("linear",)), _gemma3, _GEMMA3_DEFAULTS,
            ignored_prefixes=_GEMMA_VISION,
        )
        for model_type in ("gemma3_text", "gemma3")
    ),
    Family(
        "Phi-3", "phi3", _classes("Phi3"), "phi3",
        (*_ENDS, *_NORMS,
         Row("layers.#.self_attn.qkv_proj", "blk.#.attn_qkv.weight", "AE"),
         Row("layers.#.self_attn.o_proj", "blk.#.attn_output.weight", "EQ"),
         Row("layers.#.mlp.gate_up_proj", "blk.#.ffn_up.weight", "GE"),
         Row("layers.#.mlp.down_proj", "blk.#.ffn_down.weight", "EF")),
        _SILU, frozenset(("longrope", "su")), _phi3, {"original_max_position_embeddings": 4096, **_defaults(1e4, 1e-5)},
    ),
    Family(
        "GPT-2", "gpt2", ("GPT2LMHeadModel", "GPT2Model"), "gpt2",
        (Row("wte", "token_embd.weight", "VE"),
         Row("wpe", "position_embd.weight", "PE"),
         Row("ln_f", "output_norm.weight", "E", bias="required"),
         Row("lm_head", "output.weight", "VE"),
         Row("h.#.ln_1", "blk.#.attn_norm.weight", "E", bias="required"),
         Row("h.#.attn.c_attn", "blk.#.attn_qkv.weight", "EA", _TRANSPOSE, "required"),
         Row("h.#.attn.c_proj", "blk.#.attn_output.weight", "QE", _TRANSPOSE, "required"),
         Row("h.#.ln_2", "blk.#.ffn_norm.weight", "E", bias="required"),
         Row("h.#.mlp.c_fc", "blk.#.ffn_up.weight", "EF", _TRANSPOSE, "required"),
         Row("h.#.mlp.c_proj", "blk.#.ffn_down.weight", "FE", _TRANSPOSE, "required")),
        _GELU, None, _gpt2, {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
        prefixes=("transformer.",), ignored_suffixes=(".attn.bias", ".attn.masked_bias"),
    ),
    Family(
        "BERT encoders", "bert", ("BertModel", "BertForMaskedLM", "BertForPreTraining"), "bert",
        (Row("embeddings.word_embeddings", "token_embd.weight", "VE"),
         Row("embeddings.position_embeddings", "position_embd.weight", "PE"),
         Row("embeddings.token_type_embeddings", "token_types.weight", "TE"),
         Row("embeddings.LayerNorm", "token_embd_norm.weight", "E", bias="required"),
         Row("encoder.layer.#.attention.self.query", "blk.#.attn_q.weight", "QE", bias="required"),
         Row("encoder.layer.#.attention.self.key", "blk.#.attn_k.weight", "KE", bias="required"),
         Row("encoder.layer.#.attention.self.value", "blk.#.attn_v.weight", "KE", bias="required"),
         Row("encoder.layer.#.attention.output.dense", "blk.#.attn_output.weight", "EQ", bias="required"),
         Row("encoder.layer.#.attention.output.LayerNorm", "blk.#.attn_output_norm.weight", "E", bias="required"),
         Row("encoder.layer.#.intermediate.dense", "blk.#.ffn_up.weight", "FE", bias="required"),
         Row("encoder.layer.#.output.dense", "blk.#.ffn_down.weight", "EF", bias="required"),
         Row("encoder.layer.#.output.LayerNorm", "blk.#.layer_output_norm.weight", "E", bias="required")),
        _GELU, None, _bert, {"layer_norm_eps": 1e-12},
        prefixes=("bert.",), ignored_prefixes=("pooler.", "cls.", "embeddings.position_ids"), ignored_suffixes=(),
    ),
)  # fmt: skip
