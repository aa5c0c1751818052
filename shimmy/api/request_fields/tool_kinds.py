"""Tools as callers declare them: functions, tools that take one text, namespaces, and those that a server runs itself.

OpenAI's dialects differ in where a name stands (`{"type":"function","function":{"name":…}}` or flat); both are read
here. What the model sees are functions with names of their own; a Callee says what each is to the caller. Tools that a
server would run (web search and the like) are not offered: this one runs none.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from shimmy.api.request_fields.field_kinds import (
    Fields,
    Json,
    JsonObject,
    Kind,
    ListOf,
    Matching,
    NotServed,
    OneOf,
    Record,
    Text,
    WithoutEffect,
    boolean,
    read_object,
    read_text,
    refuse,
    text,
)
from shimmy.errors import BadRequest
from shimmy.messages.request import TEXT_ARGUMENT, Tool

N_TOOLS_MAX = 512

# OpenAI's names, and those with dots and slashes that bridges to other protocols make. They become part of grammars.
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
# OpenAI's, and those of others who speak its dialects; a version may follow.
_HOSTED_TYPE = re.compile(
    r"(?:web_search|web_search_premium|web_fetch|file_search|computer|computer_use|code_interpreter|code_execution"
    r"|image_generation|mcp|local_shell|shell|apply_patch|tool_search|programmatic_tool_calling|x_search|live_search"
    r"|collections_search|url_context|google_search|document_library|retrieval|bash|text_editor|memory"
    r"|builtin_function|openrouter:[a-z_]+)(?:_preview)?(?:_[0-9][0-9_]*)?"
)


# What stands for a part of a tool's result that is no text, by what its type ends with.
_NOT_TEXT = {"image": "a picture", "image_url": "a picture", "screenshot": "a picture", "audio": "a recording",
             "input_audio": "a recording", "video": "a video", "file": "a file", "resource": "a file"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ToolName:
    """The name of a function."""

    def read(self, value: object, path: str) -> str:
        name = read_text(value, path)
        if not _NAME.fullmatch(name):
            refuse(path, "1 to 128 letters, digits and _ - . : /", repr(name)[:40])
        return name

    def schema(self) -> Json:
        return {"type": "string", "pattern": f"^{_NAME.pattern}$"}


@dataclass(frozen=True, slots=True)
class Callee:
    """A tool as the model sees it, and what the caller calls it."""

    tool: Tool
    name: str
    namespace: str | None = None
    is_custom: bool = False  # it takes a text and no object


@dataclass(frozen=True, slots=True)
class ToolSet:
    """The tools of a request: those that can be offered, and the types of those that cannot."""

    callees: tuple[Callee, ...] = ()
    hosted: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.callees)

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(
            f"tools: `{kind}` is not offered to the model: this server runs no tools itself" for kind in self.hosted
        )

    @property
    def special(self) -> dict[str, Callee]:
        """By the names that the model uses, what is told to the caller in another way than a plain function."""
        return {each.tool.name: each for each in self.callees if each.is_custom or each.namespace is not None}


def model_name(name: str, namespace: str | None) -> str:
    """What the model calls a tool: names in namespaces may be the same as others."""
    if namespace is None:
        return name
    return f"{namespace}{'' if namespace.endswith('__') else '__'}{name}"


def text_arguments(written: str) -> str:
    """The arguments of a call of a tool that takes one text."""
    return json.dumps({TEXT_ARGUMENT: written}, ensure_ascii=False)


def stand_in(kind: str) -> str:
    """A line for a part of a tool's result that cannot be shown to a model."""
    what = next((words for ending, words in _NOT_TEXT.items() if kind.endswith(ending)), f"a part of type {kind[:40]}")
    return f"[{what}, which this model cannot see]"


@dataclass(frozen=True, slots=True)
class Parameters:
    """The schema of a function's arguments, as JSON text."""

    def read(self, value: object, path: str) -> str:
        return _ANYTHING if value is True else _SCHEMA.read(value, path)

    def schema(self) -> Json:
        return {"anyOf": [_SCHEMA.schema(), {"const": True}]}


