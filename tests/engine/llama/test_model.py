"""A real model: how it is loaded, what it is, the samplers it makes and the adapters it takes."""

import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama import binding, sampler_chain
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.errors import ModelUnavailable
from shimmy.messages.request import SamplingParams
from tests.engine.llama.generating import (
    EVERYTHING,
    GREEDY,
    LOOSE,
    N_BATCH,
    N_CTX,
    N_SEQUENCES,
    PROMPT,
    WIDE,
    anew,
    decode,
    generate,
    pick,
    sampler,
    tokens_of,
)
from tests.tiny_models import (
    N_EMBD,
    vocabulary,
    write_tiny_adapter,
    write_tiny_model,
)


def test_a_chain_with_all_stages_builds_and_samples(model: LlamaModel) -> None:
    names = [stage.name for stage in sampler_chain.chain(EVERYTHING, seed=1, n_ctx=model.n_ctx).stages]
    assert names == [
        *("penalties", "penalties", "dry", "top_n_sigma", "top_k", "min_p", "typical", "top_p", "min_p", "xtc"),
        *("temp_ext", "dist"),
    ]
    tokens = generate(model, tokens_of(model, PROMPT), 50, EVERYTHING)
    assert all(0 <= token < model.vocab.n_vocab for token in tokens)
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
    assert all(0 <= token < model.vocab.n_vocab for token in tokens)
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
    forbidden = tuple((token, -math.inf) for token in range(model.vocab.n_vocab) if token not in {5, 6})
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
    assert LlamaModel(path, cpu).vocab.n_vocab == len(vocabulary())


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
            assert binding.llama.llama_n_threads(model.backend._context) == n_threads
            assert binding.llama.llama_n_threads_batch(model.backend._context) == n_threads
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
