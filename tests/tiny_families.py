"""A tiny checkpoint of each family of models, with random weights: config.json and tensors, by transformers' names."""

from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Any

from tests.golden.weights import Numbers, encode
from tests.tiny_checkpoints import N_VOCAB, Weights, random_numbers

E, F, HEADS, KV_HEADS, HEAD, LAYERS, EXPERTS, CONTEXT = 64, 96, 4, 2, 16, 2, 4, 256
Q, K = HEADS * HEAD, KV_HEADS * HEAD

MAMBA_HEADS, INNER, STATE = 8, 2 * E, 16

Shapes = Iterator[tuple[str, tuple[int, ...]]]

_SIZES = {
    "hidden_size": E, "intermediate_size": F, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "max_position_embeddings": CONTEXT, "vocab_size": N_VOCAB, "rms_norm_eps": 1e-6,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_SILU = {"hidden_act": "silu", "rope_theta": 10000.0}
_GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "head_dim": HEAD, "query_pre_attn_scalar": HEAD}

_MAMBA = {
    "mamba_n_heads": MAMBA_HEADS, "mamba_d_head": INNER // MAMBA_HEADS, "mamba_d_state": STATE, "mamba_d_conv": 4,
    "mamba_expand": 2, "mamba_conv_bias": True, "mamba_proj_bias": False,
}  # fmt: skip

