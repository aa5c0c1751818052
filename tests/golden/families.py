"""Records what `transformers` computes with a tiny random model of each family: `python -m tests.golden.families`.

Runs in an environment of its own, once for each major version of transformers (README.md). The first run writes the
golden files, the next one adds its own style of config.json and checks that it computes the same.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch.overrides import TorchFunctionMode

from tests.golden import hub_models, weights
from tests.golden.weights import BOS, CLS, EOS, MASK, N_VOCAB, PAD, SEP

STYLE = transformers.__version__.split(".", maxsplit=1)[0]  # of config.json
N_TOP = 8
FIXED = list(range(3, N_VOCAB, N_VOCAB // 8))
# The lengths of the prompts; of the third all positions are recorded, of the others the last.
LENGTHS = (1, 2, 40, 9, 24, 60)
N_DIGITS = 5
ROUTER_GAP = 0.006  # ten times what the rounding of an F16 KV cache moves
ROUTERS = {
    "Glm4MoeTopkRouter", "Gemma4TextRouter", "DeepseekV2TopkRouter", "DeepseekV2MoEGate",
    "DeepseekV3TopkRouter", "Glm4MoeLiteTopkRouter", "Mistral4TopkRouter", "MiniMaxM2TopKRouter", "Lfm2MoeTopKRouter",
    "NomicRouter", "LingGate", "Ling1Gate", "Ernie4_5_MoeTopKRouter", "Qwen3VLMoeTextTopKRouter",
    "DeepseekV32TopkRouter", "GlmMoeDsaTopkRouter", "KimiLinearTopkRouter", "KimiGate", "MiniMaxM3VLTopKRouter",
    "ExaoneMoeTopkRouter", "Dots1TopkRouter", "HunYuanMoEV1Gate", "Glm4vMoeTextTopkRouter", "Llama4Router",
    "BailingHybridTopkRouter",
}  # fmt: skip
INDEX_GAP = 0.004  # of the spread of a row's scores: what the same rounding moves
SAME = 5e-5  # how far two versions of transformers may be apart


@dataclass(frozen=True)
class Family:
    """One model: its class in transformers and what its config.json says apart from the defaults."""

    model: str
    settings: dict[str, Any]
    dtype: str = "F32"
    n_tokens: int = N_VOCAB  # of the tokenizer; the embedding may have more rows
    max_shard_size: str = "1GB"
    seed: str = ""  # of its numbers and prompts; its name when empty
    extra_files: dict[str, Any] = field(default_factory=dict)
    only: str = ""  # the one version that writes what the hub has: the other does not know it, or leaves tensors out


COMMON = {
    "vocab_size": N_VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}


def decoder(kind: str, /, **settings: Any) -> dict[str, Any]:
    """The arguments of Family for a decoder: COMMON with changes."""
    return {"model": f"{kind}ForCausalLM", "settings": COMMON | settings}


def llama(**settings: Any) -> dict[str, Any]:
    return decoder("Llama", **{"rms_norm_eps": 1e-5, "rope_theta": 5000.0, **settings})


def gemma3(**settings: Any) -> dict[str, Any]:
    return {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 16,
        "rope_theta": 100000.0,
        "rope_local_base_freq": 500.0,
        "num_hidden_layers": 7,
        "layer_types": ["full_attention" if layer == 5 else "sliding_attention" for layer in range(7)],
        "tie_word_embeddings": True,
        **settings,
    }


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
YARN_ATTENTION = YARN | {"attention_factor": 1.3}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0, 2.5],
    "long_factor": [1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 12.0, 16.0],
}
GRANITE = {
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.15,
    "logits_scaling": 3.0,
    "rope_theta": 5000.0,
}
PHI3 = {"rope_theta": 5000.0, "pad_token_id": EOS, "sliding_window": None}


def olmo3(scaling: dict[str, Any] | None = None) -> dict[str, Any]:
    """Only the layers without a window have scaled positions; version 5 takes them for each kind of layer."""
    rope = {"rope_theta": 5000.0}
    if STYLE == "4":
        positions: dict[str, Any] = rope | {"rope_scaling": scaling}
    else:
        plain = rope | {"rope_type": "default"}
        positions = {"rope_parameters": {"sliding_attention": plain, "full_attention": plain | (scaling or {})}}
    return decoder("Olmo3", sliding_window=16, num_hidden_layers=4, **positions)


def layers(pattern: str) -> dict[str, Any]:
    """Kinds of layers of Nemotron-H by their letters on the hub."""
    words = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
    return {"layers_block_type": [words[letter] for letter in pattern], "num_hidden_layers": len(pattern)}


LFM2 = {
    "rope_theta": 5000.0,
    "num_hidden_layers": 4,
    "layer_types": ["conv", "full_attention", "conv", "conv"],
    "block_multiple_of": 16,
    "tie_word_embeddings": True,
}
LFM2_MOE = {key: value for key, value in LFM2.items() if not key.startswith("block_")} | {
    "num_dense_layers": 1,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
}
GEMMA2 = {
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 16,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "num_hidden_layers": 4,
    "tie_word_embeddings": True,
}
MOE = {"num_experts_per_tok": 2, "rope_theta": 5000.0}
MIXTRAL = MOE | {"num_local_experts": 4, "sliding_window": None}
QWEN3_MOE = MOE | {"head_dim": 32, "num_experts": 6, "moe_intermediate_size": 48, "norm_topk_prob": True}
GRANITE4 = {k: v for k, v in GRANITE.items() if k != "rope_theta"} | {
    "shared_intermediate_size": 96,
    "num_local_experts": 0,
    "position_embedding_type": "rope",
    "rope_theta": 5000.0,
}
GRANITE4_HYBRID = {
    **GRANITE4,
    "num_hidden_layers": 4,
    "layer_types": ["mamba", "attention", "mamba", "mamba"],
    "position_embedding_type": "nope",
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
GRANITE4_EXPERTS = {
    "num_hidden_layers": 2,
    "layer_types": ["mamba", "attention"],
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}
NEMOTRON = {
    "head_dim": 32,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 16,
    "chunk_size": 16,
}
NEMOTRON_MOE = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "moe_shared_expert_intermediate_size": 80,
    "routed_scaling_factor": 2.5,
}
LLAMA4 = {
    "head_dim": 32, "rope_theta": 10000.0, "rope_scaling": LLAMA3, "num_hidden_layers": 5, "intermediate_size": 48,
    "intermediate_size_mlp": 96, "num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 2,
}  # fmt: skip
COHERE = {"rope_theta": 5000.0, "logit_scale": 0.25, "tie_word_embeddings": True, "pad_token_id": 0}
COHERE_NORMS = {
    "use_qk_norm": True, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1,
    "num_hidden_layers": 64,  # by which llama.cpp knows models with norms of heads
}  # fmt: skip
EXAONE3 = {
    "vocab_size": N_VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512, "bos_token_id": BOS, "eos_token_id": EOS,
    "activation_function": "silu", "layer_norm_epsilon": 1e-5, "rope_theta": 10000.0, "rope_scaling": LLAMA3,
    "tie_word_embeddings": True,
}  # fmt: skip
EXAONE_MOE = MOE | {
    "head_dim": 32, "sliding_window": 16, "num_hidden_layers": 5, "sliding_window_pattern": 4, "num_experts": 6,
    "num_experts_per_tok": 2, "moe_intermediate_size": 48, "num_shared_experts": 2, "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 3, "n_group": 1, "topk_group": 1,
}  # fmt: skip
EXAONE4 = {"sliding_window": None, "layer_types": ["full_attention"] * 2}
EXAONE4_WINDOW = {
    "sliding_window": 16,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 64,  # by which llama.cpp knows models with windows
}
GPT2 = {"vocab_size": N_VOCAB, "n_positions": 128, "n_embd": 64, "n_layer": 2, "n_head": 4}
BERT = {
    "vocab_size": N_VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
}
# Positions are counted from the one behind that of padding.
ROBERTA = BERT | {"max_position_embeddings": 130, "pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
MODERN_BERT = {
    "vocab_size": N_VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "local_attention": 15,
    **(
        {"global_rope_theta": 5000.0, "local_rope_theta": 500.0}
        if STYLE == "4"
        else {
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            }
        }
    ),
    **{f"{role}_token_id": number for role, number in (("cls", BOS), ("bos", BOS), ("sep", EOS), ("eos", EOS))},
    "pad_token_id": PAD,
}
NOMIC = {
    "vocab_size": N_VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": PAD,
}
# What nomic-embed-text-v1.5 says on the hub, in names of its own code, where transformers 4 has none of its own.
NOMIC_ON_THE_HUB = {
    "architectures": ["NomicBertModel"], "model_type": "nomic_bert", "activation_function": "swiglu", "causal": False,
    "layer_norm_epsilon": 1e-12, "max_trained_positions": 128, "mlp_fc1_bias": False, "mlp_fc2_bias": False,
    "n_embd": 64, "n_head": 4, "n_inner": 96, "n_layer": 2, "n_positions": 512, "parallel_block": False,
    "prenorm": False, "qkv_proj_bias": False, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "rotary_scaling_factor": None,
    "scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True, "type_vocab_size": 2, "use_rms_norm": False,
    "vocab_size": N_VOCAB,
}  # fmt: skip
NOMIC_MOE = NOMIC_ON_THE_HUB | {
    "activation_function": "gelu", "layer_norm_epsilon": 1e-5, "mlp_fc1_bias": True, "mlp_fc2_bias": True,
    "moe_every_n_layers": 2, "moe_normalize_expert_weights": False, "moe_top_k": 2, "num_experts": 6,
    "num_shared_experts": 0, "qkv_proj_bias": True, "rotary_emb_base": 5000, "type_vocab_size": 1,
}  # fmt: skip
# So many heads that not all slopes are those of a power of two.
JINA2 = BERT | {
    "num_attention_heads": 6, "hidden_size": 96, "position_embedding_type": "alibi", "feed_forward_type": "geglu",
    "type_vocab_size": 2, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
}  # fmt: skip
# What the text part of a multimodal config.json leaves out has the default of transformers.
GEMMA3_DEFAULTS = {
    "vocab_size": N_VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,  # the last of them is the first without a window
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 16,
}
SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "vision_use_head": False,
}

MISTRAL3 = COMMON | {"model_type": "mistral", "head_dim": 32, "rope_theta": 5000.0, "sliding_window": None}
PIXTRAL = {key: size for key, size in SIGLIP.items() if key != "vision_use_head"} | {"head_dim": 16}
# Positions are scaled, and queries grow, from the 17th token on.
MINISTRAL3 = {
    "head_dim": 32,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 5000.0,
        "factor": 32.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.5,
    },
}
DELTA_NET = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "head_dim": 32,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
}
NEXT = ["linear_attention"] * 3 + ["full_attention"]
SHARED = MOE | {"num_experts": 4, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 32}


def qwen35(**settings: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5, "mrope_section": [3, 3, 2]}
    return COMMON | DELTA_NET | {"rope_parameters": rope | {"mrope_interleaved": True}} | settings


def vl_text(**rope: Any) -> dict[str, Any]:
    """Of Qwen's models with eyes, whose tokens have three positions."""
    scaling = {"rope_type": "default", "mrope_section": [2, 3, 3], **rope}
    own = (
        {"rope_theta": 5000.0, "rope_scaling": scaling}
        if STYLE == "4"
        else {"rope_parameters": {"rope_theta": 5000.0, **scaling}}
    )
    return COMMON | own


