"""Prompts that outlive their server, their worker and their model's turn in memory."""

from pathlib import Path

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.harness import CHAT, Json, Server, chat_body
from tests.e2e.processes import wait_for
from tests.tiny_models import write_tiny_model

LONG = " ".join(f"hello world {number} tell the user" for number in range(40))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the model is, and the cache."""
    write_tiny_model(tmp_path, "alpha", n_ctx_train=4096)
    return tmp_path


def ask(server: Server, question: str = "") -> tuple[str, int]:
    """The reply, and how many tokens of the prompt were not computed."""
    reply: Json = server.post(CHAT, chat_body(f"{LONG} {question}", max_tokens=16)).json()
    cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert reply["timings"]["cache_n"] == cached
    return reply["choices"][0]["message"]["content"], cached


def options(folder: Path) -> tuple[str | Path, ...]:
    return ("--model-path", folder / "alpha.gguf", "--cache-dir", folder / "cache", "--prompt-cache", "50M")


def test_a_prompt_outlives_the_server(folder: Path, start: StartServer) -> None:
    first = start(*options(folder))
    text, cached = ask(first)
    assert cached == 0
    first.stop()

    second = start(*options(folder))
    again, cached = ask(second)
    assert again == text
    assert cached > 400
    metrics = second.get("/metrics").body.decode()
    assert 'shimmy_stored_prompt_lookups_total{model="alpha",outcome="hit"} 1' in metrics
    assert 'shimmy_stored_prompt_tokens_total{model="alpha"}' in metrics
    assert "Traceback" not in first.log + second.log


def test_it_outlives_an_unload_and_is_not_for_the_model_that_is_put_in_its_place(
    folder: Path, start: StartServer
) -> None:
    server = start(*options(folder))
    text, _ = ask(server)
    assert server.post("/api/models/alpha/unload", {}).status == 200
    wait_for("the end of the worker", lambda: not server.workers())
    again, cached = ask(server)
    assert again == text
    assert cached > 400

    write_tiny_model(folder, "other", n_ctx_train=4096, seed=1).rename(folder / "alpha.gguf")
    swapped = 'shimmy_swaps_total{model="alpha",outcome="done"} 1'
    wait_for("the swap", lambda: swapped in server.get("/metrics").body.decode())
    other, cached = ask(server)
    assert (other != text, cached) == (True, 0)
    assert "Traceback" not in server.log
