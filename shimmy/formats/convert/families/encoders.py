"""Encoders, for embeddings: BERT, RoBERTa and XLM-RoBERTa, ModernBERT, nomic-embed, Jina v2 and v3, EuroBERT."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shimmy.formats.convert.families.family import (
    ENDS,
    GELU,
    NORMS,
    SILU,
    Family,
    Row,
    Runs,
    attention,
    feed_forward,
)
from shimmy.formats.convert.families.settings import plain_heads, window_pattern
from shimmy.formats.convert.hyperparameters import (
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_LAYERS,
    Hyperparameters,
    MetadataBuilder,
    checked_number,
    wrong,
)
from shimmy.formats.convert.transforms import Transform

_DENSE, _SPARSE = "dense", "sparse"


def describe_bert(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del draft
    plain_heads(values, sizes)
    values.require("position_embedding_type", "absolute", default="absolute")
    sizes["T"] = values.integer("type_vocab_size", default=2)


def modern_bert_renamed(values: Hyperparameters) -> Hyperparameters:
    """Kinds of layers, and both rotations, as other families write them."""
    changes: dict[str, Any] = {"layer_norm_eps": values.number("norm_eps")}
    if values.get("layer_types") is None:
        n_layers = values.integer("num_hidden_layers", maximum=MAX_LAYERS)
        period = values.integer("global_attn_every_n_layers")
        changes["layer_types"] = [
            "sliding_attention" if layer % period else "full_attention" for layer in range(n_layers)
        ]
    if values.get("rope_parameters") is None:
        values.require("rope_scaling", None)
        changes["rope_parameters"] = {
            kind: {"rope_type": "default", "rope_theta": values.number(f"{where}_rope_theta")}
            for kind, where in (("full_attention", "global"), ("sliding_attention", "local"))
        }
    return values.changed(changes)


def describe_modern_bert(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    plain_heads(values, sizes)
    for key in ("attention_bias", "mlp_bias", "norm_bias"):
        values.require(key, False, default=False)
    draft.text("hidden_activation", str(values.get("hidden_activation")))
    if not window_pattern(draft, values, sizes):
        return
    draft.integer("attention.sliding_window", values.integer("local_attention", minimum=2, maximum=MAX_CONTEXT))
    rope = values.get("rope_parameters")
    local = rope.get("sliding_attention") if isinstance(rope, dict) else None
    if not isinstance(local, dict):
        raise wrong("rope_parameters", rope)
    Hyperparameters(local, {}).require("rope_type", "default", default="default")
    draft.number("rope.freq_base_swa", checked_number("rope_theta", local.get("rope_theta")))


def is_for_code(config: Mapping[str, Any]) -> bool:
    """Whether a Jina v2 is computed by the other one of its two codes, which only these names tell."""
    origin = [config.get("_name_or_path"), config.get("auto_map")]
    return any("jina-bert-v2-qk-post-norm" in str(name) for name in origin)


def is_not_for_code(config: Mapping[str, Any]) -> bool:
    return not is_for_code(config)


def describe_jina2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    """Positions are a bias of the attention (ALiBi), with slopes that the engine knows by the number of heads."""
    del draft
    plain_heads(values, sizes)
    values.require("position_embedding_type", "alibi", default="absolute")
    values.require("feed_forward_type", "geglu", default="original")
    sizes["T"] = values.integer("type_vocab_size", default=2)


def _first_half(sizes: Mapping[str, int]) -> Runs:
    return ((0, sizes["F"]),)


def _second_half(sizes: Mapping[str, int]) -> Runs:
    return ((sizes["F"], sizes["F"]),)


def nomic_renamed(values: Hyperparameters) -> Hyperparameters:
    """The names of the hub's files are those of GPT-2, and those of transformers those of BERT."""
    if values.get("n_embd") is None:
        return values
    epsilon = values.number("layer_norm_epsilon")
    return values.changed({"rope_theta": values.number("rotary_emb_base"), "layer_norm_eps": epsilon})


_NOMIC_BIASES = ("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias")