_LATENT = {
    **_SILU, "num_key_value_heads": HEADS, "q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": EXPERTS, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_INDEXER = {"index_topk": 16, "index_n_heads": 4, "index_head_dim": 64}

# By model_type: its class, and what its config.json has besides the sizes.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {**_SILU, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralForCausalLM", {**_SILU, "head_dim": None, "sliding_window": None}),
    "mixtral": ("MixtralForCausalLM", {**_SILU, "num_local_experts": EXPERTS, "num_experts_per_tok": 2}),
    "smollm3": ("SmolLM3ForCausalLM", {**_SILU, "no_rope_layers": [1, 1], "use_sliding_window": False}),
    "granite": (
        "GraniteForCausalLM",
        {**_SILU, "attention_multiplier": 0.2, "embedding_multiplier": 12.0, "residual_multiplier": 0.2,
         "logits_scaling": 8.0},
    ),
    "qwen2": ("Qwen2ForCausalLM", {**_SILU, "use_sliding_window": False, "sliding_window": 64}),
    "qwen3": ("Qwen3ForCausalLM", {**_SILU, "head_dim": HEAD, "tie_word_embeddings": True}),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        {**_SILU, "head_dim": HEAD, "num_experts": EXPERTS, "num_experts_per_tok": 2, "norm_topk_prob": True,
         "moe_intermediate_size": 32, "decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
    "gemma": ("GemmaForCausalLM", {**_GEMMA, "rope_theta": 10000.0}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {**_GEMMA, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 32},
    ),
    "gemma3_text": ("Gemma3ForCausalLM", {**_GEMMA, "sliding_window": 32, "rope_local_base_freq": 10000.0}),
    "phi3": ("Phi3ForCausalLM", {**_SILU, "original_max_position_embeddings": CONTEXT}),
    "ernie4_5": ("Ernie4_5ForCausalLM", {**_SILU, "head_dim": HEAD}),
    "lfm2": ("Lfm2ForCausalLM", {"norm_eps": 1e-6, "block_ff_dim": F, "block_auto_adjust_ff_dim": False,
                                 "full_attn_idxs": [1]}),
    "olmo2": ("Olmo2ForCausalLM", _SILU),
    "olmo3": ("Olmo3ForCausalLM", {**_SILU, "sliding_window": 32}),
    "seed_oss": ("SeedOssForCausalLM", {**_SILU, "head_dim": HEAD, "attention_bias": True}),
    "exaone4": ("Exaone4ForCausalLM", _SILU),
    "apertus": (
        "ApertusForCausalLM",
        {"hidden_act": "xielu", "tie_word_embeddings": False,
         "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    "hunyuan_v1_dense": (
        "HunYuanDenseV1ForCausalLM",
        {**_SILU, "head_dim": HEAD, "rope_scaling": {"type": "dynamic", "alpha": 100.0, "factor": 1.0}},
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridForCausalLM",
        {**_SILU, "attention_multiplier": 0.2, "embedding_multiplier": 12.0, "residual_multiplier": 0.2,
         "logits_scaling": 8.0, "layer_types": ["mamba", "attention"], "position_embedding_type": "nope",
         "shared_intermediate_size": F, "num_local_experts": EXPERTS, "num_experts_per_tok": 2, **_MAMBA,
         "mamba_n_groups": 1},
    ),
    "nemotron_h": (
        "NemotronHForCausalLM",
        {"hybrid_override_pattern": "M*E", "num_hidden_layers": 3, "head_dim": HEAD, "layer_norm_epsilon": 1e-5,
         "mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": STATE, "n_groups": 2,
         "n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
         "moe_shared_expert_intermediate_size": 48},
    ),
    "falcon_h1": (
        "FalconH1ForCausalLM",
        {**_SILU, "head_dim": HEAD, **_MAMBA, "mamba_d_ssm": INNER, "mamba_n_groups": 2, "mamba_rms_norm": False,
         "lm_head_multiplier": 0.04, "key_multiplier": 0.4, "mlp_multipliers": [0.9, 0.9],
         "attention_out_multiplier": 0.9, "ssm_in_multiplier": 1.25, "ssm_out_multiplier": 0.25,
         "ssm_multipliers": [0.35, 0.25, 0.35, 0.5, 0.35]},
    ),
    "deepseek_v3": ("DeepseekV3ForCausalLM", _LATENT),
    "deepseek_v32": ("DeepseekV32ForCausalLM", {**_LATENT, **_INDEXER}),
    "glm_moe_dsa": ("GlmMoeDsaForCausalLM", {**_LATENT, **_INDEXER, "indexer_types": ["full", "shared"]}),
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_embd": E, "n_layer": LAYERS, "n_head": HEADS, "n_positions": CONTEXT, "n_inner": None,
         "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "vocab_size": N_VOCAB},
    ),
    "embedding_gemma": (
        "Gemma3TextModel",
        {**_GEMMA, "model_type": "gemma3_text", "sliding_window": 32, "use_bidirectional_attention": True},
    ),
    "eurobert": ("EuroBertForMaskedLM", _SILU),
    "modernbert": (
        "ModernBertForMaskedLM",
        {"hidden_activation": "gelu", "norm_eps": 1e-5, "local_attention": 32, "global_attn_every_n_layers": 3,
         "global_rope_theta": 160000.0, "local_rope_theta": 10000.0},
    ),
    "nomic_bert": ("NomicBertModel", {"hidden_act": "silu", "layer_norm_eps": 1e-12, "type_vocab_size": 2}),
    "xlm-roberta": (
        "XLMRobertaModel",
        {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "type_vocab_size": 1, "pad_token_id": 1,
         "max_position_embeddings": CONTEXT + 2},
    ),
    "bert": ("BertModel", {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2}),
}  # fmt: skip
TIED = {"ernie4_5", "lfm2", "gemma", "gemma2", "gemma3_text", "gpt2", "llama", "qwen3", "embedding_gemma"}
ENCODERS = {"bert", "embedding_gemma", "eurobert", "modernbert", "nomic_bert", "xlm-roberta"}


def config(model_type: str) -> dict[str, Any]:
    name, others = CONFIGS[model_type]
    sizes = {} if model_type == "gpt2" else dict(_SIZES)
    if model_type in ENCODERS - {"embedding_gemma", "eurobert"}:
        del sizes["num_key_value_heads"]
    return {"architectures": [name], "model_type": model_type, **sizes, **others}


def tensors(model_type: str, dtype: str = "F32", seed: int = 0) -> dict[str, Weights]:
    return {
        name: Weights(shape, encode(numbers, dtype), dtype)
        for name, (shape, numbers) in _numbers(model_type, seed).items()
    }


@cache
def _numbers(model_type: str, seed: int) -> dict[str, tuple[tuple[int, ...], Numbers]]:
    """Of all tensors, with their shapes: most tests want some family again."""
    random = Random(seed)
    shapes = {
        "granitemoehybrid": _granite_hybrid, "nemotron_h": _nemotron, "falcon_h1": _falcon,
        "deepseek_v3": _deepseek, "deepseek_v32": lambda: _deepseek(2), "glm_moe_dsa": lambda: _deepseek(1),
        "gpt2": _gpt2, "bert": _bert, "lfm2": _lfm2,
        "modernbert": _modern_bert, "nomic_bert": _nomic, "xlm-roberta": _roberta,
    }.get(model_type)  # fmt: skip
    found = dict(shapes() if shapes else _decoder(model_type))
    return {name: (tuple(shape), random_numbers(random, shape)) for name, shape in found.items()}


def _decoder(model_type: str) -> Shapes:
    yield "model.embed_tokens.weight", (N_VOCAB, E)
    yield "model.norm.weight", (E,)
    if model_type not in TIED:
        yield "lm_head.weight", (N_VOCAB, E)
    for layer in range(LAYERS):
        for name, shape in _layer(model_type):
            yield f"model.layers.{layer}.{name}", shape


def _layer(model_type: str) -> Shapes:
    if model_type == "apertus":
        yield "attention_layernorm.weight", (E,)
        yield "feedforward_layernorm.weight", (E,)
        yield from (("mlp.act_fn.alpha_n", (1,)), ("mlp.act_fn.alpha_p", (1,)))
        yield from (("mlp.act_fn.beta", ()), ("mlp.act_fn.eps", ()))
    elif model_type not in {"olmo2", "olmo3", "exaone4"}:
        yield "input_layernorm.weight", (E,)
    if model_type != "apertus":
        yield "post_attention_layernorm.weight", (E,)
    if model_type in {"gemma2", "gemma3_text", "embedding_gemma"}:
        yield "pre_feedforward_layernorm.weight", (E,)
        yield "post_feedforward_layernorm.weight", (E,)
    if model_type in {"olmo2", "olmo3", "exaone4"}:
        yield "post_feedforward_layernorm.weight", (E,)
    if model_type == "hunyuan_v1_dense":
        yield "self_attn.query_layernorm.weight", (HEAD,)
        yield "self_attn.key_layernorm.weight", (HEAD,)
    if model_type in {"olmo2", "olmo3"}:
        yield "self_attn.q_norm.weight", (Q,)
        yield "self_attn.k_norm.weight", (K,)
    if model_type == "phi3":
        yield "self_attn.qkv_proj.weight", (Q + 2 * K, E)
        yield "self_attn.o_proj.weight", (E, Q)
        yield "mlp.gate_up_proj.weight", (2 * F, E)
        yield "mlp.down_proj.weight", (E, F)
        return
    for name, shape in (("q_proj", (Q, E)), ("k_proj", (K, E)), ("v_proj", (K, E)), ("o_proj", (E, Q))):
        yield f"self_attn.{name}.weight", shape
        if model_type == "llama" or (model_type in {"qwen2", "seed_oss"} and name != "o_proj"):
            yield f"self_attn.{name}.bias", shape[:1]
    if model_type in {"qwen3", "qwen3_moe", "gemma3_text", "embedding_gemma", "exaone4", "apertus"}:
        yield "self_attn.q_norm.weight", (HEAD,)
        yield "self_attn.k_norm.weight", (HEAD,)
    yield from _feed_forward(model_type)


def _feed_forward(model_type: str) -> Shapes:
    if model_type == "mixtral":
        yield "block_sparse_moe.gate.weight", (EXPERTS, E)
        for expert in range(EXPERTS):
            for name, shape in (("w1", (F, E)), ("w2", (E, F)), ("w3", (F, E))):
                yield f"block_sparse_moe.experts.{expert}.{name}.weight", shape
    elif model_type == "qwen3_moe":
        yield "mlp.gate.weight", (EXPERTS, E)
        for expert in range(EXPERTS):
            for name, shape in (("gate_proj", (32, E)), ("up_proj", (32, E)), ("down_proj", (E, 32))):
                yield f"mlp.experts.{expert}.{name}.weight", shape
    else:
        for name, shape in (("gate_proj", (F, E)), ("up_proj", (F, E)), ("down_proj", (E, F))):
            if (model_type, name) == ("apertus", "gate_proj"):
                continue
            yield f"mlp.{name}.weight", shape
            if model_type == "llama":
                yield f"mlp.{name}.bias", shape[:1]


def _lfm2() -> Shapes:
    yield "model.embed_tokens.weight", (N_VOCAB, E)
    yield "model.embedding_norm.weight", (E,)
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        yield f"{block}.operator_norm.weight", (E,)
        yield f"{block}.ffn_norm.weight", (E,)
        for name, shape in (("w1", (F, E)), ("w2", (E, F)), ("w3", (F, E))):
            yield f"{block}.feed_forward.{name}.weight", shape
        if layer == 1:
            for name, shape in (("q_proj", (Q, E)), ("k_proj", (K, E)), ("v_proj", (K, E)), ("out_proj", (E, Q))):
                yield f"{block}.self_attn.{name}.weight", shape
            yield f"{block}.self_attn.q_layernorm.weight", (HEAD,)
            yield f"{block}.self_attn.k_layernorm.weight", (HEAD,)
        else:
            yield f"{block}.conv.in_proj.weight", (3 * E, E)
            yield f"{block}.conv.conv.weight", (E, 1, 3)
            yield f"{block}.conv.out_proj.weight", (E, E)


def _gpt2() -> Shapes:
    yield "transformer.wte.weight", (N_VOCAB, E)
    yield "transformer.wpe.weight", (CONTEXT, E)
    yield from _with_bias("transformer.ln_f", (E,), E)
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}"
        yield from _with_bias(f"{block}.ln_1", (E,), E)
        yield from _with_bias(f"{block}.ln_2", (E,), E)
        yield f"{block}.attn.bias", (1, 1, 8, 8)
        yield from _with_bias(f"{block}.attn.c_attn", (E, 3 * E), 3 * E)
        yield from _with_bias(f"{block}.attn.c_proj", (E, E), E)
        yield from _with_bias(f"{block}.mlp.c_fc", (E, 4 * E), 4 * E)
        yield from _with_bias(f"{block}.mlp.c_proj", (4 * E, E), E)


