"""Long prompts: alone, after a restart, beside streams, and shared by many."""

import asyncio
import statistics

from tests.bench.figures import MILLISECONDS, TIMES, TOKENS_PER_S, Figure, Figures
from tests.bench.session import Session, system, user

LONG_WORDS = 1480  # about 1,500 tokens
# The streams end at different times, as they do: where a server takes no more than four requests at once, the fifth
# waits for the first of them to end, and then it is the others that it comes upon.
N_STREAM_TOKENS = (48, 144, 144, 144)
N_AGAIN = 5
LEAD_S = 1.0  # the streams flow when the long prompt comes
N_CLIENTS, N_CLIENT_TOKENS = 16, 32
QUESTIONS = ("place", "season", "tool", "person", "colour", "animal", "sound", "road", "house", "meal", "game", "song",
             "journey", "trade", "friend", "dream")  # fmt: skip

LONG = (
    Figure("first_long_s", "first token of a 1,500-token prompt", MILLISECONDS, {"llama-server": 1.0}),
    Figure("first_again_s", "first token of the same prompt again", MILLISECONDS, {"llama-server": 1.0}),
)
RESTART = (
    Figure("first_restarted_s", "first token of the same prompt after a restart", MILLISECONDS, {"llama-server": 1.0}),
    Figure("restart_gain", "its first time over the time after the restart", TIMES),
)
ARRIVING = (
    Figure("worst_gap_s", "a 1,500-token prompt arrives: worst gap of 4 streams", MILLISECONDS, {"llama-server": 0.25}),
    Figure("first_arriving_s", "its own first token", MILLISECONDS, {"llama-server": 1.0}),
)
SHARED = (
    Figure(
        "first_shared_s", "16 clients share a system prompt: first token, median", MILLISECONDS, {"llama-server": 0.25}
    ),
    Figure("stream_shared", "their tokens together", TOKENS_PER_S, {"llama-server": 2.0}),
)


async def long(session: Session) -> Figures:
    prompt = session.story(LONG_WORDS)
    new = await session.complete(prompt, 2)
    again = [await session.complete(prompt, 2) for _ in range(N_AGAIN)]
    return {
        "first_long_s": new.first_text_s,
        "first_again_s": statistics.median(reply.first_text_s for reply in again),
    }


async def restart(session: Session) -> Figures:
    """A short prompt goes before, so that neither time has the loading of the model in it."""
    prompt = session.story(LONG_WORDS)
    await session.complete(session.story(), 2)
    before = await session.complete(prompt, 2)
    await asyncio.to_thread(session.server.restart)
    await session.complete(session.story(), 2)
    after = await session.complete(prompt, 2)
    return {"first_restarted_s": after.first_text_s, "restart_gain": before.first_text_s / after.first_text_s}


async def arriving(session: Session) -> Figures:
    """The worst gap is that of any stream while the long prompt is read, of those that began before it came."""
    asked = [session.complete(session.story(), n_tokens) for n_tokens in N_STREAM_TOKENS]
    streams = asyncio.gather(*asked)
    await asyncio.sleep(LEAD_S)
    late = await session.complete(session.story(LONG_WORDS), 2)
    until_s = late.asked_s + late.first_text_s
    gaps_s = [gap_s for reply in await streams for gap_s in reply.gaps_s(late.asked_s, until_s)]
    return {"worst_gap_s": max(gaps_s, default=None), "first_arriving_s": late.first_text_s}


async def shared(session: Session) -> Figures:
    notes = system(f"You answer questions about these notes: {session.words(LONG_WORDS)}.")
    asked = [
        session.answer([notes, user(f"What do the notes say about a {subject}?")], N_CLIENT_TOKENS)
        for subject in QUESTIONS[:N_CLIENTS]
    ]
    replies = await asyncio.gather(*asked)
    elapsed_s = max(reply.ended_s for reply in replies) - min(reply.asked_s for reply in replies)
    return {
        "first_shared_s": statistics.median(reply.first_text_s for reply in replies),
        "stream_shared": sum(reply.n_tokens for reply in replies) / elapsed_s,
    }
