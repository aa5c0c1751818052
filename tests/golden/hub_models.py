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