_SCHEMA = JsonObject("a JSON Schema object")
_ANYTHING = "true"  # the schema
FUNCTION: Fields = {
    "name": ToolName(),
    "description": text,
    "parameters": Parameters(),
    "strict": boolean,
}
NAMED = {"name": "the name of a function"}
_TYPE = {"type": OneOf(("function",))}
_FUNCTION = Record(FUNCTION, required=NAMED, expected="a function object")
_NESTED = Record({**_TYPE, "function": _FUNCTION}, required={"function": "a function object"}, expected="a tool object")
_FLAT = Record(
    {
        **_TYPE,
        **FUNCTION,
        "allowed_callers": NotServed((["direct"],)),
        "async": NotServed((False,)),
        "defer_loading": boolean,  # until it is looked for with `tool_search`; here it is offered at once
        "output_schema": WithoutEffect(),
    },
    required=NAMED,
    expected="a tool object",
)


@dataclass(frozen=True, slots=True)
class ToolTextFormat:
    """What a text has to be for a tool, as a schema and a grammar of Lark: `nested` where the grammar is an object."""

    is_flat: bool

    def read(self, value: object, path: str) -> tuple[Json, str]:
        given = (_FLAT_FORMAT if self.is_flat else _NESTED_FORMAT).read(value, path)
        if given["type"] == "text":
            return {}, ""
        place = path if self.is_flat else f"{path}.grammar"
        grammar = given if self.is_flat else given.get("grammar", {})
        for name, expected in _GRAMMAR_PARTS.items():
            if name not in grammar:
                refuse(f"{place}.{name}", expected, "nothing")
        if grammar["syntax"] == "regex":
            return {"pattern": f"^(?:{grammar['definition']})$"}, ""
        return {}, grammar["definition"]

    def schema(self) -> Json:
        text_fields = {**(_FLAT_FORMAT if self.is_flat else _NESTED_FORMAT).fields, "type": OneOf(("text",))}
        held: Fields = _GRAMMAR if self.is_flat else {"grammar": Record(_GRAMMAR, _GRAMMAR_PARTS)}
        needed = _GRAMMAR_PARTS if self.is_flat else {"grammar": "an object"}
        kind = {"type": "a string"}
        grammar = Record({"type": OneOf(("grammar",)), **held}, kind | needed)
        return {"anyOf": [Record(text_fields, kind).schema(), grammar.schema()]}


_GRAMMAR_PARTS = {"syntax": "lark or regex", "definition": "a string that is not empty"}
_GRAMMAR: Fields = {"syntax": OneOf(("lark", "regex")), "definition": Text(may_be_empty=False)}
_FORMAT_TYPE: Fields = {"type": OneOf(("text", "grammar"))}
_FLAT_FORMAT = Record({**_FORMAT_TYPE, **_GRAMMAR}, {"type": "a string"})
_NESTED_FORMAT = Record({**_FORMAT_TYPE, "grammar": Record(_GRAMMAR)}, {"type": "a string"})


HOSTED = Record(
    {"type": Matching(_HOSTED_TYPE, "function, custom or the type of a tool that a server runs")},
    required={"type": "a string"},
)


def _custom(*, is_flat: bool) -> Record:
    fields: Fields = {"name": ToolName(), "description": text, "format": ToolTextFormat(is_flat)}
    if is_flat:
        return Record({"type": OneOf(("custom",)), **fields, "defer_loading": boolean}, NAMED, "a tool object")
    custom = Record(fields, NAMED)
    return Record({"type": OneOf(("custom",)), "custom": custom}, {"custom": "an object with a name"}, "a tool object")


def _text_tool(given: dict[str, Any], namespace: str | None = None) -> Callee:
    pattern: Json
    lark: str
    pattern, lark = given.get("format", ({}, ""))
    name = given["name"]
    parameters = {
        "type": "object",
        "properties": {TEXT_ARGUMENT: {"type": "string", **pattern}},
        "required": [TEXT_ARGUMENT],
        "additionalProperties": False,
    }
    tool = Tool(
        model_name(name, namespace),
        given.get("description", ""),
        json.dumps(parameters, ensure_ascii=False, separators=(",", ":")),
        strict=True,
        lark=lark,
    )
    return Callee(tool, name, namespace, is_custom=True)


