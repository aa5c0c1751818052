"""Tools and the choice among them, as OpenAI's dialects write them, to what a ChatPrompt carries.

The dialects differ in where a name stands (`{"type":"function","function":{"name":…}}` or flat); both are read here.
"""

import re
from dataclasses import dataclass

from shimmy.api.fields import (
    Fields,
    Json,
    JsonObject,
    Kind,
    ListOf,
    OneOf,
    Record,
    boolean,
    read_text,
    refuse,
    text,
)
from shimmy.errors import BadRequest
from shimmy.messages import Tool, ToolChoice

N_TOOLS_MAX = 512

# OpenAI's names, and those with dots and slashes that bridges to other protocols make. They become part of grammars.
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


@dataclass(frozen=True, slots=True)
class ToolName:
    """The name of a function."""

    def read(self, value: object, path: str) -> str:
        name = read_text(value, path)
        if not _NAME.fullmatch(name):
            refuse(path, "1 to 128 letters, digits and _ - . : /", repr(name[:40])[:40])
        return name

    def schema(self) -> Json:
        return {"type": "string", "pattern": f"^{_NAME.pattern}$"}


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller says about calls: whether they may or have to be, of which one tool, or of which tools only."""

    mode: str = "auto"
    name: str | None = None
    allowed: tuple[str, ...] | None = None


FUNCTION: Fields = {
    "name": ToolName(),
    "description": text,
    "parameters": JsonObject("a JSON Schema object"),
    "strict": boolean,
}
_MODES = OneOf(("none", "auto", "required"))
_TYPE = {"type": OneOf(("function",))}
_NAMED = {"name": "the name of a function"}
_FUNCTION = Record(FUNCTION, required=_NAMED, expected="a function object")
_FLAT = Record({**_TYPE, **FUNCTION}, required=_NAMED, expected="a tool object")
_NESTED = Record({**_TYPE, "function": _FUNCTION}, required={"function": "a function object"}, expected="a tool object")


@dataclass(frozen=True, slots=True)
class BareFunction:
    """A function as it stands in the legacy field `functions`."""

    def read(self, value: object, path: str) -> Tool:
        return Tool(**_FUNCTION.read(value, path))

    def schema(self) -> Json:
        return _FUNCTION.schema()


@dataclass(frozen=True, slots=True)
class NestedTool:
    """`{"type":"function","function":{…}}`."""

    def read(self, value: object, path: str) -> Tool:
        return Tool(**_NESTED.read(value, path)["function"])

    def schema(self) -> Json:
        return _NESTED.schema()


@dataclass(frozen=True, slots=True)
class FlatTool:
    """`{"type":"function","name":…}`."""

    def read(self, value: object, path: str) -> Tool:
        given = _FLAT.read(value, path)
        given.pop("type", None)
        return Tool(**given)

    def schema(self) -> Json:
        return _FLAT.schema()


@dataclass(frozen=True, slots=True)
class Tools:
    """An array of tools whose names differ."""

    kind: Kind[Tool]

    def read(self, value: object, path: str) -> tuple[Tool, ...]:
        tools = self._list().read(value, path)
        if len({tool.name for tool in tools}) < len(tools):
            names = [tool.name for tool in tools]
            twice = next(index for index, name in enumerate(names) if name in names[:index])
            refuse(f"{path}[{twice}]", "a tool with a name of its own", f"{names[twice]} again")
        return tools

    def schema(self) -> Json:
        return self._list().schema()

    def _list(self) -> ListOf[Tool]:
        return ListOf(self.kind, "an array of tools", at_most=N_TOOLS_MAX, noun="tools")


def _named(*, is_flat: bool) -> Record:
    """What names a function in a choice."""
    name = Record({"name": ToolName()}, required=_NAMED)
    if is_flat:
        return Record({"type": OneOf(("function",)), **name.fields}, required=_NAMED)
    return Record({"type": OneOf(("function",)), "function": name}, required={"function": "an object with a name"})


def _allowed(*, is_flat: bool) -> Record:
    """A mode, and the tools that may be called."""
    required = {"mode": "auto or required", "tools": "an array of tools"}
    tools = ListOf(_named(is_flat=is_flat), "an array of tools", at_least=1, at_most=N_TOOLS_MAX, noun="tools")
    return Record({"mode": OneOf(("auto", "required")), "tools": tools}, required=required)


@dataclass(frozen=True, slots=True)
class Choice:
    """OpenAI's `tool_choice`: a mode, the one function that has to be called, or a mode and the tools allowed."""

    is_flat: bool = False

    def read(self, value: object, path: str) -> Wish:
        if isinstance(value, str):
            return Wish(_MODES.read(value, path))
        given = _CHOICE.read(value, path)
        if given["type"] == "function":
            return Wish("required", name=self._name(_named(is_flat=self.is_flat).read(value, path)))
        allowed = self._allowed_record().read(value, path)
        allowed = allowed if self.is_flat else allowed["allowed_tools"]
        return Wish(allowed["mode"], allowed=tuple(self._name(tool) for tool in allowed["tools"]))

    def schema(self) -> Json:
        named, allowed = _named(is_flat=self.is_flat), self._allowed_record()
        records = [Record(record.fields, {**_CHOICE.required, **record.required}) for record in (named, allowed)]
        return {"anyOf": [_MODES.schema(), *(record.schema() for record in records)]}

    def _allowed_record(self) -> Record:
        allowed, kind = _allowed(is_flat=self.is_flat), {"type": OneOf(("allowed_tools",))}
        if self.is_flat:
            return Record(kind | dict(allowed.fields), allowed.required)
        return Record({**kind, "allowed_tools": allowed}, required={"allowed_tools": "an object with mode and tools"})

    def _name(self, given: Json) -> str:
        source = given if self.is_flat else given["function"]
        assert isinstance(source, dict)
        return str(source["name"])


@dataclass(frozen=True, slots=True)
class FunctionCallChoice:
    """The legacy `function_call`: a mode, or the one function that has to be called."""

    def read(self, value: object, path: str) -> Wish:
        if isinstance(value, str):
            return Wish(_LEGACY_MODES.read(value, path))
        return Wish("required", name=_LEGACY.read(value, path)["name"])

    def schema(self) -> Json:
        return {"anyOf": [_LEGACY_MODES.schema(), _LEGACY.schema()]}


_CHOICE = Record({"type": OneOf(("function", "allowed_tools"))}, required={"type": "a string"})
_LEGACY_MODES = OneOf(("none", "auto"))
_LEGACY = Record({"name": ToolName()}, required=_NAMED)


def offered(
    tools: tuple[Tool, ...], wish: Wish, *, parallel: bool, path: str = "tool_choice"
) -> tuple[tuple[Tool, ...], ToolChoice]:
    """The tools a model is told of, and what it may do with them; BadRequest names `path`."""
    names = {tool.name for tool in tools}
    unknown = {wish.name, *(wish.allowed or ())} - names - {None}
    if unknown:
        raise BadRequest(f"{path}: there is no tool named {min(map(str, unknown))} in this request", param=path)
    if wish.mode == "required" and not tools:
        raise BadRequest(f"{path}: a call is required, and there are no tools in this request", param=path)
    if wish.mode == "none":
        return (), ToolChoice()
    if wish.allowed is not None:
        tools = tuple(tool for tool in tools if tool.name in wish.allowed)
    return tools, ToolChoice(required=wish.mode == "required", name=wish.name, parallel=parallel)
