"""Which types of JSON the arguments of a tool may have, by their JSON Schemas. Knows schemas; no way of writing calls.

Where a model writes arguments without quotes, these tell the text `3` from the number.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from shimmy.messages.request import Tool

ANY = frozenset(("string", "number", "integer", "boolean", "null", "array", "object"))
TEXT = frozenset(("string",))
NAME_CHARACTERS = 256  # of an argument that no tool names, with what ends it; what is longer is no name
T = TypeVar("T", bound=Hashable)
SetOf = Callable[[object], frozenset[T]]
Types = Mapping[str, Mapping[str, frozenset[str]]]  # by the names of tool and argument
Schemas = Mapping[str, Mapping[str, Any]]  # by the names of tools

_NOTES = frozenset(("title", "description", "$schema", "$id", "$comment", "examples", "default", "deprecated"))
_MAX_DEPTH = 32  # of references and choices inside of each other
_OF_TYPE = {
    "string": ("pattern", "minLength", "maxLength"),
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
}


def argument_types(tools: Sequence[Tool]) -> Types:
    """The types of all named arguments of `tools`. Raises nothing: what is no schema names none."""
    return {tool.name: dict(_of_tool(tool)) for tool in tools}


def argument_schemas(tools: Sequence[Tool]) -> Schemas:
    """The schemas of the arguments of `tools`; an empty one for what is no schema."""
    return {tool.name: _schema(tool) for tool in tools}


def _schema(tool: Tool) -> Mapping[str, Any]:
    try:
        schema = json.loads(tool.parameters)
    except (ValueError, RecursionError):
        return {}
    return schema if isinstance(schema, dict) else {}


def _of_tool(tool: Tool) -> Iterator[tuple[str, frozenset[str]]]:
    if schema := _schema(tool):
        found = types_in(schema)
        yield from ((name, ANY) for name in needed(schema))
        for name, part in properties(schema).items():
            yield name, found.of(part) or ANY


def named_arguments(text: str) -> dict[str, Any]:
    """The arguments of a call, a JSON object; other JSON, and a text that is none, is the argument `input`."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = text
    return values if isinstance(values, dict) else {"input": values}


