"""The servers that are compared: how each is had, how it is started, and where it tells that it is alive."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.llama_server import llama_server
from tests.bench.running import RunningServer, free_port, started
from tools.engine import install_engine
from tools.environment import PEER_VENV, make_environment
from tools.steps import CACHE, DIST, BuildError, venv_python

HEADER_BYTES = 8 * 1024 * 1024  # as much of a model file as discovery may want to read
N_FILES = 50


@dataclass(frozen=True, slots=True)
class Peer:
    """A server; `command` takes the model's path, the port and the number of threads.

    `generate` is a command that completes a prompt without a server and writes the text to its standard output; it
    takes the model's path, the prompt and the number of threads. `files` are those that someone has to have to run it.
    `prompt_cache` has the options with which it keeps prompts in a folder, for its next start. A peer with `workloads`
    takes part in those and in no other.
    """

    name: str
    health_path: str
    command: Callable[[Path, int, int], list[str | Path]]
    generate: Callable[[Path, str, int], list[str | Path]] | None = None
    files: Callable[[], list[Path]] | None = None
    prompt_cache: Callable[[Path], list[str | Path]] | None = None
    workloads: frozenset[str] | None = None


def _shimmy(model: Path, port: int, n_threads: int) -> list[str | Path]:
    command: list[str | Path] = [shimmy_program(), "serve", "--bind", f"127.0.0.1:{port}", "--threads", str(n_threads)]
    return [*command, "--model-path", model, "--model-dirs", model_folder(model)]


def _shimmy_without_speculation(model: Path, port: int, n_threads: int) -> list[str | Path]:
    return [*_shimmy(model, port, n_threads), "--no-speculation"]


def _shimmy_generate(model: Path, prompt: str, n_threads: int) -> list[str | Path]:
    command: list[str | Path] = [shimmy_program(), "generate", model, "--raw", "--prompt", prompt, "--temp", "0"]
    return [*command, "--max-tokens", "2", "--threads", str(n_threads)]


def _shimmy_prompt_cache(folder: Path) -> list[str | Path]:
    return ["--cache-dir", folder, "--prompt-cache", "1G"]


def shimmy_program() -> Path:
    program = Path(os.environ.get("SHIMMY_BIN", DIST / "shimmy"))
    if not program.exists():
        raise BuildError(f"there is no `{program}`: run `make dist` first")
    return program


def _llama_server(model: Path, port: int, n_threads: int) -> list[str | Path]:
    return [llama_server(), "-m", model, "--host", "127.0.0.1", "--port", str(port), "-t", str(n_threads)]


def _llama_server_files() -> list[Path]:
    """The program and its libraries, each under one of its names."""
    return sorted({path.resolve() for path in (llama_server(), *llama_server().parent.glob("lib*.so*"))})


def _llama_cpp_python(model: Path, port: int, n_threads: int) -> list[str | Path]:
    """With the libraries of `llama-server`, which are what its own installation builds: native, OpenMP.

    Those in the engine's wheel load no CPU variant by themselves, and the package does not ask them to.
    """
    make_environment(PEER_VENV, ("bench",))
    install_engine(PEER_VENV)
    command: list[str | Path] = ["env", f"LLAMA_CPP_LIB_PATH={llama_server().parent}", venv_python(PEER_VENV)]
    command += ["-m", "llama_cpp.server", "--model", model, "--n_threads", str(n_threads)]
    return [*command, "--host", "127.0.0.1", "--port", str(port)]


# One request at a time is what `llama_cpp.server` is for: a second one cuts the first off, which `whole` shows.
_OF_ONE_CLIENT = frozenset(("start", "memory", "stream", "ordinary", "whole", "long", "chat"))
_WITH_GUESSES = frozenset(("stream", "ordinary", "copying"))
PEERS = {
    peer.name: peer
    for peer in (
        Peer("shimmy", "/health", _shimmy, _shimmy_generate, lambda: [shimmy_program()], _shimmy_prompt_cache),
        Peer("llama-server", "/health", _llama_server, files=_llama_server_files),
        Peer("llama-cpp-python", "/v1/models", _llama_cpp_python, workloads=_OF_ONE_CLIENT),
        Peer("shimmy-no-speculation", "/health", _shimmy_without_speculation, workloads=_WITH_GUESSES),
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
def running(peer: Peer, model: Path, n_threads: int, *, keeps_prompts: bool = False) -> Iterator[RunningServer]:
    """The server for the length of the block, with a prompt cache on disk where it `keeps_prompts` and can."""
    port = free_port()
    command = peer.command(model, port, n_threads)
    with tempfile.TemporaryDirectory() as folder:
        if keeps_prompts and peer.prompt_cache is not None:
            command += peer.prompt_cache(Path(folder))
        with started(peer.name, command, port, peer.health_path) as server:
            yield server


@contextmanager
def shimmy_serving(*options: str | Path) -> Iterator[RunningServer]:
    """Shimmy's frozen file with `options` of the caller's own."""
    port = free_port()
    command: list[str | Path] = [shimmy_program(), "serve", "--bind", f"127.0.0.1:{port}", *options]
    with started("shimmy", command, port, "/health") as server:
        yield server