def _roberta() -> Shapes:
    return _bert(n_positions=CONTEXT + 2, n_types=1)


def _bert(n_positions: int = CONTEXT, n_types: int = 2) -> Shapes:
    yield "embeddings.word_embeddings.weight", (N_VOCAB, E)
    yield "embeddings.position_embeddings.weight", (n_positions, E)
    yield "embeddings.token_type_embeddings.weight", (n_types, E)
    yield "embeddings.LayerNorm.weight", (E,)
    yield "embeddings.LayerNorm.bias", (E,)
    yield from _with_bias("pooler.dense", (E, E), E)
    for layer in range(LAYERS):
        block = f"encoder.layer.{layer}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            yield from _with_bias(f"{block}.{name}", (E, E), E)
        yield from _with_bias(f"{block}.attention.output.LayerNorm", (E,), E)
        yield from _with_bias(f"{block}.intermediate.dense", (F, E), F)
        yield from _with_bias(f"{block}.output.dense", (E, F), E)
        yield from _with_bias(f"{block}.output.LayerNorm", (E,), E)


def _granite_hybrid() -> Shapes:
    yield "model.embed_tokens.weight", (N_VOCAB, E)
    yield "model.norm.weight", (E,)
    yield "lm_head.weight", (N_VOCAB, E)
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        yield f"{block}.input_layernorm.weight", (E,)
        yield f"{block}.post_attention_layernorm.weight", (E,)
        if layer == 0:
            yield from _mamba(f"{block}.mamba", n_groups=1)
        else:
            for name, shape in (("q_proj", (Q, E)), ("k_proj", (K, E)), ("v_proj", (K, E)), ("o_proj", (E, Q))):
                yield f"{block}.self_attn.{name}.weight", shape
        yield f"{block}.shared_mlp.input_linear.weight", (2 * F, E)
        yield f"{block}.shared_mlp.output_linear.weight", (E, F)
        yield f"{block}.block_sparse_moe.router.layer.weight", (EXPERTS, E)
        yield f"{block}.block_sparse_moe.input_linear.weight", (EXPERTS, 2 * F, E)
        yield f"{block}.block_sparse_moe.output_linear.weight", (EXPERTS, E, F)


