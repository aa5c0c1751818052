"""OLMo 2 and 3 and Exaone 4, with norms behind attention and feed-forward layers alone."""

from shimmy.formats.convert.families.family import (
    ALL,
    ENDS,
    FREE,
    HEAD_NORMS,
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
    MAX_LAYERS,
    Hyperparameters,
    MetadataBuilder,
    checked_number,
    rope_parameters,
    wrong,
)

_BEHIND = (
    Row("layers.#.post_attention_layernorm", "blk.#.post_attention_norm.weight", "E"),
    Row("layers.#.post_feedforward_layernorm", "blk.#.post_ffw_norm.weight", "E"),
)
_OLMO2 = (
    *ENDS,
    *attention(),
    Row("layers.#.self_attn.q_norm", "blk.#.attn_q_norm.weight", "Q"),  # of all heads together
    Row("layers.#.self_attn.k_norm", "blk.#.attn_k_norm.weight", "K"),
    *_BEHIND,
    *feed_forward(),
)
_N_LAYERS_WITH_WINDOWS = 64  # of Exaone 4


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


def exaone4_renamed(values: Hyperparameters) -> Hyperparameters:
    """Kinds of layers as other families write them, where they are letters to be repeated."""
    letters = values.get("sliding_window_pattern")
    if not isinstance(letters, str) or values.get("layer_types") is not None:
        return values
    if not letters or len(letters) > MAX_LAYERS or set(letters) - {"L", "G"}:
        raise wrong("sliding_window_pattern", letters)
    n_layers = values.integer("num_hidden_layers", maximum=MAX_LAYERS)
    kinds = [letters[layer % len(letters)] for layer in range(n_layers)]
    return values.changed({"layer_types": ["sliding_attention" if kind == "L" else "full_attention" for kind in kinds]})


def describe_exaone4(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    plain_heads(values, sizes)
    # llama.cpp knows models with windows, which do not rotate in the other layers, by their number of layers.
    if sizes["layers"] != _N_LAYERS_WITH_WINDOWS:
        values.require("sliding_window", None)
        return
    draft.integer("attention.sliding_window", values.integer("sliding_window", maximum=MAX_CONTEXT))
    if not window_pattern(draft, values, sizes, 4):
        raise wrong("layer_types", values.get("layer_types"))


FAMILIES = (
    Family("OLMo 2", "olmo2", classes("Olmo2"), "olmo2", _OLMO2, SILU, FREE, describe_olmo2, rope_defaults(1e4, 1e-5)),
    Family(
        "OLMo 3", "olmo3", classes("Olmo3"), "olmo2", _OLMO2, SILU, FREE, describe_olmo3,
        {"rms_norm_eps": 1e-5, "sliding_window": 4096},  # versions of transformers do not agree on `rope_theta`
    ),
    Family(
        "Exaone 4", "exaone4", classes("Exaone4"), "exaone4",
        (*ENDS, *attention(bias="none"), *HEAD_NORMS, *_BEHIND, *feed_forward()),
        SILU, ALL, describe_exaone4, rope_defaults(1e6, 1e-5), renamed=exaone4_renamed,
    ),
)  # fmt: skip
