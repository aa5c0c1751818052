"""Replies whose calls are damaged: text or calls, the same streamed and not, never an error, in each family's form."""

import random
from typing import Any

import pytest

from shimmy.api.app import create_app
from shimmy.engine.chat.detect_tool_format import may_be_several
from shimmy.messages.event import Accepted, JobOutput, Piece
from shimmy.messages.reply import ReplyFormat
from tests.engine.constrain.test_forced_calls import CALLS, FAMILIES, TOOLS, channels_of, form_of, written
from tests.fakes import FINISHED, FakeWorker, Reply, fetch, on_loop, services

N_DAMAGED = 200
BODY: dict[str, object] = {
    "model": "tiny.q4-1",
    "messages": [{"role": "user", "content": "hi"}],
    "tools": [{"type": "function", "function": {"name": tool.name}} for tool in TOOLS],
}
PIECES = ("", "x", "<", ">", "{", "}", '"', "[", "]", "\n", "\\", ":", ",", "\x00", "é", "😀", "null", "</", "<|", "|>")


def damaged(text: str, drawn: random.Random) -> str:
    """The text with some faults: a stretch replaced, dropped, written twice or moved, an end that is missing."""
    for _ in range(drawn.choice((1, 1, 2, 3))):
        start = drawn.randrange(len(text) + 1)
        end = min(len(text), start + drawn.choice((0, 1, 1, 2, 5, 20)))
        stretch, at = text[start:end], drawn.randrange(len(text) + 1)
        text = drawn.choice(
            (
                text[:start] + drawn.choice(PIECES) + text[end:],
                text[:start] + text[end:],
                text[:end] + stretch + text[end:],
                text[:at] + stretch + text[at:],
                text[:end],
            )
        )
    return text


def script(form: ReplyFormat, text: str, drawn: random.Random) -> list[JobOutput]:
    pieces = []
    while text:
        n = drawn.choice((1, 2, 5, 30))
        pieces.append(Piece(text[:n], 1))
        text = text[n:]
    return [Accepted(12, form), *pieces, FINISHED]


def whole(reply: Reply) -> tuple[str, list[tuple[str, str]]]:
    assert reply.status == 200, reply.body
    message = reply.json()["choices"][0]["message"]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or []]
    return message["content"] or "", calls


def streamed(reply: Reply) -> tuple[str, list[tuple[str, str]]]:
    assert reply.status == 200, reply.body
    *events, done = reply.chunks()
    assert done == "[DONE]"
    content, calls = "", list[list[str]]()
    for event in events:
        assert "error" not in event, event
        delta: dict[str, Any] = event["choices"][0]["delta"] if event["choices"] else {}
        content += delta.get("content") or ""
        for part in delta.get("tool_calls", ()):
            if part["index"] == len(calls):
                calls.append([part["function"]["name"], ""])
            calls[part["index"]][1] += part["function"].get("arguments", "")
    return content, [(name, arguments) for name, arguments in calls]


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
@on_loop
async def test_a_damaged_call_is_text_or_a_call_streamed_and_not(family: str) -> None:
    tools, drawn = form_of(family), random.Random(7)
    form = ReplyFormat(tools=tools, channels=channels_of(tools))
    first_mark = tools.section_start + tools.call_start
    valid = written(CALLS if may_be_several(tools) else CALLS[:1], tools)
    before = "" if form.channels else "Hm. "
    texts = [f"{drawn.choice(('', '', before))}{damaged(valid, drawn)}" for _ in range(N_DAMAGED)]
    scripts = [script(form, text, drawn) for text in texts for _ in range(2)]
    app, n_as_text = create_app(services(FakeWorker(scripts=scripts))), 0
    for text in texts:
        content, calls = whole(await fetch(app, "POST", "/v1/chat/completions", BODY))
        assert streamed(await fetch(app, "POST", "/v1/chat/completions", BODY | {"stream": True})) == (content, calls)
        n_as_text += not calls
        if not calls and content != text:  # a call that ends before its arguments is no text
            assert text.startswith(content), text
            assert text[len(content) :].lstrip().startswith(first_mark.lstrip()[:1]), text
    assert n_as_text
