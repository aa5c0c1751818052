"""What config.json says of a model, checked value by value, in the styles of transformers 4 and 5.

Knows the keys that many families share, how rotary positions are scaled, and what becomes of them in a GGUF. Knows
nothing of tensors' names. All of it is untrusted: a value that is missing or impossible raises Unconvertible.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf.writer import GgufType, Metadata
from shimmy.formats.safetensors.checkpoint import shown_value

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS; llama.cpp aborts the process above it
MAX_EXPERTS = 1_024  # LLAMA_MAX_EXPERTS
MAX_WIDTH = 2**20  # of embeddings, heads and feed-forward layers: bounds the length of a row
MAX_CONTEXT = 2**31 - 1


class Hyperparameters:
    """Typed access to a configuration; an absent key, or one that is null, has the family's default."""

    def __init__(self, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self._values = {**defaults, **{key: value for key, value in config.items() if value is not None}}

    def changed(self, changes: Mapping[str, Any]) -> "Hyperparameters":
        """The same with other values for some keys."""
        return Hyperparameters({**self._values, **changes}, {})

    def get(self, *keys: str) -> Any:
        """The value of the first key that is there; None when none is."""
        return next((self._values[key] for key in keys if key in self._values), None)

    def integer(self, *keys: str, minimum: int = 1, maximum: int = MAX_WIDTH, default: int | None = None) -> int:
        """The first of the keys that is there; it must be there when there is no default."""
        value = self.get(*keys)
        if value is None:
            value = default
        if type(value) is not int or not minimum <= value <= maximum:
            raise wrong(keys[0], value)
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        """A finite number that is not negative."""
        value = self.get(*keys)
        return checked_number(keys[0], default if value is None else value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise wrong(key, value)
        return value

    def names(self, key: str) -> list[str] | None:
        """A list of strings, like `layer_types`."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise wrong(key, value)
        return value

    def require(self, key: str, *allowed: Any, default: Any = None) -> None:
        """Raises Unconvertible unless the value is one of those that llama.cpp computes with."""
        value = self.get(key)
        if value is None:
            value = default
        if not any(type(value) is type(other) and value == other for other in allowed):
            raise Unconvertible(f"its `{key}` is {_brief(value)}, which the engine cannot compute")


def wrong(key: str, value: Any) -> Unconvertible:
    if value is None:
        return Unconvertible(f"its config.json has no `{key}`")
    return Unconvertible(f"its config.json has an impossible `{key}`: {_brief(value)}")


def checked_number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(key, value)
    try:
        number = float(value)
    except OverflowError:
        raise wrong(key, value) from None
    # Beyond this it would be infinite as the 32-bit float that a GGUF holds.
    if not 0 <= number <= 3e38:
        raise wrong(key, value)
    return number


def _brief(value: Any) -> str:
    is_huge = isinstance(value, int) and value.bit_length() >= 256
    return f"`{'a huge number' if is_huge else shown_value(value)}`"


@dataclass(slots=True)
class MetadataBuilder:
    """What a GGUF is to say of a model, as it is put together for one architecture."""

    architecture: str
    metadata: Metadata = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    computed: dict[str, list[float]] = field(default_factory=dict)  # tensors that no file holds, in F32
    n_ctx: int = 0
    is_limited: bool = False  # to less than config.json says

    def integer(self, key: str, value: int) -> None:
        self._put(key, GgufType.UINT32, value)

    def number(self, key: str, value: float) -> None:
        self._put(key, GgufType.FLOAT32, value)

    def flag(self, key: str, value: bool) -> None:
        self._put(key, GgufType.BOOL, value)

    def text(self, key: str, value: str) -> None:
        self._put(key, GgufType.STRING, value)

    def flags(self, key: str, values: Iterable[bool]) -> None:
        self._put(key, GgufType.ARRAY, (GgufType.BOOL, list(values)))

    def integers(self, key: str, values: Iterable[int]) -> None:
        """A number for each layer, in the place of the one for all."""
        self._put(key, GgufType.ARRAY, (GgufType.INT32, list(values)))

    def _put(self, key: str, code: GgufType, value: Any) -> None:
        """In the place of what was said before."""
        key = f"{self.architecture}.{key}"
        self.metadata[:] = [entry for entry in self.metadata if entry[0] != key]
        self.metadata.append((key, code, value))

    def cap_context(self, n_ctx: int, reason: str) -> None:
        """Serve no more than `n_ctx` tokens, and say so, where more would be computed wrongly without a word."""
        if n_ctx < self.n_ctx:
            self.notices.append(f"its context is limited to {n_ctx} of {self.n_ctx} tokens: {reason}")
            self.n_ctx = n_ctx
            self.is_limited = True


def rope_parameters(values: Hyperparameters, layers: str = "full_attention") -> Hyperparameters:
    """How positions are rotated in the layers of one kind: `rope_type`, `rope_theta` and what the type needs.

    transformers 5 has it all in `rope_parameters`, of each kind of layer where they differ; transformers 4 has the
    scaling in `rope_scaling`, with `type` for `rope_type` in its older versions, and the rest beside it.
    """
    found = values.get("rope_parameters")
    if found in (None, {}):
        found = values.get("rope_scaling")
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise wrong("rope_parameters", found)
    if "full_attention" in found or "sliding_attention" in found:
        found = found.get(layers) or {}
        if not isinstance(found, dict):
            raise wrong("rope_parameters", found)
    beside = {key: values.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    rope_type = found.get("rope_type") or found.get("type") or "default"
    if not isinstance(rope_type, str):
        raise wrong("rope_type", rope_type)
    return Hyperparameters({**beside, **_without_nulls(found), "rope_type": rope_type}, {})


def refuse_two_rotations(values: Hyperparameters) -> None:
    """Raise Unconvertible where `rope_scaling` says what `rope_parameters` does not: no two programs agree which of
    them counts. Some files repeat the one in the other, for older versions of transformers.
    """
    current, former = values.get("rope_parameters"), values.get("rope_scaling")
    if not isinstance(current, dict) or not isinstance(former, dict):
        return
    counted = current.get("full_attention", current)
    items = {("rope_type" if key == "type" else key): value for key, value in _without_nulls(former).items()}
    known = {"rope_type": "default", **counted} if isinstance(counted, dict) else {}
    if current and any(key not in known or known[key] != value for key, value in items.items()):
        raise Unconvertible(
            "its config.json has both `rope_parameters` and `rope_scaling`, and they differ: put what counts into "
            "`rope_parameters`, and remove `rope_scaling`"
        )


def _without_nulls(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if value is not None}


def describe_rope(draft: MetadataBuilder, values: Hyperparameters, allowed: frozenset[str], n_rotated: int) -> None:
    """Write base and scaling of the rotation of `n_rotated` elements of each head.

    `allowed` are the types of scaling that llama.cpp computes for this architecture; another one is refused. Formulas:
    `modeling_rope_utils.py` of transformers; llama-context.cpp and `rope_yarn` in ggml-cpu/ops.cpp.
    """
    rope = rope_parameters(values)
    theta = rope.number("rope_theta")
    if not 1 <= theta <= 1e15:
        raise wrong("rope_theta", theta)
    draft.number("rope.freq_base", theta)
    rope_type = rope.get("rope_type")
    if rope_type == "default":
        return
    if str(rope_type) not in allowed:
        raise Unconvertible(f"its rotary positions are scaled by {_brief(rope_type)}, which the engine cannot compute")
    if rope_type == "linear":
        draft.text("rope.scaling.type", "linear")
        draft.number("rope.scaling.factor", _factor(rope))
    elif rope_type == "yarn":
        _describe_yarn(draft, rope)
    elif rope_type == "llama3":
        draft.computed["rope_freqs.weight"] = _llama3_factors(rope, theta, n_rotated)
    elif rope_type == "dynamic":
        n_ctx = rope.integer("original_max_position_embeddings", maximum=MAX_CONTEXT, default=draft.n_ctx)
        draft.cap_context(n_ctx, "the engine does not scale its positions dynamically beyond them")


def _factor(rope: Hyperparameters) -> float:
    factor = rope.number("factor")
    if not 1 <= factor <= 1e6:
        raise wrong("factor", factor)
    return factor


def _describe_yarn(draft: MetadataBuilder, rope: Hyperparameters) -> None:
    n_ctx_original = rope.integer("original_max_position_embeddings", maximum=MAX_CONTEXT, default=draft.n_ctx)
    factor = _factor(rope) if rope.get("factor") is not None else max(1.0, draft.n_ctx / n_ctx_original)
    for key, computed in (("beta_fast", 32.0), ("beta_slow", 1.0)):
        if rope.number(key, default=computed) != computed:
            raise Unconvertible(
                f"its rotary positions have another `{key}` than {computed:g}, which the engine ignores"
            )
    if rope.get("truncate") is False and draft.architecture == "gpt-oss":
        draft.notices.append(
            "the engine rounds the ends of the range in which its rotary positions are scaled: what it computes is "
            "what it computes for GGUF files of this model, and not quite what transformers does"
        )
    else:
        rope.require("truncate", True, default=True)
    # What llama.cpp multiplies with by itself; `attn_factor` comes on top of it.
    implied = 0.1 * math.log(factor) + 1
    draft.text("rope.scaling.type", "yarn")
    draft.number("rope.scaling.factor", factor)
    draft.integer("rope.scaling.original_context_length", n_ctx_original)
    attention = rope.number("attention_factor", default=_yarn_attention(rope, factor))
    if attention != implied:
        draft.number("rope.scaling.attn_factor", attention / implied)


def _yarn_attention(rope: Hyperparameters, factor: float) -> float:
    numerator, denominator = rope.number("mscale", default=0), rope.number("mscale_all_dim", default=0)
    if numerator and denominator:
        return (0.1 * numerator * math.log(factor) + 1) / (0.1 * denominator * math.log(factor) + 1)
    return 0.1 * math.log(factor) + 1


def _llama3_factors(rope: Hyperparameters, theta: float, n_rotated: int) -> list[float]:
    """By what each frequency is divided: 1 for short waves, the factor for long ones, and a blend in between."""
    factor = _factor(rope)
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    n_ctx_original = rope.integer("original_max_position_embeddings", maximum=MAX_CONTEXT)
    if not 0 < low < high:
        raise wrong("high_freq_factor", high)
    factors = []
    for index in range(0, n_rotated, 2):
        n_waves = n_ctx_original / (2 * math.pi * theta ** (index / n_rotated))
        share = min(1.0, max(0.0, (n_waves - low) / (high - low)))
        factors.append(1 / ((1 - share) / factor + share))
    return factors
