"""Short prompts with longer replies, alone and many at once."""

import asyncio
import statistics

from tests.bench.client import Reply, ReplyFailed
from tests.bench.figures import MILLISECONDS, REPLIES, TOKENS_PER_S, Figure, Figures
from tests.bench.session import Session

N_TOKENS = 128
N_TOKENS_EACH = 64  # of many streams
N_FIRSTS = 5
N_WHOLE = 4
# Shimmy's ratio to llama-server; one stream has a goal against its other peers, too.
GOALS = {4: 1.0, 8: 1.0, 16: 1.2, 32: 1.3}
SUBJECTS = (
    "How bread is baked at home, step by step.\n\nFirst,",
    "The lighthouse keeper had not spoken to anyone for three weeks when",
)

ONE = (
    Figure("first_short_s", "first token of a short prompt", MILLISECONDS, {"llama-server": 1.0}),
    Figure("stream_1", "1 stream", TOKENS_PER_S, {"llama-server": 1.1, "llama-cpp-python": 1.5}),
)
ORDINARY = (
    Figure("ordinary", "1 stream of ordinary text, temperature 0.8", TOKENS_PER_S, {"shimmy-no-speculation": 0.98}),
)
WHOLE = (Figure("whole", f"of {N_WHOLE} streams at once, replies that came whole", REPLIES, {"shimmy": N_WHOLE}),)


async def one(session: Session) -> Figures:
    firsts = [(await session.complete(session.story(), 2)).first_text_s for _ in range(N_FIRSTS)]
    replies = [await session.complete(session.story(), N_TOKENS) for _ in range(2)]
    rate = statistics.mean(reply.tokens_per_s for reply in replies)
    return {"first_short_s": statistics.median(firsts), "stream_1": rate}


async def ordinary(session: Session) -> Figures:
    return {"ordinary": statistics.mean(reply.tokens_per_s for reply in await ordinary_replies(session))}


async def ordinary_replies(session: Session) -> list[Reply]:
    """Text in which there is next to nothing to guess: small models at temperature 0 soon repeat themselves."""
    prompts = [f"{session.words(2)}\n\n{subject}" for subject in SUBJECTS]
    return [await session.complete(prompt, N_TOKENS, temperature=0.8) for prompt in prompts]


async def whole(session: Session) -> Figures:
    """A reply that was refused or cut off is counted here, where the rows of many streams just fail."""
    asked = [session.complete(session.story(), N_TOKENS_EACH) for _ in range(N_WHOLE)]
    replies = await asyncio.gather(*asked, return_exceptions=True)
    if unforeseen := [reply for reply in replies if not isinstance(reply, Reply | ReplyFailed)]:
        raise unforeseen[0]
    return {"whole": sum(isinstance(reply, Reply) for reply in replies)}


class Many:
    """`n_streams` at once, all asked in the same moment."""

    def __init__(self, n_streams: int) -> None:
        self.n_streams = n_streams
        self.figures = (
            Figure(
                f"stream_{n_streams}", f"{n_streams} streams together", TOKENS_PER_S, {"llama-server": GOALS[n_streams]}
            ),
            Figure(
                f"first_{n_streams}_s", f"{n_streams} streams: first token, median", MILLISECONDS, {"llama-server": 1.0}
            ),
        )

    async def __call__(self, session: Session) -> Figures:
        asked = [session.complete(session.story(), N_TOKENS_EACH) for _ in range(self.n_streams)]
        replies = await asyncio.gather(*asked)
        elapsed_s = max(reply.ended_s for reply in replies) - min(reply.asked_s for reply in replies)
        rate, first = self.figures
        return {
            rate.key: sum(reply.n_tokens for reply in replies) / elapsed_s,
            first.key: statistics.median(reply.first_text_s for reply in replies),
        }
