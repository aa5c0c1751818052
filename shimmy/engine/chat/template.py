"""Renders a model's chat template: the variables that it is given, the form of messages, and how long it may take.

Knows the conventions of Hugging Face and llama.cpp; nothing of tokens. The language and its limits are in
`jinja_sandbox`.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from functools import cached_property, partial
from math import isfinite
from typing import Any

from shimmy.engine.chat.effort import in_words_of
from shimmy.engine.chat.jinja_sandbox import compile_template
from shimmy.engine.chat.time_limit import within
from shimmy.errors import BadRequest, TemplateFailed
from shimmy.messages.request import ChatPrompt, Message, Tool, ToolCall
from shimmy.text.speech import harmony, solar

COMPILE_DEADLINE_S = 5.0
PROBE_DEADLINE_S = 2.0
_PROBE = "Probecontent"
# Variables that `template_arguments` may not set: other fields of the request, or the model, set them.
RESERVED = frozenset(("messages", "tools", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token"))
FALLBACK = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class ChatTemplate:
    """A compiled template.

    `source` None is a model without a template: it gets ChatML (`FALLBACK`), as in llama.cpp. `bos` and `eos` are the
    texts of the model's tokens. Raises TemplateFailed when the template does not compile.
    """

    def __init__(self, source: str | None, *, bos: str, eos: str) -> None:
        text = FALLBACK if source is None else source
        self._fill = within(COMPILE_DEADLINE_S, partial(compile_template, text))
        self._constants = {"tools": None, "documents": None, "bos_token": bos, "eos_token": eos}
        self._knows_developers = "developer" in text
        self.source = text
        self._joins_thinking = harmony.is_taught(text)
        self._reads_thinking = "message.thinking" in text
        self._reads_reasoning = solar.is_taught(text)
        self._reads_functions = "+ functions" in text and "+ datetime" in text
        self._reads_tools_of_system = "message['tools']" in text

    @cached_property
    def _shown(self) -> tuple[str, bool]:
        """The rendering of a short message, and whether the template shows its text only as a part in an array."""
        variables = self._constants | {"messages": [{"role": "user", "content": _PROBE}], "add_generation_prompt": True}
        found = []
        for takes_parts in (False, True):
            with suppress(TemplateFailed):
                found.append(self._filled(variables, takes_parts=takes_parts))
                if _PROBE in found[-1]:
                    return found[-1], takes_parts
        return "".join(found) if found else _PROBE, False  # a template that fails raises when it is used

    def shows_nothing(self) -> bool:
        """Whether the template renders an empty prompt, and so is of no use. Raises TemplateFailed at its deadline."""
        return not within(PROBE_DEADLINE_S, partial(getattr, self, "_shown"))[0].strip()

    def render(self, prompt: ChatPrompt, *, deadline_s: float = 2.0, calls_lack_content: bool = False) -> str:
        """The prompt's text. Raises TemplateFailed, with the template's own words where it refuses the messages.

        Two things are as in llama-server. A `developer` is a `system` to a template that does not know the word. And
        where a template fails on a system message, its text goes to the head of the next message. A template that is
        made for tools alone, and fails without any, gets an empty list of them.

        With `continue_final_message` the text ends behind the last message as the template shows it, as in
        transformers: behind its content, or behind its reasoning where it has nothing else. There is no end of a turn
        then, nor the beginning of another. Raises BadRequest where the last message is none to be continued, and for
        `template_arguments` that are none.

        With `calls_lack_content` the content of a message is none, instead of an empty text, where it has calls alone.
        """
        return within(deadline_s, partial(self._render, prompt, calls_lack_content))

    def _render(self, prompt: ChatPrompt, calls_lack_content: bool) -> str:
        messages = _as_template_sees(prompt.messages)
        for message in messages:
            if message["role"] == "developer" and not self._knows_developers:
                message["role"] = "system"
            if calls_lack_content and message.get("tool_calls"):
                message["content"] = message["content"] or None
        if prompt.tools and self._reads_tools_of_system:
            messages = _with_tools_of_system(messages, prompt.tools)
        begins_reply = prompt.add_generation_prompt
        if prompt.continue_final_message:
            _mark_end(prompt.messages, messages)
            begins_reply = False
        if self._reads_reasoning:
            messages = [{**message, "reasoning": message.get("reasoning_content")} for message in messages]
        if self._reads_thinking:  # gpt-oss, LFM2.5
            messages = [_with_thinking(message, is_joined=self._joins_thinking) for message in messages]
        variables = self._constants | in_words_of(self.source, _template_arguments(prompt.template_arguments))
        if self._reads_functions:  # Firefunction: of a text with the tools, and the day
            variables |= {"functions": json.dumps([described(tool)["function"] for tool in prompt.tools], indent=4)}
            variables |= {"datetime": f"{datetime.now().astimezone():%Y-%m-%d}"}
        if prompt.tools and prompt.tool_choice.required:
            variables["tool_choice"] = "required"  # Kimi K3
        variables |= {"messages": messages, "add_generation_prompt": begins_reply}
        if prompt.tools:
            variables["tools"] = [described(tool) for tool in prompt.tools]
        text = self._filled(variables, takes_parts=self._shown[1])
        return _until_mark(text) if prompt.continue_final_message else text

    def _filled(self, variables: dict[str, Any], *, takes_parts: bool) -> str:
        def fill(change: dict[str, Any]) -> str:
            filled = variables | change
            if takes_parts:
                filled["messages"] = [_with_parts(message) for message in filled["messages"]]
            return self._fill(filled)

        try:
            return fill({})
        except TemplateFailed:
            for change in _second_tries(variables):
                with suppress(TemplateFailed):
                    return fill(change)
            raise  # raise the first failure, which is about the messages as the caller wrote them


class _Parts(list[dict[str, str]]):
    """The content of a message as an array of one part, for templates that expect an array; it prints as its text."""

    def __init__(self, text: str) -> None:
        super().__init__([{"type": "text", "text": text}])
        self._text = text

    def __str__(self) -> str:
        return self._text


def _with_parts(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "content": _Parts(message["content"] or "")}


class _Arguments(dict[str, Any]):
    """The arguments of a tool call: a mapping, as Hugging Face templates expect, that prints as the JSON it came from.

    So the templates that paste `arguments` as text, as OpenAI's API has it, work too, and paste what the model wrote.
    """

    def __init__(self, text: str, parsed: dict[str, Any]) -> None:
        super().__init__(parsed)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: str) -> str:
        return self._text + other

    def __radd__(self, other: str) -> str:
        return other + self._text


def _as_template_sees(messages: tuple[Message, ...]) -> list[dict[str, Any]]:
    """Only the keys that are set, but always `content`: an empty text where there is none beside tool calls.

    llama.cpp does so too: many templates add to the content of every message without looking at it first, and those
    that look treat an empty text like none. The result of a call has a name too: templates ask for it, but OpenAI's API
    knows it by the call alone.
    """
    names: dict[str | None, str] = {}
    seen = []
    for message in messages:
        names |= {call.id: call.name for call in message.tool_calls}
        name = names.get(message.tool_call_id) if message.name is None else message.name
        seen.append(_keys(message, name))
    return seen


def _keys(message: Message, name: str | None) -> dict[str, Any]:
    seen: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.reasoning_content is not None:
        seen["reasoning_content"] = message.reasoning_content
    if name is not None:
        seen["name"] = name
    if message.tool_call_id is not None:
        seen["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        seen["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call)}}
            for call in message.tool_calls
        ]
    return seen


def described(tool: Tool) -> dict[str, Any]:
    """A tool in OpenAI's shape, with all of its keys: some templates read them without a look."""
    function = {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}
    return {"type": "function", "function": function}


