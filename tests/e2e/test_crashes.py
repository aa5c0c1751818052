"""Processes that are killed: a dead worker is an error for its requests only, and nothing outlives the server."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGBUS, SIGCONT, SIGKILL, SIGSTOP

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.harness import CHAT, ENDLESS, PROMPTS, STEADY_SEED, Server, chat_body
from tests.e2e.processes import children, wait_for
from tests.tiny_models import write_tiny_model


@pytest.mark.smoke
def test_streams_of_a_killed_worker_get_an_error_event_and_the_server_goes_on(endless: Server) -> None:
    text = endless.chat(PROMPTS[0])
    n_deaths = endless.metric("shimmy_worker_deaths_total", "alpha")
    with ExitStack() as connections:
        streams = [connections.enter_context(endless.stream(prompt, **ENDLESS)) for prompt in PROMPTS[:8]]
        for stream in streams:
            stream.read(3)
        os.kill(endless.worker(), SIGKILL)
        for stream in streams:
            stream.finish()
            assert stream.error is not None
            assert stream.error.keys() == {"message", "type", "param", "code"}
            assert stream.error["code"] == "worker_died"
            assert stream.error["type"] == "server_error"
            assert "signal 9" in stream.error["message"]
            assert not stream.is_done
    assert endless.get("/ready").status == 200
    assert endless.metric("shimmy_models_loaded") == 0
    assert endless.n_jobs("alpha") == 0
    assert endless.metric("shimmy_worker_deaths_total", "alpha") == n_deaths + 1
    assert endless.chat(PROMPTS[0]) == text
    assert endless.metric("shimmy_models_loaded") == 1


def test_a_killed_worker_is_a_502_for_a_whole_reply(endless: Server) -> None:
    endless.chat("warm")
    with ExitStack() as connections:
        stream = connections.enter_context(endless.stream(PROMPTS[0], **ENDLESS))
        stream.read(1)
        pid = endless.worker()
        whole = connections.enter_context(endless.later(CHAT, chat_body(PROMPTS[1], **ENDLESS)))
        wait_for("both jobs to run", lambda: endless.n_jobs("alpha") == 2)
        os.kill(pid, SIGKILL)
        reply = whole.reply()
    assert reply.status == 502
    assert reply.error["code"] == "worker_died"


@contextmanager
def stopped_load(server: Server) -> Iterator[int]:
    """A worker that was stopped before it could load its model, while the request of the block's maker waits."""
    pid = wait_for("a worker", server.workers)[0]
    os.kill(pid, SIGSTOP)
    yield pid
    if pid in children(server.pid):
        os.kill(pid, SIGCONT)


def test_those_who_wait_for_a_killed_load_are_told(start: StartServer) -> None:
    server = start()
    with ExitStack() as connections:
        whole = connections.enter_context(server.later(CHAT, chat_body("hello")))
        with stopped_load(server) as pid:
            stream = connections.enter_context(server.stream("hello"))
            stream.wait_for_ping()  # a stream has begun by now, so its error can only be an event
            os.kill(pid, SIGKILL)
            reply = whole.reply()
        assert reply.status == 503
        assert reply.error["code"] == "out_of_memory"  # the signal of a system without any
        assert "signal 9" in reply.error["message"]
        assert reply.headers["retry-after"]
        stream.finish()
        assert stream.error == reply.error
    assert server.chat("hello")
    assert server.metric("shimmy_worker_deaths_total", "alpha") == 0  # it never lived


