"""The soak itself: windows of random requests by many clients, a quiet moment after each, and what was seen.

Between two windows nobody asks anything: the models that were swapped and unloaded are unloaded once more, and what is
left is the server and the worker of the steady model, which is the same process from the beginning to the end.
"""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from tests.bench.soak.bad import BAD
from tests.bench.soak.client import Client, Json, Models
from tests.bench.soak.connection import Connection, Failed, Refused
from tests.bench.soak.mix import COMPLETION, MIX, Ask
from tests.bench.soak.resources import Quiet, Trend, quiet, trends
from tests.e2e.harness import Server
from tests.e2e.processes import wait_for

BAD_SHARE = 0.15
QUIET_TIMEOUT_S = 60.0
END_TIMEOUT_S = 10.0
POLL_INTERVAL_S = 0.05
N_FAILURES_SHOWN = 20
N_WARM_UPS = 3  # of each kind
N_SMALL_PROMPTS = 40  # more than the worker keeps
SPARE_TOKENS = 32  # between the longest prompt and the end of the context


@dataclass(slots=True)
class Kind:
    """How requests of one kind went; `seconds` are those of the ones that were answered."""

    seconds: list[float] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    n_failed: int = 0


class Soak:
    """Runs against a server that stays the caller's."""

    def __init__(
        self, server: Server, models: Models, n_clients: int, seed: int, timeout_s: float, rest_s: float
    ) -> None:
        """After `rest_s` without a job the steady worker has given back what it does not need."""
        self._server = server
        self._models = models
        self._clients = [Client(server.port, models, f"{seed} {number}") for number in range(n_clients)]
        self._timeout_s = timeout_s
        self._rest_s = rest_s
        self._worker = 0
        self.kinds: dict[str, Kind] = {}
        self.failures: list[str] = []
        self.moments: list[Quiet] = []

    @property
    def n_asked(self) -> int:
        return sum(len(kind.seconds) + kind.refused.total() + kind.n_failed for kind in self.kinds.values())

    async def begin(self) -> None:
        """Load the steady model for good, and let it do everything it can: what that takes once is not what is to be
        seen growing."""
        status = await self._status("load", {"keep_alive": -1})
        self._worker, n_ctx = status["pid"], status["n_ctx"]
        words = await self._ask("/tokenize", {"model": self._models.steady, "content": "harbor " * n_ctx})
        body = {"model": self._models.steady, "prompt": words["tokens"][: n_ctx - SPARE_TOKENS], "max_tokens": 1}
        await self._ask(COMPLETION, body)
        for ask in N_WARM_UPS * [*MIX, *BAD]:
            await self._ask_once(ask, self._clients[0])
        self._clients[0].connection.close()

    async def window(self, is_over: Callable[[], bool]) -> None:
        """Everybody asks until `is_over`; then nobody does, and what is held is noted."""
        async with asyncio.TaskGroup() as group:
            for client in self._clients:
                group.create_task(self._ask_until(is_over, client))
        await self._settle()
        await self._tidy()
        self.moments.append(quiet(self._server.process.pid, self._server.pid, self._worker))

    def end(self) -> None:
        """End the server, which has to be in order until then and leave nothing."""
        if self._server.metric("shimmy_worker_deaths_total"):
            self.failures.append("a worker died")
        if "Traceback" in self._server.log:
            self.failures.append(f"a traceback in the log: ...{self._server.log.partition('Traceback')[2][:2000]}")
        if code := self._server.stop():
            self.failures.append(f"the server ended with {code}")
        with suppress(AssertionError):
            wait_for("all that was started to end", lambda: not self._left(), END_TIMEOUT_S)
        if left := self._left():
            self.failures.append(f"the server left {left}")

    def _left(self) -> list[str | int]:
        return [*self._server.leftovers(), *self._server.processes()]

    def trends(self) -> list[Trend]:
        return trends(self.moments)

    def is_good(self) -> bool:
        return not self.failures and all(trend.is_flat for trend in self.trends())

    def report(self) -> str:
        """A table of requests, a table of what was held, and the first failures."""
        lines = [f"{'kind':<14}{'answered':>9}{'refused':>9}{'failed':>8}{'median s':>10}{'longest s':>11}"]
        for name, kind in sorted(self.kinds.items()):
            median, longest = (statistics.median(kind.seconds), max(kind.seconds)) if kind.seconds else (0.0, 0.0)
            counts = f"{len(kind.seconds):>9}{kind.refused.total():>9}{kind.n_failed:>8}"
            lines.append(f"{name:<14}{counts}{median:>10.2f}{longest:>11.2f}")
        refused = sum((kind.refused for kind in self.kinds.values()), Counter[str]())
        lines.append(f"{self.n_asked} requests; refused: {dict(refused) or 'none'}")
        lines.append(f"\n{'held when quiet':<16}{'first half':>12}{'second half':>13}{'may grow by':>13}")
        for trend in self.trends():
            mark = "" if trend.is_flat else "  GREW"
            lines.append(f"{trend.name:<16}{trend.first:>12.1f}{trend.second:>13.1f}{trend.allowed:>13.1f}{mark}")
        lines += [f"failure: {failure}" for failure in self.failures[:N_FAILURES_SHOWN]]
        return "\n".join(lines)

    async def _ask_until(self, is_over: Callable[[], bool], client: Client) -> None:
        while not is_over():
            table = BAD if client.chance(BAD_SHARE) else MIX
            (ask,) = client.random.choices(list(table), list(table.values()))
            await self._ask_once(ask, client)
        client.connection.close()

    async def _ask_once(self, ask: Ask, client: Client) -> None:
        kind = self.kinds.setdefault(ask.__name__, Kind())
        started_s = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                await ask(client)
        except Refused as refusal:
            kind.refused[str(refusal)] += 1
            client.connection.close()
            await asyncio.sleep(POLL_INTERVAL_S)
        except (Failed, TimeoutError, OSError) as exc:
            kind.n_failed += 1
            self.failures.append(f"{ask.__name__}: {exc!r}")
            client.connection.close()
        else:
            kind.seconds.append(time.perf_counter() - started_s)

    async def _settle(self) -> None:
        """Wait until no job is left and only the steady model's worker runs."""
        try:
            async with asyncio.timeout(QUIET_TIMEOUT_S):
                while not await self._is_settled():  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(POLL_INTERVAL_S)
        except TimeoutError:
            self.failures.append(f"jobs or workers were left: {self._server.workers()}")

    async def _tidy(self) -> None:
        """Have conversations of one size resident, always the same number, and nothing of those that happened to be."""
        for number in range(N_SMALL_PROMPTS):
            body = {"model": self._models.steady, "prompt": f"{number} of many", "max_tokens": 1, "temperature": 0}
            await self._ask(COMPLETION, body)
        await asyncio.sleep(self._rest_s)

    async def _is_settled(self) -> bool:
        for name in (self._models.other, self._models.encoder):
            await self._ask(f"/api/models/{name}/unload", None)
        status = await self._status("status")
        if status.get("pid") != self._worker:
            self.failures.append(f"the worker {self._worker} is gone: {status}")
            self._worker = (await self._status("load", {"keep_alive": -1}))["pid"]
        return status["jobs"] == 0 and self._server.workers() == [self._worker]

    async def _status(self, what: str, body: object = None) -> Json:
        return await self._ask(f"/api/models/{self._models.steady}/{what}", body, "GET" if what == "status" else "POST")

    async def _ask(self, path: str, body: object, method: str = "POST") -> Json:
        connection = Connection(self._server.port)
        try:
            return (await connection.ask(method, path, body)).good().json()
        finally:
            connection.close()