def properties(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schemas of the named arguments."""
    found = resolved(schema, schema).get("properties")
    return found if isinstance(found, dict) else {}


def odd_names(names: Iterable[str], end: str) -> list[str]:
    """Those that have `end` or white space where a reader would take it for the name's border: to be read as wholes."""
    return [
        name
        for name in names
        if name != name.strip() or f"{name}{end}".find(end) < len(name) or len(name) + len(end) > NAME_CHARACTERS
    ]


def needed(schema: Mapping[str, Any]) -> set[str]:
    """The names of the arguments that have to be there."""
    names = resolved(schema, schema).get("required")
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def resolved(schema: object, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a schema that is a reference into `root` refers to; an empty schema for what is none."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, Mapping):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        schema = _target(reference, root)
    return {}


def _target(reference: str, root: Mapping[str, Any]) -> object:
    head, *steps = reference.split("/")
    found: object = root if head == "#" else None
    for step in steps:
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def choices(schema: Mapping[str, Any]) -> list[Any]:
    """The schemas of which one has to hold; none where that is the schema itself."""
    for keyword in ("anyOf", "oneOf"):
        found = schema.get(keyword)
        if isinstance(found, list) and found:
            return [choice for choice in found if choice is not False]
    return []


def is_choice(schema: Mapping[str, Any]) -> bool:
    """Whether a schema says nothing but which schemas its values may follow."""
    return bool(choices(schema)) and schema.keys() <= _NOTES | {"anyOf", "oneOf"}


class LeastSets(Generic[T]):
    """The set that each part of a schema stands for, where parts may lead back to themselves: the least that fits.

    `read(part, of)` says it of a part that is no reference; `of` says it of the parts inside. What says nothing, and
    what lies too deep, stands for `everything`. Each part is read once, or a few times where it leads back.
    """

    def __init__(
        self,
        root: Mapping[str, Any],
        read: Callable[[Mapping[str, Any], "SetOf[T]"], frozenset[T]],
        everything: frozenset[T],
    ) -> None:
        self._root = root
        self._read = read
        self._everything = everything
        self._known: dict[int, frozenset[T]] = {}  # by the identity of parts
        self._found: dict[int, frozenset[T]] = {}  # the same, not settled yet
        self._begun: set[int] = set()
        self._is_settled = False

    def of(self, schema: object) -> frozenset[T]:
        """The set of `schema`, a part of the root. It is empty where only the part itself says what it stands for."""
        self._found = {}
        for _ in range(_MAX_DEPTH):
            self._begun, self._is_settled = set(), True
            found = self._of(schema, 0)
            if self._is_settled:
                break
        self._known |= self._found
        return found

    def _of(self, schema: object, depth: int) -> frozenset[T]:
        part = resolved(schema, self._root)
        if not part or depth > _MAX_DEPTH:
            return frozenset() if schema is False else self._everything
        key = id(part)
        if key in self._known:
            return self._known[key]
        if key not in self._begun:
            self._begun.add(key)
            before = self._found.get(key, frozenset())
            self._found[key] = before | self._read(part, lambda inner: self._of(inner, depth + 1))
            self._is_settled = self._is_settled and self._found[key] == before
        return self._found.get(key, frozenset())


def types_in(root: Mapping[str, Any]) -> LeastSets[str]:
    """The types that parts of `root` may allow; of a part for which nothing is found it may be `ANY`."""
    misfits: dict[int, bool] = {}  # by the identity of parts

    def is_misfit(choice: object) -> bool:
        part = resolved(choice, root)
        if part and id(part) not in misfits:
            misfits[id(part)] = _is_misfit(part)
        return misfits.get(id(part), False)

    def read(part: Mapping[str, Any], of: SetOf[str]) -> frozenset[str]:
        named = part.get("type")
        if isinstance(named, str) or (isinstance(named, list) and named):
            kinds = [named] if isinstance(named, str) else [kind for kind in named if isinstance(kind, str)]
            found = ANY.intersection(kinds) or ANY
            return listed(part, found)
        if "const" in part or isinstance(part.get("enum"), list):
            values = [part["const"]] if "const" in part else part["enum"]
            return frozenset(map(type_of, values)) or ANY
        if parts := choices(part):
            possible = [choice for choice in parts if not is_misfit(choice)] or parts
            return frozenset().union(*map(of, possible))
        whole = part.get("allOf")
        if isinstance(whole, list) and whole:
            return ANY.intersection(*filter(None, map(of, whole)))
        return next((frozenset((name,)) for name, words in _OF_TYPE.items() if not part.keys().isdisjoint(words)), ANY)

    return LeastSets(root, read, ANY)


def types(schema: object, root: Mapping[str, Any]) -> frozenset[str]:
    """The types that `schema`, a part of `root`, may allow; all of them where it names none."""
    return types_in(root).of(schema) or ANY


def type_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def allows(allowed: frozenset[str], value: object) -> bool:
    """Whether a value has one of these types."""
    kind = type_of(value)
    return (
        kind in allowed
        or (kind == "integer" and "number" in allowed)
        or (kind == "number" and "integer" in allowed and float(str(value)).is_integer())
    )


def listed_values(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values that a schema names; None where it names none."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return values if isinstance(values, list) else None


def listed(schema: Mapping[str, Any], allowed: frozenset[str]) -> frozenset[str]:
    """Those of the types `allowed` that a value has which `schema` lists; all of them where none is listed or fits."""
    values = listed_values(schema)
    if values is None:
        return allowed
    return frozenset(kind for kind in allowed if any(allows(frozenset((kind,)), value) for value in values)) or allowed


def without_ambiguous(part: Mapping[str, Any], read_as: frozenset[str]) -> Mapping[str, Any]:
    """The same without those listed strings that would be read as other JSON: of `["1", 2]` only the 2 can be said.

    `read_as` are the types of which the reader takes a text without quotes.
    """
    values = listed_values(part)
    if values is None or not read_as - TEXT:
        return part
    kept = [value for value in values if type(value) is not str or as_json(value, read_as) == as_json(value, TEXT)]
    return (
        part if len(kept) in {0, len(values)} else {**{key: part[key] for key in part if key != "const"}, "enum": kept}
    )


def _is_misfit(part: Mapping[str, Any]) -> bool:
    """Whether a schema lists values of which none has a type that it names."""
    values = listed_values(part)
    if values is None or "type" not in part:
        return False
    allowed = types(part, part)
    return not any(allows(allowed, value) for value in values)


def lists_misfits(text: str) -> bool:
    """Whether a part of the schema in `text` lists values of which none has a type that the part names."""
    if '"type"' not in text or ('"enum"' not in text and '"const"' not in text):
        return False
    try:
        pending = [json.loads(text)]
    except (ValueError, RecursionError):
        return False
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            if _is_misfit(part):
                return True
            pending += part.values()
        elif isinstance(part, list):
            pending += part
    return False


def as_json(text: str, allowed: frozenset[str]) -> str:
    """What a model means by `text` without quotes: JSON of an allowed type where it is that, and a string otherwise."""
    stripped = text.strip()
    if "string" not in allowed:
        stripped = {"True": "true", "False": "false", "None": "null"}.get(stripped, stripped)
    if allowed != TEXT:
        try:
            value = json.loads(stripped, parse_constant=no_constant)
        except (ValueError, RecursionError):
            pass
        else:
            if allows(allowed - TEXT, value) or (value.__class__ is str and "string" not in allowed):
                return stripped
    return json.dumps(text, ensure_ascii=False)


def no_constant(name: str) -> None:
    """What JSON has no number for; raises ValueError."""
    raise ValueError(name)