def test_a_file_that_is_deleted_while_it_is_loaded(start: StartServer, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = write_tiny_model(folder, "alpha", seed=STEADY_SEED)
    write_tiny_model(folder, "beta")
    server = start("--model-path", folder)
    with server.later(CHAT, chat_body("hello")) as waiting:
        with stopped_load(server):
            path.unlink()
        reply = waiting.reply()
    assert (reply.status, reply.error["code"]) == (503, "model_unavailable")
    wait_for("the catalog", lambda: server.post(CHAT, chat_body("hello")).status == 404)
    assert server.chat("hello", "beta")


def test_a_file_that_is_rewritten_in_place_costs_its_jobs_an_error_and_no_more(
    start: StartServer, tmp_path: Path
) -> None:
    """Weights are pages of the file: who cuts it off takes them from under the worker, which gets SIGBUS."""
    folder = tmp_path / "models"
    folder.mkdir()
    path = write_tiny_model(folder, "alpha", n_ctx_train=65536, seed=STEADY_SEED)
    write_tiny_model(folder, "beta")
    content = path.read_bytes()
    server = start("--model-path", folder, "--ctx-size", "65536")
    text = server.chat(PROMPTS[0])
    with server.stream(PROMPTS[0], **ENDLESS) as stream:
        stream.read(3)
        os.truncate(path, 0)
        stream.finish()
    assert stream.error is not None
    assert stream.error["code"] == "worker_died"
    assert f"signal {SIGBUS}" in stream.error["message"]
    assert "rewritten in place" in stream.error["message"]
    reply = server.post(CHAT, chat_body(PROMPTS[0]))
    assert (reply.status, reply.error["code"]) == (503, "model_unavailable")
    assert "0 bytes" in reply.error["message"]
    assert server.chat("hello", "beta")
    path.write_bytes(content)
    wait_for("the model", lambda: server.post(CHAT, chat_body(PROMPTS[0])).status == 200)
    assert server.chat(PROMPTS[0]) == text


def test_a_client_that_leaves_while_the_model_loads_ends_nothing_for_others(start: StartServer) -> None:
    server = start()
    with server.stream("hello", **ENDLESS) as leaver, stopped_load(server), ExitStack() as connections:
        stream = connections.enter_context(server.stream(PROMPTS[0]))
        leaver.leave()
        assert server.get("/health").status == 200
        os.kill(server.worker(), SIGCONT)
        assert stream.finish().is_done
    server.wait_until_idle("alpha")
    assert len(server.workers()) == 1


def test_workers_end_with_a_killed_server(start: StartServer) -> None:
    server = start()
    with server.stream(PROMPTS[0], max_tokens=4000) as busy, server.stream(PROMPTS[0], "beta") as other:
        busy.read(1)
        other.read(1)
        assert len(server.workers()) == 2
        os.kill(server.pid, SIGKILL)
        wait_for("every process to end", lambda: not server.processes(), deadline_s=5)


@pytest.mark.frozen
def test_a_crash_of_a_worker_leaves_no_file(start: StartServer) -> None:
    server = start()
    before = server.leftovers()
    assert len(before) == 1  # what the program unpacked itself to
    server.chat("hello")
    os.kill(server.worker(), SIGKILL)
    wait_for("the server to notice", lambda: server.metric("shimmy_worker_deaths_total", "alpha") == 1)
    assert server.leftovers() == before
    server.chat("hello")
    assert server.leftovers() == before
    assert server.stop() == 0
    assert server.leftovers() == []


@pytest.mark.frozen
@pytest.mark.parametrize("victim", ["outer", "inner"])
def test_a_killed_half_takes_the_other_and_the_files_with_it(start: StartServer, victim: str) -> None:
    server = start()
    with server.stream(PROMPTS[0], max_tokens=4000) as busy:
        busy.read(1)
        os.kill(server.process.pid if victim == "outer" else server.pid, SIGKILL)
        server.wait()
        wait_for("every process to end", lambda: not server.processes(), deadline_s=5)
    assert server.leftovers() == []


@pytest.mark.frozen
def test_what_a_killed_group_leaves_goes_with_the_next_start(start: StartServer) -> None:
    server = start()
    server.chat("hello")
    (abandoned,) = server.leftovers()
    for pid in server.processes():
        os.kill(pid, SIGKILL)
    server.wait()
    wait_for("every process to end", lambda: not server.processes(), deadline_s=5)
    neighbour = start(folder=server.temporary.parent)
    wait_for("the abandoned folder to go", lambda: abandoned not in neighbour.leftovers())
    successor = start(folder=server.temporary.parent)
    assert successor.chat("hello") == neighbour.chat("hello")  # nobody's home was taken from them
    assert len(successor.leftovers()) == 2
    assert (successor.stop(), neighbour.stop()) == (0, 0)
    assert successor.leftovers() == []
