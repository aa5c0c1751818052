"""The real llama.cpp with a tiny model, in this process: what it computes depends on nothing it computed before."""

import math
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama import binding, sampler_chain
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.engine.llama.sampler import LlamaSampler
from shimmy.errors import ModelUnavailable
from shimmy.messages import sampling_limits
from shimmy.messages.request import SamplingParams
from shimmy.system import memory
from tests.e2e.harness import LONG_PROMPT, PROMPTS, STEADY_SEED
from tests.tiny_models import (
    BOS_TOKEN,
    EOS_TOKEN,
    N_EMBD,
    UINT32,
    UNKNOWN_TOKEN,
    Tensor,
    vocabulary,
    write_tiny_adapter,
    write_tiny_model,
)

N_CTX, N_BATCH, N_SEQUENCES = 256, 64, 4  # llama.cpp rounds a context up to 256 cells
GREEDY = SamplingParams(temperature=0)
# As random as can be: every token of the vocabulary may come.
WIDE = SamplingParams(temperature=100, top_k=0, top_p=1, min_p=0)
# A choice of several likely tokens, made by chance.
LOOSE = SamplingParams(temperature=3, top_k=20, top_p=1, min_p=0)
# All stages at once that a chain can have.
EVERYTHING = SamplingParams(
    temperature=0.9, dynatemp_range=0.5, top_k=30, top_p=0.9, min_p=0.01, typical_p=0.9, top_n_sigma=3, min_keep=2,
    repeat_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.5, dry_multiplier=0.8, xtc_probability=0.5,
)  # fmt: skip
PROMPT = "hello world"


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


@pytest.fixture(scope="module")
def loaded(tiny_model: Path, cpu: CpuBackend) -> LlamaModel:
    model = LlamaModel(tiny_model, cpu)
    model.open_context(n_ctx=N_CTX, n_batch=N_BATCH, n_sequences=N_SEQUENCES, n_outputs=32, n_threads=1)
    model.warm_up()
    return model


@pytest.fixture
def model(loaded: LlamaModel) -> Iterator[LlamaModel]:
    """The model with an empty KV pool."""
    yield loaded
    for sequence in range(N_SEQUENCES):
        loaded.forget(sequence, 0)


def tokens_of(model: LlamaModel, text: str) -> list[int]:
    return model.tokenize(text, add_special=True, parse_special=True)


def decode(model: LlamaModel, tokens: Sequence[int], position: int = 0, sequence: int = 0) -> int:
    """Compute `tokens` of one sequence; the row with the logits of the last."""
    row = -1
    for start in range(0, len(tokens), N_BATCH):
        chunk = tokens[start : start + N_BATCH]
        model.batch.clear()
        row = model.batch.add(chunk, position + start, sequence, n_outputs=int(start + len(chunk) == len(tokens)))
        assert model.decode() == 0
    return row


def sampler(model: LlamaModel, params: SamplingParams, *, seed: int = 1, history: Sequence[int] = ()) -> LlamaSampler:
    """A chain as the worker builds it, shown `history`."""
    sampling_limits.check(params, n_vocab=model.n_vocab)
    chain = sampler_chain.chain(params, seed=seed, n_ctx=model.n_ctx)
    return model.new_sampler(chain, params.logit_bias, params.dry_sequence_breakers, history)


def pick(model: LlamaModel, row: int, params: SamplingParams, *, seed: int = 1, history: Sequence[int] = ()) -> int:
    """One token from a row's logits."""
    chain = sampler(model, params, seed=seed, history=history)
    token = chain.sample(row)
    chain.close()
    return token


def generate(
    model: LlamaModel,
    prompt: Sequence[int],
    n_tokens: int,
    params: SamplingParams = GREEDY,
    *,
    seed: int = 1,
    sequence: int = 0,
    n_kept: int = 0,
) -> list[int]:
    """`n_tokens` after `prompt`, whose first `n_kept` tokens are resident; the last one's cells are not computed."""
    chain = sampler(model, params, seed=seed, history=prompt)
    row = decode(model, prompt[n_kept:], n_kept, sequence)
    generated = [chain.sample(row)]
    while len(generated) < n_tokens:
        row = decode(model, generated[-1:], len(prompt) + len(generated) - 1, sequence)
        generated.append(chain.sample(row))
    chain.close()
    return generated


