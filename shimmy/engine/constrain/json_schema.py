"""JSON Schemas as llguidance is given them: what it would not honour is refused, and the spacing of JSON is set.

Knows keywords, and the places where llguidance 1.9.1 is not exact. Compiles nothing: llguidance refuses other schemas
itself, and `keyword_at_fault` finds words for that. `enforceable_schema` decides what can be kept of a schema.
"""

import json
import math
from typing import Any
from urllib.parse import unquote

from shimmy.engine.constrain.simpler_schema import Schema, each_child, parts, simplify
from shimmy.errors import BadRequest

MAX_CHARACTERS = 1 << 18  # of a schema or grammar as text; the cost of a compilation can grow with it
MAX_PROPERTIES = 2_000  # of one object; their compilation takes half a second, and grows with the square
_MAX_REMAINDERS = 20_000  # of all multiples together: a fifth of a second
MAX_DEPTH = 100  # the reader of llguidance stops at 128

# One line with the spaces that Python's json writes, as models have seen it most: what may stand between two values is
# then always the same, so it is forced and need not be sampled, and no model gets lost in white space.
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

UNSUPPORTED = (
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties", "dependencies", "dependentRequired", "dependentSchemas"),
    *("$dynamicRef", "$recursiveRef"),
)


def prepared(text: str) -> Schema:
    """The schema that llguidance is to compile for the one in `text`; raises BadRequest for what it cannot honour."""
    if len(text) > MAX_CHARACTERS:
        raise BadRequest(f"the schema is too large: {len(text)} characters, {MAX_CHARACTERS} are allowed")
    try:
        schema = read(text)
        if depth(schema) > MAX_DEPTH:
            raise RecursionError
        simplify(schema)
        in_a_ring = references_in_rings(schema)
        for place, part in parts(schema):
            _check(place, part, is_in_ring=id(part) in in_a_ring)
        for place, keyword in bounds_too_close_to_zero(schema):
            raise BadRequest(f"`{keyword}` of 0 at `{place}` cannot be enforced with a bound between 0 and 1")
        for place, part in costly_multiples(schema):
            raise BadRequest(f"`multipleOf` {part['multipleOf']} at `{place}` cannot be enforced: it is too large")
        json.dumps(schema, allow_nan=False)
    except RecursionError as exc:
        raise BadRequest(f"the schema is nested more than {MAX_DEPTH} deep") from exc
    except ValueError as exc:
        raise BadRequest(f"the schema is no JSON: {exc}") from exc
    return {**schema, "x-guidance": STYLE}


def read(text: str) -> Schema:
    """The schema in `text`; `true` is the empty one. Raises ValueError for text that is no JSON, RecursionError, and
    BadRequest for other values."""
    schema = json.loads(text, parse_constant=_no_constant)
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise BadRequest("the schema has to be a JSON object, or `true`")
    return schema


def keyword_at_fault(schema: Schema) -> str:
    """The first keyword that cannot be enforced, and its place, in words; empty where no keyword is at fault."""
    for place, part in parts(schema):
        for keyword in UNSUPPORTED:
            if keyword in part:
                return f"`{keyword}` at `{place}` cannot be enforced"
    return ""


def _check(place: str, part: Schema, *, is_in_ring: bool) -> None:
    properties = part.get("properties")
    if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
        raise BadRequest(f"`properties` at `{place}` names {len(properties)}, {MAX_PROPERTIES} are allowed")
    if has_loose_minimum(part):
        raise BadRequest(f"`minProperties` at `{place}` cannot be enforced beyond one property that is not required")
    if is_in_ring:
        raise BadRequest(f"`$ref` at `{place}` leads back to itself")


def has_loose_minimum(part: Schema) -> bool:
    """Whether more than one property is needed that is not required: a name that is not listed may come twice."""
    required, at_least = part.get("required"), part.get("minProperties")
    n_required = len({str(name) for name in required}) if isinstance(required, list) else 0
    return isinstance(at_least, int | float) and at_least - n_required > 1