QWEN2_EYES = {"depth": 1, "num_heads": 2, "patch_size": 14}
QWEN35_EYES = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_heads": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 16,
}
GLM4_MOE = MOE | {
    "head_dim": 32,
    "num_hidden_layers": 3,
    "moe_intermediate_size": 48,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 1,
    "partial_rotary_factor": 0.5,
}
DOTS1 = {key: value for key, value in GLM4_MOE.items() if key != "partial_rotary_factor"} | {
    "num_key_value_heads": 4, "norm_topk_prob": True, "n_group": 1, "topk_group": 1, "sliding_window": None,
}  # fmt: skip
STABLELM = {"rope_theta": 5000.0, "partial_rotary_factor": 0.5, "pad_token_id": 0}
HUNYUAN_MOE = {
    "head_dim": 32, "rope_theta": 5000.0, "num_experts": 6, "moe_topk": 2,
    "rope_scaling": {"type": "dynamic", "alpha": 100.0, "factor": 1.0},
}  # fmt: skip
GLM4V_MOE = {key: value for key, value in GLM4_MOE.items() if key != "rope_theta"} | {"attention_bias": True}
GLM_EYES = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "image_size": 28, "patch_size": 14,
    "out_hidden_size": 128,
}  # fmt: skip
# One vector a token for the keys and values of all heads.
LATENT = MOE | {
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "moe_intermediate_size": 48,
    "n_routed_experts": 6,
    "n_shared_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 1,
}
# Of prompts of 40 and of 60 tokens, not all are attended to. With a few heads many scores would be the same: 0.
SPARSE = LATENT | {"index_topk": 32, "index_n_heads": 12, "index_head_dim": 64}
TWO_LAYERS = {"num_hidden_layers": 2}
GLM5: dict[str, Any] = SPARSE | {
    "first_k_dense_replace": 2, "rms_norm_eps": 1e-5, "indexer_types": ["full", "shared", "full"],
}  # fmt: skip
GROUPED = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3, "n_shared_experts": 1}

