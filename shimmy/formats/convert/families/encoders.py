"""Encoders, for embeddings."""

from shimmy.formats.convert.families.family import GELU, Family, Row
from shimmy.formats.convert.families.settings import plain_heads
from shimmy.formats.convert.hyperparameters import Hyperparameters, MetadataBuilder


def describe_bert(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    plain_heads(values, sizes)
    values.require("position_embedding_type", "absolute", default="absolute")
    sizes["T"] = values.integer("type_vocab_size", default=2)
    draft.flag("attention.causal", False)


FAMILIES = (
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
        GELU, None, describe_bert, {"layer_norm_eps": 1e-12},
        prefixes=("bert.",), ignored_prefixes=("pooler.", "cls.", "embeddings.position_ids"), ignored_suffixes=(),
    ),
)  # fmt: skip
