"""GPT-2, StarCoder2 and StableLM, whose norms subtract the mean; gpt-oss."""

from shimmy.formats.convert.families.family import (
    ENDS,
    FREE,
    GELU,
    SILU,
    TRANSPOSE,
    Family,
    Row,
    attention,
    classes,
    feed_forward,
    rope_defaults,
)
from shimmy.formats.convert.families.settings import cap_to_window, experts, plain_heads, windows_in_turn
from shimmy.formats.convert.hyperparameters import MAX_LAYERS, Hyperparameters, MetadataBuilder

_GPT_OSS_EXPERTS = "layers.#.mlp.experts."
_GPT_OSS = (
    *ENDS,
    Row("layers.#.input_layernorm", "blk.#.attn_norm.weight", "E"),
    Row("layers.#.post_attention_layernorm", "blk.#.post_attention_norm.weight", "E"),
    *attention(bias="required", output_bias="required"),
    Row("layers.#.self_attn.sinks", "blk.#.attn_sinks.weight", "H", is_named_in_full=True),
    Row("layers.#.mlp.router", "blk.#.ffn_gate_inp.weight", "XE", bias="required"),
    *(
        row
        for part, gate in enumerate(("gate", "up"))
        for row in (
            Row(
                f"{_GPT_OSS_EXPERTS}@.{gate}_proj", f"blk.#.ffn_{gate}_exps.weight", "XFE",
                fused=(f"{_GPT_OSS_EXPERTS}gate_up_proj", part, 2), takes_turns=True,
                stacked=f"{_GPT_OSS_EXPERTS}{gate}_proj",
            ),
            Row(
                f"{_GPT_OSS_EXPERTS}gate_up_proj_bias", f"blk.#.ffn_{gate}_exps.bias", "XF", is_named_in_full=True,
                fused=("", part, 2), takes_turns=True, stacked=f"{_GPT_OSS_EXPERTS}{gate}_proj.bias",
            ),
        )
    ),
    Row(
        f"{_GPT_OSS_EXPERTS}@.down_proj", "blk.#.ffn_down_exps.weight", "XEF",
        fused=(f"{_GPT_OSS_EXPERTS}down_proj", 0, 1), stacked=f"{_GPT_OSS_EXPERTS}down_proj",
    ),
    Row(
        f"{_GPT_OSS_EXPERTS}down_proj_bias", "blk.#.ffn_down_exps.bias", "XE", is_named_in_full=True,
        stacked=f"{_GPT_OSS_EXPERTS}down_proj.bias",
    ),
)  # fmt: skip


def describe_gpt_oss(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    values.require("swiglu_limit", 7.0, 7, default=7.0)
    values.require("tie_word_embeddings", False, default=False)  # the engine wants a matrix of its own
    experts(draft, values, sizes, "num_local_experts")
    draft.integer("expert_feed_forward_length", sizes["F"])
    windows_in_turn(draft, values, sizes)


def starcoder2_renamed(values: Hyperparameters) -> Hyperparameters:
    return values.changed({"layer_norm_epsilon": values.get("norm_epsilon")})


def describe_starcoder2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    plain_heads(values, sizes)
    values.require("use_bias", True, default=True)  # the engine wants each of them
    cap_to_window(draft, values)


_SERIAL = "feed_forward_behind_attention"


def _stablelm_kinds(values: Hyperparameters) -> list[set[str]]:
    n_layers = values.integer("num_hidden_layers", maximum=MAX_LAYERS)
    return [set() if values.flag("use_parallel_residual") else {_SERIAL}] * n_layers


def describe_stablelm(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    """Without norms of its own, a feed-forward layer stands beside attention."""
    plain_heads(values, sizes)
    values.require("qk_layernorm", False, default=False)
    values.require("tie_word_embeddings", False, default=False)  # the engine wants a matrix of its own
    draft.flag("use_parallel_residual", values.flag("use_parallel_residual"))


def describe_gpt2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del draft
    plain_heads(values, sizes)
    values.require("scale_attn_weights", True, default=True)
    values.require("scale_attn_by_inverse_layer_idx", False, default=False)


FAMILIES = (
    Family(
        "gpt-oss", "gpt_oss", classes("GptOss"), "gpt-oss", _GPT_OSS, SILU, frozenset(("yarn",)), describe_gpt_oss,
        {"head_dim": 64, "sliding_window": 128, "num_local_experts": 128, "num_experts_per_tok": 4,
         **rope_defaults(150_000.0, 1e-5)},
    ),
    Family(
        "StarCoder2", "starcoder2", classes("Starcoder2"), "starcoder2",
        (Row("embed_tokens", "token_embd.weight", "VE"),
         Row("norm", "output_norm.weight", "E", bias="required"),
         Row("lm_head", "output.weight", "VE"),
         Row("layers.#.input_layernorm", "blk.#.attn_norm.weight", "E", bias="required"),
         Row("layers.#.post_attention_layernorm", "blk.#.ffn_norm.weight", "E", bias="required"),
         *attention(bias="required", output_bias="required"),
         Row("layers.#.mlp.c_fc", "blk.#.ffn_up.weight", "FE", bias="required"),
         Row("layers.#.mlp.c_proj", "blk.#.ffn_down.weight", "EF", bias="required")),
        GELU, FREE, describe_starcoder2,
        {"norm_epsilon": 1e-5, "rope_theta": 10_000.0, "tie_word_embeddings": True}, renamed=starcoder2_renamed,
        is_layer_norm=True,
    ),
    Family(
        "StableLM", "stablelm", classes("StableLm"), "stablelm",
        (Row("embed_tokens", "token_embd.weight", "VE"),
         Row("norm", "output_norm.weight", "E", bias="required"),
         Row("lm_head", "output.weight", "VE"),
         Row("layers.#.input_layernorm", "blk.#.attn_norm.weight", "E", bias="required"),
         Row("layers.#.post_attention_layernorm", "blk.#.ffn_norm.weight", "E", bias="required", layers=_SERIAL),
         *attention(bias="use_qkv_bias"), *feed_forward()),
        SILU, FREE, describe_stablelm, {"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25, "rope_theta": 10_000.0},
        rotates_partly=True, kinds=_stablelm_kinds, is_layer_norm=True,
    ),
    Family(
        "GPT-2", "gpt2", ("GPT2LMHeadModel", "GPT2Model"), "gpt2",
        (Row("wte", "token_embd.weight", "VE"),
         Row("wpe", "position_embd.weight", "PE"),
         Row("ln_f", "output_norm.weight", "E", bias="required"),
         Row("lm_head", "output.weight", "VE"),
         Row("h.#.ln_1", "blk.#.attn_norm.weight", "E", bias="required"),
         Row("h.#.attn.c_attn", "blk.#.attn_qkv.weight", "EA", TRANSPOSE, "required"),
         Row("h.#.attn.c_proj", "blk.#.attn_output.weight", "QE", TRANSPOSE, "required"),
         Row("h.#.ln_2", "blk.#.ffn_norm.weight", "E", bias="required"),
         Row("h.#.mlp.c_fc", "blk.#.ffn_up.weight", "EF", TRANSPOSE, "required"),
         Row("h.#.mlp.c_proj", "blk.#.ffn_down.weight", "FE", TRANSPOSE, "required")),
        GELU, None, describe_gpt2, {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
        prefixes=("transformer.",), ignored_suffixes=(".attn.bias", ".attn.masked_bias"), is_layer_norm=True,
    ),
)  # fmt: skip
