"""Another machine of the tests: a running `shimmy rpc-worker`, by default on this one."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

from tests.e2e.harness import HOST, PROGRAM, environment
from tests.e2e.processes import children, command_line, listener, session, wait_for

LIMIT_S = 2  # of silence, on both sides
KEY = b"a key of the tests, long enough\n"


class Machine:
    """Made by `machine`. `prefix` is what the program is started with: another network namespace."""

    def __init__(self, folder: Path, arguments: Sequence[str | Path], bind: str, prefix: Sequence[str]) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self._log_path = folder / "stderr"
        self._is_elsewhere = bool(prefix)  # whose ports are not seen here; `ip` becomes the program
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*prefix, *PROGRAM, "rpc-worker", "--bind", bind, "--threads", "1", *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=folder, env=environment(self.temporary), start_new_session=True,
            )  # fmt: skip
        self.address = wait_for("the machine's address", self._find_address)

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    def _find_address(self) -> str:
        assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log}"
        match = re.search(r"offering .* on (\S+:\d+)", self.log)
        return match[1] if match else ""

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @cached_property
    def pid(self) -> int:
        """The process that listens."""
        if not self._is_elsewhere:
            return listener(self.port, session(self.process.pid))
        pids = [self.process.pid, *children(self.process.pid)]  # the frozen file starts itself once more
        return [pid for pid in pids if b"rpc-worker" in command_line(pid)][-1]

    def engines(self) -> list[int]:
        return [pid for pid in children(self.pid) if b"rpc-engine" in command_line(pid)]

    def n_open_files(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def destroy(self) -> None:
        """Leave nothing of it, in whatever state it is."""
        with suppress(ProcessLookupError, IndexError):
            for pid in self.engines():
                os.kill(pid, signal.SIGKILL)
        for pid in session(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def key_file(folder: Path, key: bytes = KEY) -> Path:
    path = folder / "key"
    path.write_bytes(key)
    return path


@contextmanager
def machine(
    folder: Path, *arguments: str | Path, key: bytes | None = KEY, bind: str = f"{HOST}:0", prefix: Sequence[str] = ()
) -> Iterator[Machine]:
    """For the length of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = () if key is None else ("--rpc-key-file", key_file(folder, key))
    running = Machine(folder, [*keys, "--rpc-timeout", str(LIMIT_S), *arguments], bind, prefix)
    try:
        yield running
    finally:
        running.destroy()
