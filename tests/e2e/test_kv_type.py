"""A KV cache of less or more than 16 bits an element (`--kv-type`)."""

from pathlib import Path

import pytest

from shimmy.wire.worker_options import KV_TYPES
from tests.e2e.conftest import StartServer
from tests.e2e.harness import COMPLETION, Json, Server
from tests.e2e.processes import wait_for
from tests.models import demo_model

NAME = "smollm2-135m-instruct.q4-1"
PROMPT = f"{'The capital of Italy is Rome. ' * 120}The capital of Italy is"  # more tokens than a new pool has cells


def ask(server: Server) -> tuple[str, int]:
    """The reply, and how many tokens of the prompt were not computed."""
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    reply: Json = server.request("POST", COMPLETION, body, deadline_s=60).json()
    return reply["choices"][0]["text"], reply["usage"]["prompt_tokens_details"]["cached_tokens"]


def end_worker(server: Server) -> None:
    server.post(f"/api/models/{NAME}/unload", {})
    wait_for("the end of the worker", lambda: not server.workers())


@pytest.mark.timeout(240)
def test_a_cache_of_another_type_has_another_size_grows_and_is_stored_apart(tmp_path: Path, start: StartServer) -> None:
    options = ("--model-path", demo_model(), "--cache-dir", tmp_path / "cache", "--prompt-cache", "100M")
    kv_bytes = {}
    for kv_type in ("q8_0", "f16", "f32"):
        server = start(*options, "--kv-type", kv_type)
        text, cached = ask(server)
        assert "Rome" in text
        assert cached == 0, "what the other type has stored is not used"
        end_worker(server)
        again, cached = ask(server)
        assert again == text
        assert cached > 700
        kv_bytes[kv_type] = server.get(f"/api/models/{NAME}/status").json()["memory"]["kv_bytes"]
        server.stop()
        assert kv_bytes[kv_type] * KV_TYPES["q8_0"] == pytest.approx(kv_bytes["q8_0"] * KV_TYPES[kv_type], rel=0.01)


def test_a_model_that_it_does_not_suit_is_refused_with_what_to_do(start: StartServer) -> None:
    reply = start("--kv-type", "q4_0").post(COMPLETION, {"model": "alpha", "prompt": "hello"})
    assert reply.status == 503
    assert reply.error["code"] == "model_unavailable"
    assert "quantised KV cache, where `--kv-type f16` may do" in reply.error["message"]
    assert "does not divide n_embd_head_k=16" in reply.error["message"]
