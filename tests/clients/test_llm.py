"""The `llm` command with a model of a server that speaks OpenAI's language."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.harness import Server

LLM = Path(sys.executable).with_name("llm")
QUESTION = "What is the capital of France? Answer in one sentence."
CITY = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "continent": {"enum": ["Asia", "Europe"]}},
    "required": ["name", "continent"],
    "additionalProperties": False,
}

Run = Callable[..., str]


@pytest.fixture
def llm(server: Server, tmp_path: Path) -> Run:
    """Runs the command as someone who has put the server in llm's configuration."""
    lines = ["model_name: gpt-4o-mini", f"api_base: {server.url}", "supports_schema: true", "supports_tools: true"]
    models = {
        "local": lines,
        "local-responses": [*lines, "responses: true"],
        "local-completion": [*lines, "completion: true"],
    }
    (tmp_path / "extra-openai-models.yaml").write_text(
        "".join(f"- model_id: {name}\n" + "".join(f"  {line}\n" for line in lines) for name, lines in models.items())
    )

    def llm(*arguments: str) -> str:
        result = subprocess.run(
            [LLM, *arguments], env=os.environ | {"LLM_USER_PATH": str(tmp_path)},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout

    return llm


@pytest.mark.parametrize("model", ["local", "local-responses"])
def test_prompt_and_its_continuation(llm: Run, model: str) -> None:
    streamed = llm("-m", model, "-o", "temperature", "0", QUESTION)
    assert "Paris" in streamed
    assert llm("-m", model, "-o", "temperature", "0", "--no-stream", QUESTION) == streamed
    assert llm("-c", "-o", "temperature", "0", "And of Italy?").strip()
    assert len(json.loads(llm("logs", "--json"))) >= 2


def test_completion(llm: Run) -> None:
    assert llm("-m", "local-completion", "-o", "max_tokens", "8", "One, two, three,").strip()


def test_endpoint_without_configuration(llm: Run, server: Server) -> None:
    assert llm("openai", "endpoint", server.url, "--models").split()
    assert "Paris" in llm("openai", "endpoint", server.url, "-m", "gpt-4o-mini", "-o", "temperature", "0", QUESTION)


@pytest.mark.parametrize("model", ["local", "local-responses"])
def test_answer_in_a_schema(llm: Run, model: str) -> None:
    answer = json.loads(llm("-m", model, "--schema", json.dumps(CITY), "Paris is a city in Europe."))
    assert answer.keys() == {"name", "continent"}


def test_tool(llm: Run) -> None:
    """The model may call it or not; either way the command comes to its end."""
    function = "def get_time() -> str:\n    'The time now'\n    return '12:00'"
    llm("-m", "local", "-o", "max_tokens", "48", "--functions", function, "--chain-limit", "0", "What time is it?")
