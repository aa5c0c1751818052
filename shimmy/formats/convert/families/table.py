"""All families of models that can be converted, and the one that a config.json is of."""

from collections.abc import Mapping
from typing import Any

from shimmy.formats.convert.families import encoders, gemma, gemma4, glm, gpt, llama, minimax, mla, qwen
from shimmy.formats.convert.families.family import Family
from shimmy.formats.convert.families.recurrent import falcon, hybrid, kimi, lfm2, ling3
from shimmy.formats.convert.families.windowed import cohere, exaone, llama4
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.safetensors.checkpoint import shown_value

FAMILIES: tuple[Family, ...] = (
    *llama.FAMILIES,
    *llama4.FAMILIES,
    *exaone.FAMILIES,
    *cohere.FAMILIES,
    *qwen.FAMILIES,
    *gemma.FAMILIES,
    *gemma4.FAMILIES,
    *glm.FAMILIES,
    *minimax.FAMILIES,
    *mla.FAMILIES,
    *kimi.FAMILIES,
    *ling3.FAMILIES,
    *hybrid.FAMILIES,
    *lfm2.FAMILIES,
    *falcon.FAMILIES,
    *gpt.FAMILIES,
    *encoders.FAMILIES,
)

_SQUARED = (
    "its feed-forward layers square a ReLU (BitNet b1.58 2B4T), where the engine's BitNet has SiLU. Its publisher has "
    "it as GGUF for a program of its own"
)
# Families that llama.cpp has by name and computes otherwise, whatever their weights are in, and why: by class, or by
# `model_type` where there is none.
_OTHERWISE = {
    **dict.fromkeys(("BitNetForCausalLM", "bitnet"), _SQUARED),
    **dict.fromkeys(
        ("PhiMoEForCausalLM", "PhimoeForCausalLM", "phimoe"),
        "its norms subtract the mean, and its experts are weighed by SparseMixer: the engine's Phi-MoE does neither",
    ),
    "BitnetForCausalLM": (
        "it rounds its weights to three values, and what they are multiplied with to 8 bits, whenever it computes (the "
        "first BitNet b1.58), and the engine does not"
    ),
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a model with this `text_config`; raises Unconvertible with the list of all when there is none,
    or with the reason why a known one is not served."""
    model_type, classes = config.get("model_type"), config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    suitable = (family for family in FAMILIES if family.model_type == model_type)
    suitable = (family for family in suitable if name is None or name in family.classes)
    family = next((family for family in suitable if family.suits(config)), None)
    if family is None and (cause := _OTHERWISE.get(str(name or model_type))):
        raise Unconvertible(cause)
    if family is None:
        titles = ", ".join(dict.fromkeys(family.title for family in FAMILIES))
        raise Unconvertible(
            f"the architecture `{shown_value(name or model_type)}` is not supported; these are: {titles}. "
            "It may be there as GGUF already"
        )
    return family
