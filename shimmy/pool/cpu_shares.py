"""Who gets which part of the processor: workers with jobs divide the cores, and leave one to models that load.

A decode whose threads have to wait for one that is not running takes several times as long. Knows workers and whether
they have jobs; nothing of models or memory.
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
        """While a model loads; gives the share that its worker begins with. Whoever leaves calls `divide` once the new
        worker is where it belongs."""
        share = CpuShare(sum(client.n_jobs > 0 for client in self._workers) + 1)
        self._n_loading += 1
        self.divide()
        try:
            yield share
        finally:
            self._n_loading -= 1

    def divide(self) -> None:
        """Called when a worker gets its first job or has ended its last, and when a load begins and ends."""
        replaced = {client.name for client in self._retiring}  # whose new workers will have jobs at once
        busy = [client for client in self._workers if client.n_jobs or client.name in replaced]
        for client in busy:
            client.share(CpuShare(len(busy), self._n_loading))

    async def until_divided(self) -> None:
        """Return when every worker with jobs has left the core to a load that is about to begin, or takes too long.

        A decode that is under way on all cores while another process takes one of them may take ten times as long.
        """
        waits = [asyncio.create_task(client.until_shared()) for client in self._workers if client.n_jobs]
        if waits:
            await asyncio.wait(waits, timeout=_SHARE_TIMEOUT_S)
        for wait in waits:
            wait.cancel()
