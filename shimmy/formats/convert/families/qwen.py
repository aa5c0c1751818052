"""Qwen2, Qwen3 and their mixtures of experts."""

from shimmy.formats.convert.families.family import (
    ENDS,
    FREE,
    HEAD_NORMS,
    NORMS,
    SILU,
    Family,
    attention,
    classes,
    expert_rows,
    feed_forward,
    rope_defaults,
)
from shimmy.formats.convert.families.settings import experts, plain_heads, qwen_window
from shimmy.formats.convert.hyperparameters import Hyperparameters, MetadataBuilder

_QWEN3 = (*ENDS, *NORMS, *attention(), *HEAD_NORMS)


def describe_qwen2(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    plain_heads(values, sizes)
    qwen_window(draft, values, sizes)


def describe_qwen3_moe(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    qwen_window(draft, values, sizes)
    experts(draft, values, sizes, "num_experts")
    values.require("norm_topk_prob", True, default=False)
    values.require("decoder_sparse_step", 1, default=1)
    values.require("mlp_only_layers", [], default=[])
    sizes["M"] = values.integer("moe_intermediate_size")
    draft.integer("expert_feed_forward_length", sizes["M"])


FAMILIES = (
    Family(
        "Qwen2", "qwen2", classes("Qwen2"), "qwen2", (*ENDS, *NORMS, *attention(), *feed_forward()),
        SILU, FREE, describe_qwen2, rope_defaults(),
    ),
    Family(
        "Qwen3", "qwen3", classes("Qwen3"), "qwen3", (*_QWEN3, *feed_forward()),
        SILU, FREE, qwen_window, {"head_dim": 128, **rope_defaults()},
    ),
    Family(
        "Qwen3-MoE", "qwen3_moe", classes("Qwen3Moe"), "qwen3moe",
        (*_QWEN3, *expert_rows("layers.#.mlp.gate", "layers.#.mlp.experts", "gate_proj", "up_proj", "down_proj")),
        SILU, FREE, describe_qwen3_moe, rope_defaults(),
    ),
)  # fmt: skip
