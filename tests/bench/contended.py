"""How a stream flows while others use the processors: a second server that generates, and a program that is busy.

python -m tests.bench.contended [--model smollm2] [--peers shimmy-no-speculation,llama-server] [--rounds 3]

The threads of a decode wait for each other several hundred times for each token, so one that waits for its core makes
all wait.
"""

import argparse
import asyncio
import statistics
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

from tests.bench.machine import n_cores
from tests.bench.peers import PEERS, Peer, running
from tests.bench.session import Session
from tools.demo_models import fetch_model

N_TOKENS = 96


async def stream(session: Session) -> float:
    """Tokens per second of one reply, once it has begun."""
    return (await session.complete(session.story(), N_TOKENS)).decode_tokens_per_s


async def alone(sessions: list[Session]) -> float:
    return await stream(sessions[0])


async def beside_another_server(sessions: list[Session]) -> float:
    return min(await asyncio.gather(*map(stream, sessions)))


async def beside_a_busy_program(sessions: list[Session]) -> float:
    busy = await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass")
    try:
        return await stream(sessions[0])
    finally:
        busy.kill()
        await busy.wait()


CASES: tuple[Callable[[list[Session]], Awaitable[float]], ...] = (alone, beside_another_server, beside_a_busy_program)


async def measured(peer: Peer, model: Path, seed: str) -> list[float]:
    """The tokens per second of each case, with two servers of a kind."""
    with ExitStack() as stack:
        servers = [stack.enter_context(running(peer, model, n_cores())) for _ in range(2)]
        sessions = [Session(server, peer, model, n_cores(), f"{seed} {n}") for n, server in enumerate(servers)]
        for session in sessions:
            await stream(session)
        return [await case(sessions) for case in CASES]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.contended", description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--peers", default="shimmy-no-speculation,llama-server")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = fetch_model(options.model)
    names = options.peers.split(",")
    rates: dict[str, list[list[float]]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            rates[name].append(asyncio.run(measured(PEERS[name], model, f"round {number}")))
    for name in names:
        for case, values in zip(CASES, zip(*rates[name], strict=True), strict=True):
            spread = f"{min(values):.1f}-{max(values):.1f}"
            print(f"{name:24} {case.__name__:24} {statistics.median(values):6.1f} tok/s ({spread})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
