"""The README's commands, as they are written there, against the real model they are written for."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import ROOT, Server, serving
from tests.models import demo_model, template_free_model

README_ADDRESS = "127.0.0.1:11435"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), "--model-path", demo_model(), "--n-predict", "48") as running:
        yield running


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_curl_example_streams_an_answer(server: Server) -> None:
    (command,) = [block for block in blocks("sh") if block.startswith("curl")]
    arguments = shlex.split(command.replace(README_ADDRESS, f"127.0.0.1:{server.port}"))
    output = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60).stdout
    events = [line.removeprefix("data: ") for line in output.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert len(text) > 40, "a story"


def test_the_python_example_prints_an_answer(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = blocks("python")
    # Run here and not in a child, so that it has the packages of the tests.
    exec(compile(source.replace(README_ADDRESS, f"127.0.0.1:{server.port}"), "README.md", "exec"), {})
    assert len(capsys.readouterr().out) > 5


def test_a_real_model_answers_what_it_knows(server: Server) -> None:
    messages = [{"role": "user", "content": "Say hello."}]
    body = {"model": "smollm2-135m-instruct", "messages": messages, "temperature": 0, "max_tokens": 16}
    reply = server.post("/v1/chat/completions", body).json()
    assert "hello" in reply["choices"][0]["message"]["content"].lower()
    assert reply["usage"]["prompt_tokens"] > 10


def test_a_real_model_with_a_sliding_window_and_without_a_template(tmp_path: Path) -> None:
    with serving(tmp_path, "--model-path", template_free_model()) as running:
        name = running.get("/v1/models").json()["data"][0]["id"]
        body = {"model": name, "prompt": "One, two, three, four, five, six,", "temperature": 0, "max_tokens": 6}
        assert "seven" in running.post("/v1/completions", body).json()["choices"][0]["text"]
