"""Models that `transformers` has no class for, by the formulas of the code that lies beside them on the hub.

Written anew and without what is of no use here (dropout, caches, masks of padding): one text at a time, in F32. The
names of tensors and the keys of config.json are those of the hub. families.py records with it.
"""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

try:
    from transformers.models.bailing_hybrid.modeling_bailing_hybrid import (
        BailingHybridAttention,
        BailingHybridForCausalLM,
    )
except ImportError:  # version 4, which records no Ling 3
    BailingHybridAttention = BailingHybridForCausalLM = nn.Module


def heads(states: Tensor, n_heads: int) -> Tensor:
    """[texts, tokens, width] as [texts, heads, tokens, width of a head]."""
    return states.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """What each head reads, side by side."""
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


class Embeddings(nn.Module):
    """Of tokens, and of the first of the kinds of texts."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        return self.word_embeddings(ids) + self.token_type_embeddings.weight[0]


# -- Jina Embeddings v2: jinaai/jina-bert-implementation, and jinaai/jina-bert-v2-qk-post-norm for code ---------------


def slopes(n_heads: int) -> list[float]:
    """Of ALiBi (https://arxiv.org/abs/2108.12409), for any number of heads."""
    n = 2 ** math.floor(math.log2(n_heads))
    first = [2 ** (-8 * (head + 1) / n) for head in range(n)]
    return first + [2 ** (-8 * (head + 1) / (2 * n)) for head in range(0, 2 * (n_heads - n), 2)]


class JinaBertConfig(PretrainedConfig):
    model_type = "bert"
    is_for_code = False


class JinaCodeBertConfig(JinaBertConfig):
    is_for_code = True


class JinaSelf(nn.Module):
    def __init__(self, config: Any, norm: Any) -> None:
        super().__init__()
        self.n_heads = config.num_attention_heads
        self.query, self.key, self.value = (nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3))
        self.layer_norm_q, self.layer_norm_k = (norm() if config.is_for_code else nn.Identity() for _ in range(2))

    def forward(self, states: Tensor) -> Tensor:
        places = torch.arange(states.shape[1])
        distances = (places[:, None] - places[None]).abs()
        bias = -torch.tensor(slopes(self.n_heads))[:, None, None] * distances
        found = self.layer_norm_q(self.query(states)), self.layer_norm_k(self.key(states)), self.value(states)
        query, key, value = (heads(one, self.n_heads) for one in found)
        return attend(query, key, value, bias)


class JinaMlp(nn.Module):
    def __init__(self, config: Any, norm: Any) -> None:
        super().__init__()
        self.is_for_code = config.is_for_code
        gated = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        down = nn.Linear(config.intermediate_size, config.hidden_size)
        if self.is_for_code:
            self.up_gated_layer, self.down_layer = gated, down
        else:
            self.gated_layers, self.wo, self.layernorm = gated, down, norm()

    def forward(self, states: Tensor) -> Tensor:
        """With the residual and the norm, but for code."""
        if self.is_for_code:
            up, gate = self.up_gated_layer(states).chunk(2, -1)
            return self.down_layer(up * nn.functional.gelu(gate))
        gate, up = self.gated_layers(states).chunk(2, -1)
        return self.layernorm(states + self.wo(nn.functional.gelu(gate) * up))


class JinaLayer(nn.Module):
    def __init__(self, config: Any, norm: Any) -> None:
        super().__init__()
        self.is_for_code = config.is_for_code
        output = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.hidden_size), "LayerNorm": norm()})
        self.attention = nn.ModuleDict({"self": JinaSelf(config, norm), "output": output})
        self.mlp = JinaMlp(config, norm)
        if self.is_for_code:
            self.layer_norm_1, self.layer_norm_2 = norm(), norm()

    def forward(self, states: Tensor) -> Tensor:
        output: Any = self.attention["output"]
        found = output["LayerNorm"](states + output["dense"](self.attention["self"](states)))
        if not self.is_for_code:
            return self.mlp(found)
        found = self.layer_norm_1(states + found)
        return self.layer_norm_2(found + self.mlp(found))


