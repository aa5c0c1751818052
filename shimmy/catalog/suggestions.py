"""Models for someone who has none: a small table, and which of it fits this machine. Never asks the network."""

from collections.abc import Iterator
from dataclasses import dataclass

from shimmy.system.memory import free_bytes

# Of a model's file, what it takes with its context and buffers; and what any worker takes besides.
_MEMORY_OF_SIZE, _MEMORY_BESIDE = 1.25, 400_000_000
N_SUGGESTED = 3


@dataclass(frozen=True, slots=True)
class Suggestion:
    """`reference` is for `shimmy pull`; `size_bytes` that of the file, rounded."""

    reference: str
    size_bytes: int
    about: str

    @property
    def memory_bytes(self) -> int:
        return int(self.size_bytes * _MEMORY_OF_SIZE) + _MEMORY_BESIDE


# From the smallest to the largest; each answers better than those before.
SUGGESTIONS = (
    Suggestion("bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M", 105_000_000, "tiny: to try the server, not for answers"),
    Suggestion("bartowski/SmolLM2-360M-Instruct-GGUF:Q4_K_M", 271_000_000, "very small: short texts in English"),
    Suggestion("unsloth/Qwen3-0.6B-GGUF:Q4_K_M", 397_000_000, "small and quick, with reasoning and tools"),
    Suggestion("unsloth/Qwen3-1.7B-GGUF:Q4_K_M", 1_110_000_000, "quick, with reasoning and tools"),
    Suggestion("unsloth/Qwen3-4B-Instruct-2507-GGUF:Q4_K_M", 2_500_000_000, "good answers on most laptops"),
    Suggestion("unsloth/Qwen3-8B-GGUF:Q4_K_M", 5_030_000_000, "better answers, with reasoning; slow on few cores"),
    Suggestion(
        "unsloth/Qwen3-30B-A3B-Instruct-2507-GGUF:Q4_K_M", 18_600_000_000, "the best of these, and quick for its size"
    ),
)


def fitting(memory_bytes: int | None = None) -> list[Suggestion]:
    """The best that fit into so much memory, by default what is free; the best first. The smallest fits always."""
    free = free_bytes() if memory_bytes is None else memory_bytes
    fitting = [each for each in SUGGESTIONS if free is None or each.memory_bytes <= free]
    return [*reversed(fitting[-N_SUGGESTED:])] or [SUGGESTIONS[0]]


def advice() -> Iterator[str]:
    """Lines for someone at a terminal."""
    for each in fitting():
        yield f"shimmy pull {each.reference}    # {each.size_bytes / 1e9:.1f} GB, {each.about}"
