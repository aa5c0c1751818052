"""Llama 4: layers that attend within chunks, and others that do not rotate; one expert beside one for all tokens."""

from dataclasses import replace

from shimmy.formats.convert.families.family import (
    ENDS,
    NORMS,
    SILU,
    Family,
    Row,
    attention,
    rope_defaults,
)
from shimmy.formats.convert.families.settings import DENSE, SPARSE, experts
from shimmy.formats.convert.hyperparameters import MAX_LAYERS, Hyperparameters, MetadataBuilder
from shimmy.formats.format_errors import Unconvertible

_PERIOD = 4  # the layers that do not rotate, as llama.cpp has it
_CHUNK = 8192  # likewise, of attention and for the growth of queries
_N_EXPERTS_WITHOUT_NORMS = 128  # by which llama.cpp knows models whose queries and keys are not normed

_MLP = "layers.#.feed_forward."
_LLAMA4 = (
    *ENDS, *NORMS,
    *attention(bias="none"),  # rotated pairs are neighbours
    *(
        Row(f"{_MLP}{name}_proj", f"blk.#.ffn_{name}.weight", shape, layers=DENSE)
        for name, shape in (("gate", "FE"), ("up", "FE"), ("down", "EF"))
    ),
    *(
        replace(row, layers=SPARSE)
        for row in (
            Row(f"{_MLP}router", "blk.#.ffn_gate_inp.weight", "XE"),
            *(
                Row(
                    f"{_MLP}experts.@.{name}_proj", f"blk.#.ffn_{name}_exps.weight", shape,
                    fused=(f"{_MLP}experts.{fused}", part, n_parts), turned="always",
                    stacked=f"{_MLP}experts.{name}_proj",
                )
                for name, shape, fused, part, n_parts in (
                    ("gate", "XME", "gate_up_proj", 0, 2), ("up", "XME", "gate_up_proj", 1, 2),
                    ("down", "XEM", "down_proj", 0, 1),
                )
            ),
            *(
                Row(f"{_MLP}shared_expert.{name}_proj", f"blk.#.ffn_{name}_shexp.weight", shape)
                for name, shape in (("gate", "ME"), ("up", "ME"), ("down", "EM"))
            ),
        )
    ),
)  # fmt: skip


def _renamed(values: Hyperparameters) -> Hyperparameters:
    """With the widths of layers without experts and of experts under the names that others have."""
    return values.changed({
        "intermediate_size": values.get("intermediate_size_mlp"),
        "moe_intermediate_size": values.get("intermediate_size"),
    })  # fmt: skip


def _kinds(values: Hyperparameters) -> list[set[str]]:
    n_layers = values.integer("num_hidden_layers", maximum=MAX_LAYERS)
    step = values.integer("interleave_moe_layer_step", maximum=n_layers)
    return [{DENSE if (layer + 1) % step else SPARSE} for layer in range(n_layers)]


def describe_llama4(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    experts(draft, values, sizes, "num_local_experts")
    sizes["M"] = values.integer("moe_intermediate_size")
    kinds = _kinds(values)
    if values.get("moe_layers") not in (None, [layer for layer, kind in enumerate(kinds) if SPARSE in kind]):
        raise Unconvertible("its `moe_layers` are not what its `interleave_moe_layer_step` says")
    values.require("use_qk_norm", sizes["X"] != _N_EXPERTS_WITHOUT_NORMS, default=True)
    values.require("attention_bias", False, default=False)
    _require_periods(values, sizes["layers"])
    draft.integer("expert_feed_forward_length", sizes["M"])
    draft.integer("interleave_moe_layer_step", values.integer("interleave_moe_layer_step"))


def _require_periods(values: Hyperparameters, n_layers: int) -> None:
    """Refuse all that the engine has as constants, and has otherwise."""
    rotates = [(layer + 1) % _PERIOD != 0 for layer in range(n_layers)]
    if not values.get("no_rope_layers"):
        values.require("no_rope_layer_interval", _PERIOD, default=_PERIOD)
    elif values.get("no_rope_layers") != [int(turns) for turns in rotates]:
        raise Unconvertible("its `no_rope_layers` is not every 4th layer, which is all that the engine computes")
    kinds = values.names("layer_types")
    if kinds is not None and kinds != ["chunked_attention" if turns else "full_attention" for turns in rotates]:
        raise Unconvertible("its `layer_types` are not attention within chunks but for every 4th layer")
    for key in ("attention_chunk_size", "floor_scale"):
        values.require(key, _CHUNK, float(_CHUNK), default=_CHUNK)
    values.require("attn_scale", 0.1, default=0.1)
    values.require("attn_temperature_tuning", True, 4, default=True)


FAMILIES = (
    Family(
        "Llama 4", "llama4_text", ("Llama4ForConditionalGeneration", "Llama4ForCausalLM"), "llama4", _LLAMA4,
        SILU, frozenset(("llama3",)), describe_llama4,
        {"head_dim": 128, "intermediate_size_mlp": 16_384, "interleave_moe_layer_step": 1, "num_experts_per_tok": 1,
         "num_local_experts": 16, **rope_defaults(5e5, 1e-5)},
        ignored_prefixes=("vision_model.", "multi_modal_projector."), kinds=_kinds, renamed=_renamed,
    ),
)  # fmt: skip