class JinaBertModel(PreTrainedModel):
    config_class: ClassVar[Any] = JinaBertConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

        self.embeddings = Embeddings(config)
        self.embeddings.LayerNorm = norm()
        layers = nn.ModuleList(JinaLayer(config, norm) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.post_init()

    def forward(self, input_ids: Tensor) -> BaseModelOutput:
        states = self.embeddings.LayerNorm(self.embeddings(input_ids))
        for layer in self.encoder["layer"]:
            states = layer(states)
        return BaseModelOutput(last_hidden_state=states)


class JinaCodeBertModel(JinaBertModel):
    on_the_hub: ClassVar[list[str]] = ["JinaBertForMaskedLM"]
    config_class: ClassVar[Any] = JinaCodeBertConfig


# -- nomic-embed-text-v2-moe: nomic-ai/nomic-bert-2048 ----------------------------------------------------------------


class NomicMoeConfig(PretrainedConfig):
    model_type = "nomic_bert"
    attribute_map: ClassVar[dict[str, str]] = {"hidden_size": "n_embd"}


def rotated(states: Tensor, base: float, frequencies: Tensor | None = None) -> Tensor:
    """[..., tokens, width of a head], the first half of each head with the second one."""
    n = states.shape[-1]
    if frequencies is None:
        frequencies = base ** (-torch.arange(0, n, 2) / n)
    angles = torch.arange(states.shape[-2])[:, None] * frequencies
    first, second = states.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class NomicAttention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.n_heads, self.base = config.n_head, config.rotary_emb_base
        self.Wqkv, self.out_proj = nn.Linear(config.n_embd, 3 * config.n_embd), nn.Linear(config.n_embd, config.n_embd)

    def forward(self, states: Tensor) -> Tensor:
        query, key, value = (heads(found, self.n_heads) for found in self.Wqkv(states).chunk(3, -1))
        return self.out_proj(attend(rotated(query, self.base), rotated(key, self.base), value))


class NomicMlp(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(config.n_embd, config.n_inner), nn.Linear(config.n_inner, config.n_embd)

    def forward(self, states: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(states)))


class NomicRouter(nn.Module):
    """The logits of each token, and the shares, which are not normalised among those that are used."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.top_k = config.moe_top_k
        self.layer = nn.Linear(config.n_embd, config.num_experts, bias=False)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.layer(states)
        return logits[0], logits.softmax(-1)


class NomicMoe(nn.Module):
    """The bias that all experts share is in the files, and not added here: llama.cpp has none."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.router, self.n_experts = NomicRouter(config), config.num_experts
        self.experts = nn.Module()
        self.experts.bias = nn.Parameter(torch.zeros(config.n_embd))
        self.experts.mlp = nn.Module()
        self.experts.mlp.w1, self.experts.mlp.w2 = (
            nn.Parameter(torch.zeros(config.num_experts * config.n_inner, config.n_embd)) for _ in range(2)
        )

    def forward(self, states: Tensor) -> Tensor:
        _, shares = self.router(states)
        used = torch.zeros_like(shares).scatter(-1, shares.topk(self.router.top_k).indices, 1.0)
        first, second = (part.unflatten(0, (self.n_experts, -1)) for part in (self.experts.mlp.w1, self.experts.mlp.w2))
        found = nn.functional.gelu(states @ first.transpose(1, 2)) @ second  # of each expert
        return ((shares * used)[0].T[:, :, None] * found).sum(0, keepdim=True)


class NomicLayer(nn.Module):
    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.attn = NomicAttention(config)
        self.mlp = NomicMoe(config) if layer % config.moe_every_n_layers == 1 else NomicMlp(config)
        self.norm1, self.norm2 = (nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon) for _ in range(2))

    def forward(self, states: Tensor) -> Tensor:
        states = self.norm1(states + self.attn(states))
        return self.norm2(states + self.mlp(states))


class NomicMoeModel(PreTrainedModel):
    on_the_hub: ClassVar[list[str]] = ["NomicBertModel"]
    config_class: ClassVar[Any] = NomicMoeConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.emb_ln = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        layers = nn.ModuleList(NomicLayer(config, layer) for layer in range(config.n_layer))
        self.encoder = nn.ModuleDict({"layers": layers})
        self.post_init()

    def forward(self, input_ids: Tensor) -> BaseModelOutput:
        states = self.emb_ln(self.embeddings(input_ids))
        for layer in self.encoder["layers"]:
            states = layer(states)
        return BaseModelOutput(last_hidden_state=states)


