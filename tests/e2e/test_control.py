"""A running server steered from outside: its commands, its events, names that a person gave."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from signal import SIGTERM

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.harness import CHAT, HOST, Json, Server, chat_body, run
from tests.e2e.processes import DEADLINE_S, wait_for
from tests.tiny_models import write_tiny_model

KEY = {"Authorization": "Bearer secret"}


@contextmanager
def events(server: Server) -> Iterator[Iterator[tuple[str, Json]]]:
    """What happens, as `/api/events` tells it."""
    connection = HTTPConnection(HOST, server.port, timeout=DEADLINE_S)
    connection.request("GET", "/api/events")
    response = connection.getresponse()
    assert response.headers["content-type"].startswith("text/event-stream")

    def read() -> Iterator[tuple[str, Json]]:
        kind = ""
        for line in iter(response.readline, b""):
            if line.startswith(b"event: "):
                kind = line.removeprefix(b"event: ").decode().strip()
            elif line.startswith(b"data: "):
                yield kind, json.loads(line.removeprefix(b"data: "))

    try:
        yield read()
    finally:
        response.close()
        connection.close()


def test_a_dashboard_sees_how_it_stands_and_what_happens(start: StartServer, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = write_tiny_model(folder, "tiny")
    server = start("--model-path", folder)
    with events(server) as happening:
        kind, opening = next(happening)
        assert kind == "models"
        assert [(entry["name"], entry["state"]) for entry in opening["models"]] == [("tiny", "unloaded")]
        server.chat("hello", "tiny")
        assert [next(happening)[0] for _ in range(2)] == ["loading", "loaded"]
        write_tiny_model(tmp_path, "tiny", seed=3).rename(path)
        told = [next(happening) for _ in range(4)]
        assert [kind for kind, _ in told] == ["changed", "loading", "swapped", "unloaded"]
        assert {event["model"] for _, event in told} == {"tiny"}
        assert told[-1][1]["reason"] == "swapped"
        broken = folder / "broken.gguf"
        broken.write_bytes(b"GGUF")
        kind, event = next(happening)
        assert (kind, event["model"]) == ("rejected", "broken")
        (state,) = (entry for entry in server.get("/api/models").json()["models"] if entry["name"] == "broken")
        assert event["reason"] == state["error"]
        broken.unlink()
        kind, event = next(happening)
        assert (kind, event["model"]) == ("removed", "broken")


def test_the_stream_of_events_ends_with_the_server(start: StartServer) -> None:
    server = start()
    with events(server) as happening:
        next(happening)
        server.send(SIGTERM)
        assert list(happening) == []
    assert server.wait() == 0


def test_commands_for_a_running_server(start: StartServer, tmp_path: Path) -> None:
    server = start("--api-key", "secret")
    there = ("--server", f"{HOST}:{server.port}", "--api-key", "secret")

    def names(*command: str) -> list[str]:
        done = run(tmp_path, *command, *there)
        assert done.returncode == 0, done.stderr
        return [line.split()[0] for line in done.stdout.splitlines()][1:]

    assert names("ps") == []
    assert names("load", "alpha") == ["alpha"]
    assert names("ps") == ["alpha"]
    assert run(tmp_path, "load", "alpha", "--keep-alive=-1", *there).returncode == 0
    assert server.request("GET", "/api/models/alpha/status", headers=KEY).json()["pinned"] is True
    assert run(tmp_path, "load", "alpha", "--keep-alive", "10m", *there).returncode == 0
    refused = run(tmp_path, "load", "alpha", "--keep-alive", "soon", *there)
    assert refused.returncode == 2
    assert "--keep-alive" in refused.stderr
    (entry,) = json.loads(run(tmp_path, "ps", "--json", *there).stdout)
    assert (entry["keep_alive_s"], entry["pinned"]) == (600, False)
    assert (entry["name"], entry["state"], entry["jobs"]) == ("alpha", "ready", 0)
    assert entry["memory"]["total_bytes"] > entry["memory"]["weights_bytes"] > 0
    assert names("discover") == ["alpha", "beta"]
    assert names("unload", "alpha") == ["alpha"]
    assert names("unload", "alpha") == ["alpha"], "twice is as good as once"
    wait_for("the worker's end", lambda: not server.workers())
    missing = run(tmp_path, "load", "gamma", *there)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "no model `gamma`" in missing.stderr
    locked_out = run(tmp_path, "ps", "--server", f"{HOST}:{server.port}")
    assert locked_out.returncode == 1
    assert "API key" in locked_out.stderr


def test_commands_say_so_when_nobody_answers_or_somebody_else(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind((HOST, 0))
        done = run(tmp_path, "ps", "--server", f"{HOST}:{nobody.getsockname()[1]}")
    assert done.returncode == 1
    assert "no server answers" in done.stderr
    with socket.create_server((HOST, 0)) as other:

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

        threading.Thread(target=answer, daemon=True).start()
        done = run(tmp_path, "ps", "--server", f"{HOST}:{other.getsockname()[1]}")
    assert done.returncode == 1
    assert "no Shimmy server" in done.stderr


def test_names_that_a_person_gave(start: StartServer) -> None:
    server = start("--alias", "gpt-4o=beta", "--alias", "claude-*=alpha", "--default-model", "alpha")
    listed = [model["id"] for model in server.get("/v1/models").json()["data"]]
    assert listed == ["alpha", "beta", "gpt-4o"]
    for asked, answered in (("gpt-4o", "beta"), ("claude-9", "alpha"), ("whatever", "alpha"), ("beta", "beta")):
        reply = server.post(CHAT, chat_body("hello", asked, max_tokens=2))
        assert reply.json()["model"] == answered
    body = chat_body("hello", max_tokens=2)
    del body["model"]
    assert server.post(CHAT, body).json()["model"] == "alpha"


def test_a_preloaded_model_is_there_before_anybody_asks(start: StartServer) -> None:
    server = start("--preload", "beta", "--preload", "missing")
    wait_for("the model", lambda: server.get("/api/models/beta/status").json()["state"] == "ready")
    wait_for("the line of the log", lambda: "cannot preload `missing`" in server.log)
    assert server.log.index("cannot preload `missing`") < server.log.index("loading `beta`")
    assert server.get("/ready").status == 503
    assert server.get("/health").status == 200


def test_a_server_with_its_preloaded_models_is_ready(start: StartServer) -> None:
    server = start("--preload", "beta")
    wait_for("the server", lambda: server.get("/ready").status == 200)
    assert server.get("/api/models/beta/status").json()["state"] == "ready"


@pytest.mark.parametrize("what", ["load", "unload"])
def test_an_unknown_model_can_be_neither(server: Server, what: str) -> None:
    assert server.post(f"/api/models/gamma/{what}", None).status == 404


@pytest.mark.parametrize(("body", "status"), [(b" \r\n\t", 200), (b"\x0c", 400), (b"\xa0", 400)])
def test_a_body_of_nothing_but_white_space_is_none(server: Server, body: bytes, status: int) -> None:
    assert server.request("POST", "/api/models/beta/load", body).status == status
