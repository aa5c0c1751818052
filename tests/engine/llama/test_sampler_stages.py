"""What a chain of samplers leaves of some candidates: as a few lines of Python have it, and always in numbers."""

import ctypes
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama import sampler_chain
from shimmy.engine.llama.binding import LIBRARY_FOLDER, llama
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.engine.llama.sampler_chain import SamplerChain, SamplerStage
from shimmy.messages.request import SamplingParams

PLAIN = SamplingParams(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
NEVER = -math.inf
CLOSE = 1e-3  # nearer to a threshold than this, rounding may decide


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[LlamaModel]:
    model = LlamaModel(tiny_model, CpuBackend(variants.libraries(LIBRARY_FOLDER, None)))
    yield model
    model.close()


@dataclass
class Left:
    """Candidates and their probabilities, and the one that was picked."""

    probabilities: dict[int, float]
    picked: int


def left_of(
    model: LlamaModel,
    logits: Sequence[float],
    chain: SamplerChain,
    biases: Sequence[tuple[int, float]] = (),
    history: Sequence[int] = (),
    reply: Sequence[int] = (),
) -> Left:
    """What llama.cpp leaves of the tokens 0, 1, 2 … with these logits."""
    sampler = model.new_sampler(chain, biases, (), history)
    sampler.accept(reply)
    data = (llama.llama_token_data * len(logits))(*[(token, logit, 0.0) for token, logit in enumerate(logits)])
    array = llama.llama_token_data_array(data, len(logits), -1, False)
    llama.llama_sampler_apply(sampler._chain, ctypes.byref(array))
    found = {array.data[place].id: array.data[place].p for place in range(array.size)}
    picked = array.data[array.selected].id
    sampler.close()
    return Left(found, picked)


def chain_of(params: SamplingParams, seed: int = 1) -> SamplerChain:
    return sampler_chain.chain(params, seed=seed, n_ctx=256)


# -- the reference


class TooClose(Exception):
    """Whether a candidate stays is a matter of rounding."""


def softmax(logits: dict[int, float]) -> dict[int, float]:
    highest = max(logits.values())
    weights = {token: math.exp(logit - highest) for token, logit in logits.items()}
    total = math.fsum(weights.values())
    return {token: weight / total for token, weight in weights.items()}


def is_less(one: float, other: float) -> bool:
    if abs(one - other) < CLOSE:
        raise TooClose
    return one < other


def until(order: list[int], probabilities: dict[int, float], share: float) -> list[int]:
    """The first of `order` that have `share` of the probability together."""
    total = 0.0
    for n_kept, token in enumerate(order, 1):
        total += probabilities[token]
        if not is_less(total, share):
            return order[:n_kept]
    return order


def expected(params: SamplingParams, logits: Sequence[float], never: set[int]) -> dict[int, float]:
    """The probabilities of what is left of the tokens that are not ruled out; raises TooClose."""
    left = {token: logit for token, logit in enumerate(logits) if token not in never}
    if params.top_n_sigma > 0:
        mean = math.fsum(left.values()) / len(left)
        sigma = math.sqrt(math.fsum((logit - mean) ** 2 for logit in left.values()) / len(left))
        lowest = max(left.values()) - params.top_n_sigma * sigma
        left = {token: logit for token, logit in left.items() if not is_less(logit, lowest)}
    if params.top_k > 0:
        left = dict(sorted(left.items(), key=lambda item: -item[1])[: params.top_k])
    if params.typical_p < 1:
        shares = softmax(left)
        entropy = -math.fsum(share * math.log(share) for share in shares.values() if share)
        distances = {token: abs(-math.log(share) - entropy) for token, share in shares.items() if share}
        order = sorted(distances, key=distances.__getitem__)
        kept = until(order, shares, params.typical_p)
        if len(kept) < len(order):
            is_less(distances[kept[-1]], distances[order[len(kept)]])
        left = {token: left[token] for token in kept}
    if params.top_p < 1:
        order = sorted(left, key=lambda token: -left[token])
        left = {token: left[token] for token in until(order, softmax(left), params.top_p)}
    if params.min_p > 0:
        lowest = max(left.values()) + math.log(params.min_p)
        left = {token: logit for token, logit in left.items() if not is_less(logit, lowest)}
    return softmax({token: logit / params.temperature for token, logit in left.items()})


def cases(n_cases: int) -> Iterator[tuple[SamplingParams, list[float], set[int]]]:
    """Random settings, logits and tokens that are ruled out."""
    random = Random(16)
    for _ in range(n_cases):
        params = replace(
            PLAIN,
            temperature=random.choice((0.3, 1.0, 1.7)),
            top_n_sigma=random.choice((-1.0, 1.0, 2.5)),
            top_k=random.choice((0, 0, 1, 5, 40)),
            typical_p=random.choice((1.0, 0.2, 0.5, 0.95)),
            top_p=random.choice((1.0, 0.3, 0.9)),
            min_p=random.choice((0.0, 0.05, 0.4)),
        )
        spread = random.choice((1.0, 5.0, 60.0))
        logits = [random.gauss(0, spread) for _ in range(random.choice((3, 30, 300)))]
        never = set(random.sample(range(len(logits)), random.randrange(len(logits) - 1)))
        yield params, logits, never


def test_what_is_left_is_what_a_few_lines_of_python_leave(model: LlamaModel) -> None:
    n_compared = 0
    for params, logits, never in cases(600):
        found = left_of(model, logits, chain_of(params), [(token, NEVER) for token in never])
        assert found.picked not in never
        assert math.fsum(found.probabilities.values()) == pytest.approx(1, abs=1e-4)
        try:
            wanted = expected(params, logits, never)
        except TooClose:
            continue
        n_compared += 1
        told = {token: share for token, share in found.probabilities.items() if share > 1e-7}
        assert told == pytest.approx({t: share for t, share in wanted.items() if t in told or share > 1e-6}, abs=1e-4)
    assert n_compared > 300


# -- tokens that are ruled out

STAGES = {
    "typical": replace(PLAIN, typical_p=0.2),
    "typical and keep": replace(PLAIN, typical_p=0.2, min_keep=3),
    "xtc": replace(PLAIN, xtc_probability=1.0, xtc_threshold=0.05),
    "min_p": replace(PLAIN, min_p=0.3),
    "top_p": replace(PLAIN, top_p=0.5),
    "top_k": replace(PLAIN, top_k=6),
    "dynatemp": replace(PLAIN, dynatemp_range=0.9, dynatemp_exponent=4.0),
    "mirostat_v2": replace(PLAIN, mirostat=2),
    "all": replace(
        PLAIN, typical_p=0.6, xtc_probability=1.0, xtc_threshold=0.2, min_p=0.02, top_p=0.9, top_k=12, min_keep=1,
        dynatemp_range=0.5, repeat_penalty=1.2, frequency_penalty=0.4, presence_penalty=0.3, dry_multiplier=0.8,
    ),
}  # fmt: skip
LIKELY = [6.0, 5.5, 5.2, 3.0, 2.0, 1.0, 0.0, -1.0]
UNLIKELY = [-30.0, -45.0, -60.0]


@pytest.mark.parametrize("kind", STAGES)
def test_forbidding_what_is_unlikely_changes_nothing(kind: str, model: LlamaModel) -> None:
    logits = [*LIKELY, *UNLIKELY]
    for seed in range(8):
        chain = chain_of(STAGES[kind], seed)
        free = left_of(model, logits, chain, history=[0, 1], reply=[1, 2])
        for n_forbidden in range(1, len(UNLIKELY) + 1):
            for forbidden in itertools.combinations(range(len(LIKELY), len(logits)), n_forbidden):
                for bias in (NEVER, -1e4, -99.0):
                    biases = [(token, bias) for token in forbidden]
                    found = left_of(model, logits, chain, biases, history=[0, 1], reply=[1, 2])
                    assert found.picked == free.picked
                    told = {token: share for token, share in found.probabilities.items() if share > 1e-9}
                    assert told == pytest.approx({t: s for t, s in free.probabilities.items() if s > 1e-9}, abs=1e-6)


def test_mirostat_1_looks_at_none_that_is_ruled_out(model: LlamaModel) -> None:
    """It goes by the hundred best: with fewer, and with others behind them, by those that may come."""
    chain = chain_of(replace(PLAIN, mirostat=1))
    likely = [5.0 - 0.01 * place for place in range(100)]
    wanted = left_of(model, likely, chain)
    for others in ([-30.0], [-30.0, -45.0, -99.0]):
        logits = [*likely, *others]
        for biases in ([], [(100, NEVER)]):
            found = left_of(model, logits, chain, biases)
            assert found.picked == wanted.picked
            assert {t: found.probabilities[t] for t in wanted.probabilities} == pytest.approx(wanted.probabilities)
    wanted = left_of(model, likely[:5], chain)
    for bias in (NEVER, -99.0):
        assert left_of(model, likely, chain, [(token, bias) for token in range(5, 100)]) == wanted


def test_the_filters_are_in_numbers_in_any_order(model: LlamaModel) -> None:
    """Each alone and behind each other, however few candidates the one before has left."""
    filters = {stage.name: [stage] for stage in chain_of(replace(STAGES["all"], top_n_sigma=0.5)).stages[2:-2]}
    filters["typical"] = [*filters.pop("min_p"), *filters["typical"]]
    dist = SamplerStage("dist", (3,))
    for n_filters in (1, 2, 3):
        for order in itertools.permutations(filters.values(), n_filters):
            chain = SamplerChain((*itertools.chain(*order), dist))
            for logits, biases in (
                (LIKELY, [(token, NEVER) for token in range(1, 8)]),
                ([0.0] * 5, [(2, NEVER)]),
                ([1e4, -1e4, 0.0, 5e3], []),
                ([3.0, 2.0], [(0, 1e4)]),
            ):
                found = left_of(model, logits, chain, biases)
                assert math.fsum(found.probabilities.values()) == pytest.approx(1, abs=1e-4)
                assert (found.picked, NEVER) not in biases


@pytest.mark.parametrize("exponent", [1.0, 2.0, 4.0])
def test_a_dynamic_temperature_near_zero_picks_the_best(exponent: float, model: LlamaModel) -> None:
    params = replace(PLAIN, temperature=0.5, dynatemp_range=0.5, dynatemp_exponent=exponent)
    for gap in (5.0, 20.0, 23.0, 30.0, 80.0, 200.0):
        found = left_of(model, [40.0, 40.0 - gap, 40.0 - gap, -50.0], chain_of(params))
        assert found.picked == 0
        assert all(math.isfinite(share) for share in found.probabilities.values())


# -- penalties


def test_penalties_of_openai_count_what_was_generated(model: LlamaModel) -> None:
    """Each generated token by its number; those of the prompt not at all, however often they are in it."""
    params = replace(PLAIN, frequency_penalty=0.5, presence_penalty=0.25, repeat_last_n=2)
    logits = [1.0, 1.0, 1.0]
    reply = [0] * 100 + [1]
    found = left_of(model, logits, chain_of(params), history=[2] * 50, reply=reply)
    wanted = softmax({0: 1 - 0.5 * 100 - 0.25, 1: 1 - 0.5 - 0.25, 2: 1.0})
    assert found.probabilities == pytest.approx(wanted, abs=1e-6)


def test_the_repeat_penalty_counts_the_prompt(model: LlamaModel) -> None:
    params = replace(PLAIN, repeat_penalty=2.0, repeat_last_n=2)
    found = left_of(model, [1.0, 1.0, -1.0], chain_of(params), history=[1, 1, 0, 2])
    assert found.probabilities == pytest.approx(softmax({0: 0.5, 1: 1.0, 2: -2.0}), abs=1e-6)


def test_both_kinds_of_penalties_add_up(model: LlamaModel) -> None:
    params = replace(PLAIN, repeat_penalty=2.0, repeat_last_n=-1, frequency_penalty=0.5)
    found = left_of(model, [1.0, 1.0, 1.0], chain_of(params), history=[1], reply=[0])
    assert found.probabilities == pytest.approx(softmax({0: 0.5 - 0.5, 1: 0.5, 2: 1.0}), abs=1e-6)