def describe_nomic(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    for key in (*_NOMIC_BIASES, "num_shared_experts"):
        values.require(key, False, 0, default=False)
    _describe_nomic(draft, values, sizes)


def _describe_nomic(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    plain_heads(values, sizes)
    for key in ("causal", "prenorm", "rotary_emb_interleaved", "use_rms_norm", "parallel_block"):
        values.require(key, False, default=False)
    values.require("rotary_emb_fraction", 1, 1.0, default=1.0)
    values.require("scale_attn_weights", True, default=True)
    values.require("rotary_emb_scale_base", None, 0)
    default = 2048 if values.get("rotary_scaling_factor") is not None else draft.n_ctx  # that of `NomicBertConfig`
    trained = values.integer("max_trained_positions", maximum=MAX_CONTEXT, default=default)
    draft.cap_context(trained, "the engine does not scale its positions dynamically beyond them")
    sizes["T"] = values.integer("type_vocab_size", default=2)


def has_experts(config: Mapping[str, Any]) -> bool:
    return bool(config.get("moe_every_n_layers"))


def has_no_experts(config: Mapping[str, Any]) -> bool:
    return not has_experts(config)


def _nomic_kinds(values: Hyperparameters) -> list[set[str]]:
    period = values.integer("moe_every_n_layers", minimum=2)
    n_layers = values.integer("num_hidden_layers", "n_layer", maximum=MAX_LAYERS)
    return [{_SPARSE if layer % period == 1 else _DENSE} for layer in range(n_layers)]


def describe_nomic_moe(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    for key in _NOMIC_BIASES:
        values.require(key, True, default=False)
    for key in ("moe_normalize_expert_weights", "num_shared_experts"):
        values.require(key, False, 0, default=False)
    _describe_nomic(draft, values, sizes)
    n_experts = sizes["X"] = values.integer("num_experts", maximum=MAX_EXPERTS)
    sizes["W"] = n_experts * sizes["F"]
    draft.integer("expert_count", n_experts)
    draft.integer("expert_used_count", values.integer("moe_top_k", maximum=n_experts))
    draft.integer("moe_every_n_layers", values.integer("moe_every_n_layers"))
    draft.notices.append(
        "the engine does not add the bias that the experts of a layer share: its vectors are those of GGUF files of "
        "this model, and not quite what its own code computes"
    )


def _expert_runs(sizes: Mapping[str, int]) -> Runs:
    return [(expert * sizes["F"], sizes["F"]) for expert in range(sizes["X"])]


def describe_eurobert(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del draft
    plain_heads(values, sizes)


def roberta_renamed(values: Hyperparameters) -> Hyperparameters:
    """Positions are counted from the one behind that of padding: so many fewer are there for texts."""
    n_before = values.integer("pad_token_id", minimum=0, maximum=64) + 1
    n_rows = values.integer("max_position_embeddings", minimum=n_before + 1, maximum=MAX_CONTEXT)
    return values.changed({"max_position_embeddings": n_rows - n_before, "n_before": n_before})


def describe_roberta(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    describe_bert(draft, values, sizes)
    sizes["B"] = values.integer("n_before")
    sizes["O"] = sizes["P"] + sizes["B"]


def _positions(sizes: Mapping[str, int]) -> Runs:
    return ((sizes["B"], sizes["P"]),)


_POSITIONS = Row("embeddings.position_embeddings", "position_embd.weight", "PE")
_BERT = (
    Row("embeddings.word_embeddings", "token_embd.weight", "VE"),
    Row("embeddings.token_type_embeddings", "token_types.weight", "TE"),
    Row("embeddings.LayerNorm", "token_embd_norm.weight", "E", bias="required"),
    Row("encoder.layer.#.attention.self.query", "blk.#.attn_q.weight", "QE", bias="required"),
    Row("encoder.layer.#.attention.self.key", "blk.#.attn_k.weight", "KE", bias="required"),
    Row("encoder.layer.#.attention.self.value", "blk.#.attn_v.weight", "KE", bias="required"),
    Row("encoder.layer.#.attention.output.dense", "blk.#.attn_output.weight", "EQ", bias="required"),
    Row("encoder.layer.#.attention.output.LayerNorm", "blk.#.attn_output_norm.weight", "E", bias="required"),
    Row("encoder.layer.#.intermediate.dense", "blk.#.ffn_up.weight", "FE", bias="required"),
    Row("encoder.layer.#.output.dense", "blk.#.ffn_down.weight", "EF", bias="required"),
    Row("encoder.layer.#.output.LayerNorm", "blk.#.layer_output_norm.weight", "E", bias="required"),
)
_JINA2 = (
    *(row for row in _BERT if not row.target.startswith(("blk.#.ffn", "blk.#.layer_output_norm"))),
    Row("encoder.layer.#.mlp.gated_layers", "blk.#.ffn_up.weight", "GE"),
    Row("encoder.layer.#.mlp.wo", "blk.#.ffn_down.weight", "EF", bias="required"),
    Row("encoder.layer.#.mlp.layernorm", "blk.#.layer_output_norm.weight", "E", bias="required"),
)
_JINA2_CODE = (
    *_JINA2[:-3],
    Row("encoder.layer.#.attention.self.layer_norm_q", "blk.#.attn_q_norm.weight", "E", bias="required"),
    Row("encoder.layer.#.attention.self.layer_norm_k", "blk.#.attn_k_norm.weight", "E", bias="required"),
    Row("encoder.layer.#.layer_norm_1", "blk.#.attn_norm_2.weight", "E", bias="required"),
    # The half for the gate is the second one here; the engine would take the first one.
    Row("encoder.layer.#.mlp.up_gated_layer", "blk.#.ffn_up.weight", "FE", runs=_first_half, taken="GE"),
    Row("encoder.layer.#.mlp.up_gated_layer", "blk.#.ffn_gate.weight", "FE", runs=_second_half, taken="GE"),
    Row("encoder.layer.#.mlp.down_layer", "blk.#.ffn_down.weight", "EF", bias="required"),
    Row("encoder.layer.#.layer_norm_2", "blk.#.layer_output_norm.weight", "E", bias="required"),
)

_NOMIC = (
    Row("embeddings.word_embeddings", "token_embd.weight", "VE"),
    Row("embeddings.token_type_embeddings", "token_types.weight", "TE"),
    Row("emb_ln", "token_embd_norm.weight", "E", bias="required"),
    Row("encoder.layers.#.norm1", "blk.#.attn_output_norm.weight", "E", bias="required"),
    Row("encoder.layers.#.norm2", "blk.#.layer_output_norm.weight", "E", bias="required"),
)

FAMILIES = (
    Family(
        "BERT encoders", "bert", ("BertModel", "BertForMaskedLM", "BertForPreTraining"), "bert", (_POSITIONS, *_BERT),
        GELU, None, describe_bert, {"layer_norm_eps": 1e-12},
        prefixes=("bert.",), ignored_prefixes=("pooler.", "cls.", "embeddings.position_ids"), ignored_suffixes=(),
        is_encoder=True, is_layer_norm=True,
    ),
    *(
        Family(
            title, model_type, (f"{stem}Model", f"{stem}ForMaskedLM"), "bert",
            (replace(_POSITIONS, runs=_positions, taken="OE"), *_BERT),
            GELU, None, describe_roberta, {"layer_norm_eps": 1e-12, "pad_token_id": 1}, prefixes=("roberta.",),
            ignored_prefixes=("pooler.", "lm_head.", "embeddings.position_ids"), ignored_suffixes=(),
            renamed=roberta_renamed, is_encoder=True, is_layer_norm=True,
        )
        for title, model_type, stem in (
            ("RoBERTa", "roberta", "Roberta"), ("XLM-RoBERTa", "xlm-roberta", "XLMRoberta"),
            ("CamemBERT", "camembert", "Camembert"),
        )
    ),
    *(
        Family(
            "Jina Embeddings v2", "bert", ("JinaBertModel", "JinaBertForMaskedLM"), "jina-bert-v2", rows,
            GELU, None, describe_jina2, {"layer_norm_eps": 1e-12}, prefixes=("bert.",),
            ignored_prefixes=("pooler.", "cls.", "embeddings.position_ids"), ignored_suffixes=(), suits=suits,
            is_encoder=True, is_layer_norm=True,
        )
        for rows, suits in ((_JINA2, is_not_for_code), (_JINA2_CODE, is_for_code))
    ),
    Family(
        "ModernBERT", "modernbert", ("ModernBertModel", "ModernBertForMaskedLM"), "modern-bert",
        (Row("embeddings.tok_embeddings", "token_embd.weight", "VE"),
         Row("embeddings.norm", "token_embd_norm.weight", "E"),
         Row("layers.#.attn_norm", "blk.#.attn_norm.weight", "E", first_layer=1),
         Row("layers.#.attn.Wqkv", "blk.#.attn_qkv.weight", "AE"),
         Row("layers.#.attn.Wo", "blk.#.attn_output.weight", "EQ"),
         Row("layers.#.mlp_norm", "blk.#.ffn_norm.weight", "E"),
         Row("layers.#.mlp.Wi", "blk.#.ffn_up.weight", "GE"),
         Row("layers.#.mlp.Wo", "blk.#.ffn_down.weight", "EF"),
         Row("final_norm", "output_norm.weight", "E")),
        frozenset(("gelu", "silu")), frozenset(), describe_modern_bert,
        {"norm_eps": 1e-5, "hidden_activation": "gelu"},
        prefixes=("model.",), ignored_prefixes=("head.", "decoder."), ignored_suffixes=(),
        renamed=modern_bert_renamed, is_encoder=True, is_layer_norm=True,
    ),
    Family(
        "nomic-embed", "nomic_bert", ("NomicBertModel",), "nomic-bert",
        (*_NOMIC,
         Row("encoder.layers.#.attn.Wqkv", "blk.#.attn_qkv.weight", "AE"),
         Row("encoder.layers.#.attn.out_proj", "blk.#.attn_output.weight", "EQ"),
         Row("encoder.layers.#.mlp.fc11", "blk.#.ffn_up.weight", "FE"),
         Row("encoder.layers.#.mlp.fc12", "blk.#.ffn_gate.weight", "FE"),
         Row("encoder.layers.#.mlp.fc2", "blk.#.ffn_down.weight", "EF")),
        SILU | {"swiglu"}, frozenset(), describe_nomic, {"layer_norm_eps": 1e-12, "rope_theta": 1_000.0},
        prefixes=("bert.", "nomic_bert."), ignored_prefixes=("pooler.", "cls."), ignored_suffixes=(),
        renamed=nomic_renamed, suits=has_no_experts, is_encoder=True, is_layer_norm=True,
    ),
    Family(
        "nomic-embed", "nomic_bert", ("NomicBertModel",), "nomic-bert-moe",
        (*_NOMIC,
         Row("encoder.layers.#.attn.Wqkv", "blk.#.attn_qkv.weight", "AE", bias="required"),
         Row("encoder.layers.#.attn.out_proj", "blk.#.attn_output.weight", "EQ", bias="required"),
         Row("encoder.layers.#.mlp.fc1", "blk.#.ffn_up.weight", "FE", bias="required", layers=_DENSE),
         Row("encoder.layers.#.mlp.fc2", "blk.#.ffn_down.weight", "EF", bias="required", layers=_DENSE),
         Row("encoder.layers.#.mlp.router.layer", "blk.#.ffn_gate_inp.weight", "XE", layers=_SPARSE),
         Row("encoder.layers.#.mlp.experts.mlp.w1", "blk.#.ffn_up_exps.weight", "WE", layers=_SPARSE,
             is_named_in_full=True, kept="XFE"),
         Row("encoder.layers.#.mlp.experts.mlp.w2", "blk.#.ffn_down_exps.weight", "XEF", Transform.TRANSPOSE_RUNS,
             layers=_SPARSE, is_named_in_full=True, runs=_expert_runs, taken="WE")),
        GELU, frozenset(), describe_nomic_moe, {"layer_norm_eps": 1e-5, "rope_theta": 10_000.0},
        prefixes=("bert.", "nomic_bert."), ignored_prefixes=("pooler.", "cls."), ignored_suffixes=(".experts.bias",),
        kinds=_nomic_kinds, renamed=nomic_renamed, suits=has_experts, is_encoder=True, is_layer_norm=True,
    ),
    Family(
        "Jina Embeddings v3", "jina_embeddings_v3", ("JinaEmbeddingsV3Model",), "jina-bert-v3",
        (*_NOMIC,
         Row("encoder.layers.#.mixer.Wqkv", "blk.#.attn_qkv.weight", "AE", bias="required"),
         Row("encoder.layers.#.mixer.out_proj", "blk.#.attn_output.weight", "EQ", bias="required"),
         Row("encoder.layers.#.mlp.fc1", "blk.#.ffn_up.weight", "FE", bias="required"),
         Row("encoder.layers.#.mlp.fc2", "blk.#.ffn_down.weight", "EF", bias="required")),
        GELU, frozenset(), describe_bert,
        {"layer_norm_eps": 1e-5, "rope_theta": 20_000.0, "type_vocab_size": 1, "pad_token_id": 1},
        prefixes=("roberta.",), ignored_prefixes=("pooler.",), ignored_suffixes=(), renamed=roberta_renamed,
        is_encoder=True, is_layer_norm=True,
    ),
    Family(
        "EuroBERT", "eurobert", ("EuroBertModel", "EuroBertForMaskedLM"), "eurobert",
        (*ENDS[:2], *NORMS, *attention(bias="none"), *feed_forward()),
        SILU, frozenset(), describe_eurobert, {"rms_norm_eps": 1e-5},
        prefixes=("model.",), ignored_prefixes=("lm_head.",), ignored_suffixes=(), is_encoder=True,
    ),
)  # fmt: skip