def _with_thinking(message: dict[str, Any], *, is_joined: bool) -> dict[str, Any]:
    """Reasoning under another name; `is_joined`: beside calls there is one place for it and content together."""
    if "reasoning_content" not in message:
        return message
    said = [message["reasoning_content"]]
    if is_joined and message.get("tool_calls") and message["content"]:
        said.append(message["content"])
        message = {**message, "content": ""}
    return {**message, "thinking": "\n\n".join(filter(None, said))}


def _with_tools_of_system(messages: list[dict[str, Any]], tools: tuple[Tool, ...]) -> list[dict[str, Any]]:
    """Phi-4 reads the tools, as JSON text, from the system message."""
    if not messages or messages[0]["role"] != "system":
        messages = [{"role": "system", "content": ""}, *messages]
    text = json.dumps([described(tool)["function"] for tool in tools], ensure_ascii=False)
    return [{**messages[0], "tools": text}, *messages[1:]]


def _template_arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadRequest(f"chat_template_kwargs: no JSON: {exc}", param="chat_template_kwargs") from exc
    if not isinstance(arguments, dict):
        raise BadRequest("chat_template_kwargs: expected an object", param="chat_template_kwargs")
    if not RESERVED.isdisjoint(arguments):
        names = ", ".join(f"`{name}`" for name in sorted(RESERVED & arguments.keys()))
        raise BadRequest(f"chat_template_kwargs: {names} cannot be set here", param="chat_template_kwargs")
    return arguments


