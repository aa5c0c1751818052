"""Greedy replies of a whole server are the same with its features on and off, up to what kernels make of a batch.

tests/engine/test_same_reply.py compares strictly, with a model in F32. A server keeps its pool in F16, and the engine
has other kernels for other shapes of a batch: with SmolLM2 in Q4_1 one and the same token's log-probability moved by up
to 0.22 from one way to another, and where replies parted, both ways had the two tokens within 0.33 of each other. A
token that has no business there is several times as far away, half of all the time more than 1.5.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

import pytest

from shimmy.config import OPTIONS
from tests.e2e.harness import COMPLETION, STEADY_SEED, Json, Server, serving
from tests.models import demo_model
from tests.tiny_models import write_tiny_model

N_TOP = 20
REAL_NOISE = 0.5  # of log-probabilities
TINY_NOISE = 1e-3
EXACT_NOISE = 1e-4  # with a pool in F32

NOTES = (
    "You write short and true texts for people who learn the language. Use simple words, and do not repeat yourself. "
    "Each text has a beginning, a middle and an end. Names of persons are Ann, Ben and Carl. Never write about money, "
    "politics or illness, and end with a full stop."
)
# With the same text twice the model goes on with what it has read, so that there is something to guess.
REAL_PROMPTS = [
    f"{NOTES} Write about a {subject}.\n\n{NOTES} Write about a {subject}.\n\n" for subject in ("fox", "sea", "city")
]
# About 300 tokens: shorter ones are not worth a disk.
TINY_PROMPTS = [f"{number} " + "a tale of the user and the world of long ago " * 16 for number in range(4)]


@dataclass(frozen=True, slots=True)
class Said:
    """One reply: its tokens, and for each of them the log-probabilities of the likeliest ones and itself."""

    tokens: list[str]
    tops: list[dict[str, float]]
    n_cached: int
    n_guessed: int  # of the tokens, ahead and rightly


@dataclass(frozen=True, slots=True)
class Way:
    """How the same prompts may be computed.

    `options` are the server's (`{model}` is the model's path) and `fields` the requests', `n_at_once` of which run at
    the same time, after each has been asked before if `is_second`, by a server that has ended since if `is_restarted`.
    """

    name: str
    options: tuple[str, ...] = ("--no-speculation",)
    fields: Json = field(default_factory=lambda: {"cache_prompt": False})
    n_at_once: int = 1
    is_second: bool = False
    is_restarted: bool = False


# A CPU variant for old processors takes half a minute for these replies where other programs compute as well.
SLOW_S = 150
CACHED: Json = {"cache_prompt": True}
PLAIN = Way("plain")
GUESSES = Way("guesses", ())
EVERYTHING = Way("everything", (), CACHED, n_at_once=3, is_second=True)
EXACT = Way("exact", ("--kv-type", "f32", "--no-speculation"))
EXACT_EVERYTHING = Way(
    "exact with everything", ("--kv-type", "f32", "--draft-model", "{model}", "--prompt-cache", "64M"), CACHED,
    n_at_once=3, is_second=True, is_restarted=True,
)  # fmt: skip
# By the option of the server that they are about.
WAYS_OF_OPTIONS = {
    "prompt_cache": Way(
        "prompts on disk", ("--no-speculation", "--prompt-cache", "64M"), CACHED, is_second=True, is_restarted=True
    ),
    "draft_model": Way("draft model", ("--draft-model", "{model}")),
}


def ask(server: Server, model: Path, prompt: str, n_tokens: int, way: Way) -> Said:
    body: Json = {"model": model.stem, "prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "logprobs": N_TOP}
    body |= {"ignore_eos": True} | way.fields
    reply = server.request("POST", COMPLETION, body, deadline_s=SLOW_S)
    assert reply.status == 200, reply.body
    whole = reply.json()
    told = whole["choices"][0]["logprobs"]
    assert len(told["tokens"]) == n_tokens
    n_cached = whole["usage"]["prompt_tokens_details"]["cached_tokens"]
    return Said(told["tokens"], told["top_logprobs"], n_cached, whole["timings"].get("draft_n_accepted", 0))


def replies(folder: Path, model: Path, prompts: Sequence[str], n_tokens: int, way: Way, threads: str) -> list[Said]:
    """What each prompt leads to."""
    options = [option.format(model=model) for option in way.options]
    arguments: tuple[str | Path, ...] = ("--model-path", model, "--cache-dir", folder / "cache", *options)

    def ask_all(server: Server) -> list[Said]:
        with ThreadPoolExecutor(way.n_at_once) as pool:
            return list(pool.map(lambda prompt: ask(server, model, prompt, n_tokens, way), prompts))

    with ExitStack() as servers:
        server = servers.enter_context(serving(folder / "first", *arguments, threads=threads))
        if way.is_second:
            ask_all(server)
        if way.is_restarted:
            assert server.stop() == 0
            server = servers.enter_context(serving(folder / "second", *arguments, threads=threads))
        return ask_all(server)


def distance(plain: Said, other: Said) -> float:
    """How far they are apart in the likelihood of what both said, or in that of the first two tokens that differ."""
    farthest = 0.0
    for mine, its, *tops in zip(plain.tokens, other.tokens, plain.tops, other.tops, strict=True):
        if mine != its:
            return max(farthest, *(abs(top.get(mine, -inf) - top.get(its, inf)) for top in tops))
        farthest = max(farthest, abs(tops[0][mine] - tops[1][its]))
    return farthest


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Said]:
    return replies(tmp_path_factory.mktemp("plain"), demo_model(), REAL_PROMPTS, 24, PLAIN, "1")


@pytest.mark.parametrize("way", [GUESSES, EVERYTHING], ids=lambda way: way.name)
@pytest.mark.timeout(300)
def test_a_real_model_says_the_same(tmp_path: Path, plain: list[Said], way: Way) -> None:
    others = replies(tmp_path, demo_model(), REAL_PROMPTS, 24, way, "1")
    assert any(said.n_guessed for said in others) or way is not GUESSES
    assert all(said.n_cached for said in others) or way is not EVERYTHING
    assert max(map(distance, plain, others)) <= REAL_NOISE


@pytest.mark.parametrize("name", [option.name for option in OPTIONS if option.name in WAYS_OF_OPTIONS])
def test_an_option_makes_no_difference(tmp_path: Path, name: str) -> None:
    model = write_tiny_model(tmp_path, n_ctx_train=2048, seed=STEADY_SEED)
    way = WAYS_OF_OPTIONS[name]
    plain, others = (replies(tmp_path / each.name, model, TINY_PROMPTS, 64, each, "1") for each in (PLAIN, way))
    assert all(said.n_cached for said in others) or not way.is_restarted
    assert max(map(distance, plain, others)) <= TINY_NOISE


def test_cells_in_f32_are_shared_stored_and_guessed_beside_like_others(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path, n_ctx_train=2048, seed=STEADY_SEED)
    plain, others = (
        replies(tmp_path / way.name, model, TINY_PROMPTS, 64, way, "1") for way in (EXACT, EXACT_EVERYTHING)
    )
    assert all(said.n_cached for said in others)
    assert max(map(distance, plain, others)) <= EXACT_NOISE
