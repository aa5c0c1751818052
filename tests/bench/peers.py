"""The servers that are compared: how each is had, how it is started, and where it tells that it is alive."""

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.llama_server import llama_server
from tools.engine import install_engine
from tools.environment import PEER_VENV, make_environment
from tools.steps import CACHE, DIST, BuildError, venv_python

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
POLL_INTERVAL_S = 0.002
HEADER_BYTES = 8 * 1024 * 1024  # as much of a model file as discovery may want to read
N_FILES = 50


@dataclass(frozen=True, slots=True)
class Peer:
    """A server; `command` takes the model's path, the port and the number of threads.

    `generate` is a command that completes a prompt without a server and writes the text to its standard output; it
    takes the model's path, the prompt and the number of threads.
    """

    name: str
    health_path: str
    command: Callable[[Path, int, int], list[str | Path]]
    generate: Callable[[Path, str, int], list[str | Path]] | None = None


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A started server that answered its health request `start_s` after its process was asked for."""

    process_id: int
    port: int
    started_at_s: float
    start_s: float


def _shimmy(model: Path, port: int, n_threads: int) -> list[str | Path]:
    command: list[str | Path] = [shimmy_program(), "serve", "--bind", f"127.0.0.1:{port}", "--threads", str(n_threads)]
    return [*command, "--model-path", model, "--model-dirs", model_folder(model)]


def _shimmy_without_speculation(model: Path, port: int, n_threads: int) -> list[str | Path]:
    return [*_shimmy(model, port, n_threads), "--no-speculation"]


def _shimmy_generate(model: Path, prompt: str, n_threads: int) -> list[str | Path]:
    command: list[str | Path] = [shimmy_program(), "generate", model, "--raw", "--prompt", prompt, "--temp", "0"]
    return [*command, "--max-tokens", "2", "--threads", str(n_threads)]


def shimmy_program() -> Path:
    program = Path(os.environ.get("SHIMMY_BIN", DIST / "shimmy"))
    if not program.exists():
        raise BuildError(f"there is no `{program}`: run `make build` first")
    return program


def _llama_server(model: Path, port: int, n_threads: int) -> list[str | Path]:
    return [llama_server(), "-m", model, "--host", "127.0.0.1", "--port", str(port), "-t", str(n_threads)]


def _llama_cpp_python(model: Path, port: int, n_threads: int) -> list[str | Path]:
    """With the libraries of `llama-server`, which are what its own installation builds: native, OpenMP.

    Those in the engine's wheel load no CPU variant by themselves, and the package does not ask them to.
    """
    make_environment(PEER_VENV, ("bench",))
    install_engine(PEER_VENV)
    command: list[str | Path] = ["env", f"LLAMA_CPP_LIB_PATH={llama_server().parent}", venv_python(PEER_VENV)]
    command += ["-m", "llama_cpp.server", "--model", model, "--n_threads", str(n_threads)]
    return [*command, "--host", "127.0.0.1", "--port", str(port)]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("shimmy", "/health", _shimmy, _shimmy_generate),
        Peer("llama-server", "/health", _llama_server),
        Peer("llama-cpp-python", "/v1/models", _llama_cpp_python),
        Peer("shimmy-no-speculation", "/health", _shimmy_without_speculation),
    )
}


def model_folder(model: Path) -> Path:
    """50 model files for Shimmy to discover: copies of the model's beginning, extended to its size with a hole."""
    folder = CACHE / "bench" / f"{model.stem}-x{N_FILES}"
    folder.mkdir(parents=True, exist_ok=True)
    with model.open("rb") as file:
        beginning = file.read(HEADER_BYTES)
    for number in range(N_FILES):
        copy = folder / f"copy-{number:02}.{model.name}"
        if not copy.exists():
            copy.write_bytes(beginning)
            os.truncate(copy, model.stat().st_size)
    return folder


@contextmanager
def running(peer: Peer, model: Path, n_threads: int) -> Iterator[RunningServer]:
    """Starts the server, waits until it is alive, and ends it."""
    port = _free_port()
    with _started(peer.name, peer.command(model, port, n_threads), port, peer.health_path) as server:
        yield server


@contextmanager
def shimmy_serving(*options: str | Path) -> Iterator[RunningServer]:
    """Shimmy's frozen file with `options` of the caller's own."""
    port = _free_port()
    command: list[str | Path] = [shimmy_program(), "serve", "--bind", f"127.0.0.1:{port}", *options]
    with _started("shimmy", command, port, "/health") as server:
        yield server


@contextmanager
def _started(name: str, command: list[str | Path], port: int, health_path: str) -> Iterator[RunningServer]:
    with tempfile.TemporaryFile() as log:
        started_at_s = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while not _is_alive(port, health_path):
                if process.poll() is not None or time.perf_counter() - started_at_s > START_TIMEOUT_S:
                    log.seek(0)
                    raise BuildError(f"`{name}` did not start:\n{log.read()[-2000:].decode(errors='replace')}")
                time.sleep(POLL_INTERVAL_S)
            yield RunningServer(process.pid, port, started_at_s, time.perf_counter() - started_at_s)
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_alive(port: int, path: str) -> bool:
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(request.encode())
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
