"""CPU shares: workers with jobs divide the cores among them, and leave one core to each model that loads.

With more threads than cores, a decode waits for the thread that is not running and takes several times as long. Knows
workers and whether they have jobs; nothing of models or memory.
"""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from shimmy.wire.worker_options import CpuShare
from shimmy.workers.worker_client import WorkerClient

_SHARE_TIMEOUT_S = 1.0


class CpuShares:
    """Tells workers their shares. Both collections are live: the owner changes them, and then calls `divide`."""

    def __init__(self, workers: Collection[WorkerClient], retiring: Collection[WorkerClient]) -> None:
        """`workers` have loaded their model; `retiring` are those of them that end with their last job."""
        self._workers = workers
        self._retiring = retiring
        self._n_loading = 0

    @contextmanager
    def loading(self) -> Iterator[CpuShare]:
        """While a model loads; gives the share that its worker begins with. The caller calls `divide` afterwards, once
        the new worker is among the others."""
        share = CpuShare(sum(client.n_jobs > 0 for client in self._workers) + 1)
        self._n_loading += 1
        self.divide()
        try:
            yield share
        finally:
            self._n_loading -= 1

    def divide(self) -> None:
        """Called when a worker gets its first job or has ended its last, and when a load begins and ends."""
        replaced = {client.name for client in self._retiring}  # their new workers will have jobs at once
        busy = [client for client in self._workers if client.n_jobs or client.name in replaced]
        for client in busy:
            client.share(CpuShare(len(busy), self._n_loading))

    async def until_divided(self) -> None:
        """Return when every worker with jobs has left a core to the load that is about to begin, or after a second.

        A decode on all cores may take ten times as long while another process uses one of them.
        """
        waits = [asyncio.create_task(client.until_shared()) for client in self._workers if client.n_jobs]
        if waits:
            await asyncio.wait(waits, timeout=_SHARE_TIMEOUT_S)
        for wait in waits:
            wait.cancel()
