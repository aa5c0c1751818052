"""Processes as Linux's /proc shows them: who descends from whom, who still runs, how much memory they hold."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

# How many times as long everything may take: more than once where a processor is emulated, or busy with other things.
PATIENCE = float(os.environ.get("SHIMMY_TEST_PATIENCE", "1"))
DEADLINE_S = 30.0 * PATIENCE
_LOOK_EVERY_S = 0.01
_LISTENS = "0A"  # a state of TCP in /proc/net/tcp: Linux's net/tcp_states.h

Value = TypeVar("Value")


def wait_for(what: str, probe: Callable[[], Value], deadline_s: float = DEADLINE_S) -> Value:
    """The first true value of `probe`; fails when there is none in time."""
    end_s = time.monotonic() + deadline_s
    while not (value := probe()):
        assert time.monotonic() < end_s, f"waited {deadline_s:g} s for {what}"
        time.sleep(_LOOK_EVERY_S)
    return value


def children(pid: int) -> list[int]:
    return [child for child, fields in _running().items() if fields[1] == pid]


def command_line(pid: int) -> list[bytes]:
    """Empty when the process has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def session(pid: int) -> list[int]:
    """Every process that runs in the session that `pid` opened: whatever it started, and whoever adopted that."""
    return [member for member, fields in _running().items() if fields[3] == pid]


def listener(port: int, pids: Iterable[int]) -> int:
    """Which of the processes takes the connections to a TCP port; the youngest, where some of them share it."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    sockets = {f"socket:[{line[9]}]" for line in lines if line[3] == _LISTENS and line[1].endswith(f":{port:04X}")}
    return [pid for pid in sorted(pids) if not sockets.isdisjoint(_open_files(pid))][-1]


def anonymous_kib(pid: int) -> int:
    """Memory that no file stands behind: heaps and stacks."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Anonymous:"))


def mapped_files(pid: int) -> set[str]:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if line.count("/")}


def _open_files(pid: int) -> Iterator[str]:
    """What the descriptors of a process lead to; nothing when the process has ended."""
    with suppress(FileNotFoundError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                yield str(path.readlink())


def _running() -> dict[int, tuple[str, int, int, int]]:
    """State, parent, group and session of every process that has not ended; a zombie has."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, group, session_id = (path / "stat").read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            found[int(path.name)] = (state, int(parent), int(group), int(session_id))
    return found