def anew(model: LlamaModel, prompt: Sequence[int], n_tokens: int, params: SamplingParams = GREEDY) -> list[int]:
    """The same from an empty sequence."""
    model.forget(0, 0)
    return generate(model, prompt, n_tokens, params)


# -- decoding --------------------------------------------------------------------------------------------------------


def test_greedy_text_is_the_same_alone_and_beside_others(model: LlamaModel) -> None:
    prompts = [tokens_of(model, text) for text in ("hello", "the user and the world", "system", "9 8 7 " * 6)]
    alone = [anew(model, prompt, 12) for prompt in prompts]
    assert len(set(map(tuple, alone))) == len(prompts), "a text that does not depend on its prompt proves nothing"
    model.forget(0, 0)

    chains = [sampler(model, GREEDY) for _ in prompts]
    histories = [list(prompt) for prompt in prompts]
    n_decoded = [0] * len(prompts)
    while any(len(history) < len(prompt) + 12 for history, prompt in zip(histories, prompts, strict=True)):
        model.batch.clear()
        rows = {}
        # Prompts come in by pieces of three, so the short ones generate beside the long one.
        for sequence, history in enumerate(histories):
            chunk = history[n_decoded[sequence] :][:3]
            is_last = n_decoded[sequence] + len(chunk) == len(history)
            row = model.batch.add(chunk, n_decoded[sequence], sequence, n_outputs=int(is_last))
            n_decoded[sequence] += len(chunk)
            if is_last:
                rows[sequence] = row
        assert model.decode() == 0
        for sequence, row in rows.items():
            histories[sequence].append(chains[sequence].sample(row))
    for chain in chains:
        chain.close()

    together = [history[len(prompt) :][:12] for history, prompt in zip(histories, prompts, strict=True)]
    assert together == alone


def test_a_kept_prefix_gives_the_same_text_as_computing_it_anew(model: LlamaModel) -> None:
    first = tokens_of(model, "the user and the assistant")
    second = [*first, *model.tokenize(" hello world", add_special=False, parse_special=False)]
    other = [*first[:4], *model.tokenize(" system", add_special=False, parse_special=False)]
    expected_second, expected_other = anew(model, second, 12), anew(model, other, 12)
    model.forget(0, 0)
    generate(model, first, 12)
    assert model.forget(0, len(first))
    assert generate(model, second, 12, n_kept=len(first)) == expected_second
    assert model.forget(0, 4)
    assert generate(model, other, 12, n_kept=4) == expected_other


def test_forgetting_everything_leaves_nothing_of_it(model: LlamaModel) -> None:
    prompt = tokens_of(model, PROMPT)
    expected = generate(model, prompt, 12)
    assert model.forget(0, 0)
    generate(model, tokens_of(model, "something else"), 12)
    assert model.forget(0, 0)
    assert generate(model, prompt, 12) == expected


def test_a_prompt_in_chunks_is_the_prompt_at_once(model: LlamaModel) -> None:
    prompt = tokens_of(model, "hello world and the user " * 2)[:N_BATCH]
    expected = anew(model, prompt, 8)
    model.forget(0, 0)
    for start in range(0, len(prompt) - 1, 7):
        decode(model, prompt[start : min(start + 7, len(prompt) - 1)], start)
    assert generate(model, prompt, 8, n_kept=len(prompt) - 1) == expected


def test_a_full_pool_says_so_and_goes_on_when_there_is_room(model: LlamaModel) -> None:
    assert model.n_ctx == N_SEQUENCES * N_BATCH
    for sequence in range(N_SEQUENCES):
        decode(model, [UNKNOWN_TOKEN] * N_BATCH, 0, sequence)
    model.batch.clear()
    model.batch.add([BOS_TOKEN], N_BATCH, 0, n_outputs=1)
    assert model.decode() == 1
    model.forget(2, 0)
    assert model.decode() == 0


def test_what_is_resident_moves_with_a_pool_that_grows_or_shrinks(model: LlamaModel) -> None:
    first = tokens_of(model, "the user and the assistant")
    other = [*first[:4], *model.tokenize(" system", add_special=False, parse_special=False)]
    expected_first, expected_other = anew(model, first, 12), anew(model, other, 12)
    model.forget(0, 0)
    decode(model, first[:-1])
    assert model.share(0, 1, 4)
    for n_cells, n_open in ((512, N_SEQUENCES), (256, 2), (512, N_SEQUENCES)):
        assert model.resize(n_cells, n_open)
        assert (model.n_cells, model.n_open) == (n_cells, n_open)
    assert generate(model, first, 12, n_kept=len(first) - 1) == expected_first
    assert model.resize(256, N_SEQUENCES)
    assert generate(model, other, 12, sequence=1, n_kept=4) == expected_other
    model.forget(0, len(first))
    assert generate(model, first[:-1], 1, n_kept=0, sequence=2) == anew(model, first[:-1], 1)


