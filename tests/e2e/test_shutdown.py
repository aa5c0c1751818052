"""How a server ends: streams come to an end of their own or get an error event, and nothing stays behind."""

import os
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGSTOP, SIGTERM, Signals
from subprocess import TimeoutExpired

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.harness import ENDLESS, LONG_PROMPT, PROGRAM, PROMPTS, Server, environment
from tests.e2e.processes import PATIENCE, wait_for
from tests.tiny_models import write_tiny_model

GRACE_S = 5.0  # what running jobs are given
SOON_DONE = max(25, int(400 / PATIENCE))  # tokens that take less


def check_gone(server: Server, exit_code: int) -> None:
    assert exit_code == 0, server.log
    assert "Traceback" not in server.log
    assert server.output == ""
    assert server.leftovers() == []
    wait_for("every process to end", lambda: not server.processes(), deadline_s=5)


def insist(server: Server, number: Signals) -> int:
    """Send `number` once a second, as an impatient person does, for less time than running jobs are given."""
    for _ in range(int(GRACE_S) - 2):
        server.send(number)
        with suppress(TimeoutExpired):
            return server.wait(deadline_s=1)
    pytest.fail("it did not end")


@pytest.mark.smoke
@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
@pytest.mark.parametrize("is_loaded", [False, True])
def test_an_idle_server_ends(start: StartServer, number: Signals, *, is_loaded: bool) -> None:
    server = start()
    if is_loaded:
        server.chat("hello")
    check_gone(server, server.stop(number))


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_running_streams_may_finish(start: StartServer, number: Signals) -> None:
    server = start()
    text = server.chat(LONG_PROMPT, max_tokens=SOON_DONE)
    with ExitStack() as connections:
        streams = [connections.enter_context(server.stream(LONG_PROMPT, max_tokens=SOON_DONE)) for _ in range(2)]
        for stream in streams:
            stream.read(1)
        server.send(number)
        for stream in streams:
            # Far on, two tokens may be as good as equally likely, and batches of other sizes round otherwise.
            assert stream.finish().text[:500] == text[:500]
            assert (stream.finish_reason, stream.is_done) == ("length", True)
        check_gone(server, server.wait())


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_a_signal_to_the_whole_group_lets_streams_finish_too(start: StartServer, number: Signals) -> None:
    """A terminal sends SIGINT to every process of the program, `timeout` and systemd send SIGTERM so."""
    server = start()
    text = server.chat(LONG_PROMPT, max_tokens=SOON_DONE)
    with server.stream(LONG_PROMPT, max_tokens=SOON_DONE) as stream:
        stream.read(1)
        os.killpg(server.process.pid, number)
        assert stream.finish().text[:500] == text[:500]
        assert (stream.finish_reason, stream.is_done) == ("length", True)
        check_gone(server, server.wait())


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_streams_that_cannot_finish_get_an_error_event(start_endless: Server, number: Signals) -> None:
    server = start_endless
    with server.stream(PROMPTS[0], **ENDLESS) as stream:
        stream.read(1)
        server.send(number)
        wait_for("the server to be not ready", lambda: server.get("/ready").status == 503)
        late = server.post("/v1/completions", {"model": "alpha", "prompt": "hello", "max_tokens": 1})
        assert late.status == 503
        assert late.error["code"] == "shutting_down"
        assert server.get("/health").status == 200
        stream.finish()
        assert stream.error is not None
        assert stream.error["code"] == "shutting_down"
        check_gone(server, server.wait())


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_a_second_signal_ends_it_at_once(start_endless: Server, number: Signals) -> None:
    server = start_endless
    with server.stream(PROMPTS[0], **ENDLESS) as stream:
        stream.read(1)
        server.send(number)
        wait_for("the first signal to be taken", lambda: "shutting down" in server.log)
        check_gone(server, insist(server, number))
        assert stream.finish().error is not None


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_signals_until_it_has_ended_change_nothing(start: StartServer, number: Signals) -> None:
    """The last ones meet the interpreter at its end."""
    server = start()

    def has_ended() -> bool:
        server.send(number)
        return server.process.poll() is not None

    wait_for("its end", has_ended)
    check_gone(server, server.wait())


@pytest.mark.frozen
def test_signals_while_it_tidies_up_leave_nothing(tmp_path: Path) -> None:
    """As when a terminal is closed as the program in it ends: the outer process gets them after the inner one's end."""
    for _ in range(5):
        with subprocess.Popen([*PROGRAM, "version"], env=environment(tmp_path), stdout=subprocess.PIPE) as command:
            assert command.stdout is not None
            assert command.stdout.read(1)
            while command.poll() is None:
                command.send_signal(SIGHUP)
                command.send_signal(SIGTERM)
        assert [*tmp_path.glob("_MEI*")] == []


@pytest.mark.frozen
def test_the_outer_process_dies_of_what_the_inner_one_died_of(start: StartServer) -> None:
    server = start()
    os.kill(server.pid, SIGKILL)
    assert server.wait() == -SIGKILL
    assert server.leftovers() == []


def test_a_server_ends_while_it_loads_a_model(start: StartServer) -> None:
    server = start()
    with server.stream("hello") as stream:
        worker = wait_for("a worker", server.workers)[0]
        os.kill(worker, SIGSTOP)  # it loads for as long as the test likes
        server.send(SIGTERM)
        wait_for("the signal to be taken", lambda: "shutting down" in server.log)
        os.kill(worker, SIGCONT)
        assert stream.response.status == 503
        check_gone(server, server.wait())


def test_a_worker_that_hangs_is_killed(start: StartServer) -> None:
    server = start()
    with server.stream(PROMPTS[0], max_tokens=4000) as stream:
        stream.read(1)
        os.kill(server.worker(), SIGSTOP)
        server.send(SIGTERM)
        stream.finish()
        assert stream.is_done or stream.error is not None
        check_gone(server, server.wait())


def test_a_client_that_holds_its_connection_open_holds_up_no_shutdown(start: StartServer) -> None:
    server = start()
    with server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        check_gone(server, server.stop())


@pytest.fixture
def start_endless(start: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server with one model whose jobs do not end by themselves."""
    model = write_tiny_model(tmp_path_factory.mktemp("endless"), "alpha", n_ctx_train=65536)
    return start("--model-path", model, "--ctx-size", "65536")
