"""OLMo 2 and 3, with norms behind attention and feed-forward layers alone."""

from shimmy.formats.convert.families.family import (
    ENDS,
    FREE,
    SILU,
    Family,
    Row,
    attention,
    classes,
    feed_forward,
    rope_defaults,
)
from shimmy.formats.convert.families.settings import plain_heads, window_pattern
from shimmy.formats.convert.hyperparameters import (
    MAX_CONTEXT,
    Hyperparameters,
    MetadataBuilder,
    checked_number,
    rope_parameters,
    wrong,
)

# Norms of all heads together, and behind attention and feed-forward layers alone.
_OLMO2 = (
    *ENDS,
    *attention(),
    Row("layers.#.self_attn.q_norm", "blk.#.attn_q_norm.weight", "Q"),
    Row("layers.#.self_attn.k_norm", "blk.#.attn_k_norm.weight", "K"),
    Row("layers.#.post_attention_layernorm", "blk.#.post_attention_norm.weight", "E"),
    *feed_forward(),
    Row("layers.#.post_feedforward_layernorm", "blk.#.post_ffw_norm.weight", "E"),
)


def describe_olmo2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    del draft
    plain_heads(values, sizes)
    values.require("tie_word_embeddings", False, default=False)


def describe_olmo3(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    describe_olmo2(draft, values, sizes)
    if not window_pattern(draft, values, sizes, 4):
        return
    draft.integer("attention.sliding_window", values.integer("sliding_window", maximum=MAX_CONTEXT))
    # Positions are scaled in the layers without a window alone.
    rope, local = rope_parameters(values), values.get("rope_parameters")
    if isinstance(local, dict) and isinstance(local.get("sliding_attention"), dict):
        Hyperparameters(local["sliding_attention"], {"rope_type": "default"}).require("rope_type", "default")
        theta = checked_number("rope_theta", local["sliding_attention"].get("rope_theta"))
        if theta != rope.number("rope_theta"):
            raise wrong("rope_theta", theta)


FAMILIES = (
    Family("OLMo 2", "olmo2", classes("Olmo2"), "olmo2", _OLMO2, SILU, FREE, describe_olmo2, rope_defaults(1e4, 1e-5)),
    Family(
        "OLMo 3", "olmo3", classes("Olmo3"), "olmo2", _OLMO2, SILU, FREE, describe_olmo3,
        {"rms_norm_eps": 1e-5, "sliding_window": 4096},  # versions of transformers do not agree on `rope_theta`
    ),
)  # fmt: skip
