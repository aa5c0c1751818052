"""Families of models that write calls in their own way, with their own templates, from the request to the reply."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import validate

from tests.e2e.harness import Server, serving
from tests.real_templates import real_templates
from tests.tiny_models import write_tiny_model

FAMILIES = {
    "qwen": "Qwen3-Coder",
    "glm": "GLM-4.6",
    "deepseek": "deepseek-ai-DeepSeek-V3.2",
    "gemma": "google-gemma-4-31B-it",
    "gpt-oss": "openai-gpt-oss-120b",
    "kimi": "moonshotai-Kimi-K2",
    "lfm": "LFM2.5-8B-A1B",
    "command": "Cohere2MoE",
    "minicpm": "openbmb-MiniCPM5-1B",
    "functionary": "meetkai-functionary-medium-v3.2",
    "solar": "upstage-Solar-Open-100B",
}
SCHEMA: Any = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 6},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
        "units": {"enum": ["c", "f"]},
        "is_exact": {"type": "boolean"},
    },
    "required": ["city", "n"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "x", "parameters": SCHEMA}}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("families")
    for seed, (name, template) in enumerate(FAMILIES.items()):
        write_tiny_model(folder, name, n_ctx_train=8192, chat_template=real_templates()[template], seed=seed)
    with serving(folder / "server", "--model-path", folder) as running:
        yield running


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_is_forced_streamed_and_shown_in_the_history(server: Server, family: str) -> None:
    body: dict[str, Any] = {
        "model": family,
        "messages": [{"role": "user", "content": "hi"}],
        "tools": TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "thinking_budget_tokens": 4,
        "max_tokens": 1024,
        "seed": 5,
    }
    reply = server.post("/v1/chat/completions", body)
    assert reply.status == 200, reply.json()
    (choice,) = reply.json()["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    validate(json.loads(call["function"]["arguments"]), SCHEMA)

    lines = server.post("/v1/chat/completions", body | {"stream": True}).body.decode().splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    parts = [part["function"] for delta in deltas for part in delta.get("tool_calls", [])]
    assert "".join(part.get("arguments", "") for part in parts) == call["function"]["arguments"]
    assert not any(delta.get("content") for delta in deltas)

    result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
    messages = [*body["messages"], choice["message"], result]
    prompt = server.post("/apply-template", {"model": family, "messages": messages, "tools": TOOLS}).json()["prompt"]
    assert "sunny" in prompt.partition("get_weather")[2].partition("get_weather")[2]
    body |= {"messages": messages, "tool_choice": "auto", "max_tokens": 4}
    assert server.post("/v1/chat/completions", body).status == 200