# What marks the place where a message is to be continued, for as long as it takes to render it.
_END_MARK = "SHIMMY_CONTINUES_HERE"


def _mark_end(messages: tuple[Message, ...], seen: list[dict[str, Any]]) -> None:
    """Writes the mark at the end of the last message; raises BadRequest where there is none to be continued."""
    if not messages or messages[-1].role != "assistant":
        raise BadRequest("continue_final_message: the last message is not the assistant's", param="messages")
    if messages[-1].tool_calls:
        raise BadRequest("continue_final_message: a message with tool calls cannot be continued", param="messages")
    last = seen[-1]
    key = "reasoning_content" if last.get("reasoning_content") and not last["content"] else "content"
    last[key] += _END_MARK


def _until_mark(text: str) -> str:
    end = text.rfind(_END_MARK)  # the last one is ours, whatever a message says
    if end < 0:
        raise TemplateFailed(
            "continue_final_message: the chat template does not show the end of the last message", param="messages"
        )
    return text[:end]


def parsed(arguments: str) -> Any:
    """Reads JSON strictly: ValueError for `NaN`, `Infinity` and numbers that are too large.

    Python reads and writes these, and so would put into a prompt what is no JSON.
    """
    return json.loads(arguments, parse_constant=_finite, parse_float=_finite)


def _finite(number: str) -> float:
    value = float(number)
    if not isfinite(value):
        raise ValueError(number)
    return value


def _arguments(call: ToolCall) -> _Arguments | str:
    """What is no object is a text to the template, which writes it as it is, or as a string of JSON."""
    try:
        value = parsed(call.arguments)
    except (ValueError, RecursionError):
        return call.arguments
    return _Arguments(call.arguments, value) if isinstance(value, dict) else call.arguments


def _second_tries(variables: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Changes of the variables to try where a template failed."""
    messages, named = variables["messages"], [_with_named_arguments(message) for message in variables["messages"]]
    if any(message is not other for message, other in zip(messages, named, strict=True)):
        yield {"messages": named}
    merged = _system_merged(variables["messages"])
    if merged is not None:
        yield {"messages": merged}
    if variables["tools"] is None:
        yield {"tools": []}
    else:
        yield {"tools": [_with_descriptions(tool) for tool in variables["tools"]]}


def _with_named_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """For templates that write one argument after the other: what is no object is the one argument of its call."""
    calls = message.get("tool_calls", ())
    if not any(isinstance(call["function"]["arguments"], str) for call in calls):
        return message
    return {**message, "tool_calls": [_with_named(call) for call in calls]}


def _with_named(call: dict[str, Any]) -> dict[str, Any]:
    text = call["function"]["arguments"]
    if not isinstance(text, str):
        return call
    return {**call, "function": {**call["function"], "arguments": _Arguments(text, {"arguments": text})}}


def _with_descriptions(tool: dict[str, Any]) -> dict[str, Any]:
    """For templates that show the description of each argument without a look."""
    parameters = tool["function"]["parameters"]
    known = parameters.get("properties") if isinstance(parameters, dict) else None
    if not isinstance(known, dict):
        return tool
    known = {name: {"description": "", **(part if isinstance(part, dict) else {})} for name, part in known.items()}
    return {**tool, "function": {**tool["function"], "parameters": {**parameters, "properties": known}}}


def _system_merged(messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The same messages with the leading system message inside the next one; None when there is nothing to merge."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return None
    system, following, *others = messages
    return [{**following, "content": f"{system['content']}\n{following['content']}"}, *others]
