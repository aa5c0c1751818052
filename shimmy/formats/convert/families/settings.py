"""Settings that several families share, and which values of them are refused.

Knows config.json of transformers and llama.cpp's metadata. Where llama.cpp would compute a setting wrongly without an
error, the context is limited to where it is exact, with a notice, or the model is refused. The `describe` of a family
gets the metadata so far, the hyperparameters, and the sizes by the letters of `Row.shape`; each family's own stands
beside its tensors.
"""

from shimmy.formats.convert.hyperparameters import (
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_LAYERS,
    Hyperparameters,
    MetadataBuilder,
    wrong,
)
from shimmy.formats.format_errors import Unconvertible

SOFTMAX, SIGMOID = 1, 2  # llama_expert_gating_func_type
DENSE, SPARSE = "dense", "sparse"  # layers without experts, and with some


def plain(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    """Nothing of its own: `recipe` describes this family."""


def plain_heads(values: Hyperparameters, sizes: dict[str, int]) -> None:
    """Refuse another size of heads: in these architectures llama.cpp takes E / H for granted."""
    if sizes["Q"] != sizes["E"]:
        raise wrong("head_dim", values.get("head_dim") or values.get("num_attention_heads"))


def cap_to_window(draft: MetadataBuilder, values: Hyperparameters, *, is_used: bool = True) -> None:
    """Limit the context to a sliding window that llama.cpp does not compute: up to there it is exact."""
    kinds = set(values.names("layer_types") or ("sliding_attention",))
    if kinds - {"full_attention", "sliding_attention"}:
        raise Unconvertible("its `layer_types` has a kind of layer that the engine does not have")
    if is_used and "sliding_attention" in kinds and values.get("sliding_window") is not None:
        window = values.integer("sliding_window", maximum=MAX_CONTEXT)
        draft.cap_context(window, "the engine has no sliding window for this architecture")


def qwen_window(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    is_used = values.flag("use_sliding_window")
    first = values.get("max_window_layers")
    if values.get("layer_types") is None and first is not None:
        is_used &= values.integer("max_window_layers", minimum=0, maximum=2**31) < sizes["layers"]
    cap_to_window(draft, values, is_used=is_used)


def experts(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int], key: str) -> None:
    sizes["X"] = values.integer(key, "num_experts", "num_local_experts", maximum=MAX_EXPERTS)
    draft.integer("expert_count", sizes["X"])
    draft.integer("expert_used_count", values.integer("num_experts_per_tok", maximum=sizes["X"]))


def expert_groups(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    """Experts come from the groups whose two best are the best; `sizes` has how many there are of them."""
    n_groups = values.integer("n_group", maximum=sizes["X"], default=1)
    n_used = values.integer("topk_group", maximum=n_groups, default=1)
    if sizes["X"] % n_groups or (n_groups != n_used and sizes["X"] < 2 * n_groups):
        raise wrong("n_group", n_groups)
    if n_used * (sizes["X"] // n_groups) < values.integer("num_experts_per_tok"):
        raise wrong("topk_group", n_used)
    if n_groups != n_used:
        draft.integer("expert_group_count", n_groups)
        draft.integer("expert_group_used_count", n_used)


def n_dense_layers(values: Hyperparameters) -> int:
    """How many layers have no experts: the first ones."""
    n_layers = values.integer("num_hidden_layers", maximum=MAX_LAYERS)
    kinds = values.names("mlp_layer_types")
    if kinds is None:
        return values.integer("first_k_dense_replace", minimum=0, maximum=n_layers - 1)
    n_dense = kinds.count(DENSE)
    if n_dense == n_layers or kinds != [DENSE] * n_dense + [SPARSE] * (n_layers - n_dense):
        raise Unconvertible("its `mlp_layer_types` are not some layers without experts, and then all others with some")
    return n_dense


def window_pattern(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int], usual: int = 0) -> bool:
    """Write which layers have a window, unless it is all but each `usual`-th; False when no layer has one."""
    kinds = values.names("layer_types")
    if kinds is None:
        period = values.integer("sliding_window_pattern", "_sliding_window_pattern", default=usual)
        slides = [(layer + 1) % period != 0 for layer in range(sizes["layers"])]
    else:
        if len(kinds) != sizes["layers"] or set(kinds) - {"full_attention", "sliding_attention"}:
            raise Unconvertible(
                "its `layer_types` has a kind of layer that the engine does not have, or too few layers"
            )
        slides = [kind == "sliding_attention" for kind in kinds]
    if any(slides) and not (usual and slides == [(layer + 1) % usual != 0 for layer in range(sizes["layers"])]):
        draft.flags("attention.sliding_window_pattern", slides)
    return any(slides)


def rotation_of_each_kind(values: Hyperparameters) -> None:
    """Refuse one rotation for all layers in `rope_parameters`.

    Classes with a rotation for each kind of layer look for these there, and take their defaults where they find none.
    """
    rope = values.get("rope_parameters")
    if rope and not (isinstance(rope, dict) and {"full_attention", "sliding_attention"} & rope.keys()):
        raise wrong("rope_parameters", rope)


def windows_in_turn(draft: MetadataBuilder, values: Hyperparameters, sizes: dict[str, int]) -> None:
    """Write the window that every other layer has unless `layer_types` says otherwise.

    llama.cpp has one in these architectures, whatever it is told: where no layer has one, it is as long as the context.
    """
    has_window = window_pattern(draft, values, sizes, 2)
    window = values.integer("sliding_window", maximum=MAX_CONTEXT) if has_window else draft.n_ctx
    draft.integer("attention.sliding_window", window)
