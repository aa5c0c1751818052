"""How fast `shimmy pull` is beside curl, for a file of 1 GB from a server on this machine, and what it holds of memory.

    python -m tests.bench.pulls [PROGRAM]

The two fetch in turns, once for warmth and then some times for the figures. Prints for each the median seconds and
processor time, how the pull's compare with curl's, and the most memory that the pull's processes held while an idle
server of the same program ran beside them. Both check what they can: curl the length, the pull the SHA-256 as well. The
server sends files with sendfile, so it takes little of the machine.
"""

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic

from tests.bench.memory import tree_memory_mb
from tests.bench.running import free_port, started

N_BYTES = 1 << 30
N_RUNS = 5
MEMORY_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class Fetch:
    """One run of a program: seconds on the clock and of the processor, and the most megabytes of its processes."""

    clock_s: float
    processor_s: float
    memory_mb: float


def serve(listener: socket.socket, file: int, size: int) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection, file, size), daemon=True).start()


def _answer(connection: socket.socket, file: int, size: int) -> None:
    with connection, connection.makefile("rb") as lines:
        while head := _head(lines.readline):
            asked = re.search(rb"\r\nrange: bytes=(\d+)-(\d+)", head, re.IGNORECASE)
            start, end = (int(asked[1]), min(int(asked[2]) + 1, size)) if asked else (0, size)
            status = b"206 Partial Content" if asked else b"200 OK"
            fields = b"Content-Length: %d\r\nContent-Range: bytes %d-%d/%d" % (end - start, start, end - 1, size)
            connection.sendall(b"HTTP/1.1 %b\r\n%b\r\n\r\n" % (status, fields))
            while start < end:
                start += os.sendfile(connection.fileno(), file, start, end - start)


def _head(readline: Callable[[], bytes]) -> bytes:
    head = b""
    while (line := readline()) not in {b"\r\n", b""}:
        head += line
    return head


def fetch(command: Sequence[str | Path], environment: dict[str, str]) -> Fetch:
    """Run a command to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began_s = monotonic()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        most = _MostMemory(process.pid)
        assert process.stderr is not None
        errors = process.stderr.read()
    took_s = monotonic() - began_s
    assert process.returncode == 0, errors
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Fetch(took_s, processor_s, most.end())


class _MostMemory:
    """The most that a process and its descendants held, asked for every now and then until `end`."""

    def __init__(self, pid: int) -> None:
        self._pid, self._most_mb = pid, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> float:
        self._stop.set()
        self._thread.join()
        return self._most_mb

    def _run(self) -> None:
        while not self._stop.wait(MEMORY_EVERY_S):
            self._most_mb = max(self._most_mb, tree_memory_mb(self._pid))


def random_file(path: Path) -> str:
    """Write a file that begins like a model; returns its SHA-256."""
    with path.open("wb") as file:
        file.write(b"GGUF")
        block = os.urandom(1 << 20)
        for _ in range(N_BYTES >> 20):
            file.write(block)
    return subprocess.run(["sha256sum", path], capture_output=True, check=True, text=True).stdout.split()[0]


def compared(program: Sequence[str | Path], folder: Path) -> dict[str, list[Fetch]]:
    """The runs of curl and of the program in turns."""
    source = folder / "source.gguf"
    digest = random_file(source)
    size = source.stat().st_size
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener, source.open("rb") as file:
        threading.Thread(target=serve, args=(listener, file.fileno(), size), daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/model.gguf"
        environment = dict(os.environ) | {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "NO_PROXY": "127.0.0.1"}
        commands: dict[str, list[str | Path]] = {
            "curl": ["curl", "-sS", "-o", folder / "curl.gguf", url],
            "shimmy pull": [*program, "pull", f"{url}#sha256={digest}"],
        }
        runs: dict[str, list[Fetch]] = {name: [] for name in commands}
        for _ in range(1 + N_RUNS):
            for name, command in commands.items():
                shutil.rmtree(folder / "shimmy", ignore_errors=True)
                (folder / "curl.gguf").unlink(missing_ok=True)
                os.sync()
                runs[name].append(fetch(command, environment))
    return {name: fetches[1:] for name, fetches in runs.items()}


def main() -> None:
    program = [Path(sys.argv[1]).resolve()] if len(sys.argv) > 1 else [sys.executable, "-m", "shimmy"]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        empty = folder / "empty"
        empty.mkdir()
        port = free_port()
        command = [*program, "serve", "--bind", f"127.0.0.1:{port}", "--model-path", empty]
        with started("shimmy serve", command, port, "/health") as server:
            runs = compared(program, folder)
            idle_mb = tree_memory_mb(server.process_id)
    for name, fetches in runs.items():
        clock, processor = (", ".join(f"{figure:.2f}" for figure in figures) for figures in _by_figure(fetches))
        print(f"{name}: {clock} s on the clock; {processor} s of the processor")
    curl, ours = runs["curl"], runs["shimmy pull"]
    speed, thrift = (
        median(theirs) / median(own) for theirs, own in zip(_by_figure(curl), _by_figure(ours), strict=True)
    )
    print(f"speed: {speed:.2f} of curl's on the clock, {thrift:.2f} by processor time (medians of {N_RUNS})")
    print(
        f"memory: {max(each.memory_mb for each in ours):.1f} MB of the pull, beside {idle_mb:.1f} MB of an idle server"
    )


def _by_figure(fetches: Sequence[Fetch]) -> tuple[list[float], list[float]]:
    return [each.clock_s for each in fetches], [each.processor_s for each in fetches]


if __name__ == "__main__":
    main()
