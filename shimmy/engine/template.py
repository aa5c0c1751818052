"""Renders a model's chat template: how messages look to it, what it is given, how long it may take.

Knows the conventions of Hugging Face and llama.cpp; the language and its limits are in `jinja.py`. No tokens here.
"""

import ctypes
import json
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from shimmy.engine.jinja import compile_template
from shimmy.errors import TemplateFailed
from shimmy.messages import ChatPrompt, Message, ToolCall

COMPILE_DEADLINE_S = 5.0
FALLBACK = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

Result = TypeVar("Result")


class ChatTemplate:
    """A compiled template.

    `source` None is a model without a template: it gets ChatML (`FALLBACK`), as in llama.cpp. `bos` and `eos` are the
    texts of the model's tokens. Raises TemplateFailed when the template does not compile.
    """

    def __init__(self, source: str | None, *, bos: str, eos: str) -> None:
        text = FALLBACK if source is None else source
        self._fill = _within(COMPILE_DEADLINE_S, partial(compile_template, text))
        self._constants = {"tools": None, "documents": None, "bos_token": bos, "eos_token": eos}
        self._knows_developers = "developer" in text

    def render(self, prompt: ChatPrompt, *, deadline_s: float = 2.0) -> str:
        """The prompt's text. Raises TemplateFailed, with the template's own words where it refuses the messages.

        Two things are as in llama-server. A `developer` is a `system` to a template that does not know the word. And
        where a template fails on a system message, its text goes to the head of the next message.
        """
        return _within(deadline_s, partial(self._render, prompt))

    def _render(self, prompt: ChatPrompt) -> str:
        messages = [_as_template_sees(message) for message in prompt.messages]
        for message in messages:
            if message["role"] == "developer" and not self._knows_developers:
                message["role"] = "system"
        variables = self._constants | {"messages": messages, "add_generation_prompt": prompt.add_generation_prompt}
        try:
            return self._fill(variables)
        except TemplateFailed:
            merged = _system_merged(messages)
            if merged is not None:
                with suppress(TemplateFailed):
                    return self._fill(variables | {"messages": merged})
            raise  # the first failure: it is about the messages as the caller wrote them


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


def _as_template_sees(message: Message) -> dict[str, Any]:
    """Only the keys that are set, but always `content`: an empty text where there is none beside tool calls.

    llama.cpp does so too: many templates add to the content of every message without looking at it first, and those
    that look treat an empty text like none.
    """
    seen: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.reasoning_content is not None:
        seen["reasoning_content"] = message.reasoning_content
    if message.name is not None:
        seen["name"] = message.name
    if message.tool_call_id is not None:
        seen["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        seen["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call)}}
            for call in message.tool_calls
        ]
    return seen


def _arguments(call: ToolCall) -> _Arguments | str:
    try:
        parsed = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return call.arguments
    return _Arguments(call.arguments, parsed) if isinstance(parsed, dict) else call.arguments


def _system_merged(messages: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """The same messages with the leading system message inside the next one; None when there is nothing to merge."""
    if len(messages) < 2 or messages[0]["role"] != "system":
        return None
    system, following, *others = messages
    return [{**following, "content": f"{system['content']}\n{following['content']}"}, *others]


class _Expired(SystemExit):
    """Ends a thread at its deadline. No `except Exception` stops it, and a thread that ends with it says nothing."""


def _within(deadline_s: float, function: Callable[[], Result]) -> Result:
    """The function's result, computed on a thread that exists for it alone, so that its end can hit nothing else."""
    ended = allocate_lock()
    ended.acquire()
    results: list[Result] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(function())
        except Exception as exc:  # noqa: BLE001 - the caller raises it
            errors.append(exc)
        finally:
            ended.release()

    thread_id = start_new_thread(run, ())  # `threading.Thread` costs more than most templates take to render
    if not ended.acquire(timeout=deadline_s):
        _end_thread(thread_id, lambda: ended.acquire(timeout=0.05))
        raise TemplateFailed(f"the chat template did not end within {deadline_s:g} s", param="messages")
    if errors:
        raise errors[0]
    return results[0]


def _end_thread(thread_id: int, has_ended: Callable[[], bool]) -> None:
    """Asks again until the thread has ended, in case something swallowed the exception; gives up after 5 s."""
    for _ in range(100):
        if not ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(_Expired)):
            return
        if has_ended():
            return
