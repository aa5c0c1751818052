"""Simplifies a JSON Schema: removes what constrains nothing, and writes the rest in the plainest equivalent form.

The schema means the same afterwards (JSON Schema 2020-12), so every schema may be simplified. Knows keywords; nothing
of what can be enforced.
"""

from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]

# The formats that llguidance 1.9.1 enforces. All others are annotations (JSON Schema 2020-12, Validation, 7).
FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid", "unknown"}

_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_CHILDREN = (
    *("items", "prefixItems", "additionalItems", "additionalProperties", "allOf", "anyOf", "oneOf", "not", "if"),
    *("then", "else", "contains", "propertyNames", "unevaluatedItems", "unevaluatedProperties"),
)
_IN_PLACE = ("allOf", "anyOf", "oneOf", "$ref", "$dynamicRef", "$recursiveRef", "if", "dependentSchemas", "not")
_ANNOTATIONS = {
    *("title", "description", "default", "examples", "example", "$comment", "deprecated", "readOnly", "writeOnly"),
    *("$schema", "$id"),
}
# Values of these may be null; elsewhere null stands for a keyword that a serializer left out.
_MAY_BE_NULL = {"const", "default", "example"}
# Keywords that say something about values of one type only.
_ABOUT = {
    **dict.fromkeys(("uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems"), "array"),
    **dict.fromkeys(("propertyNames", "unevaluatedProperties", "dependencies", "dependentRequired"), "object"),
    **dict.fromkeys(("dependentSchemas", "minProperties"), "object"),
}


def parts(schema: object, place: str = "#") -> Iterator[tuple[str, Schema]]:
    """Every schema inside a schema, with a JSON pointer to it; the schema itself comes first."""
    if not isinstance(schema, dict):
        return
    yield place, schema
    for step, child in children(schema):
        yield from parts(child, place + step)


def children(schema: Schema) -> Iterator[tuple[str, object]]:
    """The direct children of a schema that should be schemas, with the ends of their pointers."""
    for keyword in _BY_NAME:
        value = schema.get(keyword)
        if isinstance(value, dict):
            for name, child in [*value.items()]:
                yield f"/{keyword}/{name.replace('~', '~0').replace('/', '~1')}", child
    for keyword in _CHILDREN:
        value = schema.get(keyword)
        if isinstance(value, list):
            for index, child in enumerate(value):
                yield f"/{keyword}/{index}", child
        elif keyword in schema:
            yield f"/{keyword}", value


def each_child(schema: Schema, change: Callable[[Any], Any]) -> None:
    """Put `change(child)` in the place of every child."""
    for keyword in _BY_NAME:
        value = schema.get(keyword)
        if isinstance(value, dict):
            schema[keyword] = {name: change(child) for name, child in value.items()}
    for keyword in _CHILDREN:
        value = schema.get(keyword)
        if isinstance(value, list):
            schema[keyword] = [change(child) for child in value]
        elif keyword in schema:
            schema[keyword] = change(value)


def simplify(schema: Schema) -> None:
    """Change `schema` to a plainer one that means the same."""
    anchors: dict[object, list[str]] = {}
    refers_to_choices = False
    for place, part in parts(schema):
        anchors.setdefault(part.get("$dynamicAnchor"), []).append(place)
        named = (part.get("$ref"), place if part.keys() & {"$dynamicAnchor", "$anchor", "$id"} else None)
        refers_to_choices |= any("/anyOf/" in str(each) or "/oneOf/" in str(each) for each in named)
    for place, part in parts(schema):
        for keyword in [name for name, value in part.items() if value is None and name not in _MAY_BE_NULL]:
            del part[keyword]
        each_child(part, _plain_false)
        _without_dynamic_references(part, anchors)
        for keyword in [name for name in part if _is_idle(name, part)]:
            del part[keyword]
        _close(part)
        if place != "#" and not refers_to_choices:  # a choice that is used elsewhere is to stay what it is there
            _say_type_in_choices(part)


def _plain_false(child: Any) -> Any:
    """`false` for a child that means the same, such as zod's `never`."""
    if isinstance(child, dict) and child.keys() - _ANNOTATIONS == {"not"} and _takes_anything(child["not"]):
        return False
    return child


def _without_dynamic_references(part: Schema, anchors: dict[object, list[str]]) -> None:
    """In one document, a dynamic reference to an anchor that stands there once is a plain one."""
    dynamic = part.get("$dynamicRef")
    places = anchors.get(dynamic[1:], []) if isinstance(dynamic, str) and dynamic.startswith("#") else []
    if "$ref" not in part and len(places) == 1:
        del part["$dynamicRef"]
        part["$ref"] = places[0]
    if part.get("$recursiveRef") == "#" and "$ref" not in part:
        del part["$recursiveRef"]
        part["$ref"] = "#"