# -- sampling --------------------------------------------------------------------------------------------------------


def test_a_chain_with_all_stages_builds_and_samples(model: LlamaModel) -> None:
    names = [stage.name for stage in sampler_chain.chain(EVERYTHING, seed=1, n_ctx=model.n_ctx).stages]
    assert names == [
        *("penalties", "penalties", "dry", "top_n_sigma", "top_k", "min_p", "typical", "top_p", "min_p", "xtc"),
        *("temp_ext", "dist"),
    ]
    tokens = generate(model, tokens_of(model, PROMPT), 50, EVERYTHING)
    assert all(0 <= token < model.n_vocab for token in tokens)
    assert len(set(tokens)) > 1


@pytest.mark.parametrize(
    "change",
    [
        {"dynatemp_range": 0.5, "dynatemp_exponent": 2.0}, {"top_n_sigma": 1.0}, {"top_k": 5}, {"typical_p": 0.5},
        {"top_p": 0.5}, {"min_p": 0.5}, {"xtc_probability": 1.0, "xtc_threshold": 0.01}, {"temperature": 1.0},
        {"repeat_penalty": 1.5}, {"presence_penalty": 1.0}, {"frequency_penalty": -1.0}, {"repeat_last_n": 0},
        {"dry_multiplier": 1.0, "dry_penalty_last_n": -1}, {"dry_multiplier": 1.0, "dry_sequence_breakers": ()},
        {"dry_multiplier": 1.0, "dry_sequence_breakers": ("\0", "a\0b", "\udcff", "😀" * 64)},
        {"mirostat": 1}, {"mirostat": 2}, {"logit_bias": ((5, 3.0), (6, -math.inf))}, {"min_keep": 1_000_000},
    ],
)  # fmt: skip
def test_every_stage_builds_samples_and_repeats_itself_with_its_seed(
    change: dict[str, float], model: LlamaModel
) -> None:
    params = replace(WIDE, **change)  # type: ignore[arg-type]
    prompt = tokens_of(model, PROMPT)
    tokens = anew(model, prompt, 16, params)
    assert all(0 <= token < model.n_vocab for token in tokens)
    assert anew(model, prompt, 16, params) == tokens


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_steers_by_its_target(version: int, model: LlamaModel) -> None:
    """A low target of surprise gives likelier tokens: the text comes closer to the greedy one."""
    prompt = tokens_of(model, PROMPT)
    row = decode(model, prompt)
    best = pick(model, row, GREEDY)

    def n_best(tau: float) -> int:
        params = replace(LOOSE, mirostat=version, mirostat_tau=tau, mirostat_eta=1.0)
        chain = sampler(model, params)
        picked = [chain.sample(row) for _ in range(60)]
        chain.close()
        return picked.count(best)

    assert n_best(0.01) > n_best(9.0)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(model: LlamaModel) -> None:
    prompt = tokens_of(model, PROMPT)
    row = decode(model, prompt)

    def picked(seed: int) -> list[int]:
        chain = sampler(model, LOOSE, seed=seed)
        tokens = [chain.sample(row) for _ in range(30)]
        chain.close()
        return tokens

    assert picked(1) == picked(1)
    assert len({tuple(picked(seed)) for seed in (0, 1, 2, 2**32 - 1)}) == 4
    assert len(set(picked(1))) > 3


@pytest.mark.parametrize(
    "params",
    [
        replace(WIDE, top_k=1), replace(WIDE, min_p=1), replace(WIDE, top_p=1e-6), replace(WIDE, top_n_sigma=1e-6),
        replace(GREEDY, temperature=1e-9), replace(GREEDY, top_k=3, top_p=0.5, min_p=0.5),
        replace(GREEDY, temperature=-1),
    ],
    ids=["top_k", "min_p", "top_p", "top_n_sigma", "tiny temperature", "greedy with filters", "negative temperature"],
)  # fmt: skip
def test_what_leaves_only_the_likeliest_token_is_greedy(params: SamplingParams, model: LlamaModel) -> None:
    prompt = tokens_of(model, PROMPT)
    assert anew(model, prompt, 20, params) == anew(model, prompt, 20)