def references_in_rings(root: Schema) -> set[int]:
    """The ids of parts whose `$ref` leads back to itself, directly or through others."""
    in_rings: set[int] = set()
    seen: set[int] = set()
    for _, part in parts(root):
        way: dict[int, None] = {}
        found: object = part
        while isinstance(found, dict) and "$ref" in found and id(found) not in seen:
            seen.add(id(found))
            way[id(found)] = None
            found = target(root, found["$ref"])
        if id(found) in way or id(found) in in_rings:
            in_rings |= way.keys()
    return in_rings


def target(root: Schema, reference: object) -> object:
    """The target of a reference inside the schema; None for other references, and for those without a target."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found: object = root
    for step in unquote(reference[1:]).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list):
            found = found[int(name)] if name.isdecimal() and len(name) < 8 and int(name) < len(found) else None
        else:
            found = found.get(name) if isinstance(found, dict) else None
    return found


_LEFT_BEHIND = ("$defs", "definitions", "$anchor", "x-guidance")  # what a part is given anew, or needs no more


def standalone(part: Schema, root: Schema) -> Schema:
    """`part` of `root` as a schema of its own: with what its references lead to, and nothing else of `root`."""
    names: dict[str, str] = {}  # of what is referred to
    unwritten: list[tuple[str, str]] = []

    def closed(schema: Any) -> Any:
        if not isinstance(schema, dict):
            return schema
        copied = {key: value for key, value in schema.items() if key not in _LEFT_BEHIND}
        each_child(copied, closed)
        reference = copied.get("$ref")
        if isinstance(reference, str):
            if reference not in names:
                names[reference] = f"d{len(names)}"
                unwritten.append((names[reference], reference))
            copied["$ref"] = f"#/$defs/{names[reference]}"
        return copied

    whole: Schema = closed(part)
    definitions = {}
    while unwritten:
        name, reference = unwritten.pop()
        definitions[name] = closed(_referred(root, reference))
    return {**whole, **({"$defs": definitions} if definitions else {}), "x-guidance": root.get("x-guidance", STYLE)}


def _referred(root: Schema, reference: str) -> object:
    if reference == "#" or reference.startswith("#/"):
        return target(root, reference)
    return next((part for _, part in parts(root) if f"#{part.get('$anchor')}" == reference), None)


def bounds_too_close_to_zero(schema: Schema) -> list[tuple[str, str]]:
    """Exclusive bounds of 0 beside numbers less than 1 away from it, by place and keyword: llguidance lets 0 pass.

    The two bounds may meet by way of `allOf` or `$ref`, so it is enough that the schema has them somewhere.
    """
    bounds = [(place, keyword, part[keyword]) for place, part in parts(schema) for keyword in part
              if keyword.lower().endswith("imum") and _is_number(part[keyword])]  # fmt: skip
    is_close = {
        "exclusiveMinimum": any(0 < value < 1 for _, keyword, value in bounds if keyword.lower().endswith("maximum")),
        "exclusiveMaximum": any(0 < -value < 1 for _, keyword, value in bounds if keyword.lower().endswith("minimum")),
    }
    return [(place, keyword) for place, keyword, value in bounds if value == 0 and is_close.get(keyword)]


def costly_multiples(schema: Schema) -> list[tuple[str, Schema]]:
    """Parts, with their places, whose `multipleOf` would take seconds or gigabytes: llguidance has a state for each
    remainder. Of two that a value has to obey, it has one for each pair; they may meet by way of `allOf`."""
    found = [(place, part, _n_remainders(part["multipleOf"])) for place, part in parts(schema)
             if _is_number(part.get("multipleOf"))]  # fmt: skip
    counts = [count for _, _, count in found]
    may_meet = any("allOf" in part for _, part in parts(schema))
    total = math.prod(set(counts)) if may_meet else sum(counts)
    return [(place, part) for place, part, count in found if count > 1] if total > _MAX_REMAINDERS else []


def _n_remainders(multiple: float) -> int:
    """A digit tells whether a number is a multiple of 2 or 5: these take no states of their own."""
    digits = repr(multiple).partition("e")[0].replace(".", "").lstrip("-")
    count = int(digits) if digits.isdecimal() and len(digits) < 300 else _MAX_REMAINDERS + 1
    for factor in (2, 5):
        while count and count % factor == 0:
            count //= factor
    return count


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def depth(value: object) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, children), default=0)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