def _close(part: Schema) -> None:
    """`unevaluated…: false` is `additional…: false` where no other schema speaks of the same value."""
    if any(keyword in part for keyword in _IN_PLACE):
        return
    if part.get("unevaluatedProperties") is False:
        part.setdefault("additionalProperties", part.pop("unevaluatedProperties"))
    if part.get("unevaluatedItems") is False and "additionalItems" not in part:
        part.setdefault("items", part.pop("unevaluatedItems"))


def _say_type_in_choices(part: Schema) -> None:
    """A `type` beside nothing but choices is that of each choice, so that the choices say all there is to say."""
    keywords = part.keys() - _ANNOTATIONS
    choices = next((part[word] for word in ("anyOf", "oneOf") if keywords == {"type", word}), None)
    if isinstance(choices, list):
        typed = [_of_types(choice, _types(part)) for choice in choices] if _types(part) else [None]
        if None not in typed and any(typed):
            choices[:] = typed
            del part["type"]


def _of_types(choice: object, allowed: list[str]) -> Schema | bool | None:
    """The part of a choice that has one of the types `allowed`; None where another schema has to say that."""
    if choice is False:
        return False
    schema = {} if choice is True else choice
    if not isinstance(schema, dict) or any(keyword in schema for keyword in _IN_PLACE):
        return None
    own = _types(schema) or allowed
    common = [kind for kind in own if kind in allowed or (kind == "integer" and "number" in allowed)]
    if "number" in own and "number" not in allowed and "integer" in allowed:
        common.append("integer")
    if not common:
        return False
    return {**schema, "type": common[0] if len(common) == 1 else list(dict.fromkeys(common))}


def _types(schema: Schema) -> list[str]:
    """The types that a schema names; none where it names none in the way it should."""
    kind = schema.get("type")
    kinds = [kind] if isinstance(kind, str) else kind
    return kinds if isinstance(kinds, list) and all(isinstance(each, str) for each in kinds) else []


def _is_idle(keyword: str, part: Schema) -> bool:
    """Whether the keyword constrains nothing where it stands."""
    kind = part.get("type")
    types = [kind] if isinstance(kind, str) else kind
    if isinstance(types, list) and keyword in _ABOUT and _ABOUT[keyword] not in types:
        return True
    return keyword in _IDLE and _IDLE[keyword](part[keyword], part)


def _takes_anything(schema: object) -> bool:
    return schema is True or (isinstance(schema, dict) and not schema.keys() - _ANNOTATIONS)


def _takes_every_string(schema: object) -> bool:
    if not isinstance(schema, dict):
        return schema is True
    kind = schema.get("type", "string")
    return "string" in ([kind] if isinstance(kind, str) else kind) and _takes_anything(
        {name: value for name, value in schema.items() if name != "type" and (name, value) != ("minLength", 0)}
    )


def _are_required(part: Schema, dependencies: object) -> bool:
    """Whether the properties that each property depends on are required anyway."""
    required = part.get("required")
    known = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    return isinstance(dependencies, dict) and all(
        _takes_anything(names)
        or (isinstance(names, list) and all(isinstance(name, str) and name in known for name in names))
        for names in dependencies.values()
    )


_IDLE: dict[str, Callable[[Any, Schema], bool]] = {
    "$schema": lambda value, _: "//json-schema.org/" not in str(value),
    "$dynamicAnchor": lambda _value, _: True,
    "$recursiveAnchor": lambda _value, _: True,
    "format": lambda value, _: value not in FORMATS if isinstance(value, str) else True,
    "not": lambda value, _: value is False,
    "propertyNames": lambda value, _: _takes_every_string(value),
    "uniqueItems": lambda value, part: value is False or part.get("maxItems") in (0, 1),
    "contains": lambda _value, part: part.get("minContains") == 0 and "maxContains" not in part,
    "minContains": lambda _value, part: "contains" not in part,
    "maxContains": lambda _value, part: "contains" not in part,
    "minProperties": lambda value, _: value == 0,
    "unevaluatedProperties": lambda value, _: _takes_anything(value),
    "unevaluatedItems": lambda value, _: _takes_anything(value),
    "dependentRequired": lambda value, part: _are_required(part, value),
    "dependentSchemas": lambda value, _: isinstance(value, dict) and all(map(_takes_anything, value.values())),
    "dependencies": lambda value, part: _are_required(part, value),
    "if": lambda _value, part: _takes_anything(part.get("then", True)) and _takes_anything(part.get("else", True)),
    "then": lambda value, part: "if" not in part or _takes_anything(value),
    "else": lambda value, part: "if" not in part or _takes_anything(value),
}
