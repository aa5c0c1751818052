"""Phi-3, with long positions by a table of factors."""

import math

from shimmy.formats.convert.families.family import ENDS, NORMS, SILU, Family, Row, classes, rope_defaults
from shimmy.formats.convert.families.settings import cap_to_window, plain_heads
from shimmy.formats.convert.hyperparameters import (
    MAX_CONTEXT,
    Hyperparameters,
    MetadataBuilder,
    checked_number,
    rope_parameters,
    wrong,
)


def describe_phi3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    plain_heads(values, sizes)
    cap_to_window(draft, values)
    rope = rope_parameters(values)
    if rope.get("rope_type") == "default":
        return
    n_ctx_original = rope.get("original_max_position_embeddings") or values.get("original_max_position_embeddings")
    if type(n_ctx_original) is not int or not 1 < n_ctx_original <= MAX_CONTEXT:
        raise wrong("original_max_position_embeddings", n_ctx_original)
    factor = rope.number("factor", default=sizes["P"] / n_ctx_original)
    implied = math.sqrt(1 + math.log(factor) / math.log(n_ctx_original)) if factor > 1 else 1.0
    draft.integer("rope.scaling.original_context_length", n_ctx_original)
    draft.number("rope.scaling.attn_factor", rope.number("attention_factor", default=implied))
    for kind in ("long", "short"):
        factors = rope.get(f"{kind}_factor")
        if not isinstance(factors, list) or len(factors) != sizes["R"] // 2:
            raise wrong(f"{kind}_factor", factors)
        numbers = [checked_number(f"{kind}_factor", factor) for factor in factors]
        if not all(numbers):
            raise wrong(f"{kind}_factor", 0)
        draft.computed[f"rope_factors_{kind}.weight"] = numbers
    # llama.cpp takes the long factors for all texts in a context above it, short texts among them.
    draft.cap_context(n_ctx_original, "the engine cannot change between short and long positions within a context")


FAMILIES = (
    Family(
        "Phi-3", "phi3", classes("Phi3"), "phi3",
        (*ENDS, *NORMS,
         Row("layers.#.self_attn.qkv_proj", "blk.#.attn_qkv.weight", "AE"),
         Row("layers.#.self_attn.o_proj", "blk.#.attn_output.weight", "EQ"),
         Row("layers.#.mlp.gate_up_proj", "blk.#.ffn_up.weight", "GE"),
         Row("layers.#.mlp.down_proj", "blk.#.ffn_down.weight", "EF")),
        SILU, frozenset(("longrope", "su")), describe_phi3,
        {"original_max_position_embeddings": 4096, **rope_defaults(1e4, 1e-5)},
        rotates_partly=True,
    ),
)  # fmt: skip
