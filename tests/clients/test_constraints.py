"""What a schema or a tool demands of a reply holds for every reply that ends, whatever the sampling is."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

SCHEMAS = Path(__file__).parents[3] / "shared" / "data" / "json_schemas.jsonl"
N_SCHEMAS, EVERY = 24, 15  # every so many-th of them
N_CALLS, N_AT_ONCE, N_CHOICES = 200, 4, 5
MODEL = "gpt-4o-mini"

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "book_table",
            "description": "Book a table in a restaurant.",
            "parameters": {
                "type": "object",
                "properties": {
                    "restaurant": {"type": "string", "maxLength": 20},
                    "n_guests": {"type": "integer", "minimum": 1, "maximum": 12},
                    "day": {"enum": ["today", "tomorrow", "on Sunday"]},
                    "wishes": {"type": "array", "items": {"type": "string", "maxLength": 10}, "maxItems": 2},
                },
                "required": ["restaurant", "n_guests", "day"],
                "additionalProperties": False,
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "cancel_booking",
            "parameters": {
                "type": "object",
                "properties": {"number": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}},
                "required": ["number"],
                "additionalProperties": False,
            },
        },
    },
]


def sample() -> list[dict[str, Any]]:
    """Schemas of others, from functions to configuration files."""
    if not SCHEMAS.exists():
        return []
    with SCHEMAS.open() as file:
        return [json.loads(line)["schema"] for line in islice(file, 0, N_SCHEMAS * EVERY, EVERY)]


def replies(client: openai.OpenAI, schema: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Greedy and wild, whole and streamed: each text and why it ended."""
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Give me an example, short."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "example", "schema": schema}},
        "max_tokens": 150,
        "seed": 3,
    }
    for temperature in (0.0, 1.5):
        whole = client.chat.completions.create(**asked, temperature=temperature)
        yield whole.choices[0].message.content or "", whole.choices[0].finish_reason
        chunks = list(client.chat.completions.create(**asked, temperature=temperature, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        yield text, chunks[-1].choices[0].finish_reason


@pytest.mark.skipif(not SCHEMAS.exists(), reason="the schemas are not part of the repository")
@pytest.mark.timeout(900)
def test_every_completed_reply_is_valid() -> None:
    client = openai.OpenAI()
    n_completed = 0
    refusals: list[openai.BadRequestError] = []
    for schema in sample():
        try:
            for text, reason in replies(client, schema):
                if reason == "stop":
                    jsonschema.validate(json.loads(text), schema)
                    n_completed += 1
        except openai.BadRequestError as error:
            refusals.append(error)
    assert len(refusals) <= N_SCHEMAS // 10
    assert all("response_format" in (error.param or "") for error in refusals)
    assert n_completed >= N_SCHEMAS, "most replies should come to an end within their limit"


@pytest.mark.timeout(900)
def test_every_required_call_is_one() -> None:
    client = openai.OpenAI()
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}

    def calls(seed: int) -> list[tuple[str, str]]:
        whole = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": f"Number {seed}: please help me with my dinner tonight."}],
            tools=TOOLS,
            tool_choice="required",
            parallel_tool_calls=False,
            n=N_CHOICES,
            seed=seed,
            temperature=1.0,
            max_tokens=200,
        )
        made = []
        for choice in whole.choices:
            assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
            (call,) = choice.message.tool_calls or []
            assert call.type == "function"
            made.append((call.function.name, call.function.arguments))
        return made

    with ThreadPoolExecutor(N_AT_ONCE) as pool:
        made = [call for some in pool.map(calls, range(N_CALLS // N_CHOICES)) for call in some]
    assert len(made) == N_CALLS
    assert {name for name, _ in made} == set(schemas), "the model has a choice"
    for name, arguments in made:
        jsonschema.validate(json.loads(arguments), schemas[name])
