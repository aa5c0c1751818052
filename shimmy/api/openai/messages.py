"""The conversation in a body of chat completions, to a ChatPrompt: pure functions of the decoded JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shimmy.api.request_fields.field_kinds import (
    Fields,
    FreeObject,
    Json,
    JsonObject,
    ListOf,
    OneOf,
    Record,
    boolean,
    not_together,
    read_object,
    read_text,
    refuse,
    text,
    wrong_kind,
)
from shimmy.api.request_fields.reasoning import EFFORT, VERBOSITY, template_arguments
from shimmy.api.request_fields.tool_kinds import BareFunction, DeclaredTool, Tools, ToolSet, stand_in, text_arguments
from shimmy.api.request_fields.tools import FunctionCallChoice, RequestedToolChoice, ToolChoiceField, offered
from shimmy.errors import BadRequest
from shimmy.messages.request import ChatPrompt, Message, Tool, ToolCall, ToolChoice

N_MESSAGES_MAX = 1 << 14  # of a conversation
N_PARTS_MAX = 1 << 12  # of a message
N_CALLS_MAX = 1 << 10  # of a message
ROLES = ("system", "developer", "user", "assistant", "tool", "function")

_PART = Record({"type": text, "text": text, "refusal": text}, required={"type": "a string"}, expected="a part object")
# Where the text of a part stands; the latter two are of Responses.
_TEXT_PARTS = {"text": "text", "refusal": "refusal", "input_text": "text", "output_text": "text"}
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning")  # parts of an answer that were not said


@dataclass(frozen=True, slots=True)
class Arguments:
    """Those of a call: JSON text, or the object that others write."""

    def read(self, value: object, path: str) -> str:
        return _object.read(value, path) if isinstance(value, dict) else read_text(value, path, "a string of JSON")

    def schema(self) -> Json:
        return {"anyOf": [text.schema(), {"type": "object"}]}


_object = JsonObject()
_FUNCTION = Record(
    {"name": text, "arguments": Arguments()},
    required={"name": "a string"},  # a call without arguments is written without them by some
)
_NO_ARGUMENTS = {"arguments": ""}
_CALL = Record({"id": text, "type": OneOf(("function",)), "function": _FUNCTION}, required={"function": "an object"})
_CUSTOM = Record({"name": text, "input": text}, required={"name": "a string", "input": "a string"})
_CUSTOM_CALL = Record({"id": text, "type": OneOf(("custom",)), "custom": _CUSTOM}, required={"custom": "an object"})


@dataclass(frozen=True, slots=True)
class MessageContent:
    """A string, or an array of parts that are text, or a refusal of the model's.

    In the result of a tool, a line of text stands for any other part.
    """

    is_result: bool = False

    def read(self, value: object, path: str) -> str:
        if isinstance(value, list):
            # A line for each part, as llama-server joins them for templates that know only strings.
            if len(value) > N_PARTS_MAX:
                refuse(path, f"at most {N_PARTS_MAX} parts", str(len(value)))
            said = [self._part(part, f"{path}[{index}]") for index, part in enumerate(value)]
            return "\n".join([each for each in said if each is not None])
        return read_text(value, path, "a string or an array of parts")

    def schema(self) -> Json:
        return {"anyOf": [text.schema(), {"type": "array", "items": _PART.schema(), "maxItems": N_PARTS_MAX}]}

    def _part(self, value: object, path: str) -> str | None:
        given = _PART.read(value, path)
        kind = given["type"]
        if kind in _THOUGHTS:
            return None
        if kind not in _TEXT_PARTS:
            if self.is_result:
                return stand_in(kind)
            raise BadRequest(f"{path}: parts of type {json.dumps(kind[:40])[:40]} are not supported", param=path)
        if (name := _TEXT_PARTS[kind]) not in given:
            wrong_kind(f"{path}.{name}", "a string", None)
        return str(given[name])


@dataclass(frozen=True, slots=True)
class ToolCallKind:
    """A call in the history."""

    def read(self, value: object, path: str) -> ToolCall:
        if read_object(value, path).get("type") == "custom":
            custom = _CUSTOM_CALL.read(value, path)
            return ToolCall(custom.get("id", ""), custom["custom"]["name"], text_arguments(custom["custom"]["input"]))
        given = _CALL.read(value, path)
        return ToolCall(given.get("id", ""), **_NO_ARGUMENTS | given["function"])

    def schema(self) -> Json:
        custom = Record(_CUSTOM_CALL.fields, {"type": "a string", **_CUSTOM_CALL.required})
        return {"anyOf": [_CALL.schema(), custom.schema()]}


_TURN = Record(
    {
        "role": OneOf(ROLES),
        "content": MessageContent(),
        "name": text,
        "tool_calls": ListOf(ToolCallKind(), at_most=N_CALLS_MAX, noun="calls"),
        "tool_call_id": text,
        "function_call": _FUNCTION,
        "refusal": text,
        "reasoning_content": text,
    },
    required={"role": "a string"},
    expected="a message object",
)

_RESULT_ROLES = ("tool", "function")
_RESULT = Record({**_TURN.fields, "content": MessageContent(is_result=True)}, _TURN.required, _TURN.expected)
_MAY_BE_SILENT = ("assistant", *_RESULT_ROLES)
_SAYS_SOMETHING = ("content", "refusal", "tool_calls", "function_call", "reasoning_content")  # one of these is there


@dataclass(frozen=True, slots=True)
class Turn:
    """One message; a legacy `function_call` is a call without an id, and its result one of a tool."""

    def read(self, value: object, path: str) -> Message:
        source = read_object(value, path, "a message object")
        given = (_RESULT if source.get("role") in _RESULT_ROLES else _TURN).read(source, path)
        calls = given.get("tool_calls", ())
        if "function_call" in given:
            calls = (*calls, ToolCall("", **_NO_ARGUMENTS | given["function_call"]))
        content = given.get("content", given.get("refusal"))
        reasoning = given.get("reasoning_content")
        role = given["role"]
        if content is None and not calls and reasoning is None:
            if role not in _MAY_BE_SILENT:
                wrong_kind(f"{path}.content", "a string or an array of parts", None)
            content = ""
        return Message(
            role="tool" if role == "function" else role,
            content=content,
            name=given.get("name"),
            tool_calls=calls,
            tool_call_id=given.get("tool_call_id"),
            reasoning_content=reasoning,
        )

    def schema(self) -> Json:
        says_something = [{"required": [name]} for name in _SAYS_SOMETHING]
        may_be_silent = {"properties": {"role": {"enum": [*_MAY_BE_SILENT]}}}
        return _TURN.schema() | {"anyOf": [*says_something, may_be_silent]}


AUTO = RequestedToolChoice()
MESSAGES = "an array of messages"
# What makes the prompt: also the body of `/apply-template`.
PROMPT_FIELDS: Fields = {
    "messages": ListOf(Turn(), MESSAGES, at_least=1, at_most=N_MESSAGES_MAX, noun="messages"),
    "add_generation_prompt": boolean,
    "continue_final_message": boolean,
    "tools": Tools(DeclaredTool(is_flat=False)),
    "tool_choice": ToolChoiceField(),
    "parallel_tool_calls": boolean,
    "functions": Tools(BareFunction()),
    "function_call": FunctionCallChoice(),
    "chat_template_kwargs": FreeObject(),
    "reasoning_effort": EFFORT,
    # By the names of other servers: Alibaba's, and OpenRouter's object.
    "enable_thinking": boolean,
    "reasoning": Record({"effort": EFFORT, "enabled": boolean}),
    "verbosity": VERBOSITY,
    "parse_special": boolean,
}
PROMPT_REQUIRED = {"messages": MESSAGES}


def chat_prompt(given: Mapping[str, Any]) -> ChatPrompt:
    """The prompt that fields of PROMPT_FIELDS make."""
    messages = given["messages"]
    is_continued = _is_continued(given, messages[-1])
    tools, choice = _tools(given)
    return ChatPrompt(
        messages=messages,
        add_generation_prompt=given.get("add_generation_prompt", not is_continued),
        tools=tools,
        tool_choice=choice,
        template_arguments=_template_arguments(given),
        continue_final_message=is_continued,
        parse_special=given.get("parse_special", False),
    )


def _template_arguments(given: Mapping[str, Any]) -> str:
    reasoning = given.get("reasoning", {})
    thinks = given.get("enable_thinking", reasoning.get("enabled"))
    own = given.get("chat_template_kwargs", {})
    return template_arguments(
        given.get("reasoning_effort", reasoning.get("effort")),
        own if thinks is None else {"enable_thinking": thinks, **own},
        verbosity=given.get("verbosity"),
    )


def _tools(given: Mapping[str, Any]) -> tuple[tuple[Tool, ...], ToolChoice]:
    tools, functions = given.get("tools", ToolSet()), given.get("functions", ToolSet())
    if tools and functions:
        not_together("functions", "tools")
    if functions:
        return offered(functions, given.get("function_call", AUTO), parallel=False, path="function_call")
    return offered(tools, given.get("tool_choice", AUTO), parallel=given.get("parallel_tool_calls", True))


def _is_continued(given: Mapping[str, Any], last: Message) -> bool:
    """Whether the reply goes on with the last message: also, as in llama-server, where that is plainly meant."""
    can_be = last.role == "assistant" and not last.tool_calls
    is_asked, has_prompt = given.get("continue_final_message"), given.get("add_generation_prompt")
    if is_asked is None:
        return can_be and has_prompt is None
    if is_asked and not can_be:
        refuse(
            "continue_final_message", "a conversation that ends with text of the assistant's", "one that ends otherwise"
        )
    if is_asked and has_prompt:
        not_together("continue_final_message", "add_generation_prompt")
    return bool(is_asked)
