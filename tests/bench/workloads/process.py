"""What a server's program costs: its start, its memory, and its size."""

import asyncio
import time

from tests.bench.client import ReplyFailed
from tests.bench.figures import MEGABYTES, MILLISECONDS, Figure, Figures
from tests.bench.memory import tree_memory_mb
from tests.bench.session import Session, assistant, user

SETTLE_S = 1.0  # until what a start or a reply used is given back
GENERATE_TIMEOUT_S = 60.0

START = (
    Figure("start_s", "start to alive, with 50 models in the folder", MILLISECONDS, {"shimmy": 0.25}),
    Figure(
        "start_to_first_text_s", "start to the first token of the first request", MILLISECONDS, {"llama-server": 1.0}
    ),
    Figure("generate_s", "`generate`: start to the first token", MILLISECONDS, {"llama-server": 0.8}),
    Figure("idle_mb", "memory before the first request", MEGABYTES, {"shimmy": 25}),
    Figure("size_mb", "size of the program with its libraries", MEGABYTES, {"shimmy": 22}),
)
LOADED = (Figure("loaded_mb", "memory after one conversation of 500 tokens", MEGABYTES, {"llama-server": 0.5}),)


async def start(session: Session) -> Figures:
    """A server that nobody has asked anything; Shimmy loads the model with the first request."""
    await asyncio.sleep(SETTLE_S)
    idle_mb = tree_memory_mb(session.server.process_id)
    first_s = session.server.start_s + (await session.complete(session.story(), 2)).first_text_s
    generate_s = await _generate_s(session)
    figures: Figures = {
        "start_s": session.server.start_s,
        "start_to_first_text_s": first_s,
        "generate_s": first_s if generate_s is None else generate_s,
        "idle_mb": idle_mb,
    }
    if session.peer.files is not None:
        figures["size_mb"] = sum(path.stat().st_size for path in session.peer.files()) / 1e6
    return figures


async def _generate_s(session: Session) -> float | None:
    """From the start of a program that answers one prompt to its first letter; None where the peer has none."""
    if session.peer.generate is None:
        return None
    command = session.peer.generate(session.model, session.story(), session.n_threads)
    started_s = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(GENERATE_TIMEOUT_S):
            first = await process.stdout.read(1)
            elapsed_s = time.perf_counter() - started_s
            await process.stdout.read()
    except TimeoutError:
        process.kill()
        raise
    finally:
        await process.wait()
    if not first:
        raise ReplyFailed(f"`{command[0]}` said nothing")
    return elapsed_s


async def loaded(session: Session) -> Figures:
    """Two turns; what is left in memory when they are over."""
    messages = [user(f"Tell me about {session.words(330)}.")]
    reply = await session.answer(messages, 64)
    await session.answer([*messages, assistant(reply.text), user("Go on.")], 64)
    await asyncio.sleep(SETTLE_S)
    return {"loaded_mb": tree_memory_mb(session.server.process_id)}
