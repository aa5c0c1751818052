"""Measures one server in one round: starts it, hands it to the workloads, and ends it. Knows nothing of who it is."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.client import ReplyFailed
from tests.bench.figures import Figures
from tests.bench.peers import Peer, running
from tests.bench.running import RunningServer
from tests.bench.session import Session
from tests.bench.workloads import Workload
from tools.steps import BuildError, say


def measure(
    peer: Peer, model: Path, n_threads: int, round_number: int, workloads: Sequence[Workload]
) -> tuple[Figures, dict[str, float]]:
    """Every figure of the workloads that the peer takes part in, and the seconds that each of them took."""
    workloads = [workload for workload in workloads if peer.workloads is None or workload.name in peer.workloads]
    figures: Figures = {}
    seconds: dict[str, float] = {}

    def fail(workload: Workload, reason: Exception) -> None:
        say(f"  {workload.name} failed: {reason}")
        figures.update({figure.key: None for figure in workload.figures})

    def attempt(workload: Workload, server: RunningServer) -> None:
        session = Session(server, peer, model, n_threads, f"{workload.name} {round_number}")
        started_s = time.perf_counter()
        try:
            figures.update(asyncio.run(_measured(workload, session)))
        except (ReplyFailed, BuildError, OSError, TimeoutError) as exc:
            fail(workload, exc)
        seconds[workload.name] = time.perf_counter() - started_s
        say(f"  {workload.name}: {seconds[workload.name]:.1f} s")

    for workload in workloads:
        if workload.needs_new_server:
            try:
                with running(peer, model, n_threads, keeps_prompts=workload.keeps_prompts) as server:
                    attempt(workload, server)
            except BuildError as exc:
                fail(workload, exc)
    others = [workload for workload in workloads if not workload.needs_new_server]
    if others:
        with running(peer, model, n_threads) as server:
            # The first request may load the model, which only `start` is about.
            asyncio.run(Session(server, peer, model, n_threads, f"warm-up {round_number}").complete("Hello", 8))
            for workload in others:
                attempt(workload, server)
    return figures, seconds


async def _measured(workload: Workload, session: Session) -> Figures:
    figures = await workload.measure(session)
    assert figures.keys() <= {figure.key for figure in workload.figures}
    return figures
