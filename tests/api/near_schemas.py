"""Values near a JSON Schema, of the part of the language that our request tables write: most fit, some do not.

What goes wrong is what a caller gets wrong: a field that is missing, of another type, beside its bounds, or of another
of several forms.
"""

import random
from copy import deepcopy
from typing import Any

Schema = dict[str, Any]
_ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 1.5, 1e300, 2**63, "", "a", "text"),
    *([], {}, [[]], [{}], ["a"], {"type": "text"}, {"a": 1}),
]
_TEXTS = ("", "a", "text", "web_search", "10m", "a b", "\x00", "\u00e9" * 30, "x" * 200)
_MAX_DEPTH = 8


def near(schema: Schema, rng: random.Random, depth: int = 0) -> Any:
    """A value that mostly fits `schema`."""
    if rng.random() < 0.02:
        return deepcopy(rng.choice(_ODD))
    match schema:
        case {"anyOf": [*forms]}:
            return _of_several([{**schema, **form} for form in forms], rng, depth)
        case {"const": value}:
            return value
        case {"enum": [*values]}:
            return rng.choice(values)
        case {"type": [*names]}:
            return near(schema | {"type": rng.choice(names)}, rng, depth)
        case {"type": "boolean"}:
            return rng.random() < 0.5
        case {"type": "integer" | "number"}:
            return _number(schema, rng)
        case {"type": "string"}:
            return rng.choice(_TEXTS)
        case {"type": "array"}:
            n_items = 0 if depth > _MAX_DEPTH else rng.choice((0, 1, 1, 2, 3))
            return [near(schema.get("items", {}), rng, depth + 1) for _ in range(n_items)]
        case {"type": "object"}:
            return _object(schema, rng, depth)
        case {"type": "null"}:
            return None
    return deepcopy(rng.choice(_ODD))


def _of_several(forms: list[Schema], rng: random.Random, depth: int) -> Any:
    """One form, now and then with fields of another."""
    one, other = (near({k: v for k, v in rng.choice(forms).items() if k != "anyOf"}, rng, depth) for _ in range(2))
    if isinstance(one, dict) and isinstance(other, dict) and rng.random() < 0.4:
        one |= {name: value for name, value in other.items() if rng.random() < (0.2 if name in one else 0.6)}
    return one


def _number(schema: Schema, rng: random.Random) -> float:
    bounds: dict[str, int] = schema
    low = bounds.get("minimum", bounds.get("exclusiveMinimum", -5))
    high = bounds.get("maximum", bounds.get("exclusiveMaximum", low + 20))
    return rng.choice((low, high, low - 1, high + 1, 0, 1, low + (high - low) // 2))


def _object(schema: Schema, rng: random.Random, depth: int) -> Schema:
    fields: Schema = schema.get("properties", {})
    required: list[str] = schema.get("required", [])
    optional = [name for name in fields if name not in required]
    n_optional = 0 if depth > _MAX_DEPTH else min(len(optional), rng.choice((0, 1, 1, 2, 3)))
    names = [*(name for name in required if rng.random() < 0.9), *rng.sample(optional, n_optional)]
    return {name: near(fields.get(name, {}), rng, depth + 1) for name in names}
