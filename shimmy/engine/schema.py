"""JSON Schemas as llguidance is given them: what it would not honour is refused here, and how JSON is written is set.

Knows keywords, and the places where llguidance 1.9.1 is not exact. Compiles nothing: what llguidance refuses itself is
left to it, and `keyword_at_fault` only finds words for it.
"""

import json
from collections.abc import Iterator
from typing import Any

from shimmy.errors import BadRequest

MAX_CHARACTERS = 1 << 18  # of a schema or grammar as text; what a compilation can cost grows with it
_MAX_PROPERTIES = 2_000  # of one object; their compilation takes half a second, and grows with the square
_MAX_DEPTH = 100  # the reader of llguidance stops at 128

# One line with the spaces that Python's json writes, as models have seen it most: what may stand between two values is
# then always the same, so it is forced and need not be sampled, and no model gets lost in white space.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_UNSUPPORTED = (
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties", "dependencies", "dependentRequired", "dependentSchemas"),
    *("$dynamicRef", "$recursiveRef"),
)
# Formats of OpenAPI and pydantic that every string has.
_FORMATS_OF_ANY_TEXT = {"binary", "password", "path", "file-path", "directory-path"}
_WITH_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_WITH_SCHEMAS = (
    *("items", "prefixItems", "additionalItems", "additionalProperties", "allOf", "anyOf", "oneOf", "not", "if"),
    *("then", "else", "contains", "propertyNames", "unevaluatedItems", "unevaluatedProperties"),
)

Schema = dict[str, Any]


def prepared(text: str) -> Schema:
    """The schema that llguidance is to compile for the one in `text`; raises BadRequest for what it cannot honour."""
    if len(text) > MAX_CHARACTERS:
        raise BadRequest(f"the schema is too large: {len(text)} characters, {MAX_CHARACTERS} are allowed")
    try:
        schema = json.loads(text, parse_constant=_no_constant)
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise BadRequest("the schema has to be a JSON object, or `true`")
        if _depth(schema) > _MAX_DEPTH:
            raise RecursionError
        for place, part in _parts(schema):
            _clean(part)
            _check(place, part, schema)
        _check_bounds(schema)
        json.dumps(schema, allow_nan=False)
    except RecursionError as exc:
        raise BadRequest(f"the schema is nested more than {_MAX_DEPTH} deep") from exc
    except ValueError as exc:
        raise BadRequest(f"the schema is no JSON: {exc}") from exc
    return {**schema, "x-guidance": _STYLE}


def keyword_at_fault(schema: Schema) -> str:
    """The first keyword that cannot be enforced, and where it stands, in words; empty where it is another matter."""
    for place, part in _parts(schema):
        for keyword in _UNSUPPORTED:
            if keyword in part:
                return f"`{keyword}` at `{place}` cannot be enforced"
    return ""


def _parts(schema: object, place: str = "#") -> Iterator[tuple[str, Schema]]:
    """Every schema in a schema, itself included, with a JSON pointer to it."""
    if not isinstance(schema, dict):
        return
    yield place, schema
    for keyword in _WITH_SCHEMAS_BY_NAME:
        value = schema.get(keyword)
        if isinstance(value, dict):
            for name, part in value.items():
                yield from _parts(part, f"{place}/{keyword}/{_escaped(name)}")
    for keyword in _WITH_SCHEMAS:
        value = schema.get(keyword)
        if isinstance(value, list):
            for index, part in enumerate(value):
                yield from _parts(part, f"{place}/{keyword}/{index}")
        else:
            yield from _parts(value, f"{place}/{keyword}")


def _clean(part: Schema) -> None:
    """Take out what says nothing, but would be refused."""
    if part.get("uniqueItems") is False:
        del part["uniqueItems"]
    if isinstance(part.get("format"), str) and part["format"] in _FORMATS_OF_ANY_TEXT:
        del part["format"]


def _check(place: str, part: Schema, root: Schema) -> None:
    properties = part.get("properties")
    if isinstance(properties, dict) and len(properties) > _MAX_PROPERTIES:
        raise BadRequest(f"`properties` at `{place}` names {len(properties)}, {_MAX_PROPERTIES} are allowed")
    required, at_least = part.get("required"), part.get("minProperties")
    n_required = len({str(name) for name in required}) if isinstance(required, list) else 0
    if isinstance(at_least, int | float) and at_least - n_required > 1:
        # A name that the schema does not list may come twice, and counts only once.
        raise BadRequest(f"`minProperties` at `{place}` cannot be enforced beyond one property that is not required")
    seen: list[object] = []
    target: object = part
    while isinstance(target, dict) and "$ref" in target:
        if any(target is other for other in seen):
            raise BadRequest(f"`$ref` at `{place}` leads back to itself")
        seen.append(target)
        target = _target(root, target["$ref"])


def _target(root: Schema, reference: object) -> object:
    """What a reference inside of the schema points to; None for other references, and for those to nothing."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found: object = root
    for step in reference[1:].split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _check_bounds(schema: Schema) -> None:
    """Refuse numbers beyond 0 and less than 1 away from it: llguidance lets 0 itself pass.

    The two bounds may meet by way of `allOf` or `$ref`, so it is enough that the schema has them somewhere.
    """
    bounds = [(place, keyword, part[keyword]) for place, part in _parts(schema) for keyword in part
              if keyword.lower().endswith("imum") and _is_number(part[keyword])]  # fmt: skip
    for place, keyword, value in bounds:
        if value == 0 and keyword.startswith("exclusive"):
            is_lower = keyword == "exclusiveMinimum"
            others = [limit for _, name, limit in bounds if name.lower().endswith("maximum") == is_lower]
            if any(0 < (limit if is_lower else -limit) < 1 for limit in others):
                raise BadRequest(f"`{keyword}` of 0 at `{place}` cannot be enforced with a bound between 0 and 1")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _depth(value: object) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, children), default=0)


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")