@pytest.mark.parametrize("change", [{"top_p": 0.9}, {"min_p": 0.2}, {"top_k": 3}, {"top_n_sigma": 1.0}])
def test_a_filter_cuts_the_tail_and_leaves_the_head(change: dict[str, float], model: LlamaModel) -> None:
    row = decode(model, tokens_of(model, PROMPT))
    ranking = ranked(model, row)

    def picked(params: SamplingParams) -> set[int]:
        return {pick(model, row, params, seed=seed) for seed in range(200)}

    # Filters look at the probabilities before the temperature flattens them.
    kept = picked(replace(WIDE, **change))  # type: ignore[arg-type]
    assert kept <= set(ranking[: len(kept)]), "no token was left out before a less likely one"
    assert 1 <= len(kept) < len(picked(WIDE))


def ranked(model: LlamaModel, row: int) -> list[int]:
    """Tokens by their logits, the best first: each is what greedy picks when the ones before are forbidden."""
    tokens: list[int] = []
    for _ in range(30):
        bias = tuple((token, -math.inf) for token in tokens)
        tokens.append(pick(model, row, replace(GREEDY, logit_bias=bias)))
    return tokens


def test_xtc_takes_the_likeliest_away(model: LlamaModel) -> None:
    row = decode(model, tokens_of(model, PROMPT))
    best, second, *_ = ranked(model, row)
    params = replace(WIDE, top_k=2, xtc_probability=1, xtc_threshold=0)
    assert {pick(model, row, params, seed=seed) for seed in range(20)} == {second}
    assert {pick(model, row, replace(WIDE, top_k=2), seed=seed) for seed in range(20)} == {best, second}


def test_logit_bias_forbids_and_forces(model: LlamaModel) -> None:
    row = decode(model, tokens_of(model, PROMPT))
    best, second, *_ = ranked(model, row)
    assert best != second
    forced = vocabulary().index(("7", 1))
    for seed in range(5):
        assert pick(model, row, replace(WIDE, logit_bias=((forced, 10_000.0),)), seed=seed) == forced
    assert pick(model, row, replace(GREEDY, logit_bias=((forced, 100.0),))) == forced
    assert pick(model, row, replace(GREEDY, logit_bias=((best, -100.0),))) == second
    forbidden = tuple((token, -math.inf) for token in range(model.n_vocab) if token not in {5, 6})
    assert {pick(model, row, replace(WIDE, logit_bias=forbidden), seed=seed) for seed in range(20)} == {5, 6}


def test_a_huge_presence_penalty_never_repeats_a_token(model: LlamaModel) -> None:
    prompt = tokens_of(model, PROMPT)
    plain = anew(model, prompt, 150)
    assert len(set(plain)) < len(plain), "a text without repetition proves nothing"
    penalised = anew(model, prompt, 150, replace(GREEDY, presence_penalty=100))
    assert len(set(penalised)) == len(penalised)


def test_a_penalty_looks_back_as_far_as_its_window(model: LlamaModel) -> None:
    prompt = tokens_of(model, PROMPT)
    penalised = anew(model, prompt, 150, replace(GREEDY, repeat_penalty=100, repeat_last_n=5))
    seen = [*prompt, *penalised]
    distances = [
        next((back for back in range(1, index + 1) if seen[index - back] == seen[index]), None)
        for index in range(len(prompt), len(seen))
    ]
    assert min(distance for distance in distances if distance is not None) > 5
    assert any(distance is not None for distance in distances), "beyond the window tokens come back"


@pytest.mark.parametrize(
    ("change", "counts"), [({"repeat_penalty": 100.0}, True), ({"frequency_penalty": 50.0}, False)]
)
def test_the_prompt_counts_as_history_for_one(change: dict[str, float], counts: bool, model: LlamaModel) -> None:
    prompt = tokens_of(model, PROMPT)
    row = decode(model, prompt)
    best = pick(model, row, GREEDY)
    penalised = replace(GREEDY, **change)  # type: ignore[arg-type]
    assert pick(model, row, penalised) == best
    assert (pick(model, row, penalised, history=[best] * 3) != best) == counts


