"""Starts a worker and has it load a model, up to the moment it is ready for jobs.

Knows the order of the steps; how a process is made is in `spawn`, and what the worker says in `worker_client`.
"""

import asyncio
import errno

from shimmy.errors import (
    NO_MORE_PROCESSES,
    ModelUnavailable,
    OutOfMemory,
)
from shimmy.wire import worker_options
from shimmy.workers import spawn
from shimmy.workers.worker_client import Hooks, WorkerClient
from shimmy.workers.worker_stderr import WorkerStderr

_NO_PROCESS = (errno.EAGAIN, errno.EPERM)  # of fork: too many of this user or container; a filter of system calls


async def start_worker(
    name: str,
    options: worker_options.WorkerOptions,
    hooks: Hooks,
) -> WorkerClient:
    """Start a process, have it load the model, and return it ready; raises ModelUnavailable with the reason."""
    try:
        child, ours = spawn.start(name)
    except OSError as exc:
        kind = OutOfMemory if exc.errno == errno.ENOMEM else ModelUnavailable
        reason = NO_MORE_PROCESSES if exc.errno in _NO_PROCESS else exc.strerror
        raise kind(f"no worker could be started for `{name}`: {reason}") from exc
    _, client = await asyncio.get_running_loop().create_unix_connection(
        lambda: WorkerClient(name, child, hooks), sock=ours
    )
    try:
        client.stderr = await WorkerStderr.of(child)
        client.open(options)
        await client.opened
    except BaseException:
        await client.close()
        raise
    return client
