"""How far the engine's log-probabilities may be from those of `transformers`, for each family, with the reason.

Knows the names of golden files; nothing of how the two are compared.
"""

# With the defaults, an F16 KV cache and flash attention; and exact, with an F32 KV cache, F32 weights and without it.
USUAL = (1e-2, 1e-4)
# By how names begin, the first that fits. llama.cpp computes GELU by a table in half precision, and rounds to BF16 or
# F16 what it multiplies with such weights.
_WIDER = {
    "deepseek32": USUAL,
    "deepseek": (2e-2, 1e-4),  # the cache of which has one vector for all heads, and rounds it
    "mistral4": (2e-2, 1e-4),
    "kimi-k3": (1e-2, 5e-3),  # to which the engine adds ten times as much in some of its norms
    "minimax-m3": (1e-2, 1e-2),  # which cannot do without flash attention
    "exaone4-window": (2e-2, 1e-4),  # 64 layers, each of which rounds its keys
    "gemma": (1e-2, 5e-3),
    "qwen35": (1e-2, 1e-3),
    "gpt2": (1e-2, 5e-3),
    "starcoder2": (1e-2, 5e-3),
    "gpt-oss": (5e-2, 1e-4),
    "llama-f16": (1e-2, 5e-3),
    "llama-bf16": (5e-2, 5e-2),
}


def tolerance(family: str, *, exact: bool = False) -> float:
    """The largest difference of a log-probability that is right for the golden file `family`."""
    return next((wider for name, wider in _WIDER.items() if family.startswith(name)), USUAL)[exact]