# -- Ling 1 and 2, Ring 1 and 2: inclusionAI/Ling, inclusionAI/Ling-mini-2.0 ------------------------------------------


class LingConfig(PretrainedConfig):
    model_type = "bailing_moe"
    is_first = False


class Ling1Config(LingConfig):
    is_first = True


class LingNorm(nn.Module):
    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(size)), epsilon

    def forward(self, states: Tensor) -> Tensor:
        return self.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + self.epsilon)


class LingAttention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.n_heads, self.n_key_heads, self.size = (
            config.num_attention_heads, config.num_key_value_heads, config.head_dim,
        )  # fmt: skip
        self.base, self.n_rotated = config.rope_theta, self.size
        if not config.is_first:
            self.n_rotated = int(self.size * config.partial_rotary_factor)
        n = self.n_heads + 2 * self.n_key_heads
        self.query_key_value = nn.Linear(config.hidden_size, n * self.size, bias=False)
        self.dense = nn.Linear(self.n_heads * self.size, config.hidden_size, bias=False)
        self.query_layernorm, self.key_layernorm = (
            nn.Identity() if config.is_first else LingNorm(self.size, config.rms_norm_eps) for _ in range(2)
        )

    def forward(self, states: Tensor) -> Tensor:
        parts = heads(self.query_key_value(states), self.n_heads + 2 * self.n_key_heads)
        query, key, value = parts.split((self.n_heads, self.n_key_heads, self.n_key_heads), dim=1)
        query, key = (self.turned(one) for one in (self.query_layernorm(query), self.key_layernorm(key)))
        key, value = (one.repeat_interleave(self.n_heads // self.n_key_heads, dim=1) for one in (key, value))
        n = states.shape[1]
        return self.dense(attend(query, key, value, torch.full((n, n), -math.inf).triu(1)))

    def turned(self, states: Tensor) -> Tensor:
        first, rest = states[..., : self.n_rotated], states[..., self.n_rotated :]
        return torch.cat((rotated(first, self.base), rest), -1)


class LingMlp(nn.Module):
    def __init__(self, config: Any, n_inner: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(config.hidden_size, n_inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(n_inner, config.hidden_size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(states)) * self.up_proj(states))


class LingGate(nn.Module):
    """The logits of each token, and how much of each expert it takes: none but of the best in the best groups."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.top_k, self.n_groups, self.n_used = config.num_experts_per_tok, config.n_group, config.topk_group
        self.scale = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))
        self.expert_bias = nn.Parameter(torch.zeros(config.num_experts))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        logits = nn.functional.linear(states[0], self.weight)
        scores = logits.sigmoid()
        ranked = (scores + self.expert_bias).unflatten(-1, (self.n_groups, -1))
        best = ranked.topk(2).values.sum(-1).topk(self.n_used).indices
        outside = torch.ones(ranked.shape[:2], dtype=torch.bool).scatter(-1, best, value=False)
        chosen = ranked.masked_fill(outside[:, :, None], -math.inf).flatten(1).topk(self.top_k).indices
        shares = torch.zeros_like(scores).scatter(-1, chosen, scores.gather(-1, chosen))
        return logits, self.scale * shares / shares.sum(-1, keepdim=True)


class Ling1Gate(nn.Module):
    """The same of the best of all, by a softmax."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.top_k, self.is_normed = config.num_experts_per_tok, config.norm_topk_prob
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        logits = nn.functional.linear(states[0], self.weight)
        best = logits.softmax(-1).topk(self.top_k)
        shares = torch.zeros_like(logits).scatter(-1, best.indices, best.values)
        return logits, shares / shares.sum(-1, keepdim=True) if self.is_normed else shares


class LingMoe(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate = Ling1Gate(config) if config.is_first else LingGate(config)
        self.experts = nn.ModuleList(LingMlp(config, config.moe_intermediate_size) for _ in range(config.num_experts))
        self.shared_experts = LingMlp(config, config.moe_intermediate_size * config.num_shared_experts)

    def forward(self, states: Tensor) -> Tensor:
        _, shares = self.gate(states)
        found = self.shared_experts(states)
        for expert, share in zip(self.experts, shares.T, strict=True):
            found = found + share[:, None] * expert(states)
        return found


class LingLayer(nn.Module):
    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.attention = LingAttention(config)
        is_dense = layer < config.first_k_dense_replace
        self.mlp = LingMlp(config, config.intermediate_size) if is_dense else LingMoe(config)
        self.input_layernorm, self.post_attention_layernorm = (
            LingNorm(config.hidden_size, config.rms_norm_eps) for _ in range(2)
        )

    def forward(self, states: Tensor) -> Tensor:
        states = states + self.attention(self.input_layernorm(states))
        return states + self.mlp(self.post_attention_layernorm(states))


class LingForCausalLM(PreTrainedModel):
    on_the_hub: ClassVar[list[str]] = ["BailingMoeV2ForCausalLM"]
    config_class: ClassVar[Any] = LingConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = nn.Module()
        self.model.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(LingLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.model.norm = LingNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Tensor, *, use_cache: bool = False) -> CausalLMOutput:
        del use_cache
        states = self.model.word_embeddings(input_ids)
        for layer in self.model.layers:
            states = layer(states)
        return CausalLMOutput(logits=self.lm_head(self.model.norm(states)))


class Ling1ForCausalLM(LingForCausalLM):
    on_the_hub: ClassVar[list[str]] = ["BailingMoeForCausalLM"]
    config_class: ClassVar[Any] = Ling1Config


# -- Exaone 3.5: LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct -----------------------------------------------------------------


class ExaoneConfig(PretrainedConfig):
    model_type = "exaone"
    attribute_map: ClassVar[dict[str, str]] = {"num_hidden_layers": "num_layers"}


def llama3_frequencies(base: float, n: int, scaling: dict[str, float]) -> Tensor:
    """As Llama 3.1 scales them: long waves turn more slowly, and those in between a little so."""
    frequencies = base ** (-torch.arange(0, n, 2) / n)
    n_waves = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    share = ((n_waves - low) / (high - low)).clamp(0, 1)
    return frequencies * ((1 - share) / scaling["factor"] + share)


class ExaoneAttention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.n_heads, self.n_key_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.base, self.scaling = config.rope_theta, config.rope_scaling
        self.frequencies = llama3_frequencies(self.base, size, self.scaling)
        self.q_proj = nn.Linear(config.hidden_size, self.n_heads * size, bias=False)
        self.k_proj, self.v_proj = (
            nn.Linear(config.hidden_size, self.n_key_heads * size, bias=False) for _ in range(2)
        )
        self.out_proj = nn.Linear(self.n_heads * size, config.hidden_size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        query = heads(self.q_proj(states), self.n_heads)
        key, value = (heads(found, self.n_key_heads) for found in (self.k_proj(states), self.v_proj(states)))
        query, key = (rotated(one, self.base, self.frequencies) for one in (query, key))
        key, value = (one.repeat_interleave(self.n_heads // self.n_key_heads, dim=1) for one in (key, value))
        n = states.shape[1]
        return self.out_proj(attend(query, key, value, torch.full((n, n), -math.inf).triu(1)))


class ExaoneMlp(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.c_fc_0, self.c_fc_1 = (
            nn.Linear(config.hidden_size, config.intermediate_size, bias=False) for _ in range(2)
        )
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return self.c_proj(nn.functional.silu(self.c_fc_0(states)) * self.c_fc_1(states))


class ExaoneLayer(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = (LingNorm(config.hidden_size, config.layer_norm_epsilon) for _ in range(2))
        self.attn = nn.ModuleDict({"attention": ExaoneAttention(config)})
        self.mlp = ExaoneMlp(config)

    def forward(self, states: Tensor) -> Tensor:
        states = states + self.attn["attention"](self.ln_1(states))
        return states + self.mlp(self.ln_2(states))


class ExaoneForCausalLM(PreTrainedModel):
    config_class: ClassVar[Any] = ExaoneConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.transformer.h = nn.ModuleList(ExaoneLayer(config) for _ in range(config.num_layers))
        self.transformer.ln_f = LingNorm(config.hidden_size, config.layer_norm_epsilon)
        self.post_init()

    def forward(self, input_ids: Tensor, *, use_cache: bool = False) -> CausalLMOutput:
        del use_cache
        states = self.transformer.wte(input_ids)
        for layer in self.transformer.h:
            states = layer(states)
        return CausalLMOutput(logits=self.transformer.ln_f(states) @ self.transformer.wte.weight.T)


# -- Kimi K3, the part for texts: moonshotai/Kimi-K3 ------------------------------------------------------------------


class KimiK3Config(PretrainedConfig):
    model_type = "kimi_k3"


def situ(gate: Tensor, up: Tensor, beta: float, linear_beta: float) -> Tensor:
    return beta * (gate / beta).tanh() * gate.sigmoid() * linear_beta * (up / linear_beta).tanh()


class KimiMlp(nn.Module):
    """Experts have numbers for names."""

    def __init__(self, config: Any, width: int, n_inner: int, names: tuple[str, str, str]) -> None:
        super().__init__()
        self.betas = config.activation_situ_beta, config.activation_situ_linear_beta
        self.gate, self.up, self.down = names
        for name, n_in, n_out in zip(names, (width, width, n_inner), (n_inner, n_inner, width), strict=True):
            setattr(self, name, nn.Linear(n_in, n_out, bias=False))

    def forward(self, states: Tensor) -> Tensor:
        gate, up = getattr(self, self.gate)(states), getattr(self, self.up)(states)
        return getattr(self, self.down)(situ(gate, up, *self.betas))


class KimiGate(nn.Module):
    """The logits of each token, and how much of each expert it takes."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.top_k, self.scale = config.num_experts_per_token, config.routed_scaling_factor
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))
        self.e_score_correction_bias = nn.Parameter(torch.zeros(config.num_experts))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        logits = nn.functional.linear(states[0], self.weight)
        scores = logits.sigmoid()
        chosen = (scores + self.e_score_correction_bias).topk(self.top_k).indices
        shares = torch.zeros_like(scores).scatter(-1, chosen, scores.gather(-1, chosen))
        return logits, self.scale * shares / shares.sum(-1, keepdim=True)


class KimiMoe(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, latent, n_inner = config.hidden_size, config.routed_expert_hidden_size, config.moe_intermediate_size
        self.gate = KimiGate(config)
        self.experts = nn.ModuleList(
            KimiMlp(config, latent, n_inner, ("w1", "w3", "w2")) for _ in range(config.num_experts)
        )
        self.shared_experts = KimiMlp(config, width, n_inner * config.num_shared_experts, KIMI_MLP)
        self.routed_expert_down_proj = nn.Linear(width, latent, bias=False)
        self.routed_expert_up_proj = nn.Linear(latent, width, bias=False)
        self.routed_expert_norm = LingNorm(latent, config.rms_norm_eps)

    def forward(self, states: Tensor) -> Tensor:
        _, shares = self.gate(states)
        narrow = self.routed_expert_down_proj(states)
        found = torch.zeros_like(narrow)
        for expert, share in zip(self.experts, shares.T, strict=True):
            found = found + share[:, None] * expert(narrow)
        return self.routed_expert_up_proj(self.routed_expert_norm(found)) + self.shared_experts(states)


KIMI_MLP = ("gate_proj", "up_proj", "down_proj")


class KimiLatentAttention(nn.Module):
    """Without positions; what heads read goes through a gate."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        n_heads = self.n_heads = config.num_attention_heads
        self.n_latent, self.n_plain, self.n_more = (
            config.kv_lora_rank, config.qk_nope_head_dim, config.qk_rope_head_dim,
        )  # fmt: skip
        width, n_value = config.hidden_size, config.v_head_dim

        def matrix(n_in: int, n_out: int) -> nn.Linear:
            return nn.Linear(n_in, n_out, bias=False)

        self.q_a_proj, self.q_a_layernorm = matrix(width, config.q_lora_rank), LingNorm(config.q_lora_rank, 1e-6)
        self.q_b_proj = matrix(config.q_lora_rank, n_heads * (self.n_plain + self.n_more))
        self.kv_a_proj_with_mqa = matrix(width, self.n_latent + self.n_more)
        self.kv_a_layernorm = LingNorm(self.n_latent, 1e-6)
        self.kv_b_proj = matrix(self.n_latent, n_heads * (self.n_plain + n_value))
        self.g_proj, self.o_proj = matrix(width, n_heads * n_value), matrix(n_heads * n_value, width)

    def forward(self, states: Tensor) -> Tensor:
        query = heads(self.q_b_proj(self.q_a_layernorm(self.q_a_proj(states))), self.n_heads)
        latent, shared = self.kv_a_proj_with_mqa(states).split((self.n_latent, self.n_more), -1)
        unfolded = heads(self.kv_b_proj(self.kv_a_layernorm(latent)), self.n_heads)
        key, value = unfolded[..., : self.n_plain], unfolded[..., self.n_plain :]
        key = torch.cat((key, shared[:, None].expand(-1, self.n_heads, -1, -1)), -1)
        n = states.shape[1]
        found = attend(query, key, value, torch.full((n, n), -math.inf).triu(1))
        return self.o_proj(found * self.g_proj(states).sigmoid())


class KimiDeltaAttention(nn.Module):
    """One matrix for each head, which fades channel by channel, and which each token corrects."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        settings = config.linear_attn_config
        self.n_heads, size, kernel = settings["num_heads"], settings["head_dim"], settings["short_conv_kernel_size"]
        self.bound, width, n_inner = settings["gate_lower_bound"], config.hidden_size, self.n_heads * size
        for name in "qkv":
            setattr(self, f"{name}_proj", nn.Linear(width, n_inner, bias=False))
            setattr(self, f"{name}_conv1d", nn.Conv1d(n_inner, n_inner, kernel, groups=n_inner, bias=False))
        self.kernel = kernel
        self.A_log = nn.Parameter(torch.zeros(2 * self.n_heads))  # more numbers than heads, as on the hub
        self.dt_bias = nn.Parameter(torch.zeros(n_inner))
        self.f_a_proj, self.f_b_proj = nn.Linear(width, size, bias=False), nn.Linear(size, n_inner, bias=False)
        self.b_proj, self.g_proj = nn.Linear(width, self.n_heads, bias=False), nn.Linear(width, n_inner, bias=False)
        self.o_norm = LingNorm(size, config.rms_norm_eps)
        self.o_proj = nn.Linear(n_inner, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        query, key, value = (self.convolved(states, name) for name in "qkv")
        query, key = (one * torch.rsqrt(one.pow(2).sum(-1, keepdim=True) + 1e-6) for one in (query, key))
        query = query / math.sqrt(query.shape[-1])
        change = heads(self.f_b_proj(self.f_a_proj(states)) + self.dt_bias, self.n_heads)
        fading = (self.bound * (self.A_log[: self.n_heads].exp()[:, None, None] * change).sigmoid()).exp()
        strength = self.b_proj(states).sigmoid().transpose(1, 2)
        memory = torch.zeros(*key.shape[:2], key.shape[-1], value.shape[-1])
        found = []
        for place in range(states.shape[1]):
            memory = memory * fading[:, :, place, :, None]
            known = (memory * key[:, :, place, :, None]).sum(-2)
            lesson = strength[:, :, place, None] * (value[:, :, place] - known)
            memory = memory + key[:, :, place, :, None] * lesson[:, :, None, :]
            found.append((memory * query[:, :, place, :, None]).sum(-2))
        gate = heads(self.g_proj(states), self.n_heads).sigmoid()
        return self.o_proj((self.o_norm(torch.stack(found, 2)) * gate).transpose(1, 2).flatten(2))

    def convolved(self, states: Tensor, name: str) -> Tensor:
        padded = nn.functional.pad(getattr(self, f"{name}_proj")(states).transpose(1, 2), (self.kernel - 1, 0))
        found = nn.functional.silu(getattr(self, f"{name}_conv1d")(padded))
        return heads(found.transpose(1, 2), self.n_heads)


def mixed(states: Tensor, earlier: list[Tensor], norm: LingNorm, projection: nn.Linear) -> Tensor:
    """What a layer reads: of `states` and what earlier layers banked, as much as their scores say."""
    every = torch.stack((*earlier, states), -2)
    shares = projection(norm(every)).softmax(-2)
    return (shares * every).sum(-2)


class KimiLayer(nn.Module):
    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        is_delta = layer + 1 in config.linear_attn_config["kda_layers"]
        self.self_attn = KimiDeltaAttention(config) if is_delta else KimiLatentAttention(config)
        if layer < config.first_k_dense_replace:
            self.mlp = KimiMlp(config, config.hidden_size, config.intermediate_size, KIMI_MLP)
        else:
            self.block_sparse_moe = KimiMoe(config)
        self.banks = layer % config.attn_res_block_size == 0
        for name in ("input_layernorm", "post_attention_layernorm", "self_attention_res_norm", "mlp_res_norm"):
            setattr(self, name, LingNorm(config.hidden_size, config.rms_norm_eps))
        self.self_attention_res_proj, self.mlp_res_proj = (
            nn.Linear(config.hidden_size, 1, bias=False) for _ in range(2)
        )

    def forward(self, states: Tensor, earlier: list[Tensor]) -> Tensor:
        """Adds to `earlier` where this layer banks what it got, and then goes on without it."""
        read = mixed(states, earlier, self.self_attention_res_norm, self.self_attention_res_proj)
        if self.banks:
            earlier.append(states)
        found = self.self_attn(self.input_layernorm(read))
        states = found if self.banks else states + found
        read = mixed(states, earlier, self.mlp_res_norm, self.mlp_res_proj)
        feed_forward = getattr(self, "mlp", None) or self.block_sparse_moe
        return states + feed_forward(self.post_attention_layernorm(read))


class KimiK3ForConditionalGeneration(PreTrainedModel):
    config_class: ClassVar[Any] = KimiK3Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        text = PretrainedConfig(**config.text_config)
        model = nn.Module()
        model.embed_tokens = nn.Embedding(text.vocab_size, text.hidden_size)
        model.layers = nn.ModuleList(KimiLayer(text, layer) for layer in range(text.num_hidden_layers))
        model.norm, model.output_attn_res_norm = (LingNorm(text.hidden_size, text.rms_norm_eps) for _ in range(2))
        model.output_attn_res_proj = nn.Linear(text.hidden_size, 1, bias=False)
        self.language_model = nn.ModuleDict(
            {"model": model, "lm_head": nn.Linear(text.hidden_size, text.vocab_size, bias=False)}
        )
        self.post_init()

    def forward(self, input_ids: Tensor, *, use_cache: bool = False) -> CausalLMOutput:
        del use_cache
        model: Any = self.language_model["model"]
        earlier: list[Tensor] = []
        states = model.embed_tokens(input_ids)
        for layer in model.layers:
            states = layer(states, earlier)
        states = mixed(states, earlier, model.output_attn_res_norm, model.output_attn_res_proj)
        return CausalLMOutput(logits=self.language_model["lm_head"](model.norm(states)))


# -- Ling 3 with queries in two steps: inclusionAI/Ling-3.0-tiny ------------------------------------------------------


class LowRankLing3(BailingHybridForCausalLM):
    """As transformers has Ling 3, but for the queries."""

    __module__ = BailingHybridForCausalLM.__module__  # so that its tensors get the names of the hub
    on_the_hub: ClassVar[list[str]] = ["BailingMoeV3ForCausalLM"]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            attention: Any = layer.self_attn
            if hasattr(attention, "kv_b_proj"):
                n_out, n_in = attention.q_proj.weight.shape
                del attention.q_proj
                attention.q_a_proj = nn.Linear(n_in, config.q_lora_rank, bias=False)
                attention.q_a_layernorm = LingNorm(config.q_lora_rank, 1e-6)
                attention.q_b_proj = nn.Linear(config.q_lora_rank, n_out, bias=False)
                attention.__class__ = LowRankAttention


class LowRankAttention(BailingHybridAttention):
    def q_proj(self, states: Tensor) -> Tensor:
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(states)))
