"""The end of a worker process: waiting for it, killing it when it stays, and what the people and jobs are told of it.

Knows one process and what is known of the reason; nothing of jobs or the wire.
"""

import asyncio
import signal
from typing import TYPE_CHECKING

from shimmy.errors import Internal, ModelUnavailable, OutOfDeviceMemory, OutOfMemory, ShimmyError
from shimmy.wire import values

if TYPE_CHECKING:
    import subprocess

KILL_AFTER_S = 5.0
# A killed process that is still there then waits for a disk that does not answer: its jobs do not wait any longer.
LET_GO_AFTER_S = 10.0
# What the C++ library writes of an exception of the Vulkan backend, which nothing catches while the engine computes.
_NO_DEVICE_MEMORY = "OutOfDeviceMemory"


class WorkerEnd:
    """How one process ends. The client notes what it learns of the reason before the process is gone."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.kill_reason: str | None = None  # why it is killed, where it is
        self.last_words: ShimmyError | None = None  # of a worker that knew why it ends

    async def status(self, most_s: float) -> int | None:
        """The exit status; None when the process has not ended after `most_s`. A process that stays is killed.

        This polls: a thread that could wait for the process may not be available when it is needed.
        """
        loop = asyncio.get_running_loop()
        started_s, wait_s = loop.time(), 0.001
        while (status := self._process.poll()) is None and (waited_s := loop.time() - started_s) < most_s:
            if waited_s >= KILL_AFTER_S:
                self._process.kill()
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, 0.05)
        return status

    def described(self, status: int | None, written: str) -> str:
        """How it ended; `written` is the last text on its stderr."""
        said = None if self.last_words is None else self.last_words.message
        if how := self.kill_reason or said:
            return how
        how = "it cannot be ended" if status is None else _describe(status)
        return f"{how}: {values.printable(written, values.MAX_LABEL)}" if written else how

    def lacked_device_memory(self, status: int | None, written: str) -> bool:
        """Whether it ended for want of a device's memory; `written` is the last text on its stderr."""
        is_known = isinstance(self.last_words, OutOfDeviceMemory)
        return is_known or (status == -signal.SIGABRT and _NO_DEVICE_MEMORY in written)

    def failed_load(
        self, name: str, how: str, status: int | None, written: str, *, is_closing: bool
    ) -> ModelUnavailable:
        """The error of a worker that ended while it loaded model `name`; `is_closing`: it was told to end."""
        message = f"the worker ended while it loaded `{name}` ({how}"
        kind = OutOfMemory if isinstance(self.last_words, OutOfMemory) else ModelUnavailable
        if self.lacked_device_memory(status, written):
            kind = OutOfDeviceMemory
        error = kind(message + ")")
        if status == -signal.SIGKILL and not is_closing and self.kill_reason is None:
            error = OutOfMemory(message + ", which a system sends that has run out of memory)")
        # A worker that names its reason before it had a model, such as a full disk or no threads, did not die of it.
        error.is_death = self.last_words is None or isinstance(self.last_words, Internal)
        return error


def _describe(status: int) -> str:
    if status == -signal.SIGBUS:
        return (
            f"signal {-status}: its file was cut off or rewritten in place; replace it by renaming another one over it"
        )
    return f"signal {-status}" if status < 0 else f"exit code {status}"
