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

    def attempt_all(workloads: Sequence[Workload], *, keeps_prompts: bool = False) -> None:
        try:
            with running(peer, model, n_threads, keeps_prompts=keeps_prompts) as server:
                if not workloads[0].needs_new_server:
                    # The first request may load the model, which only `start` is about.
                    warm_up = Session(server, peer, model, n_threads, f"warm-up {round_number}")
                    asyncio.run(warm_up.complete("Hello", 8))
                for workload in workloads:
                    attempt(workload, server)
        except (ReplyFailed, BuildError) as exc:
            for workload in workloads:
                fail(workload, exc)

    for workload in workloads:
        if workload.needs_new_server:
            attempt_all([workload], keeps_prompts=workload.keeps_prompts)
    if others := [workload for workload in workloads if not workload.needs_new_server]:
        attempt_all(others)
    return figures, seconds


async def _measured(workload: Workload, session: Session) -> Figures:
    figures = await workload.measure(session)
    assert figures.keys() <= {figure.key for figure in workload.figures}
    return figures
