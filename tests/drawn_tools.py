"""Tools with parameters drawn at random, bounded so that a model of random weights comes to an end of its calls."""

import random
from typing import Any

Json = dict[str, Any]

_TYPED: tuple[Json, ...] = (
    {"type": "string", "maxLength": 8},
    {"type": "string", "minLength": 2, "maxLength": 6, "description": "A name."},
    {"type": "string", "pattern": r"^\d{1,4}-[a-z/]+$", "maxLength": 9},
    {"type": "string", "enum": ["c", "f"]},
    {"type": "integer", "minimum": -5, "maximum": 999},
    {"type": "boolean"},
    {"type": "string", "enum": ["append", "replace", "é <tag>"]},
    {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 1, "maxItems": 3},
    {
        "type": "object",
        "properties": {"line": {"type": "integer", "enum": [1, 2]}, "s": {"type": "string", "maxLength": 4}},
        "required": ["line"],
        "additionalProperties": False,
    },
    {"type": "string", "const": "fixed"},
)
_OTHERS: tuple[Json, ...] = (
    {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
    {"enum": ["one", 2, None]},
    {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}]},
    {"oneOf": [{"const": "a", "title": "A"}, {"const": "b", "title": "B"}]},
)
_ARGUMENTS = ("path", "content", "n", "größe", "dry_run", "is-new", "where")
_NAMES = ("get_weather", "write_file", "now", "search-web")


def drawn_tools(seed: int, *, are_typed: bool = False) -> list[Json]:
    """One to three tools, as callers of OpenAI's API send them; with `are_typed` each argument has one `type`."""
    drawn = random.Random(seed)
    values = _TYPED if are_typed else (*_TYPED, *_OTHERS)
    return [_tool(drawn, name, values) for name in drawn.sample(_NAMES, drawn.choice((1, 2, 3)))]


def _tool(drawn: random.Random, name: str, values: tuple[Json, ...]) -> Json:
    arguments = drawn.sample(_ARGUMENTS, drawn.choice((0, 1, 2, 3, 4)))
    parameters: Json = {
        "type": "object",
        "properties": {argument: {"description": "It.", **drawn.choice(values)} for argument in arguments},
        "required": [argument for argument in arguments if drawn.random() < 0.6],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": "Does it.", "parameters": parameters}}