def test_dry_breaks_a_repetition_unless_a_breaker_stands_in_it(model: LlamaModel) -> None:
    row = decode(model, tokens_of(model, PROMPT))
    x, y, z = (vocabulary().index((text, 1)) for text in "xyz")
    history = [x, y, z] * 4 + [x, y]
    forced = replace(GREEDY, logit_bias=((z, 1000.0),))
    dry = replace(forced, dry_multiplier=100, dry_sequence_breakers=())
    assert pick(model, row, forced, history=history) == z
    assert pick(model, row, dry, history=history) != z
    assert pick(model, row, dry, history=[z, x, y]) == z, "nothing has been repeated yet"
    assert pick(model, row, replace(dry, dry_sequence_breakers=("y",)), history=history) == z


def test_a_closed_sampler_may_be_closed_again(model: LlamaModel) -> None:
    chain = sampler(model, EVERYTHING)
    chain.close()
    chain.close()


# -- vocabulary ------------------------------------------------------------------------------------------------------

TEXTS = ["hello world", "née 😀 €", "a\0b\0", "\n\t tabs", "x" * 3000, "<s>no token</s>", "\x7f\u200d\ufeff", " "]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_text_comes_back_from_its_tokens(text: str, model: LlamaModel) -> None:
    tokens = model.tokenize(text, add_special=False, parse_special=False)
    # SentencePiece puts a space before the text.
    assert model.detokenize(tokens) == " " + text
    assert b"".join(model.piece(token) for token in tokens) == b" " + text.encode()
    assert not set(tokens) & {BOS_TOKEN, EOS_TOKEN}


def test_special_tokens_are_read_and_written_when_asked_for(model: LlamaModel) -> None:
    start, end = model.n_vocab - 2, model.n_vocab - 1
    text = "<|im_start|>user<|im_end|>"
    tokens = model.tokenize(text, add_special=False, parse_special=True)
    assert (tokens[0], tokens[-1]) == (start, end)
    assert model.detokenize([start, end]) == "<|im_start|><|im_end|>"
    assert not {start, end} & set(model.tokenize(text, add_special=False, parse_special=False))
    assert model.piece(start) == model.piece(BOS_TOKEN) == b"", "control tokens are no text of a reply"


def test_the_beginning_is_added_when_asked_for(model: LlamaModel) -> None:
    assert model.adds_bos
    assert model.tokenize("", add_special=True, parse_special=True) == [BOS_TOKEN]
    assert model.tokenize("", add_special=False, parse_special=True) == []
    with_it = model.tokenize("hello", add_special=True, parse_special=False)
    assert with_it == [BOS_TOKEN, *model.tokenize("hello", add_special=False, parse_special=False)]


def test_a_lone_surrogate_has_no_bytes_and_breaks_nothing(model: LlamaModel) -> None:
    tokens = model.tokenize("a\ud800b\udfff", add_special=False, parse_special=False)
    assert model.detokenize(tokens) == " a?b?"


def test_every_token_has_a_piece_and_bytes_that_are_no_character_are_marked(model: LlamaModel) -> None:
    pieces = [model.piece(token) for token in range(model.n_vocab)]
    byte_tokens = [index for index, (_, kind) in enumerate(vocabulary()) if kind == 6]
    assert [pieces[token] for token in byte_tokens] == [bytes([byte]) for byte in range(256)]
    assert model.detokenize([byte_tokens[0xFF]]) == "\ufffd"
    assert model.detokenize([byte_tokens[byte] for byte in "é".encode()]) == "é"
    assert model.detokenize([]) == ""


def test_end_tokens_are_the_models_own_and_those_of_chat_formats(model: LlamaModel) -> None:
    assert model.end_tokens() == [EOS_TOKEN, model.n_vocab - 1]
    assert model.is_end(EOS_TOKEN)
    assert not model.is_end(BOS_TOKEN)
    assert (model.special_text("bos"), model.special_text("eos"), model.bos_token()) == ("<s>", "</s>", BOS_TOKEN)


# -- loading ---------------------------------------------------------------------------------------------------------


def test_a_pool_is_opened_small_where_it_can_grow(tiny_model: Path, cpu: CpuBackend) -> None:
    model = LlamaModel(tiny_model, cpu)
    model.open_context(n_ctx=2048, first=(256, 2), n_batch=N_BATCH, n_sequences=N_SEQUENCES, n_outputs=32, n_threads=1)
    assert (model.n_ctx, model.n_cells, model.n_sequences, model.n_open) == (2048, 256, N_SEQUENCES, 2)
    assert model.facts(has_chat_template=False).n_ctx == 2048


