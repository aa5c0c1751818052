"""Conversations with tools, reasoning and several calls, as callers send them and as templates get them."""

import json
import random
from collections.abc import Iterator
from typing import Any

from shimmy.messages.request import ChatPrompt, Message, Tool, ToolCall

TOOLS = (
    Tool(
        "get_weather",
        "The weather of a city.",
        '{"type": "object", "properties": {"city": {"type": "string", "description": "Its name."}, '
        '"days": {"type": "integer", "description": "How many."}, '
        '"units": {"type": "string", "description": "Which.", "enum": ["c", "f"]}}, "required": ["city"]}',
    ),
    Tool("now", "The time.", '{"type": "object", "properties": {}}'),
)
_ARGUMENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("get_weather", {"city": "Genève"}),
    ("get_weather", {"city": 'line\nbreak "quoted" <tag> \\', "days": 3, "units": "c"}),
    ("now", {}),
)
_TEXTS = ("Hello.", "What is the weather?\n\nAnd why?", " spaced ", "<think>x</think>", "Ünïcödé 😀", "{}")
_RESULTS = ("sunny", '{"temperature": 21.5, "units": "c"}', "line\nbreak", "ß")


def conversations(seed: int, n: int) -> Iterator[ChatPrompt]:
    """`n` conversations; each ends with a user or a result."""
    drawn = random.Random(seed)
    for _ in range(n):
        turns = [Message("system", "Be kind.")] if drawn.random() < 0.5 else []
        n_calls = 0
        for _ in range(drawn.randrange(1, 4)):
            turns.append(Message("user", drawn.choice(_TEXTS)))
            for _ in range(drawn.choice((0, 1, 1, 2))):
                calls = []
                for _ in range(drawn.choice((1, 1, 2))):
                    name, arguments = drawn.choice(_ARGUMENTS)
                    calls.append(ToolCall(f"callid{n_calls:03}", name, json.dumps(arguments, ensure_ascii=False)))
                    n_calls += 1
                reasoning = drawn.choice((None, "Let me think.\n\nWell."))
                content = drawn.choice((None, None, "", "I look it up."))
                turns.append(Message("assistant", content, tool_calls=tuple(calls), reasoning_content=reasoning))
                turns += [Message("tool", drawn.choice(_RESULTS), tool_call_id=call.id) for call in calls]
            if turns[-1].role == "tool" and drawn.random() < 0.3:
                break
            turns.append(Message("assistant", "It is sunny.", reasoning_content=drawn.choice((None, "Easy."))))
        if turns[-1].role == "assistant":
            turns.append(Message("user", "Thanks!"))
        yield ChatPrompt(tuple(turns), tools=TOOLS)


def as_template_gets(prompt: ChatPrompt) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Messages and tools as one gives them to `apply_chat_template` of transformers."""
    names = {call.id: call.name for turn in prompt.messages for call in turn.tool_calls}
    messages = []
    for turn in prompt.messages:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content or ""}
        if turn.reasoning_content is not None:
            message["reasoning_content"] = turn.reasoning_content
        if turn.role == "tool":
            message |= {"name": names[turn.tool_call_id or ""], "tool_call_id": turn.tool_call_id}
        if turn.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": json.loads(call.arguments)},
                }
                for call in turn.tool_calls
            ]
        messages.append(message)
    tools = [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": json.loads(tool.parameters),
            },
        }
        for tool in prompt.tools
    ]
    return messages, tools
