"""How fast and how large `shimmy pull` is beside curl, for a file of 1 GB from a server on this machine.

    python -m tests.bench.pulls [PROGRAM]

Prints, for each of the two, the seconds (the fewest of some runs in turn) and the processor time, and the most memory
that the pull held. The server sends files with sendfile, so it takes little of the machine.
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
from pathlib import Path
from time import monotonic

N_BYTES = 1 << 30
N_RUNS = 3


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


def timed(command: Sequence[str | Path], environment: dict[str, str]) -> tuple[float, float, float]:
    """Seconds, seconds of the processor, and the most megabytes of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began_s = monotonic()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        most = _Most(process.pid)
        assert process.stderr is not None
        errors = process.stderr.read()
    assert process.returncode == 0, errors
    took_s = monotonic() - began_s
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return took_s, cpu_s, most()


class _Most:
    """The largest resident size that any process of a family had, asked for as long as it lives."""

    def __init__(self, pid: int) -> None:
        self._pid, self._most_kb = pid, 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __call__(self) -> float:
        self._thread.join()
        return self._most_kb / 1000

    def _run(self) -> None:
        stop = threading.Event()
        while not stop.wait(0.05):
            family = [self._pid, *_children(self._pid)]
            sizes = [size for pid in family if (size := _peak_kb(pid)) is not None]
            if not sizes:
                return
            self._most_kb = max(self._most_kb, *sizes)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _peak_kb(pid: int) -> int | None:
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return None
    return int(found[1]) if found else None


def main() -> None:
    program = [Path(sys.argv[1]).resolve()] if len(sys.argv) > 1 else [sys.executable, "-m", "shimmy"]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        source = folder / "source.gguf"
        with source.open("wb") as file:
            file.write(b"GGUF")
            block = os.urandom(1 << 20)
            for _ in range(N_BYTES >> 20):
                file.write(block)
        size = source.stat().st_size
        digest = subprocess.run(["sha256sum", source], capture_output=True, check=True, text=True).stdout.split()[0]
        with socket.create_server(("127.0.0.1", 0), backlog=64) as listener, source.open("rb") as file:
            threading.Thread(target=serve, args=(listener, file.fileno(), size), daemon=True).start()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/model.gguf"
            environment = dict(os.environ) | {"HOME": text, "XDG_DATA_HOME": text, "NO_PROXY": "127.0.0.1"}
            commands: dict[str, list[str | Path]] = {
                "curl": ["curl", "-sS", "-o", folder / "curl.gguf", url],
                "shimmy": [*program, "pull", f"{url}#sha256={digest}"],
            }
            runs: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
            for _ in range(N_RUNS):
                for name, command in commands.items():
                    shutil.rmtree(folder / "shimmy", ignore_errors=True)
                    (folder / "curl.gguf").unlink(missing_ok=True)
                    os.sync()
                    runs[name].append(timed(command, environment))
    for name, figures in runs.items():
        took_s, cpu_s = (min(figure[index] for figure in figures) for index in (0, 1))
        most_mb = max(figure[2] for figure in figures)
        print(f"{name}: {took_s:.2f} s, {cpu_s:.2f} s of the processor, {most_mb:.1f} MB")


if __name__ == "__main__":
    main()
