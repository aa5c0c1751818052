"""The choice among tools, as OpenAI's dialects write it, to what a ChatPrompt carries."""

from dataclasses import dataclass

from shimmy.api.request_fields.field_kinds import Json, ListOf, OneOf, Record, read_object, read_text
from shimmy.api.request_fields.tool_kinds import HOSTED, N_TOOLS_MAX, NAMED, ToolName, ToolSet, model_name
from shimmy.errors import BadRequest
from shimmy.messages.request import Tool, ToolChoice


@dataclass(frozen=True, slots=True)
class RequestedToolChoice:
    """What a caller says about calls: whether they may or have to be, of which one tool, or of which tools only."""

    mode: str = "auto"
    name: str | None = None
    allowed: tuple[str, ...] | None = None


_MODES = OneOf(("none", "auto", "required"))
_CALLED = ("function", "custom")


def _named(kind: str, *, is_flat: bool) -> Record:
    """What names a tool of one of the kinds that can be called."""
    if is_flat:
        return Record({"type": OneOf((kind,)), "name": ToolName(), "namespace": ToolName()}, required=NAMED)
    name = Record({"name": ToolName()}, required=NAMED)
    return Record({"type": OneOf((kind,)), kind: name}, required={kind: "an object with a name"})


@dataclass(frozen=True, slots=True)
class _NamedTool:
    """What names a tool in a list of those that are allowed; None for one that is not offered anyway."""

    is_flat: bool

    def read(self, value: object, path: str) -> str | None:
        kind = read_object(value, path).get("type")
        kind = "function" if kind is None else read_text(kind, f"{path}.type")
        if kind in _CALLED:
            return _name(_named(kind, is_flat=self.is_flat).read(value, path), kind, is_flat=self.is_flat)
        HOSTED.read(value, path)
        return None

    def schema(self) -> Json:
        function, custom = (_named(kind, is_flat=self.is_flat) for kind in _CALLED)
        typed = Record(custom.fields, {"type": "a string", **custom.required})
        return {"anyOf": [function.schema(), typed.schema(), HOSTED.schema()]}


def _allowed(*, is_flat: bool) -> Record:
    """A mode, and the tools that may be called."""
    required = {"mode": "auto or required", "tools": "an array of tools"}
    tools = ListOf(_NamedTool(is_flat), "an array of tools", at_least=1, at_most=N_TOOLS_MAX, noun="tools")
    return Record({"mode": OneOf(("auto", "required")), "tools": tools}, required=required)


def _name(given: Json, kind: str, *, is_flat: bool) -> str:
    source = given if is_flat else given[kind]
    assert isinstance(source, dict)
    return model_name(str(source["name"]), source.get("namespace"))


@dataclass(frozen=True, slots=True)
class ToolChoiceField:
    """OpenAI's `tool_choice`: a mode, the one tool that has to be called, or a mode and the tools allowed."""

    is_flat: bool = False

    def read(self, value: object, path: str) -> RequestedToolChoice:
        if isinstance(value, str):
            return RequestedToolChoice(_MODES.read(value, path))
        kind = _CHOICE.read(value, path)["type"]
        if kind in _CALLED:
            named = _named(kind, is_flat=self.is_flat).read(value, path)
            return RequestedToolChoice("required", name=_name(named, kind, is_flat=self.is_flat))
        allowed = self._allowed_record().read(value, path)
        allowed = allowed if self.is_flat else allowed["allowed_tools"]
        return RequestedToolChoice(
            allowed["mode"], allowed=tuple(name for name in allowed["tools"] if name is not None)
        )

    def schema(self) -> Json:
        records = (*(_named(kind, is_flat=self.is_flat) for kind in _CALLED), self._allowed_record())
        typed = [Record(record.fields, {**_CHOICE.required, **record.required}) for record in records]
        return {"anyOf": [_MODES.schema(), *(record.schema() for record in typed)]}

    def _allowed_record(self) -> Record:
        allowed, kind = _allowed(is_flat=self.is_flat), {"type": OneOf(("allowed_tools",))}
        if self.is_flat:
            return Record(kind | dict(allowed.fields), allowed.required)
        return Record({**kind, "allowed_tools": allowed}, required={"allowed_tools": "an object with mode and tools"})


@dataclass(frozen=True, slots=True)
class FunctionCallChoice:
    """The legacy `function_call`: a mode, or the one function that has to be called."""

    def read(self, value: object, path: str) -> RequestedToolChoice:
        if isinstance(value, str):
            return RequestedToolChoice(_LEGACY_MODES.read(value, path))
        return RequestedToolChoice("required", name=_LEGACY.read(value, path)["name"])

    def schema(self) -> Json:
        return {"anyOf": [_LEGACY_MODES.schema(), _LEGACY.schema()]}


_CHOICE = Record({"type": OneOf((*_CALLED, "allowed_tools"))}, required={"type": "a string"})
_LEGACY_MODES = OneOf(("none", "auto"))
_LEGACY = Record({"name": ToolName()}, required=NAMED)


def offered(
    declared: ToolSet, wish: RequestedToolChoice, *, parallel: bool, path: str = "tool_choice"
) -> tuple[tuple[Tool, ...], ToolChoice]:
    """The tools a model is told of, and what it may do with them; BadRequest names `path`."""
    tools = tuple(callee.tool for callee in declared.callees)
    known = _known_names(declared)
    unknown = {wish.name, *(wish.allowed or ())} - known.keys() - {None}
    if unknown:
        raise BadRequest(f"{path}: there is no tool named {min(map(str, unknown))} in this request", param=path)
    if wish.mode == "required" and not tools:
        raise BadRequest(f"{path}: a call is required, and there are no tools in this request", param=path)
    if wish.mode == "none":
        return (), ToolChoice()
    if wish.allowed is not None:
        allowed = {known[name] for name in wish.allowed}
        tools = tuple(tool for tool in tools if tool.name in allowed)
        if wish.mode == "required" and not tools:
            raise BadRequest(f"{path}: a call is required, and none of the tools allowed can be called", param=path)
    name = None if wish.name is None else known[wish.name]
    return tools, ToolChoice(required=wish.mode == "required", name=name, parallel=parallel)


def _known_names(declared: ToolSet) -> dict[str, str]:
    """The model's names by those that a choice may use: a name in a namespace by itself where it is the only one."""
    by_own: dict[str, list[str]] = {}
    for callee in declared.callees:
        by_own.setdefault(callee.name, []).append(callee.tool.name)
    alone = {name: names[0] for name, names in by_own.items() if len(names) == 1}
    return alone | {callee.tool.name: callee.tool.name for callee in declared.callees}