def test_a_model_with_other_positions_in_larger_contexts_gets_all_its_cells_at_once(
    tmp_path: Path, cpu: CpuBackend
) -> None:
    path = write_tiny_model(tmp_path, more=[("llama.rope.scaling.original_context_length", UINT32, 1024)])
    for n_ctx, n_cells in ((1024, 256), (2048, 2048)):
        model = LlamaModel(path, cpu)
        model.open_context(
            n_ctx=n_ctx, first=(256, 2), n_batch=N_BATCH, n_sequences=N_SEQUENCES, n_outputs=32, n_threads=1
        )
        assert model.n_cells == n_cells


@pytest.mark.parametrize(
    ("n_original", "n_booked", "n_ctx", "n_cells"),
    [(None, 512, 4096, 256), (1024, 512, 1024, 256), (256, 512, 512, 512)],
)
def test_a_pool_that_cannot_grow_has_what_is_booked(
    n_original: int | None, n_booked: int, n_ctx: int, n_cells: int, tmp_path: Path, cpu: CpuBackend
) -> None:
    more = [] if n_original is None else [("llama.rope.scaling.original_context_length", UINT32, n_original)]
    model = LlamaModel(write_tiny_model(tmp_path, more=more), cpu)
    model.book(n_booked, 1000)
    model.open_context(n_ctx=4096, first=(256, 2), n_batch=N_BATCH, n_sequences=N_SEQUENCES, n_outputs=32, n_threads=1)
    assert (model.n_ctx, model.n_booked, model.n_cells) == (n_ctx, n_booked, n_cells)


def test_a_pool_grows_beyond_what_is_booked_where_there_is_memory(
    tiny_model: Path, cpu: CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LlamaModel(tiny_model, cpu)
    model.book(512, 1_000_000)
    model.open_context(n_ctx=4096, first=(256, 2), n_batch=N_BATCH, n_sequences=N_SEQUENCES, n_outputs=32, n_threads=1)
    left = 0
    monkeypatch.setattr(memory, "free_bytes", lambda: left)
    assert model.resize(512, 2), "booked"
    assert not model.resize(1024, 2)
    assert model.n_cells == 512
    left = 10**9
    assert model.resize(1024, 2)
    assert not model.resize(2048, 2)
    assert model.resize(512, 2), "smaller"


def test_facts(model: LlamaModel, cpu: CpuBackend) -> None:
    facts = model.facts(has_chat_template=True)
    assert (facts.n_ctx, facts.n_ctx_train, facts.n_sequences) == (N_CTX, 512, N_SEQUENCES)
    assert facts.n_vocab == len(vocabulary())
    assert facts.n_params > 2 * N_EMBD * facts.n_vocab
    assert facts.size_bytes == 4 * facts.n_params
    assert "llama" in facts.description
    assert facts.cpu_variant == cpu.name
    assert facts.has_chat_template


def test_a_template_of_the_model_or_none(model: LlamaModel, cpu: CpuBackend, tmp_path: Path) -> None:
    assert "<|im_start|>" in (model.chat_template() or "")
    assert LlamaModel(write_tiny_model(tmp_path, chat_template=None), cpu).chat_template() is None


def test_a_model_in_shards_is_loaded_by_its_first(model: LlamaModel, cpu: CpuBackend, tmp_path: Path) -> None:
    expected = generate(model, tokens_of(model, PROMPT), 8)
    shards = LlamaModel(write_tiny_model(tmp_path, n_shards=3), cpu)
    shards.open_context(n_ctx=N_CTX, n_batch=N_BATCH, n_sequences=1, n_outputs=32, n_threads=1)
    shards.warm_up()
    assert generate(shards, tokens_of(shards, PROMPT), 8) == expected


@pytest.mark.parametrize("content", [b"", b"not a model at all", b"GGUF" + bytes(100)])
def test_a_file_that_is_no_model_is_refused_with_the_engines_reason(
    content: bytes, cpu: CpuBackend, tmp_path: Path
) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelUnavailable, match=r"could not load `broken\.gguf`: .*(gguf|GGUF|magic|tensor|key)"):
        LlamaModel(path, cpu)