def _nemotron() -> Shapes:
    yield "backbone.embeddings.weight", (N_VOCAB, E)
    yield "backbone.norm_f.weight", (E,)
    yield "lm_head.weight", (N_VOCAB, E)
    block = "backbone.layers"
    for layer in range(3):
        yield f"{block}.{layer}.norm.weight", (E,)
    yield from _mamba(f"{block}.0.mixer", n_groups=2)
    for name, shape in (("q_proj", (Q, E)), ("k_proj", (K, E)), ("v_proj", (K, E)), ("o_proj", (E, Q))):
        yield f"{block}.1.mixer.{name}.weight", shape
    yield f"{block}.2.mixer.gate.weight", (EXPERTS, E)
    yield f"{block}.2.mixer.gate.e_score_correction_bias", (EXPERTS,)
    for expert in range(EXPERTS):
        yield f"{block}.2.mixer.experts.{expert}.up_proj.weight", (32, E)
        yield f"{block}.2.mixer.experts.{expert}.down_proj.weight", (E, 32)
    yield f"{block}.2.mixer.shared_experts.up_proj.weight", (48, E)
    yield f"{block}.2.mixer.shared_experts.down_proj.weight", (E, 48)


def _falcon() -> Shapes:
    yield "model.embed_tokens.weight", (N_VOCAB, E)
    yield "model.final_layernorm.weight", (E,)
    yield "lm_head.weight", (N_VOCAB, E)
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        yield f"{block}.input_layernorm.weight", (E,)
        yield f"{block}.pre_ff_layernorm.weight", (E,)
        for name, shape in _mamba(f"{block}.mamba", n_groups=2):
            if not name.endswith(".norm.weight"):
                yield name, shape
        for name, shape in (("q_proj", (Q, E)), ("k_proj", (K, E)), ("v_proj", (K, E)), ("o_proj", (E, Q))):
            yield f"{block}.self_attn.{name}.weight", shape
        for name, shape in (("gate_proj", (F, E)), ("up_proj", (F, E)), ("down_proj", (E, F))):
            yield f"{block}.feed_forward.{name}.weight", shape


