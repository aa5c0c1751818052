"""How far the engine's log-probabilities may be from those of `transformers`, for each family, with the reason.

Knows the names of golden files; nothing of how the two are compared.
"""

# With the defaults; and exact, with weights and KV cache in F32 and, where a model can do without it, without flash
# attention. By default K and V are rounded to F16, and so are the sums over V while fewer than 64 rows are computed.
USUAL = (1e-2, 1e-4)
# By how names begin, the first that fits. llama.cpp computes GELU by a table in half precision.
_OTHER = {
    "kimi-k3": (1e-2, 5e-3),  # to which the engine adds ten times as much in some of its norms
    "minimax-m3": (1e-2, 5e-3),  # which cannot do without flash attention
    "gemma": (1e-2, 5e-3),
    "qwen35": (1e-2, 1e-3),
    "gpt2": (1e-2, 5e-3),
    "starcoder2": (1e-2, 5e-3),
    "llama-bf16": (3e-2, 1e-4),  # the engine rounds what it multiplies with weights in BF16 to the same type
}


def tolerance(family: str, *, exact: bool = False) -> float:
    """The largest difference of a log-probability that is right for the golden file `family`."""
    return next((other for name, other in _OTHER.items() if family.startswith(name)), USUAL)[exact]
