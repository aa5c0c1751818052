"""Models pulled by the command and by the API, from a hub and a registry on this machine, and then asked."""

import hashlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.e2e.harness import PROGRAM, Server, environment, serving
from tests.e2e.processes import DEADLINE_S, wait_for
from tests.e2e.terminal import CTRL_C, in_terminal
from tests.hub.servers import COMMIT, FakeFiles, FakeHub, FakeRegistry, Fault, self_signed, speak_tls
from tests.tiny_models import write_tiny_model

NAME = "o/Tiny-GGUF"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_model(tmp_path_factory.mktemp("source"), "tiny").read_bytes()


@pytest.fixture
def hub(model: bytes) -> Iterator[FakeHub]:
    server = FakeHub({NAME: {"tiny-Q4_K_M.gguf": model, "tiny-Q8_0.gguf": model[:-1] + b"x"}})
    with server.running():
        yield server


def variables(folder: Path, hub: FakeHub | None = None, registry: FakeRegistry | None = None) -> dict[str, str]:
    kept = {name: value for name, value in environment(folder).items() if not name.upper().endswith("_PROXY")}
    own = {"HF_HOME": f"{folder}/hf", "OLLAMA_MODELS": f"{folder}/ollama", "HOME": str(folder)}
    own |= {"XDG_DATA_HOME": f"{folder}/data"}
    if hub is not None:
        own["HF_ENDPOINT"] = hub.url
    if registry is not None:
        own["SHIMMY_OLLAMA_REGISTRY"] = registry.url
    return {name: value for name, value in kept.items() if not name.startswith("HF_")} | own


def pull(
    folder: Path, given: dict[str, str], *arguments: str, timeout_s: float = DEADLINE_S
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*PROGRAM, "pull", *arguments],
        cwd=folder, env=given, capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip


def test_a_command_pulls_and_prints_the_path(hub: FakeHub, tmp_path: Path, model: bytes) -> None:
    result = pull(tmp_path, variables(tmp_path, hub), f"hf.co/{NAME}")
    assert result.returncode == 0, result.stderr
    path = Path(result.stdout.strip())
    assert path == tmp_path / "hf" / "hub" / "models--o--Tiny-GGUF" / "snapshots" / COMMIT / "tiny-Q4_K_M.gguf"
    assert path.read_bytes() == model
    assert "pulling tiny-Q4_K_M.gguf" in result.stderr
    assert "\r" not in result.stderr


def test_events_for_programs(hub: FakeHub, tmp_path: Path) -> None:
    result = pull(tmp_path, variables(tmp_path, hub), "--json", f"{NAME}:q8_0")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [events[0]["event"], events[1]["event"], events[-1]["event"]] == ["resolving", "files", "done"]
    assert events[-1]["path"].endswith("tiny-Q8_0.gguf")
    wrong = pull(tmp_path, variables(tmp_path, hub), "--json", f"{NAME}:Q3_K")
    assert wrong.returncode == 1
    last = json.loads(wrong.stdout.splitlines()[-1])
    assert last["event"] == "error"
    assert "Q4_K_M" in last["message"]


def test_a_terminal_sees_a_line_that_is_rewritten(hub: FakeHub, tmp_path: Path) -> None:
    primary, secondary = pty.openpty()
    with subprocess.Popen(
        [*PROGRAM, "pull", NAME], cwd=tmp_path, env=variables(tmp_path, hub) | {"TERM": "xterm"},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=secondary,
    ) as process:  # fmt: skip
        os.close(secondary)
        shown = b""
        try:
            while data := os.read(primary, 4096):
                shown += data
        except OSError:  # how a pseudo-terminal ends
            pass
        os.close(primary)
    assert process.returncode == 0, shown
    assert re.search(rb"\r\x1b\[K.*\[.*#+.*\].* 100 %", shown)


def test_who_interrupts_a_pull_is_told_how_it_goes_on(tmp_path: Path) -> None:
    hub = FakeHub({NAME: {"tiny-Q4_K_M.gguf": b"GGUF" + Random(1).randbytes(10_000_000)}})
    hub.faults.extend([Fault(), Fault(cut_after=5_150_000), *[Fault(status=503)] * 100])
    with hub.running():
        with in_terminal(tmp_path, "pull", NAME, variables=variables(tmp_path, hub)) as terminal:
            terminal.expect("again in ")
            terminal.expect(" 51 %")
            terminal.type(CTRL_C)
            assert terminal.wait() == 130
            assert "what was fetched is kept: the same command goes on from there" in terminal.output
        hub.faults.clear()
        with in_terminal(tmp_path, "pull", NAME, variables=variables(tmp_path, hub)) as terminal:
            assert terminal.wait() == 0
            assert "kept" not in terminal.output
            assert f"`shimmy run {NAME}` talks to it" in terminal.output


def test_the_name_of_a_repository_in_the_command_is_needed(tmp_path: Path) -> None:
    result = pull(tmp_path, variables(tmp_path), "tiny")
    assert result.returncode == 1
    assert "OWNER/NAME" in result.stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl on this machine")
