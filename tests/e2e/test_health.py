"""`shimmy health` against servers: what it says, how it ends, and that it waits."""

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.harness import HOST, PROGRAM, Server, environment, run
from tests.e2e.processes import DEADLINE_S
from tests.tiny_models import write_tiny_model


def here(server: Server) -> tuple[str, str]:
    return "--bind", f"{HOST}:{server.port}"


def test_a_server_answers(tmp_path: Path, server: Server) -> None:
    ended = run(tmp_path, "health", *here(server))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"http://{HOST}:{server.port} answers\n"
    assert run(tmp_path, "health", "--url", server.url).returncode == 0
    assert not list(tmp_path.glob("_MEI*"))


def test_no_server_is_one_line_and_1(tmp_path: Path, start: StartServer) -> None:
    server = start()
    address = here(server)
    assert server.stop() == 0
    ended = run(tmp_path, "health", *address)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("shimmy: no server answers on http://")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "localhost"])
def test_a_server_is_found_where_it_listens(tmp_path: Path, start: StartServer, host: str) -> None:
    server = start(bind=f"{host}:0")
    ended = run(tmp_path, "health", "--bind", f"{host}:{server.port}")
    assert ended.returncode == 0, ended.stderr


def test_a_model_is_loaded(tmp_path: Path, start: StartServer) -> None:
    server = start("--api-key", "secret")
    command = ("health", *here(server), "--model", "beta")
    assert run(tmp_path, "health", *here(server)).returncode == 0, "no key is needed to see that it answers"
    refused = run(tmp_path, *command)
    assert refused.returncode == 1
    assert "needs an API key" in refused.stderr
    assert not server.workers()
    ended = run(tmp_path, *command, "--api-key", "secret", "--wait", "30")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("answers and has loaded `beta`\n")
    assert len(server.workers()) == 1


def test_a_model_that_cannot_be_loaded_is_told_with_the_reason(tmp_path: Path, start: StartServer) -> None:
    models = tmp_path / "models"
    models.mkdir()
    whole = write_tiny_model(tmp_path, "whole").read_bytes()
    (models / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    server = start("--model-path", models)
    for name in ("cut", "other"):
        ended = run(tmp_path, "health", *here(server), "--model", name, "--wait", "10m")
        assert ended.returncode == 1
        assert ended.stdout == ""
        assert ended.stderr.count("\n") == 1
        assert f"`{name}`" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_it_waits_for_a_server_that_is_still_to_come(tmp_path: Path, start: StartServer) -> None:
    first = start()
    port = first.port
    first.stop()
    command = [*PROGRAM, "health", "--bind", f"{HOST}:{port}", "--wait", "60", "--model", "alpha"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE) as waiting:
        start(bind=f"{HOST}:{port}")
        assert waiting.wait(DEADLINE_S) == 0


def interrupted(tmp_path: Path, n_times: int) -> tuple[int, bytes]:
    """How `health` ends that is interrupted while it waits: its exit code, and what it says."""
    with socket.create_server((HOST, 0)) as listener:
        command = [*PROGRAM, "health", "--bind", f"{HOST}:{listener.getsockname()[1]}", "--wait", "60"]
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment(tmp_path), stderr=subprocess.PIPE, start_new_session=True
        ) as waiting:
            connection, _ = listener.accept()
            with connection:
                for _ in range(n_times):
                    with suppress(ProcessLookupError):
                        os.killpg(waiting.pid, signal.SIGINT)
                    time.sleep(0.005)
                code = waiting.wait(DEADLINE_S)
                assert waiting.stderr is not None
                return code, waiting.stderr.read()


def test_an_interrupt_ends_the_wait(tmp_path: Path) -> None:
    """A terminal interrupts all processes; the one-file program's outer one hands on what it gets."""
    code, said = interrupted(tmp_path, 1)
    assert code in (130, -signal.SIGINT)
    assert said == b"shimmy: interrupted\n"
    assert not list(tmp_path.glob("_MEI*"))


def test_an_impatient_person_is_told_once(tmp_path: Path) -> None:
    code, said = interrupted(tmp_path, 20)
    assert code in (130, -signal.SIGINT)
    assert said == b"shimmy: interrupted\n"