def _deepseek(n_indexers: int = 0) -> Shapes:
    yield "model.embed_tokens.weight", (N_VOCAB, E)
    yield "model.norm.weight", (E,)
    yield "lm_head.weight", (N_VOCAB, E)
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        yield f"{block}.input_layernorm.weight", (E,)
        yield f"{block}.post_attention_layernorm.weight", (E,)
        for name, shape in (
            ("q_a_proj", (24, E)), ("q_a_layernorm", (24,)), ("q_b_proj", (HEADS * 24, 24)),
            ("o_proj", (E, HEADS * 16)), ("kv_a_proj_with_mqa", (40, E)), ("kv_a_layernorm", (32,)),
            ("kv_b_proj", (HEADS * 32, 32)),
        ):  # fmt: skip
            yield f"{block}.self_attn.{name}.weight", shape
        if layer < n_indexers:
            for name, shape in (
                ("wq_b.weight", (4 * 64, 24)), ("wk.weight", (64, E)), ("k_norm.weight", (64,)), ("k_norm.bias", (64,)),
                ("weights_proj.weight", (4, E)),
            ):  # fmt: skip
                yield f"{block}.self_attn.indexer.{name}", shape
        kinds = ["mlp."]
        if layer:
            yield f"{block}.mlp.gate.weight", (EXPERTS, E)
            yield f"{block}.mlp.gate.e_score_correction_bias", (EXPERTS,)
            kinds = ["mlp.shared_experts.", *(f"mlp.experts.{expert}." for expert in range(EXPERTS))]
        width = 32 if layer else F
        for kind in kinds:
            for name, shape in (("gate_proj", (width, E)), ("up_proj", (width, E)), ("down_proj", (E, width))):
                yield f"{block}.{kind}{name}.weight", shape


def _mamba(module: str, n_groups: int) -> Shapes:
    channels = INNER + 2 * n_groups * STATE
    yield f"{module}.in_proj.weight", (INNER + channels + MAMBA_HEADS, E)
    yield f"{module}.conv1d.weight", (channels, 1, 4)
    yield f"{module}.conv1d.bias", (channels,)
    for name in ("dt_bias", "A_log", "D"):
        yield f"{module}.{name}", (MAMBA_HEADS,)
    yield f"{module}.norm.weight", (INNER,)
    yield f"{module}.out_proj.weight", (E, INNER)


def _modern_bert() -> Shapes:
    yield "model.embeddings.tok_embeddings.weight", (N_VOCAB, E)
    yield "model.embeddings.norm.weight", (E,)
    yield "model.final_norm.weight", (E,)
    yield "head.dense.weight", (E, E)
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        if layer:
            yield f"{block}.attn_norm.weight", (E,)
        yield f"{block}.attn.Wqkv.weight", (3 * E, E)
        yield f"{block}.attn.Wo.weight", (E, E)
        yield f"{block}.mlp_norm.weight", (E,)
        yield f"{block}.mlp.Wi.weight", (2 * F, E)
        yield f"{block}.mlp.Wo.weight", (E, F)


def _nomic() -> Shapes:
    yield "embeddings.word_embeddings.weight", (N_VOCAB, E)
    yield "embeddings.token_type_embeddings.weight", (2, E)
    yield from _with_bias("emb_ln", (E,), E)
    for layer in range(LAYERS):
        block = f"encoder.layers.{layer}"
        yield f"{block}.attn.Wqkv.weight", (3 * E, E)
        yield f"{block}.attn.out_proj.weight", (E, E)
        yield from _with_bias(f"{block}.norm1", (E,), E)
        for name, shape in (("fc11", (F, E)), ("fc12", (F, E)), ("fc2", (E, F))):
            yield f"{block}.mlp.{name}.weight", shape
        yield from _with_bias(f"{block}.norm2", (E,), E)


def _with_bias(name: str, shape: tuple[int, ...], n_bias: int) -> Shapes:
    yield f"{name}.weight", shape
    yield f"{name}.bias", (n_bias,)