def test_a_missing_file_is_refused(cpu: CpuBackend, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"`missing\.gguf`"):
        LlamaModel(tmp_path / "missing.gguf", cpu)


@pytest.mark.parametrize("name", [b"gr\xc3\xbc\xc3\x9fe \xf0\x9f\x98\x80.gguf", b"latin-1-\xfc.gguf"])
def test_a_file_name_is_bytes_and_need_not_be_utf_8(
    name: bytes, tiny_model: Path, cpu: CpuBackend, tmp_path: Path
) -> None:
    path = tmp_path / os.fsdecode(name)
    shutil.copyfile(tiny_model, path)
    assert LlamaModel(path, cpu).n_vocab == len(vocabulary())


def test_an_unknown_variant_is_refused_with_those_there_are() -> None:
    with pytest.raises(ModelUnavailable, match=r"no CPU variant `pentium`; there are: .*haswell.*x64"):
        CpuBackend(variants.libraries(LIBRARY_FOLDER, "pentium"))


def test_variants_that_cannot_be_loaded_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"\x7fELF no library")
    libraries = [("zen9", str(tmp_path / "missing.so")), ("zen8", str(tmp_path / "broken.so"))]
    with pytest.raises(ModelUnavailable, match=r"tried: zen9, zen8"):
        CpuBackend(libraries)
    with pytest.raises(ModelUnavailable, match=r"tried: none"):
        CpuBackend([])


def test_the_number_of_threads_can_be_changed(model: LlamaModel) -> None:
    try:
        for n_threads in (2, 1):
            model.set_threads(n_threads)
            assert binding.llama.llama_n_threads(model._context) == n_threads
            assert binding.llama.llama_n_threads_batch(model._context) == n_threads
    finally:
        model.set_threads(1)


def test_a_model_whose_weights_are_not_numbers_is_refused(tiny_model: Path, cpu: CpuBackend, tmp_path: Path) -> None:
    content = tiny_model.read_bytes()
    n_weights = 100_000
    path = tmp_path / "nan.gguf"
    path.write_bytes(content[: -4 * n_weights] + b"\x00\x00\xc0\x7f" * n_weights)
    damaged = LlamaModel(path, cpu)
    damaged.open_context(n_ctx=N_CTX, n_batch=N_BATCH, n_sequences=N_SEQUENCES, n_outputs=32, n_threads=1)
    with pytest.raises(ModelUnavailable, match="NaN"):
        damaged.warm_up()


# -- adapters --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapted(tiny_model: Path, cpu: CpuBackend, tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    """The model with two adapters, both at scale 0."""
    model = LlamaModel(tiny_model, cpu)
    folder = tmp_path_factory.mktemp("adapters")
    for seed in (1, 2):
        model.add_adapter(write_tiny_adapter(folder, seed=seed))
    model.open_context(n_ctx=N_CTX, n_batch=N_BATCH, n_sequences=N_SEQUENCES, n_outputs=32, n_threads=1)
    model.warm_up()
    return model


def test_scales_change_what_is_computed_and_zero_leaves_the_model_as_it_is(
    adapted: LlamaModel, model: LlamaModel
) -> None:
    prompt = tokens_of(model, PROMPT)
    base = anew(model, prompt, 12)
    texts = {}
    for scales in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (-1.0, 0.0), (0.5, 0.0)):
        adapted.set_scales(scales)
        texts[scales] = tuple(anew(adapted, prompt, 12))
    assert list(texts.pop((0.0, 0.0))) == base
    assert len({*texts.values(), tuple(base)}) == 6
    adapted.set_scales((1.0, 0.0))
    assert tuple(anew(adapted, prompt, 12)) == texts[(1.0, 0.0)]
    adapted.set_scales((0.0, 0.0))
    assert anew(adapted, prompt, 12) == base