def _function(given: dict[str, Any], namespace: str | None = None) -> Callee:
    fields = {name: value for name, value in given.items() if name in FUNCTION}
    name = fields.pop("name")
    if fields.get("parameters") == _ANYTHING:
        if fields.get("strict"):
            raise BadRequest(f"tools: the parameters of `{name}` are not those of an object", param="tools")
        fields["parameters"] = "{}"  # which means the same, and is an object for chat templates
    return Callee(Tool(model_name(name, namespace), **fields), name, namespace)


@dataclass(frozen=True, slots=True)
class DeclaredTool:
    """One tool of an array; `may_nest`: or a namespace of several."""

    is_flat: bool
    may_nest: bool = False
    namespace: str | None = None

    def read(self, value: object, path: str) -> ToolSet:
        source = read_object(value, path, "a tool object")
        given = source.get("type")
        kind = "function" if given is None else read_text(given, f"{path}.type")
        if kind == "function":
            tool = (_FLAT if self.is_flat else _NESTED).read(source, path)
            return ToolSet((_function(tool if self.is_flat else tool["function"], self.namespace),))
        if kind == "custom":
            custom = _custom(is_flat=self.is_flat).read(source, path)
            return ToolSet((_text_tool(custom if self.is_flat else custom["custom"], self.namespace),))
        if kind == "namespace" and self.may_nest:
            return self._namespace(source, path)
        return ToolSet(hosted=(HOSTED.read(source, path)["type"],))

    def schema(self) -> Json:
        kinds = [(_FLAT if self.is_flat else _NESTED).schema(), _typed(_custom(is_flat=self.is_flat)), HOSTED.schema()]
        return {"anyOf": [*kinds, _typed(_NAMESPACE)] if self.may_nest else kinds}

    @staticmethod
    def _namespace(source: Json, path: str) -> ToolSet:
        given = _NAMESPACE.read(source, path)
        inside = DeclaredTool(is_flat=True, namespace=given["name"])
        several = ListOf(inside, "an array of tools", at_most=N_TOOLS_MAX).read(source["tools"], f"{path}.tools")
        return _together(several)


def _typed(record: Record) -> Json:
    return Record(record.fields, {"type": "a string", **record.required}).schema()


_NAMESPACE = Record(
    {
        "type": OneOf(("namespace",)),
        "name": ToolName(),
        "description": text,
        "tools": ListOf(DeclaredTool(is_flat=True), "an array of tools", at_most=N_TOOLS_MAX, noun="tools"),
    },
    {"name": "the name of a namespace", "tools": "an array of tools"},
)


@dataclass(frozen=True, slots=True)
class BareFunction:
    """A function as it stands in the legacy field `functions`."""

    def read(self, value: object, path: str) -> ToolSet:
        return ToolSet((_function(_FUNCTION.read(value, path)),))

    def schema(self) -> Json:
        return _FUNCTION.schema()


@dataclass(frozen=True, slots=True)
class Tools:
    """An array of tools whose names differ."""

    kind: Kind[ToolSet]

    def read(self, value: object, path: str) -> ToolSet:
        sets = self._list().read(value, path)
        names: set[str] = set()
        for index, each in enumerate(sets):
            for callee in each.callees:
                if callee.tool.name in names:
                    refuse(f"{path}[{index}]", "a tool with a name of its own", f"{callee.tool.name} again")
                names.add(callee.tool.name)
        if len(names) > N_TOOLS_MAX:
            refuse(path, f"at most {N_TOOLS_MAX} tools", str(len(names)))
        return _together(sets)

    def schema(self) -> Json:
        return self._list().schema()

    def _list(self) -> ListOf[ToolSet]:
        return ListOf(self.kind, "an array of tools", at_most=N_TOOLS_MAX, noun="tools")


def _together(sets: tuple[ToolSet, ...]) -> ToolSet:
    hosted = dict.fromkeys(kind for each in sets for kind in each.hosted)
    return ToolSet(tuple(callee for each in sets for callee in each.callees), tuple(hosted))
