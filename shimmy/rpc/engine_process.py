"""The process that computes for one client, started and ended. Its only way to anybody is a pair of sockets.

Knows processes; nothing of what passes through. The engine is not trusted with a network: no port is opened for it, so
there is none that another user of the machine could reach.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
from dataclasses import asdict, dataclass

from shimmy.system import unpacked_folder
from shimmy.system.self_command import environment, executable, own_program

COMMAND = "rpc-engine"  # the hidden sub-command that it runs
READY = b"\x01"  # what it says when it has its devices
START_S = 60.0
_SECRET = ("SHIMMY_", "HF_")  # keys may be among the variables that begin so, and the engine reads none of them
_END_S = 5.0
_LOOK_S = 0.02


class EngineFailed(Exception):
    """The engine cannot be started, or is gone; the message says how."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What the process is told."""

    devices: tuple[str, ...]
    n_threads: int
    cpu_variant: str | None
    cache_dir: str | None


class EngineProcess:
    """A running engine; made by `start`."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self.reader, self.writer = reader, writer

    @classmethod
    async def start(cls, settings: EngineSettings, buffer_bytes: int) -> "EngineProcess":
        """Raises EngineFailed."""
        process, ours = _spawn(settings)
        engine = cls(process, *await asyncio.open_unix_connection(sock=ours, limit=buffer_bytes))
        try:
            async with asyncio.timeout(START_S):
                if await engine.reader.read(1) != READY:
                    raise EngineFailed(f"the engine could not be started: {await engine.how_ended()}")
        except TimeoutError:
            await engine.end()
            raise EngineFailed(f"the engine was not ready after {START_S:g} s") from None
        except BaseException:
            await engine.end()
            raise
        return engine

    def check(self) -> None:
        """Raises EngineFailed where the process has ended or was stopped."""
        with contextlib.suppress(ChildProcessError):
            state = os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if state is not None and state.si_code == os.CLD_STOPPED:
                raise EngineFailed("the engine was stopped by a signal")
        if self._process.poll() is not None:
            raise EngineFailed(f"the engine ended: {_told(self._process.returncode)}")

    async def how_ended(self) -> str:
        """Wait a moment for the end of a process that has closed its socket; then how that was, for a person."""
        with contextlib.suppress(TimeoutError):
            await self._gone()
        return _told(self._process.returncode)

    async def end(self) -> None:
        """End the process; returns when it is gone."""
        self.writer.transport.abort()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(TimeoutError):  # a driver may hang in the kernel, out of reach
            await self._gone()

    async def _gone(self) -> None:
        async with asyncio.timeout(_END_S):
            while self._process.poll() is None:  # noqa: ASYNC110 - the end of a process is no event everywhere
                await asyncio.sleep(_LOOK_S)


def _spawn(settings: EngineSettings) -> "tuple[subprocess.Popen[bytes], socket.socket]":
    """The process, and our end of its socket; raises EngineFailed."""
    unpacked_folder.restore()
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                [*own_program(), COMMAND, str(theirs.fileno()), str(os.getpid()), json.dumps(asdict(settings))],
                executable=executable(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={name: value for name, value in environment().items() if not name.startswith(_SECRET)},
                start_new_session=True,  # what it starts ends with it
            )
        except OSError as exc:
            ours.close()
            raise EngineFailed(f"no engine could be started: {exc.strerror}") from exc
    return process, ours


def _told(code: int | None) -> str:
    if code is None:
        return "it does not end"
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"