def test_what_is_no_number_is_seen_and_wiped(tiny_model: Path, cpu: CpuBackend, tmp_path: Path) -> None:
    """Bug: a NaN in the KV pool spoils the rows of other sequences in a batch of 64, although they cannot see it."""
    shapes = {"blk.0.attn_v.weight.lora_a": (N_EMBD, 1), "blk.0.attn_v.weight.lora_b": (1, N_EMBD)}
    tensors = [Tensor(name, shape, struct.pack("<f", 1e30) * N_EMBD) for name, shape in shapes.items()]
    model = LlamaModel(tiny_model, cpu)
    model.add_adapter(write_tiny_adapter(tmp_path, tensors=tensors))
    model.open_context(n_ctx=N_CTX, n_batch=N_BATCH, n_sequences=N_SEQUENCES, n_outputs=32, n_threads=1)
    model.warm_up()
    prompt = [5, 300, 301, 302] * (N_BATCH // 4)
    row = decode(model, prompt)
    assert model.has_numbers(row)
    expected = pick(model, row, GREEDY)
    model.forget(0, 0)
    model.set_scales((1.0,))
    assert not model.has_numbers(decode(model, prompt[:10], 0, 1))  # 64 cells of one sequence would be skipped as one
    model.set_scales((0.0,))
    assert not model.has_numbers(decode(model, prompt)), "this is why the pool has to be wiped"
    model.wipe()
    assert pick(model, decode(model, prompt), GREEDY) == expected
    model.wipe()
    model.set_scales((1.0,))
    with pytest.raises(ModelUnavailable, match="no numbers"):
        model.warm_up()
    model.set_scales((0.0,))
    assert pick(model, decode(model, prompt), GREEDY) == expected, "a warm-up leaves the pool clean"


def test_the_engines_reason_not_to_take_an_adapter_is_passed_on(tiny_model: Path, cpu: CpuBackend) -> None:
    with pytest.raises(ModelUnavailable, match=r"expect general\.type to be 'adapter'"):
        LlamaModel(tiny_model, cpu).add_adapter(tiny_model)


def test_the_other_adapters_stay_when_one_is_removed(tiny_model: Path, cpu: CpuBackend, tmp_path: Path) -> None:
    model = LlamaModel(tiny_model, cpu)
    for seed in (1, 2):
        model.add_adapter(write_tiny_adapter(tmp_path, seed=seed))
    model.open_context(n_ctx=N_CTX, n_batch=N_BATCH, n_sequences=N_SEQUENCES, n_outputs=32, n_threads=1)
    prompt = tokens_of(model, PROMPT)
    model.set_scales((0.0, 1.0))
    second = anew(model, prompt, 12)
    model.set_scales((1.0, 1.0))
    model.remove_adapter(0)
    assert anew(model, prompt, 12) != second, "none is set"
    model.set_scales((1.0,))
    assert anew(model, prompt, 12) == second


def test_a_pool_grows_with_its_adapters_as_they_are_set(tiny_model: Path, cpu: CpuBackend, tmp_path: Path) -> None:
    model = LlamaModel(tiny_model, cpu)
    for seed in (1, 2):
        model.add_adapter(write_tiny_adapter(tmp_path, seed=seed))
    model.open_context(n_ctx=2048, first=(256, 2), n_batch=N_BATCH, n_sequences=N_SEQUENCES, n_outputs=32, n_threads=1)
    prompt = tokens_of(model, PROMPT)
    for n_cells in (512, 256):
        model.set_scales((0.0, 1.0))
        adapted = anew(model, prompt, 12)
        assert model.resize(n_cells, 2)
        assert anew(model, prompt, 12) == adapted
    model.set_scales((0.0, 0.0))
    plain = anew(model, prompt, 12)
    assert plain != adapted
    for n_cells in (512, 256):
        model.remove_adapter(0)
        assert model.resize(n_cells, 2)
        assert anew(model, prompt, 12) == plain, "none is set"


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the end-to-end tests that compare texts."""
    return write_tiny_model(tmp_path_factory.mktemp("steady"), n_ctx_train=4096, seed=STEADY_SEED)


@pytest.mark.parametrize(("prompts", "n_tokens"), [(PROMPTS, 64), ([LONG_PROMPT], 2000)], ids=["all", "long"])
def test_rounding_does_not_decide_what_end_to_end_tests_compare(
    steady: Path, cpu: CpuBackend, prompts: Sequence[str], n_tokens: int
) -> None:
    texts = []
    for exact in (True, False):
        model = LlamaModel(steady, cpu)
        model.open_context(n_ctx=4096, n_batch=N_BATCH, n_sequences=1, n_outputs=1, n_threads=1, exact=exact)
        chats = [f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n" for prompt in prompts]
        texts.append([tuple(anew(model, tokens_of(model, chat), n_tokens)) for chat in chats])
    assert len(set(texts[0])) == len(prompts)
    assert texts[0] == texts[1]