OLMOE = {
    "num_key_value_heads": 4, "intermediate_size": 48, "num_experts": 6, "num_experts_per_tok": 2, "rope_theta": 5000.0,
    "norm_topk_prob": False,
}  # fmt: skip
ERNIE_MOE = {
    "num_hidden_layers": 3, "rope_theta": 5000.0, "moe_intermediate_size": 48, "moe_num_experts": 6, "moe_k": 2,
    "moe_num_shared_experts": 2, "moe_layer_start_index": 1, "tie_word_embeddings": True,
}  # fmt: skip
LING2 = COMMON | {
    "num_hidden_layers": 3, "head_dim": 16, "partial_rotary_factor": 0.5, "rope_theta": 5000.0, "rms_norm_eps": 1e-6,
    "first_k_dense_replace": 1, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48,
    "num_shared_experts": 2, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
    "score_function": "sigmoid", "moe_router_enable_expert_bias": True, "use_qk_norm": True, "use_bias": False,
    "use_qkv_bias": False, "hidden_act": "silu", "num_nextn_predict_layers": 0, "use_rmsnorm": True,
}  # fmt: skip
LING1 = COMMON | {
    "head_dim": 32, "rope_theta": 5000.0, "rms_norm_eps": 1e-6, "first_k_dense_replace": 0, "num_experts": 6,
    "num_experts_per_tok": 2, "moe_intermediate_size": 48, "num_shared_experts": 2, "norm_topk_prob": True,
    "use_bias": False, "use_qkv_bias": False, "hidden_act": "silu", "norm_head": False, "norm_softmax": False,
}  # fmt: skip

# One vector a token in the third of the layers, and a matrix for each head in the others.
KIMI_LINEAR = {k: v for k, v in LATENT.items() if k not in {"rope_theta", "n_routed_experts", "q_lora_rank"}} | {
    "first_k_dense_replace": 1, "num_hidden_layers": 4, "num_local_experts": 6, "n_shared_experts": 2,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "linear_head_dim": 16, "linear_num_heads": 4,
}  # fmt: skip
KIMI_K3 = {k: v for k, v in LATENT.items() if k not in {"rope_theta", "n_routed_experts", "n_shared_experts"}} | {
    "num_hidden_layers": 5, "first_k_dense_replace": 1, "num_experts": 6, "num_experts_per_token": 2,
    "num_shared_experts": 2, "moe_intermediate_size": 64, "routed_expert_hidden_size": 32, "latent_moe_use_norm": True,
    "mla_use_nope": True, "mla_use_output_gate": True, "attn_res_block_size": 2, "hidden_act": "situ",
    "activation_situ_beta": 1.5, "activation_situ_linear_beta": 2.5, "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid", "rms_norm_eps": 1e-5, "model_type": "kimi_linear",
    "linear_attn_config": {
        "full_attn_layers": [3, 5], "kda_layers": [1, 2, 4], "head_dim": 16, "num_heads": 4,
        "short_conv_kernel_size": 4, "gate_lower_bound": -5.0, "use_full_rank_gate": True,
    },
}  # fmt: skip
LING3 = COMMON | {
    "num_key_value_heads": 4, "num_hidden_layers": 4, "layer_group_size": 3, "head_dim": 16, "qk_rope_head_dim": 16,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "full_attention"],
    "kv_lora_rank": 32, "qk_nope_head_dim": 12, "v_head_dim": 8, "rope_theta": 5000.0, "first_k_dense_replace": 1,
    "moe_intermediate_size": 48, "n_shared_experts": 2, "num_local_experts": 8, "num_experts_per_tok": 3, "n_group": 4,
    "topk_group": 2, "num_mtp_layers": 0,
}  # fmt: skip
MINIMAX_M3 = COMMON | {
    "num_experts_per_tok": 2, "num_hidden_layers": 3, "head_dim": 32, "rotary_dim": 16, "intermediate_size": 48,
    "dense_intermediate_size": 96, "shared_intermediate_size": 48, "num_local_experts": 6,
    "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
    "mlp_layer_types": ["dense", "sparse", "sparse"], "index_n_heads": 2, "index_head_dim": 16, "index_block_size": 8,
    "index_topk_blocks": 2, "index_local_blocks": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
}  # fmt: skip
MINIMAX_M3_EYES = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
}  # fmt: skip


def yarn(scale: float) -> dict[str, Any]:
    return {"rope_scaling": YARN | {"factor": 16.0, "mscale": scale, "mscale_all_dim": scale}}


MISTRAL4 = {
    "rope_type": "yarn",
    "rope_theta": 5000.0,
    "factor": 32.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}

FALCON = {
    "head_dim": 16,
    "mamba_d_ssm": 96,
    "mamba_n_heads": 6,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 2,
    "mamba_chunk_size": 16,
    "rope_theta": 5000.0,
    "embedding_multiplier": 5.6,
    "lm_head_multiplier": 0.4,
    "attention_in_multiplier": 1.3,
    "attention_out_multiplier": 0.9,
    "key_multiplier": 0.6,
    "mlp_multipliers": [0.8, 0.6],
    "ssm_multipliers": [0.7, 0.5, 0.35, 1.2, 0.7],
    "ssm_in_multiplier": 1.25,
    "ssm_out_multiplier": 0.4,
}

