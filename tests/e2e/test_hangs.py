"""Workers that hang or die again and again: what it costs is told, and it costs no other model anything."""

import os
from contextlib import ExitStack
from pathlib import Path
from signal import SIGKILL, SIGSTOP

from tests.e2e.conftest import StartServer
from tests.e2e.harness import CHAT, ENDLESS, LONG_PROMPT, PROMPTS, STEADY_SEED, Server, chat_body
from tests.e2e.processes import children, wait_for
from tests.tiny_models import write_tiny_model

LIMITS = ("--worker-timeout", "2", "--load-timeout", "4")


def start_with_limits(start: StartServer, folder: Path) -> Server:
    write_tiny_model(folder, "alpha", n_ctx_train=65536, seed=STEADY_SEED)
    write_tiny_model(folder, "beta", n_ctx_train=4096, seed=STEADY_SEED)
    return start("--model-path", folder, "--ctx-size", "65536", *LIMITS)


def stop_worker(server: Server, model: str) -> int:
    pid: int = server.get(f"/api/models/{model}/status").json()["pid"]
    os.kill(pid, SIGSTOP)
    return pid


def kill_worker(server: Server) -> None:
    """Have a worker of `alpha`, which finishes no job, and kill it."""
    wait_for("a worker", lambda: server.post("/tokenize", {"model": "alpha", "content": "a"}).status == 200)
    n_deaths = server.metric("shimmy_worker_deaths_total", "alpha")
    os.kill(server.get("/api/models/alpha/status").json()["pid"], SIGKILL)
    wait_for("the death", lambda: server.metric("shimmy_worker_deaths_total", "alpha") > n_deaths)


def test_a_worker_that_stops_in_a_stream_is_ended_and_the_next_request_has_another(
    start: StartServer, tmp_path: Path
) -> None:
    server = start_with_limits(start, tmp_path)
    text = server.chat(LONG_PROMPT, "beta", max_tokens=2000)
    with ExitStack() as connections:
        stream = connections.enter_context(server.stream(PROMPTS[0], **ENDLESS))
        other = connections.enter_context(server.stream(LONG_PROMPT, "beta", max_tokens=2000))
        stream.read(3)
        pid = stop_worker(server, "alpha")
        stream.finish()
        assert stream.error is not None
        assert stream.error["code"] == "worker_died"
        assert "no sign of life" in stream.error["message"]
        assert "--worker-timeout" in stream.error["message"]
        assert other.finish().text == text, "another model's stream goes on"
    wait_for("the worker to be gone", lambda: pid not in children(server.pid))
    assert "no sign of life" in server.get("/api/models/alpha/status").json()["error"]
    assert server.chat("hello")
    assert "again: it gave no sign of life" in server.log
    assert server.get("/api/models/alpha/status").json()["error"] is None


def test_a_worker_that_stops_under_a_call_or_with_nothing_to_do_is_ended(start: StartServer, tmp_path: Path) -> None:
    server = start_with_limits(start, tmp_path)
    server.chat("hello")
    stop_worker(server, "alpha")
    reply = server.post("/tokenize", {"model": "alpha", "content": "hello"})
    assert reply.status == 502
    assert "no sign of life" in reply.error["message"]
    server.chat("hello")
    pid = stop_worker(server, "alpha")
    wait_for("the worker to be gone", lambda: pid not in children(server.pid))
    assert server.chat("hello")


def test_a_worker_that_stops_while_it_loads_is_a_load_that_failed(start: StartServer, tmp_path: Path) -> None:
    server = start_with_limits(start, tmp_path)
    with server.later(CHAT, chat_body("hello")) as waiting:
        pid = wait_for("a worker", server.workers)[0]
        os.kill(pid, SIGSTOP)
        reply = waiting.reply()
    assert reply.status == 503
    assert reply.error["code"] == "model_unavailable"
    assert "no sign of life" in reply.error["message"]
    assert server.chat("hello")


def test_after_three_deaths_in_a_row_a_model_is_refused_at_once_until_somebody_wants_it(
    start: StartServer, tmp_path: Path
) -> None:
    server = start_with_limits(start, tmp_path)
    text = server.chat(LONG_PROMPT, "beta", max_tokens=3000)
    with server.stream(LONG_PROMPT, "beta", max_tokens=3000) as other:
        other.read(1)
        for _ in range(3):
            kill_worker(server)
        for path, body in ((CHAT, chat_body("hello")), ("/tokenize", {"model": "alpha", "content": "a"})):
            reply = server.post(path, body)
            assert reply.status == 503
            assert "3 times in a row" in reply.error["message"]
            assert "signal 9" in reply.error["message"]
        with server.stream("hello") as refused:
            assert refused.response.status == 503
        assert other.finish().text == text
    assert server.metric("shimmy_models_quarantined") == 1
    assert server.post("/api/models/alpha/load", {}).status == 200
    assert server.chat("hello")
    kill_worker(server)
    assert server.chat("hello"), "a death after work that was done is not the fourth"


def test_a_new_file_ends_the_quarantine(start: StartServer, tmp_path: Path) -> None:
    server = start_with_limits(start, tmp_path)
    for _ in range(3):
        kill_worker(server)
    assert server.post(CHAT, chat_body("hello")).status == 503
    write_tiny_model(tmp_path, "alpha", n_ctx_train=65536, seed=STEADY_SEED + 1)
    wait_for("the new file", lambda: server.post(CHAT, chat_body("hello")).status == 200)
