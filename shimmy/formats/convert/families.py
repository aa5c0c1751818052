"""The families of models that can be converted: the tensors of each, and which settings llama.cpp computes.

Knows the names of transformers and those of llama.cpp. The reference is llama.cpp's own converter (`conversion/`), and
what src/models/*.cpp computes. A family's own hyperparameters are in `family_parameters`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from shimmy.formats.convert import family_parameters as parameters
from shimmy.formats.convert.hyperparameters import (
    Hyperparameters,
    MetadataBuilder,
)
from shimmy.formats.convert.transforms import Transform
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.safetensors.checkpoint import shown


@dataclass(frozen=True, slots=True)
class Row:
    """A weight, and its bias where there may be one: `#` is a layer, `@` an expert, a letter of the shape a size."""

    source: str
    target: str
    shape: str  # as the checkpoint has it, the row length last
    transform: Transform = Transform.COPY
    bias: str = "none"  # or optional, or required
    weight: str = "required"  # or optional
    # All experts in one tensor: its name, which part of its rows, of how many.
    fused: tuple[str, int, int] | None = None
    stacked: str = ""  # all experts in one tensor of three dimensions, as MLX has them
    is_named_in_full: bool = False  # `source` has no `.weight` behind it
    layers: str = ""  # of this kind alone, as `layer_types` has them
    takes_turns: bool = False  # rows of the parts of `fused` alternate; else each part is a run of rows


@dataclass(frozen=True, slots=True)
class Family:
    """What is special to one family; all else is the same for all."""

    title: str
    model_type: str
    classes: tuple[str, ...]  # of transformers; other classes compute something else
    architecture: str  # llama.cpp's name
    rows: tuple[Row, ...]
    activations: frozenset[str]
    scalings: frozenset[str] | None  # of rotary positions; None where there are none
    describe: Callable[[MetadataBuilder, Hyperparameters, dict[str, int]], None]
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of the family's class, where config.json may be silent
    prefixes: tuple[str, ...] = ("model.language_model.", "language_model.model.", "language_model.", "model.")
    ignored_prefixes: tuple[str, ...] = ()
    ignored_suffixes: tuple[str, ...] = (".rotary_emb.inv_freq",)
    # The same values by the names that other families have; for a family that has names of its own.
    renamed: Callable[[Hyperparameters], Hyperparameters] = parameters.same


_SILU, _GELU = frozenset(("silu", "swish")), frozenset(("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast"))
_PERMUTE, _TRANSPOSE, _ADD_ONE = Transform.PERMUTE, Transform.TRANSPOSE, Transform.ADD_ONE
_SQUEEZE = Transform.SQUEEZE

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
    fused, stacked = "layers.#.mlp.experts.", experts.replace("experts", "switch_mlp")
    return (
        Row(router, "blk.#.ffn_gate_inp.weight", "XE"),
        *(
            Row(
                f"{experts}.@.{name}", f"blk.#.ffn_{kind}_exps.weight", "XEM" if kind == "down" else "XME",
                fused=(f"{fused}down_proj", 0, 1) if kind == "down" else (f"{fused}gate_up_proj", int(kind == "up"), 2),
                stacked=f"{stacked}.{kind}_proj",
            )
            for name, kind in ((gate, "gate"), (up, "up"), (down, "down"))
        ),
    )  # fmt: skip


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

# Norms of all heads together, and behind attention and feed-forward layers alone.
_OLMO2 = (
    *_ENDS,
    *_attention(),
    Row("layers.#.self_attn.q_norm", "blk.#.attn_q_norm.weight", "Q"),
    Row("layers.#.self_attn.k_norm", "blk.#.attn_k_norm.weight", "K"),
    Row("layers.#.post_attention_layernorm", "blk.#.post_attention_norm.weight", "E"),
    *_feed_forward(),
    Row("layers.#.post_feedforward_layernorm", "blk.#.post_ffw_norm.weight", "E"),
)

_LFM2 = (
    Row("embed_tokens", "token_embd.weight", "VE"),
    Row("embedding_norm", "token_embd_norm.weight", "E"),  # behind the last layer, for all its name
    Row("lm_head", "output.weight", "VE"),
    Row("layers.#.operator_norm", "blk.#.attn_norm.weight", "E"),
    Row("layers.#.ffn_norm", "blk.#.ffn_norm.weight", "E"),
    *(
        replace(row, source=row.source.replace("o_proj", "out_proj"), layers="full_attention")
        for row in _attention(bias="none")
    ),
    Row("layers.#.self_attn.q_layernorm", "blk.#.attn_q_norm.weight", "D", layers="full_attention"),
    Row("layers.#.self_attn.k_layernorm", "blk.#.attn_k_norm.weight", "D", layers="full_attention"),
    Row("layers.#.conv.in_proj", "blk.#.shortconv.in_proj.weight", "CE", layers="conv"),
    Row("layers.#.conv.conv", "blk.#.shortconv.conv.weight", "E1L", _SQUEEZE, layers="conv"),
    Row("layers.#.conv.out_proj", "blk.#.shortconv.out_proj.weight", "EE", layers="conv"),
    Row("layers.#.feed_forward.w1", "blk.#.ffn_gate.weight", "FE"),
    Row("layers.#.feed_forward.w3", "blk.#.ffn_up.weight", "FE"),
    Row("layers.#.feed_forward.w2", "blk.#.ffn_down.weight", "EF"),
)

_GPT_OSS_EXPERTS = "layers.#.mlp.experts."
_GPT_OSS = (
    *_ENDS,
    Row("layers.#.input_layernorm", "blk.#.attn_norm.weight", "E"),
    Row("layers.#.post_attention_layernorm", "blk.#.post_attention_norm.weight", "E"),
    *_attention(bias="required", output_bias="required"),
    Row("layers.#.self_attn.sinks", "blk.#.attn_sinks.weight", "H", is_named_in_full=True),
    Row("layers.#.mlp.router", "blk.#.ffn_gate_inp.weight", "XE", bias="required"),
    *(
        row
        for part, gate in enumerate(("gate", "up"))
        for row in (
            Row(
                f"{_GPT_OSS_EXPERTS}@.{gate}_proj", f"blk.#.ffn_{gate}_exps.weight", "XFE",
                fused=(f"{_GPT_OSS_EXPERTS}gate_up_proj", part, 2), takes_turns=True,
            ),
            Row(
                f"{_GPT_OSS_EXPERTS}gate_up_proj_bias", f"blk.#.ffn_{gate}_exps.bias", "XF", is_named_in_full=True,
                fused=("", part, 2), takes_turns=True,
            ),
        )
    ),
    Row(
        f"{_GPT_OSS_EXPERTS}@.down_proj", "blk.#.ffn_down_exps.weight", "XEF",
        fused=(f"{_GPT_OSS_EXPERTS}down_proj", 0, 1),
    ),
    Row(f"{_GPT_OSS_EXPERTS}down_proj_bias", "blk.#.ffn_down_exps.bias", "XE", is_named_in_full=True),
)  # fmt: skip

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
    Family("Llama", "llama", _classes("Llama"), "llama", _LLAMA, _SILU, _ALL, parameters.llama, _defaults()),
    Family("Mistral", "mistral", _classes("Mistral"), "llama", _LLAMA, _SILU, _ALL, parameters.mistral, _defaults()),
    Family(
        "Mixtral", "mixtral", _classes("Mixtral"), "llama",
        (*_ENDS, *_NORMS, *_attention(_PERMUTE),
         *_expert_rows("layers.#.block_sparse_moe.gate", "layers.#.block_sparse_moe.experts", "w1", "w3", "w2")),
        _SILU, _ALL, parameters.mixtral, _defaults(1_000_000.0, 1e-5),
    ),
    Family(
        "SmolLM3", "smollm3", _classes("SmolLM3"), "smollm3",
        (*_ENDS, *_NORMS, *_attention(_PERMUTE), *_feed_forward()),
        _SILU, _FREE, parameters.smollm3, _defaults(2_000_000.0),
    ),
    Family("Granite", "granite", _classes("Granite"), "granite", _LLAMA, _SILU, _ALL, parameters.granite, _defaults()),
    Family(
        "Qwen2", "qwen2", _classes("Qwen2"), "qwen2", (*_ENDS, *_NORMS, *_attention(), *_feed_forward()),
        _SILU, _FREE, parameters.qwen2, _defaults(),
    ),
    Family(
        "Qwen3", "qwen3", _classes("Qwen3"), "qwen3", (*_QWEN3, *_feed_forward()),
        _SILU, _FREE, parameters.qwen_window, {"head_dim": 128, **_defaults()},
    ),
    Family(
        "Qwen3-MoE", "qwen3_moe", _classes("Qwen3Moe"), "qwen3moe",
        (*_QWEN3, *_expert_rows("layers.#.mlp.gate", "layers.#.mlp.experts", "gate_proj", "up_proj", "down_proj")),
        _SILU, _FREE, parameters.qwen3_moe, _defaults(),
    ),
    Family(
        "Gemma", "gemma", _classes("Gemma"), "gemma",
        (*_GEMMA, *_plus_one(Row("layers.#.post_attention_layernorm", "blk.#.ffn_norm.weight", "E"))),
        _GELU, _FREE, parameters.gemma, _GEMMA_DEFAULTS,
    ),
    Family(
        "Gemma 2", "gemma2", _classes("Gemma2"), "gemma2", (*_GEMMA, *_SANDWICH), _GELU, _FREE, parameters.gemma2,
        {**_GEMMA_DEFAULTS, "query_pre_attn_scalar": 256, "sliding_window": 4096},
    ),
    *(
        Family(
            "Gemma 3", model_type, ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"), "gemma3",
            (*_GEMMA, *_SANDWICH, *_plus_one(*_HEAD_NORMS)),
            _GELU, frozenset(("linear",)), parameters.gemma3, _GEMMA3_DEFAULTS,
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
        _SILU, frozenset(("longrope", "su")), parameters.phi3,
        {"original_max_position_embeddings": 4096, **_defaults(1e4, 1e-5)},
    ),
    Family(
        "gpt-oss", "gpt_oss", _classes("GptOss"), "gpt-oss", _GPT_OSS, _SILU, frozenset(("yarn",)), parameters.gpt_oss,
        {"head_dim": 64, "sliding_window": 128, "num_local_experts": 128, "num_experts_per_tok": 4,
         **_defaults(150_000.0, 1e-5)},
    ),
    Family("OLMo 2", "olmo2", _classes("Olmo2"), "olmo2", _OLMO2, _SILU, _FREE, parameters.olmo2, _defaults(1e4, 1e-5)),
    Family(
        "OLMo 3", "olmo3", _classes("Olmo3"), "olmo2", _OLMO2, _SILU, _FREE, parameters.olmo3,
        {"rms_norm_eps": 1e-5, "sliding_window": 4096},  # versions of transformers do not agree on `rope_theta`
    ),
    Family(
        "ERNIE 4.5", "ernie4_5", _classes("Ernie4_5"), "ernie4_5",
        (*_ENDS, *_NORMS, *_attention(output_bias="optional"), *_feed_forward()),  # rotated pairs are neighbours
        _SILU, _FREE, parameters.llama, {"head_dim": 128, "tie_word_embeddings": True, **_defaults(500_000.0, 1e-5)},
    ),
    Family(
        "LFM2", "lfm2", _classes("Lfm2")[:1], "lfm2", _LFM2, _SILU, _FREE, parameters.lfm2,
        {"rope_theta": 1e6, "norm_eps": 1e-5, "conv_L_cache": 3, "block_multiple_of": 256,
         "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": True},
        renamed=parameters.lfm2_renamed,
    ),
    Family(
        "Seed-OSS", "seed_oss", _classes("SeedOss"), "seed_oss",
        (*_ENDS,
         Row("layers.#.input_layernorm", "blk.#.attn_norm.weight", "E"),
         Row("layers.#.post_attention_layernorm", "blk.#.post_attention_norm.weight", "E"),
         *_attention(), *_feed_forward()),
        _SILU, _FREE, parameters.llama, {"head_dim": 128, **_defaults()},
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
        _GELU, None, parameters.gpt2, {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
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
        _GELU, None, parameters.bert, {"layer_norm_eps": 1e-12},
        prefixes=("bert.",), ignored_prefixes=("pooler.", "cls.", "embeddings.position_ids"), ignored_suffixes=(),
    ),
)  # fmt: skip


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a model with this `text_config`; raises Unconvertible with the list of all when there is none."""
    model_type, classes = config.get("model_type"), config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    family = next((family for family in FAMILIES if family.model_type == model_type), None)
    if family is None or (name is not None and name not in family.classes):
        titles = ", ".join(dict.fromkeys(family.title for family in FAMILIES))
        raise Unconvertible(
            f"the architecture `{shown(str(name or model_type))}` is not supported; these are: {titles}. "
            "It may be there as GGUF already"
        )
    return family