def test_tls_is_spoken_and_verified(tmp_path: Path, model: bytes) -> None:
    certificate = self_signed(tmp_path)
    files = FakeFiles({"/m.gguf": model})
    speak_tls(files, certificate)
    with files.running():
        url = f"https://localhost:{files.port}/m.gguf#sha256={hashlib.sha256(model).hexdigest()}"
        refused = pull(tmp_path, variables(tmp_path), url)
        assert refused.returncode == 1
        assert "certificate" in refused.stderr
        result = pull(tmp_path, variables(tmp_path) | {"SSL_CERT_FILE": str(certificate[0])}, url)
        assert result.returncode == 0, result.stderr
        assert Path(result.stdout.strip()).read_bytes() == model


def test_two_programs_share_a_download(tmp_path: Path) -> None:
    content = b"GGUF" + Random(1).randbytes(8 << 20)
    hub = FakeHub({NAME: {"tiny.gguf": content}})
    with hub.running():
        command = [*PROGRAM, "pull", NAME]
        given = variables(tmp_path, hub)
        processes = [
            subprocess.Popen(command, cwd=tmp_path, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(3)
        ]
        results = [process.communicate(timeout=DEADLINE_S) for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0], results
        assert len({output for output, _ in results}) == 1
        assert Path(results[0][0].decode().strip()).read_bytes() == content
        assert len(hub.paths("/signed/")) == 2  # where it is and how large, then the content


def test_a_killed_pull_leaves_nothing_that_is_served_and_is_resumed(tmp_path: Path) -> None:
    content = (b"GGUF" + Random(1).randbytes(1 << 20))[
        : 1 << 20
    ] * 96  # three ranges of the same size, two of which come
    hub = FakeHub({NAME: {"tiny.gguf": content}})
    hub.faults.extend([Fault()] * 3 + [Fault(status=503, headers={"Retry-After": "60"})] * 20)
    given = variables(tmp_path, hub)
    with hub.running():
        with subprocess.Popen(
            [*PROGRAM, "pull", "--json", NAME], cwd=tmp_path, env=given, stdout=subprocess.PIPE
        ) as one:
            assert one.stdout is not None
            n_there = 0
            while n_there < 60e6:
                n_there = json.loads(one.stdout.readline()).get("completed_bytes", 0)
            one.send_signal(signal.SIGKILL)
        assert not [*tmp_path.rglob("*.gguf")]
        hub.faults.clear()
        result = pull(tmp_path, given, "--json", NAME)
        assert result.returncode == 0, result.stdout
        events = [json.loads(line) for line in result.stdout.splitlines()]
        first = next(event for event in events if event["event"] == "progress")
        assert first["completed_bytes"] >= 60e6
        assert Path(events[-1]["path"]).read_bytes() == content


# -- with a server ---------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, hub: FakeHub, model: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """One without models, that looks into the usual folders of a home of its own."""
    registry = FakeRegistry({"library/tiny:latest": {"model": model, "system": b"Be kind."}})
    with registry.running():
        for name, value in variables(tmp_path, hub, registry).items():
            if name.startswith(("HF_", "OLLAMA_", "XDG_DATA", "HOME")):
                monkeypatch.setenv(name, value)
        monkeypatch.setattr(
            "tests.e2e.harness.environment", lambda folder: variables(tmp_path, hub, registry) | {"TMPDIR": str(folder)}
        )
        with serving(tmp_path / "server") as running:
            yield running


def events_of(body: bytes) -> list[tuple[str, Any]]:
    return [(kind.decode(), json.loads(data)) for kind, data in re.findall(rb"event: (\w+)\ndata: (.*)\n", body)]


def test_a_server_without_models_gets_one_and_answers(server: Server) -> None:
    assert server.get("/v1/models").json()["data"] == []
    reply = server.post("/api/models/pull", {"model": f"hf.co/{NAME}"})
    assert reply.status == 200
    told = events_of(reply.body)
    assert [told[0][0], told[1][0], told[-1][0]] == ["resolving", "files", "done"]
    assert told[-1][1]["models"] == ["tiny-q4-k-m"]
    assert server.chat("hello", "tiny-q4-k-m", max_tokens=4)
    assert server.post("/api/models/pull", {"model": f"{NAME}:Q9"}).status == 400
    assert server.post("/api/models/pull", {"model": "o/none"}).status == 404


def test_a_name_of_ollamas_is_asked_by_its_name(server: Server) -> None:
    reply = server.post("/api/models/pull", {"model": "ollama:tiny", "stream": False})
    assert reply.json()["models"] == ["tiny:latest"]
    assert server.chat("hello", "tiny", max_tokens=4)


def test_the_api_fetches_no_urls_of_this_network(server: Server, model: bytes) -> None:
    files = FakeFiles({"/m.gguf": model})
    with files.running():
        reply = server.post("/api/models/pull", {"model": f"{files.url}/m.gguf"})
        assert reply.status == 502
        assert "not public" in reply.error["message"]
        assert not files.requests


def test_a_client_that_leaves_ends_its_pull(server: Server, hub: FakeHub) -> None:
    hub.faults.extend([Fault(), *[Fault(status=503, headers={"Retry-After": "60"})] * 20])
    call = server.later("/api/models/pull", {"model": NAME})
    wait_for("the pull's process", lambda: len(server.processes()) > _N_PROCESSES)
    call.leave()
    wait_for("its end", lambda: len(server.processes()) == _N_PROCESSES)


_N_PROCESSES = 2 if os.environ.get("SHIMMY_BIN") else 1
