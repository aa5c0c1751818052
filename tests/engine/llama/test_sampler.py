"""Guided sampling and log-probabilities on the real llama.cpp with a tiny model."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama import binding, sampler_chain
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.engine.llama.sampler import Candidates, LlamaSampler
from shimmy.errors import Internal
from shimmy.messages.request import SamplingParams

GREEDY = SamplingParams(temperature=0)
ALL_STAGES = SamplingParams(
    temperature=0.9, dynatemp_range=0.5, top_k=30, top_p=0.9, min_p=0.01, typical_p=0.9, top_n_sigma=3, min_keep=2,
    repeat_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.5, dry_multiplier=0.8, xtc_probability=0.5,
)  # fmt: skip
KINDS = {
    "greedy": GREEDY,
    "all stages": ALL_STAGES,
    "plain": SamplingParams(temperature=1, top_k=0, top_p=1, min_p=0),
    "mirostat": SamplingParams(mirostat=2),
}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LlamaModel:
    """A model that has decoded a prompt; the logits of its last token are those of row `ROW`."""
    model = LlamaModel(tiny_model, CpuBackend(variants.libraries(LIBRARY_FOLDER, None)))
    model.open_context(n_ctx=256, n_batch=64, n_sequences=1, n_outputs=4, n_threads=1)
    model.backend.batch.clear()
    model.backend.batch.add(
        model.vocab.tokenize("hello world", add_special=True, parse_special=True), 0, 0, n_outputs=1
    )
    assert model.backend.decode() == 0
    return model


def row(model: LlamaModel) -> int:
    return model.backend.batch.n_rows - 1


def logits(model: LlamaModel) -> list[float]:
    values = binding.llama.llama_get_logits_ith(model.backend._context, row(model))
    return list(values[: model.vocab.n_vocab])


def sampler(model: LlamaModel, params: SamplingParams, seed: int = 1) -> LlamaSampler:
    return model.new_sampler(sampler_chain.chain(params, seed=seed, n_ctx=256), (), params.dry_sequence_breakers)


@dataclass
class Allowing:
    """A guide that allows certain tokens, and remembers what it was asked."""

    tokens: set[int]
    n_masks: int = 0
    asked: list[int] = field(default_factory=list)
    is_over = False

    def allows(self, token: int) -> bool:
        self.asked.append(token)
        return token in self.tokens

    def allowed(self) -> bytes:
        self.n_masks += 1
        return sum(1 << token for token in self.tokens).to_bytes(256, "little")

    def accept(self, token: int) -> None: ...

    def forced(self) -> list[int]:
        return []


def test_an_allowed_choice_needs_no_mask_and_is_the_free_one(model: LlamaModel) -> None:
    for params in KINDS.values():
        free, guided = sampler(model, params), sampler(model, params)
        guide = Allowing(set(range(model.vocab.n_vocab)))
        assert [free.sample(row(model)) for _ in range(5)] == [
            guided.sample_within(row(model), guide) for _ in range(5)
        ]
        assert guide.n_masks == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_allowed", [1, 2, 17, 400])
def test_only_what_is_allowed_is_picked(kind: str, n_allowed: int, model: LlamaModel) -> None:
    worst = sorted(range(model.vocab.n_vocab), key=logits(model).__getitem__)[: min(n_allowed, model.vocab.n_vocab - 1)]
    for seed in range(20):
        guide = Allowing(set(worst))
        assert sampler(model, KINDS[kind], seed).sample_within(row(model), guide) in guide.tokens


def test_a_greedy_choice_is_the_most_likely_of_what_is_allowed(model: LlamaModel) -> None:
    by_logit = sorted(range(model.vocab.n_vocab), key=logits(model).__getitem__, reverse=True)
    guide = Allowing(set(by_logit[3:50]))
    assert sampler(model, GREEDY).sample_within(row(model), guide) == by_logit[3]
    assert (guide.asked, guide.n_masks) == ([by_logit[0]], 1)


def test_a_refused_choice_is_no_history(model: LlamaModel) -> None:
    params = SamplingParams(temperature=0, presence_penalty=100)
    by_logit = sorted(range(model.vocab.n_vocab), key=logits(model).__getitem__, reverse=True)
    chain = sampler(model, params)
    assert chain.sample_within(row(model), Allowing(set(by_logit[5:]))) == by_logit[5]
    assert chain.sample(row(model)) == by_logit[0], "had it been taken for picked, it would be penalised now"


def test_a_guide_that_allows_nothing_is_an_error_and_no_abort(model: LlamaModel) -> None:
    with pytest.raises(Internal, match="no token"):
        sampler(model, GREEDY).sample_within(row(model), Allowing(set()))


@pytest.mark.parametrize("n_top", [0, 1, 5, 200, 100_000])
def test_log_probabilities_are_a_softmax_of_the_logits(n_top: int, model: LlamaModel) -> None:
    values = logits(model)
    total = math.log(math.fsum(math.exp(value) for value in values))
    by_logit = sorted(range(model.vocab.n_vocab), key=values.__getitem__, reverse=True)
    for token in (by_logit[0], by_logit[7], by_logit[-1]):
        found = model.backend.logprob(row(model), token, n_top)
        assert found.chosen.token == token
        assert found.chosen.logprob == pytest.approx(values[token] - total, abs=1e-4)
        assert sorted(values[top.token] for top in found.top) == sorted(values[other] for other in by_logit[:n_top])
        assert [top.logprob for top in found.top] == pytest.approx(
            [values[other] - total for other in by_logit[:n_top]], abs=1e-4
        )


ALLOWED: dict[str, Callable[[int], bool]] = {
    "all": lambda token: token >= 0,
    "all but one": lambda token: token != 7,
    "every other": lambda token: token % 2 == 1,
    "two of three": lambda token: token % 3 > 0,
    "one of forty": lambda token: token % 40 == 0,
    "long runs": lambda token: token % 1000 < 300,
    "one": lambda token: token == 0,
}


@pytest.mark.parametrize("n_vocab", [1, 63, 64, 65, 5000, 40_000])
@pytest.mark.parametrize("logit", [lambda token: -(token % 100), lambda token: -token / 2], ids=["near", "far apart"])
@pytest.mark.parametrize("name", ALLOWED)
def test_a_mask_leaves_what_it_allows(name: str, logit: Callable[[int], float], n_vocab: int) -> None:
    data = (binding.llama.llama_token_data * n_vocab)()
    struct = binding.llama.llama_token_data_array(data, n_vocab, -1, False)
    for token in range(n_vocab):
        data[token].id, data[token].logit = token, logit(token)
    tokens = [token for token in range(n_vocab) if ALLOWED[name](token)]
    mask = sum(1 << token for token in tokens).to_bytes(n_vocab // 8 + 1, "little")
    beyond = bytes(len(mask)) + b"\xff"
    assert Candidates(struct).keep(mask + beyond) == len(tokens)
    if tokens:
        assert [(entry.id, entry.logit) for entry in data[: struct.size]] == [(each, logit(each)) for each in tokens]
        assert not struct.sorted
    else:
        assert struct.size == n_vocab, "whoever asked has to see that there is nothing to pick from"


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_mask_forbids_the_others_even_where_no_logit_is_a_number(value: float) -> None:
    n_vocab = 5000
    data = (binding.llama.llama_token_data * n_vocab)()
    struct = binding.llama.llama_token_data_array(data, n_vocab, -1, False)
    for token in range(n_vocab):
        data[token].id, data[token].logit = token, value
    mask = bytes([0b01010101]) * (n_vocab // 8)
    assert Candidates(struct).keep(mask) == struct.size == n_vocab // 2
    assert [entry.id for entry in data[: struct.size]] == list(range(0, n_vocab, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_guide_counts_more_than_what_is_ruled_out(kind: str, model: LlamaModel) -> None:
    """Of what the guide allows, that which is not ruled out; where all of it is, the most likely."""
    by_logit = sorted(range(model.vocab.n_vocab), key=logits(model).__getitem__, reverse=True)
    few, one = by_logit[100:110], by_logit[120]
    params = KINDS[kind]
    for allowed, picked in (([*few, one], one), (few, few[0])):
        for seed in range(5):
            chain = sampler_chain.chain(params, seed=seed, n_ctx=256)
            made = model.new_sampler(chain, [(token, -math.inf) for token in few], ())
            assert made.sample_within(row(model), Allowing(set(allowed))) == picked
