"""Measures one server, from its start to its end. Knows what is asked of it, and nothing of who it is."""

import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.client import ReplyFailed, complete
from tests.bench.memory import tree_memory_mb
from tests.bench.peers import Peer, running
from tools.steps import say

N_TOKENS = 128
STREAMS = (1, 4, 8)
N_SHORT = 5
N_LONG = 3
SHORT_WORDS = 12
LONG_WORDS = 440
SETTLE_S = 1.0  # until what a start used is given back
WORDS = (  # noqa: SIM905 - one word a line would fill a page
    "river stone window garden winter silver market candle forest bridge letter shadow morning harbor engine island"
    " meadow thunder basket paper orange summer doctor kitchen"
).split()

Figures = dict[str, float | None]


def measure(peer: Peer, model: Path, n_threads: int, round_number: int) -> Figures:
    """Every figure of one round, None where the server failed at it. The first request loads the model, if need be."""
    with running(peer, model, n_threads) as server:
        asker = _Asker(server.port, model.stem, round_number)
        time.sleep(SETTLE_S)
        figures: Figures = {"start_s": server.start_s, "idle_memory_mb": tree_memory_mb(server.process_id)}
        first_s = asker.first_text_s(asker.new_prompt(SHORT_WORDS))
        figures["start_to_first_text_s"] = None if first_s is None else server.start_s + first_s
        figures["first_text_short_s"] = _median(
            [asker.first_text_s(asker.new_prompt(SHORT_WORDS)) for _ in range(N_SHORT)]
        )
        long_prompts = [asker.new_prompt(LONG_WORDS) for _ in range(N_LONG)]
        new_and_again = [(asker.first_text_s(prompt), asker.first_text_s(prompt)) for prompt in long_prompts]
        figures["first_text_long_s"] = _median([new for new, _ in new_and_again])
        figures["first_text_again_s"] = _median([again for _, again in new_and_again])
        for n_streams in STREAMS:
            figures[f"tokens_per_s_{n_streams}"] = asker.tokens_per_s(n_streams)
        figures["tokens_per_s_sampled"] = asker.tokens_per_s(1, temperature=1.0)
        figures["loaded_memory_mb"] = tree_memory_mb(server.process_id)
        return figures


class _Asker:
    """Asks one server; no two of its prompts share a beginning, in one round or in two."""

    def __init__(self, port: int, model: str, round_number: int) -> None:
        self._port = port
        self._model = model
        self._random = random.Random(round_number)

    def new_prompt(self, n_words: int) -> str:
        words = self._random.choices(WORDS, k=n_words)
        return f"{self._random.randrange(10**6)} {' '.join(words)}. The story is about"

    def first_text_s(self, prompt: str) -> float | None:
        try:
            return complete(self._port, self._model, [prompt], 2)[0].first_text_s
        except ReplyFailed as exc:
            say(f"  failed: {exc}")
            return None

    def tokens_per_s(self, n_streams: int, *, temperature: float = 0.0) -> float | None:
        """From the first request to the last byte, prompts included; None when a stream was refused or cut off."""
        prompts = [self.new_prompt(SHORT_WORDS) for _ in range(n_streams)]
        start_s = time.perf_counter()
        try:
            replies = complete(self._port, self._model, prompts, N_TOKENS, temperature=temperature)
        except ReplyFailed as exc:
            say(f"  {n_streams} streams failed: {exc}")
            return None
        return sum(reply.n_tokens for reply in replies) / (time.perf_counter() - start_s)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if len(known) == len(values) else None
