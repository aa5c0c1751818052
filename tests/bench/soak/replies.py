"""Replies of the routes that write text, streamed or not, as the same few values; and what has to hold of them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.bench.soak.connection import Answer, Failed

Json = dict[str, Any]

REASONS = ("stop", "length", "tool_calls")


@dataclass(slots=True)
class Choice:
    """What one job said."""

    text: str = ""
    reason: str | None = None
    calls: dict[int, list[str]] = field(default_factory=dict)  # name and arguments, by place
    logprobs: list[Json] = field(default_factory=list)  # of a chat's tokens
    tokens: list[str] = field(default_factory=list)  # of a completion


def require(holds: object, what: str) -> None:
    if not holds:
        raise Failed(what)


def choices(answer: Answer, body: Json) -> list[Choice]:
    """Those of a chat completion or a completion that asked for `body`; raises Failed where something is amiss."""
    found: dict[int, Choice] = {}
    if body.get("stream"):
        parts = answer.events()
        require(answer.body.endswith(b"data: [DONE]\n\n"), f"a stream without its end: {answer.body[-200:]!r}")
    else:
        parts = [answer.good().json()]
    for part in parts:
        for item in part["choices"]:
            _take(found.setdefault(item["index"], Choice()), item)
    n_prompts = len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1
    require(sorted(found) == list(range(n_prompts * body.get("n", 1))), f"choices {sorted(found)}")
    for choice in found.values():
        require(choice.reason in REASONS, f"finish_reason {choice.reason}")
    _check_usage([part["usage"] for part in parts if part.get("usage")], body, len(found))
    return [found[index] for index in sorted(found)]


def response(answer: Answer, *, is_streamed: bool) -> Json:
    """A response that came to its end."""
    if not is_streamed:
        whole = answer.good().json()
    else:
        events = answer.events()
        numbers = [event["sequence_number"] for event in events]
        require(numbers == list(range(len(events))), f"sequence numbers {numbers[:20]}")
        require(events[-1]["type"] in ("response.completed", "response.incomplete"), f"the end is {events[-1]}")
        whole = events[-1]["response"]
    require(whole["status"] in ("completed", "incomplete"), f"status {whole['status']}")
    usage = whole["usage"]
    require(usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"], f"usage {usage}")
    return dict(whole)


def _take(choice: Choice, item: Json) -> None:
    said = item.get("message") or item.get("delta") or {}
    choice.text += item.get("text") or said.get("content") or ""
    choice.reason = item["finish_reason"] or choice.reason
    for place, call in enumerate(said.get("tool_calls") or ()):
        function = call["function"]
        known = choice.calls.setdefault(call.get("index", place), ["", ""])
        known[0] += function.get("name") or ""
        known[1] += function.get("arguments") or ""
    logprobs = item.get("logprobs") or {}
    choice.logprobs += logprobs.get("content") or ()
    choice.tokens += logprobs.get("tokens") or ()


def _check_usage(usages: Iterable[Json], body: Json, n_choices: int) -> None:
    for usage in usages:
        require(usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"], f"usage {usage}")
        limit = body.get("max_tokens")
        require(limit is None or usage["completion_tokens"] <= limit * body.get("best_of", n_choices), f"usage {usage}")


def parsed(text: str) -> Any:
    """The value of a JSON text; raises Failed."""
    try:
        return json.loads(text)
    except ValueError as exc:
        raise Failed(f"no JSON: {text[:300]!r}") from exc