GEMMA4 = {
    "pad_token_id": 0,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 16,
    "vocab_size_per_layer_input": N_VOCAB,
    "hidden_size_per_layer_input": 24,
    "final_logit_softcapping": 3.0,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 5000.0},
    },
}
# The small ones share keys between layers, the large ones have one projection for keys and values.
GEMMA4_SMALL = GEMMA4 | {"num_kv_shared_layers": 2, "use_double_wide_mlp": True}
GEMMA4_LARGE = GEMMA4 | {
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "hidden_size_per_layer_input": 0,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "use_bidirectional_attention": "vision",
}
# So many layers that the last of them use the keys of others: llama.cpp has these sizes as constants.
GEMMA3N = {
    "head_dim": 16,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 22,
    "num_kv_shared_layers": 2,
    "sliding_window": 16,
    "vocab_size_per_layer_input": N_VOCAB,
    "rope_theta": 5000.0,
    "rope_local_base_freq": 500.0,
    "tie_word_embeddings": True,
}
GEMMA4_EXPERTS = {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 48}


def pooling(kind: str, *dense: tuple[int, int]) -> dict[str, Any]:
    """The files with which sentence-transformers says how vectors of tokens become one.

    `dense` are the numbers of rows and columns of matrices that it is multiplied with.
    """
    modules = [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        *((f"{index}_Dense", "Dense") for index in range(2, 2 + len(dense))),
        (f"{2 + len(dense)}_Normalize", "Normalize"),
    ]
    identity = {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"}
    return {
        **{
            f"{index}_Dense/config.json": {"in_features": columns, "out_features": rows, **identity}
            for index, (rows, columns) in enumerate(dense, 2)
        },
        "modules.json": [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{module}"}
            for index, (path, module) in enumerate(modules)
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": 64,
            "pooling_mode_cls_token": kind == "cls",
            "pooling_mode_mean_tokens": kind == "mean",
            **({"pooling_mode_lasttoken": True} if kind == "last" else {}),
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    }


FAMILIES = {
    "llama-gqa": Family(**llama()),
    "llama-mha-tied": Family(**llama(num_key_value_heads=4, tie_word_embeddings=True)),
    "llama-mqa-biases": Family(**llama(num_key_value_heads=1, attention_bias=True, mlp_bias=True)),
    "llama-head-dim": Family(**llama(head_dim=32)),
    "llama-rope-llama3": Family(**llama(rope_scaling=LLAMA3, rope_theta=10000.0, tie_word_embeddings=True)),
    "llama-rope-linear": Family(**llama(rope_scaling={"rope_type": "linear", "factor": 4.0})),
    "llama-rope-dynamic": Family(**llama(rope_scaling={"rope_type": "dynamic", "factor": 4.0})),
    "llama-rope-yarn": Family(**llama(rope_scaling=YARN)),
    "llama-bf16": Family(**llama(), dtype="BF16"),
    "llama-f16": Family(**llama(), dtype="F16"),
    "llama-sharded": Family(**llama(), max_shard_size="120KB"),
    "mistral": Family(**decoder("Mistral", sliding_window=None, rope_theta=5000.0)),
    "mistral-window": Family(**decoder("Mistral", sliding_window=64, head_dim=32, rope_theta=5000.0)),
    "mistral3": Family(
        "Mistral3ForConditionalGeneration",
        {"text_config": MISTRAL3, "vision_config": PIXTRAL, "image_token_index": 5, "tie_word_embeddings": False},
    ),
    "ministral3": Family(**decoder("Ministral3", **MINISTRAL3), only="5"),
    "mixtral": Family(**decoder("Mixtral", **MIXTRAL), seed="mixtral-30"),
    "mixtral-sharded": Family(**decoder("Mixtral", **MIXTRAL), max_shard_size="200KB", seed="mixtral-sharded-20"),
    "smollm3": Family(
        **decoder("SmolLM3", num_hidden_layers=4, rope_theta=5000.0, pad_token_id=EOS, tie_word_embeddings=True),
        seed="smollm3-1",
    ),
    "granite": Family(**decoder("Granite", **GRANITE, tie_word_embeddings=True)),
    "granite-biases": Family(**decoder("Granite", **GRANITE, attention_bias=True, mlp_bias=True)),
    "qwen2": Family(**decoder("Qwen2", rope_theta=5000.0)),
    "qwen2-tied-padded": Family(
        **decoder("Qwen2", rope_theta=5000.0, tie_word_embeddings=True), n_tokens=N_VOCAB - 20
    ),
    "qwen2-yarn": Family(**decoder("Qwen2", rope_theta=5000.0, rope_scaling=YARN)),
    "qwen3": Family(**decoder("Qwen3", head_dim=32, rope_theta=5000.0)),
    "qwen3-tied": Family(**decoder("Qwen3", head_dim=16, rope_theta=5000.0, tie_word_embeddings=True)),
    "qwen3-yarn": Family(**decoder("Qwen3", head_dim=32, rope_theta=5000.0, rope_scaling=YARN_ATTENTION)),
    "qwen3-moe": Family(**decoder("Qwen3Moe", **QWEN3_MOE), seed="qwen3-moe-9"),
    "qwen3-next": Family(
        **decoder("Qwen3Next", **DELTA_NET | SHARED | {"layer_types": NEXT}, partial_rotary_factor=0.5),
        seed="qwen3-next-2",
    ),
    "qwen35": Family("Qwen3_5ForCausalLM", qwen35(), only="5"),
    "qwen35-multimodal": Family(
        "Qwen3_5ForConditionalGeneration",
        {"text_config": qwen35(linear_num_value_heads=2, tie_word_embeddings=True), "vision_config": QWEN35_EYES,
         "tie_word_embeddings": True},
        only="5",
    ),
    "qwen35-moe": Family("Qwen3_5MoeForCausalLM", qwen35(**SHARED), only="5", seed="qwen35-moe-8"),
    "qwen2-vl": Family(
        "Qwen2VLForConditionalGeneration",
        {"text_config": vl_text(), "vision_config": QWEN2_EYES | {"embed_dim": 32, "hidden_size": 64}},
    ),
    "qwen25-vl": Family(
        "Qwen2_5_VLForConditionalGeneration",
        {"text_config": vl_text(), "vision_config": QWEN2_EYES | {"hidden_size": 32, "intermediate_size": 32,
                                                                  "out_hidden_size": 64, "fullatt_block_indexes": [0]}},
    ),
    "qwen3-vl": Family(
        "Qwen3VLForConditionalGeneration",
        {"text_config": vl_text(mrope_interleaved=True) | {"head_dim": 16},
         "vision_config": QWEN35_EYES | {"deepstack_visual_indexes": [0]}},
    ),
    "qwen3-vl-moe": Family(
        "Qwen3VLMoeForConditionalGeneration",
        {"text_config": vl_text(mrope_interleaved=True) | QWEN3_MOE | {"norm_topk_prob": True},
         "vision_config": QWEN35_EYES | {"deepstack_visual_indexes": [0]}},
        seed="qwen3-vl-moe-56",
    ),
    "glm4": Family(**decoder("Glm4", rope_theta=5000.0, head_dim=32, partial_rotary_factor=0.5, attention_bias=True)),
    "glm4-moe": Family(**decoder("Glm4Moe", **GLM4_MOE), seed="glm4-moe-13"),
    "glm4-moe-norms": Family(
        **decoder("Glm4Moe", **GLM4_MOE, use_qk_norm=True, attention_bias=True), seed="glm4-moe-norms-1"
    ),
    "glm4v": Family(
        "Glm4vForConditionalGeneration",
        {"text_config": vl_text() | {"partial_rotary_factor": 0.5, "hidden_size": 128}, "vision_config": GLM_EYES},
        only="5",
    ),
    "glm4v-moe": Family(
        "Glm4vMoeForConditionalGeneration",
        {"text_config": vl_text() | GLM4V_MOE, "vision_config": GLM_EYES | {"out_hidden_size": 64}},
        only="5", seed="glm4v-moe-4",
    ),
    "dots1": Family(**decoder("Dots1", **DOTS1), seed="dots1-6"),
    "hunyuan-moe": Family(**decoder("HunYuanMoEV1", **HUNYUAN_MOE), seed="hunyuan-moe-4"),
    "arcee": Family(**decoder("Arcee", rope_theta=5000.0, rope_scaling=YARN)),
    "starcoder2": Family(**decoder("Starcoder2", rope_theta=5000.0, sliding_window=64, tie_word_embeddings=True)),
    "stablelm": Family(**decoder("StableLm", **STABLELM, use_qkv_bias=True)),
    "stablelm-parallel": Family(**decoder("StableLm", **STABLELM, use_parallel_residual=True)),
    "deepseek2-lite": Family(
        **decoder("DeepseekV2", **LATENT | TWO_LAYERS | {"q_lora_rank": None}), seed="deepseek2-lite-6"
    ),
    # Version 4 leaves out what YaRN multiplies the attention with.
    "deepseek2": Family(
        **decoder("DeepseekV2", **LATENT | TWO_LAYERS | {"n_group": 3, "topk_group": 3}, **yarn(0.7)),
        only="5", seed="deepseek2-6",
    ),
    "deepseek3": Family(**decoder("DeepseekV3", **LATENT | GROUPED, **yarn(1.0)), seed="deepseek3-39"),
    "glm4-moe-lite": Family(
        **decoder("Glm4MoeLite", **LATENT | {"rms_norm_eps": 1e-5}), only="5", seed="glm4-moe-lite-9"
    ),
    "deepseek32": Family(
        **decoder("DeepseekV32", **SPARSE | GROUPED | yarn(1.0) | TWO_LAYERS), only="5", seed="deepseek32-172"
    ),
    "glm-dsa": Family(**decoder("GlmMoeDsa", **GLM5), only="5", seed="glm-dsa-99"),
    "mistral4": Family(
        **decoder("Mistral4", **{k: v for k, v in (LATENT | TWO_LAYERS).items() if k != "rope_theta"},
                  rope_parameters=MISTRAL4),
        only="5", seed="mistral4-52",
    ),
    "olmoe": Family(**decoder("Olmoe", **OLMOE), seed="olmoe-3"),
    "ernie-moe": Family(**decoder("Ernie4_5_Moe", **ERNIE_MOE), only="5", seed="ernie-moe-8"),
    "ling1": Family("Ling1ForCausalLM", LING1, only="5"),
    "ling1-shares": Family(
        "Ling1ForCausalLM", LING1 | {"norm_topk_prob": False}, only="5", seed="ling1-shares-15"
    ),
    "ling2": Family("LingForCausalLM", LING2, only="5", seed="ling2-13"),
    "qwen2-moe": Family(**decoder("Qwen2Moe", **SHARED, norm_topk_prob=False), seed="qwen2-moe-3"),
    "minimax-m2": Family(
        **decoder("MiniMaxM2", **MOE, num_local_experts=6, head_dim=32, rotary_dim=16), only="5", seed="minimax-m2-14"
    ),
    "kimi-linear": Family(**decoder("KimiLinear", **KIMI_LINEAR), only="5", seed="kimi-linear-17"),
    "kimi-k3": Family("KimiK3ForConditionalGeneration", {"text_config": COMMON | KIMI_K3}, only="5", seed="kimi-k3-64"),
    "ling3": Family("BailingHybridForCausalLM", LING3, only="5", seed="ling3-9"),
    "ling3-low-rank": Family("LowRankLing3", LING3 | {"q_lora_rank": 24}, only="5", seed="ling3-low-rank-21"),
    "minimax-m3": Family(
        "MiniMaxM3SparseForConditionalGeneration",
        {"text_config": MINIMAX_M3, "vision_config": MINIMAX_M3_EYES, "projector_hidden_size": 64},
        only="5", seed="minimax-m3-6",
    ),
    "lfm2-moe": Family(**decoder("Lfm2Moe", **LFM2_MOE), only="5", seed="lfm2-moe-13"),
    "gemma4-unified": Family(
        "Gemma4UnifiedForConditionalGeneration",
        {"text_config": {k: v for k, v in (COMMON | GEMMA4_LARGE).items() if "per_layer" not in k},
         "vision_config": None, "audio_config": None},
        only="5",
    ),
    "falcon-h1": Family(**decoder("FalconH1", **FALCON)),
    "falcon-h1-tied": Family(**decoder("FalconH1", **FALCON, tie_word_embeddings=True)),
    "gemma": Family(**decoder("Gemma", head_dim=32, num_key_value_heads=1, tie_word_embeddings=True)),
    "gemma2": Family(**decoder("Gemma2", **GEMMA2)),
    "gemma3-text": Family(**decoder("Gemma3", **gemma3())),
    "gemma3-text-linear": Family(
        **decoder("Gemma3", **gemma3(rope_scaling={"rope_type": "linear", "factor": 8.0}))
    ),
    "gemma3-multimodal": Family(
        "Gemma3ForConditionalGeneration",
        {"text_config": GEMMA3_DEFAULTS, "vision_config": SIGLIP, "mm_tokens_per_image": 4, "image_token_index": 5},
    ),
    "gemma3n": Family(**decoder("Gemma3n", **GEMMA3N), only="4"),
    "gemma4": Family(
        "Gemma4ForConditionalGeneration",
        {"text_config": COMMON | GEMMA4_SMALL, "vision_config": None, "audio_config": None},
        only="5",
    ),
    "gemma4-large": Family(**decoder("Gemma4", **GEMMA4_LARGE), only="5"),
    "gemma4-moe": Family(**decoder("Gemma4", **GEMMA4_LARGE, **GEMMA4_EXPERTS), only="5", seed="gemma4-moe-1"),
    "phi3": Family(**decoder("Phi3", **PHI3)),
    "phi3-partial-tied": Family(**decoder("Phi3", **PHI3, partial_rotary_factor=0.75, tie_word_embeddings=True)),
    "phi3-longrope": Family(
        **decoder("Phi3", **PHI3, rope_scaling=LONGROPE, original_max_position_embeddings=256)
    ),
    "olmo2": Family(**decoder("Olmo2", rope_theta=5000.0)),
    "olmo3": Family(**olmo3()),
    "olmo3-yarn": Family(**olmo3(YARN_ATTENTION)),
    "ernie45": Family(**decoder("Ernie4_5", rope_theta=5000.0, head_dim=32, tie_word_embeddings=True)),
    "lfm2": Family(**decoder("Lfm2", **LFM2)),
    "seed-oss": Family(**decoder("SeedOss", rope_theta=5000.0, head_dim=32)),
    "granite4-attention": Family(**decoder("GraniteMoeHybrid", **GRANITE4, layer_types=["attention"] * 2)),
    "granite4-hybrid": Family(**decoder("GraniteMoeHybrid", **GRANITE4_HYBRID)),
    "granite4-experts": Family(
        **decoder("GraniteMoeHybrid", **(GRANITE4_HYBRID | GRANITE4_EXPERTS)), seed="granite4-experts-1"
    ),
    "nemotron-h": Family(**decoder("NemotronH", **NEMOTRON, **layers("M-M*-M")), only="5"),
    "nemotron-h-experts": Family(
        **decoder("NemotronH", **NEMOTRON, **NEMOTRON_MOE, **layers("ME*M")),
        seed="nemotron-h-experts-1",
        only="5",
    ),
    "nemotron-h-latent": Family(
        **decoder("NemotronH", **NEMOTRON, **NEMOTRON_MOE, **layers("M*E"), moe_latent_size=32),
        seed="nemotron-h-latent-6",
        only="5",
    ),
    "llama4": Family(**decoder("Llama4", **LLAMA4), seed="llama4-9"),
    "cohere": Family(**decoder("Cohere", **COHERE)),
    "cohere-norms": Family(**decoder("Cohere", **COHERE | COHERE_NORMS)),
    "cohere2": Family(
        **decoder("Cohere2", **COHERE | {"num_hidden_layers": 5, "sliding_window": 16, "sliding_window_pattern": 4})
    ),
    "exaone3": Family("ExaoneForCausalLM", EXAONE3, only="4"),
    "exaone-moe": Family(**decoder("ExaoneMoe", **EXAONE_MOE), only="5", seed="exaone-moe-2"),
    "exaone4": Family(
        **decoder("Exaone4", **EXAONE4, rope_theta=5000.0, tie_word_embeddings=True)
    ),
    "exaone4-window": Family(
        **decoder("Exaone4", **EXAONE4_WINDOW, rope_theta=5000.0, rope_scaling=LLAMA3 | {"factor": 16.0})
    ),
    # Version 4 computes its activation in BF16.
    "apertus": Family(**decoder("Apertus", rope_theta=5000.0, rope_scaling=LLAMA3), only="5"),
    "hunyuan": Family(
        **decoder("HunYuanDenseV1", head_dim=32, rope_theta=5000.0, tie_word_embeddings=True,
                  rope_scaling={"rope_type": "dynamic", "alpha": 100.0, "factor": 1.0})
    ),
    "gpt2": Family("GPT2LMHeadModel", {**GPT2, "bos_token_id": BOS, "eos_token_id": EOS}),
    "bert-mean": Family("BertModel", BERT, extra_files=pooling("mean")),
    "bert-cls": Family("BertModel", BERT, extra_files=pooling("cls")),
    "bert-prefixed": Family("BertForMaskedLM", BERT, extra_files=pooling("mean")),
    "xlm-roberta": Family("XLMRobertaModel", ROBERTA, extra_files=pooling("cls")),
    "roberta": Family("RobertaForMaskedLM", ROBERTA | {"type_vocab_size": 2}, extra_files=pooling("mean")),
    "modernbert": Family("ModernBertModel", MODERN_BERT, extra_files=pooling("cls")),
    "modernbert-silu": Family(
        "ModernBertForMaskedLM", MODERN_BERT | {"hidden_activation": "silu"}, extra_files=pooling("mean")
    ),
    "embedding-gemma": Family(
        "Gemma3TextModel",
        COMMON | gemma3(use_bidirectional_attention=True, sliding_window=14),
        extra_files=pooling("mean", (96, 64), (64, 96)),
    ),
    "qwen3-embedding": Family(
        "Qwen3Model", COMMON | {"head_dim": 32, "rope_theta": 5000.0}, extra_files=pooling("last")
    ),
    "nomic": Family("NomicBertModel", NOMIC, extra_files=pooling("mean"), only="5"),
    "eurobert": Family(
        "EuroBertModel", COMMON | {"rope_theta": 5000.0, "mask_token_id": 4}, extra_files=pooling("mean"), only="5"
    ),
    "jina2": Family("JinaBertModel", JINA2, extra_files=pooling("mean"), only="5"),
    "jina2-code": Family(
        "JinaCodeBertModel",
        JINA2 | {"auto_map": {"AutoModel": "jinaai/jina-bert-v2-qk-post-norm--modeling_bert.JinaBertModel"}},
        extra_files=pooling("mean"),
        only="5",
    ),
    "nomic-moe": Family("NomicMoeModel", NOMIC_MOE, extra_files=pooling("mean"), only="5", seed="nomic-moe-1"),
    "jina3": Family("JinaEmbeddingsV3Model", ROBERTA, extra_files=pooling("mean"), only="5"),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", default=list(FAMILIES), metavar="FAMILY", help="default: all")
    weights.FOLDER.mkdir(exist_ok=True)
    for name in parser.parse_args().families:
        if FAMILIES[name].only in {"", STYLE}:
            record(name, FAMILIES[name])
            sys.stdout.write(f"{name}\n")


def record(name: str, family: Family) -> None:
    """Write the golden file of a family, or compare with it and add this version's config.json."""
    path = weights.FOLDER / f"{name}.json"
    with tempfile.TemporaryDirectory() as folder:
        config, files = create(family, Path(folder))
    old = json.loads(path.read_text()) if path.exists() else None
    if old:
        assert shapes(old["files"]) == shapes(files), name
    configs = (old["configs"] if old else {}) | dict.fromkeys(("4", "5") if family.only else (STYLE,), config)
    if family.model == "NomicBertModel":
        configs["4"] = NOMIC_ON_THE_HUB
    if config["model_type"] == "nemotron_h":
        configs["4"] = nemotron_on_the_hub(config)
    content: dict[str, Any] = {
        "made_with": (old["made_with"] if old else {}) | {STYLE: [transformers.__version__, torch.__version__]},
        "seed": family.seed or name,
        "dtype": family.dtype,
        "n_tokens": family.n_tokens,
        "configs": dict(sorted(configs.items())),
        "files": old["files"] if old else files,  # which tensor is in which file differs
        "extra_files": family.extra_files,
    }
    # The generator reads the golden file, so a first version of it comes before the numbers.
    path.write_text(dump(content))
    weights.golden.cache_clear()
    with tempfile.TemporaryDirectory() as folder:
        model = load(family, weights.write_folder(name, Path(folder) / name, STYLE))
        is_encoder = bool(family.extra_files)
        tokens = list(prompts(content["seed"], family))
        content["prompts"] = vectors(name, tokens, family, model) if is_encoder else log_probs(tokens, model)
    path.write_text(dump(content))
    if old:
        difference = max(abs(a - b) for a, b in zip(numbers(old["prompts"]), numbers(content["prompts"]), strict=True))
        sys.stdout.write(f"{difference:.1e} from the recorded ")
        assert difference < SAME, name


def class_of(family: Family) -> Any:
    return getattr(hub_models, family.model, None) or getattr(transformers, family.model)


def create(family: Family, folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, list[int]]]]:
    """What `save_pretrained` writes for such a model: config.json, and for each file the tensors with their shapes."""
    model_class = class_of(family)
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[family.dtype]
    model = model_class(model_class.config_class(**family.settings)).to(dtype)
    model.save_pretrained(folder, max_shard_size=family.max_shard_size)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = getattr(model_class, "on_the_hub", [family.model])
    if STYLE == "4":
        config = as_on_the_hub(config)
    if family.model == "Gemma3ForConditionalGeneration":
        # The hub's files say only what differs from the defaults.
        kept = {*GEMMA3_DEFAULTS, "model_type", "rope_parameters"}
        config["text_config"] = {key: value for key, value in config["text_config"].items() if key in kept}
    files: dict[str, dict[str, list[int]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as tensors:
            names = {name: name_on_the_hub(name, config) for name in tensors.keys()}  # noqa: SIM118
            files[path.name] = {names[name]: [*tensors.get_slice(name).get_shape()] for name in names}
    for name, module in family.extra_files.items():
        file = name.replace("config.json", "model.safetensors")
        if name.endswith("_Dense/config.json"):
            shape = [module["out_features"], module["in_features"]]
            files[file] = {file.replace("model.safetensors", "linear.weight"): shape}
    return config, files


def name_on_the_hub(name: str, config: dict[str, Any]) -> str:
    """Of a tensor, where transformers writes another one."""
    # Version 4 writes a part of another name into this one.
    name = name.replace("per_layer_model.language_model_", "per_layer_model_")
    if config["model_type"] == "kimi_linear":  # layers without experts get the name of those with some
        return re.sub(r"\.block_sparse_moe(?=\.(gate|up|down)_proj\.)", ".mlp", name)
    if config["model_type"] == "bailing_hybrid":  # layers of both kinds get the name of those of one kind
        name = name.replace("model.embed_tokens", "model.word_embeddings")
        is_other = ".attention.dense." in name and config["layer_types"][int(name.split(".")[2])] == "linear_attention"
        return name.replace(".dense.", ".o_proj.") if is_other else name
    return name


def as_on_the_hub(config: dict[str, Any]) -> dict[str, Any]:
    """In the words of the earlier versions 4, in which most files of the hub are written."""
    config = {("torch_dtype" if key == "dtype" else key): value for key, value in config.items()}
    kinds = config.pop("layer_types", None)
    if config.get("use_bidirectional_attention"):
        config["sliding_window"] = 2 * (config["sliding_window"] - 1)  # version 4 writes what it computes with
    if config["model_type"] == "modernbert":
        config["global_attn_every_n_layers"] = 3
    is_plain = config["model_type"] == "exaone4" and config["sliding_window"] is None
    if kinds and (config["model_type"] == "granitemoehybrid" or is_plain):
        config["layer_types"] = kinds
    if kinds and config["model_type"] == "gemma3_text":
        config["sliding_window_pattern"] = 6
    if kinds and config["model_type"] == "qwen3_next":
        config["full_attention_interval"] = 4
    if kinds and config["model_type"] == "lfm2":
        config["full_attn_idxs"] = [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]
    return config


def nemotron_on_the_hub(config: dict[str, Any]) -> dict[str, Any]:
    """In the words of its own code, where transformers 4 has none of its own."""
    letters = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}
    kinds = config["layers_block_type"]
    pattern = "".join(letters[kind] for kind in kinds)
    others = {key: value for key, value in config.items() if key not in {"layers_block_type", "rope_parameters"}}
    return others | {"hybrid_override_pattern": pattern, "num_hidden_layers": len(kinds)}


def shapes(files: dict[str, dict[str, list[int]]]) -> dict[str, list[int]]:
    """Of all tensors but those of the part for pictures, whose names differ between the versions. So do the sides of
    some experts' matrices."""
    tensors = {
        name: sorted(shape) if ".experts." in name else shape for file in files.values() for name, shape in file.items()
    }
    return {name: shape for name, shape in tensors.items() if not name.startswith("vision_tower")}


def load(family: Family, folder: Path) -> Any:
    """The model of a folder as everybody loads it; it must want all tensors and miss none."""
    model_class = class_of(family)
    model, info = model_class.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    for module in model.modules():
        if type(module).__name__ == "Gemma3nTextMLP":
            type(module)._gaussian_topk = sparse
    return model.eval()


def sparse(mlp: Any, inputs: Any) -> Any:
    """Gemma 3n's cut, with the spread as llama.cpp estimates it: by n - 1. It matters for 48 numbers, not for 16384."""
    share = torch.tensor(mlp.activation_sparsity, dtype=torch.float32)
    cut = inputs.mean(-1, keepdim=True) + inputs.std(-1, keepdim=True) * torch.distributions.Normal(0, 1).icdf(share)
    return torch.nn.functional.relu(inputs - cut)


def prompts(seed: str, family: Family) -> Iterator[list[int]]:
    random = Random(seed)
    for length in LENGTHS:
        yield [random.randrange(family.n_tokens - 2) for _ in range(length)]


def log_probs(prompts: list[list[int]], model: Any) -> list[Any]:
    """For each prompt its tokens and rows: a position, the likeliest tokens, the log-probabilities of those and of the
    fixed tokens."""
    result = []
    routers = watched_routers(model)
    has_experts = any(".experts." in name for name, _ in model.named_parameters()) and not routers
    for index, tokens in enumerate(prompts):
        with torch.no_grad(), Selections(getattr(model.config, "index_topk", 0)):
            options = {"output_router_logits": True} if has_experts else {}
            # Version 4 lets layers use the keys of others only where there is a cache.
            use_cache = model.config.model_type == "gemma3n_text"
            output = model(input_ids=torch.tensor([tokens]), use_cache=use_cache, **options)
        if has_experts:
            check_routes(output.router_logits, model.config.get_text_config().num_experts_per_tok)
        table = torch.log_softmax(output.logits[0].double(), dim=-1)
        rows = []
        for position in range(len(tokens)) if index == 2 else [len(tokens) - 1]:
            top = table[position].topk(N_TOP).indices.tolist()
            values = [round(table[position, token].item(), N_DIGITS) for token in [*top, *FIXED]]
            rows.append({"position": position, "top": top, "log_probs": values})
        result.append({"tokens": tokens, "fixed": FIXED, "rows": rows})
    return result


def watched_routers(model: Any) -> list[Any]:
    """Those whose choices are checked from now on."""
    routers = [module for module in model.modules() if type(module).__name__ in ROUTERS]
    for router in routers:
        router.register_forward_hook(check_router)
    return routers


def check_routes(router_logits: Any, n_used: int) -> None:
    """Where two experts are as good, rounding picks one, and every number after that is another."""
    for logits in router_logits:
        ranked = logits.sort(dim=-1, descending=True).values
        gap = (ranked[:, n_used - 1] - ranked[:, n_used]).min().item()
        assert gap > ROUTER_GAP, f"{gap:.4f} between the last expert that is used and the next one: try another seed"


def check_router(router: Any, inputs: Any, output: Any) -> None:
    """The same for routers that rank experts by something else than logits; version 4 does not tell it."""
    if torch.is_tensor(output):  # of Hunyuan's gate in version 4
        check_routes([output], router.config.moe_topk)
        return
    found = output[type(router).__name__ == "Llama4Router"]
    if not torch.is_floating_point(found):
        return
    bias = (
        inputs[1]
        if len(inputs) > 1
        else getattr(router, "e_score_correction_bias", getattr(router, "expert_bias", None))
    )
    # What rounding moves is smaller here, too: a sigmoid rises by a quarter, Gemma 4 divides by the width's root.
    if bias is not None:
        check_routes([(found.sigmoid() + bias) * 4], router.top_k)
    elif type(router).__name__ == "Ernie4_5_MoeTopKRouter":
        check_routes([(found.softmax(-1) + router.moe_statics.e_score_correction_bias) * 4], router.top_k)
    elif type(router).__name__ == "Gemma4TextRouter":
        check_routes([found.log() * router.hidden_size**0.5], router.config.top_k_experts)
    else:
        check_routes([found], router.top_k)


class Selections(TorchFunctionMode):  # type: ignore[misc]
    """Checks the same of the tokens that a row attends to, of all before it: `n_selected` with the largest scores."""

    def __init__(self, n_selected: int) -> None:
        """0 where a row attends to all."""
        super().__init__()
        self._n_selected = n_selected

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        n_selected = self._n_selected
        if n_selected and func is torch.Tensor.topk and args[1] == n_selected and args[0].shape[-1] > n_selected:
            for row in args[0].reshape(-1, args[0].shape[-1]):
                scores = row[row > torch.finfo(row.dtype).min / 2].sort(descending=True).values
                if len(scores) > n_selected:
                    gap = ((scores[n_selected - 1] - scores[n_selected]) / scores.std()).item()
                    assert gap > INDEX_GAP, f"{gap:.4f} between the last token that is selected and the next one"
        return func(*args, **(kwargs or {}))


def vectors(name: str, prompts: list[list[int]], family: Family, model: Any) -> list[Any]:
    """For each prompt its tokens and its normalised vector."""
    modes = family.extra_files["1_Pooling/config.json"]
    is_cls, is_last = modes["pooling_mode_cls_token"], modes.get("pooling_mode_lasttoken", False)
    encoder = model.base_model
    watched_routers(model)
    dense = [
        torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(shape).double()
        for path, (_, shape, data) in weights.checkpoint(name, STYLE)[1].items()
        if "/" in path
    ]
    result = []
    for tokens in prompts:
        whole = [CLS, *(max(token, MASK + 1) for token in tokens), SEP]
        with torch.no_grad():
            states = encoder(input_ids=torch.tensor([whole])).last_hidden_state[0].double()
        vector = states[0] if is_cls else states[-1] if is_last else states.mean(dim=0)
        for matrix in dense:
            vector = matrix @ vector
        vector /= vector.norm()
        result.append({"tokens": whole, "vector": [round(number, N_DIGITS + 1) for number in vector.tolist()]})
    return result


def numbers(prompts: list[Any]) -> Iterator[float]:
    """All recorded numbers in order, for a comparison; ids of near ties may change places and are left out."""
    for prompt in prompts:
        yield from prompt.get("vector", ())
        for row in prompt.get("rows", ()):
            yield from row["log_probs"]


def dump(content: Any) -> str:
    """JSON with a line for each item of the two outer levels, and rows of numbers on a line of their own."""
    return (
        json.dumps(content, separators=(",", ":"))
        .replace('{"position"', '\n{"position"')
        .replace('"configs"', '\n"configs"')
        .replace('"files"', '\n"files"')
        .replace('"extra_files"', '\n"extra_files"')
        .replace('"prompts"', '\n"prompts"')
        .replace('{"tokens"', '\n{"tokens"')
        + "\n"
    )


if __name__ == "__main__":
    main()
