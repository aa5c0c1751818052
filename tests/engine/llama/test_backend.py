"""The context for text of a real model: what it computes depends on nothing it computed before."""

import ctypes
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from shimmy.engine.llama.binding import function, llama, log
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.errors import ModelUnavailable, OutOfMemory
from shimmy.system import memory
from tests.e2e.harness import LONG_PROMPT, PROMPTS, STEADY_SEED
from tests.engine.llama.generating import (
    GREEDY,
    N_BATCH,
    N_CTX,
    N_SEQUENCES,
    PROMPT,
    anew,
    decode,
    generate,
    pick,
    sampler,
    tokens_of,
)
from tests.tiny_models import (
    BOS_TOKEN,
    N_EMBD,
    UINT32,
    UNKNOWN_TOKEN,
    Tensor,
    write_tiny_adapter,
    write_tiny_model,
)


def test_greedy_text_is_the_same_alone_and_beside_others(model: LlamaModel) -> None:
    prompts = [tokens_of(model, text) for text in ("hello", "the user and the world", "system", "9 8 7 " * 6)]
    alone = [anew(model, prompt, 12) for prompt in prompts]
    assert len(set(map(tuple, alone))) == len(prompts), "a text that does not depend on its prompt proves nothing"
    model.backend.forget(0, 0)

    chains = [sampler(model, GREEDY) for _ in prompts]
    histories = [list(prompt) for prompt in prompts]
    n_decoded = [0] * len(prompts)
    while any(len(history) < len(prompt) + 12 for history, prompt in zip(histories, prompts, strict=True)):
        model.backend.batch.clear()
        rows = {}
        # Prompts come in by pieces of three, so the short ones generate beside the long one.
        for sequence, history in enumerate(histories):
            chunk = history[n_decoded[sequence] :][:3]
            is_last = n_decoded[sequence] + len(chunk) == len(history)
            row = model.backend.batch.add(chunk, n_decoded[sequence], sequence, n_outputs=int(is_last))
            n_decoded[sequence] += len(chunk)
            if is_last:
                rows[sequence] = row
        assert model.backend.decode() == 0
        for sequence, row in rows.items():
            histories[sequence].append(chains[sequence].sample(row))
    for chain in chains:
        chain.close()

    together = [history[len(prompt) :][:12] for history, prompt in zip(histories, prompts, strict=True)]
    assert together == alone


def test_a_decode_like_the_one_before_has_its_graph(model: LlamaModel) -> None:
    """On which CUDA's graphs hang: one that is laid out anew is recorded anew."""
    backend = model.backend
    perf = function("llama_perf_context", llama.llama_perf_context_data, ctypes.c_void_p)
    backend.warm_up()
    before = perf(backend._context).n_reused
    for position in range(20):
        backend.batch.clear()
        for sequence in range(2):
            backend.batch.add([BOS_TOKEN], position, sequence, n_outputs=1)
        assert backend.decode() == 0
    assert perf(backend._context).n_reused - before >= 18


def test_a_kept_prefix_gives_the_same_text_as_computing_it_anew(model: LlamaModel) -> None:
    first = tokens_of(model, "the user and the assistant")
    second = [*first, *model.vocab.tokenize(" hello world", add_special=False, parse_special=False)]
    other = [*first[:4], *model.vocab.tokenize(" system", add_special=False, parse_special=False)]
    expected_second, expected_other = anew(model, second, 12), anew(model, other, 12)
    model.backend.forget(0, 0)
    generate(model, first, 12)
    assert model.backend.forget(0, len(first))
    assert generate(model, second, 12, n_kept=len(first)) == expected_second
    assert model.backend.forget(0, 4)
    assert generate(model, other, 12, n_kept=4) == expected_other


def test_forgetting_everything_leaves_nothing_of_it(model: LlamaModel) -> None:
    prompt = tokens_of(model, PROMPT)
    expected = generate(model, prompt, 12)
    assert model.backend.forget(0, 0)
    generate(model, tokens_of(model, "something else"), 12)
    assert model.backend.forget(0, 0)
    assert generate(model, prompt, 12) == expected


def test_a_prompt_in_chunks_is_the_prompt_at_once(model: LlamaModel) -> None:
    prompt = tokens_of(model, "hello world and the user " * 2)[:N_BATCH]
    expected = anew(model, prompt, 8)
    model.backend.forget(0, 0)
    for start in range(0, len(prompt) - 1, 7):
        decode(model, prompt[start : min(start + 7, len(prompt) - 1)], start)
    assert generate(model, prompt, 8, n_kept=len(prompt) - 1) == expected


def test_a_full_pool_says_so_and_goes_on_when_there_is_room(model: LlamaModel) -> None:
    assert model.n_ctx == N_SEQUENCES * N_BATCH
    for sequence in range(N_SEQUENCES):
        decode(model, [UNKNOWN_TOKEN] * N_BATCH, 0, sequence)
    model.backend.batch.clear()
    model.backend.batch.add([BOS_TOKEN], N_BATCH, 0, n_outputs=1)
    assert model.backend.decode() == 1
    model.backend.forget(2, 0)
    assert model.backend.decode() == 0


def test_what_is_resident_moves_with_a_pool_that_grows_or_shrinks(model: LlamaModel) -> None:
    first = tokens_of(model, "the user and the assistant")
    other = [*first[:4], *model.vocab.tokenize(" system", add_special=False, parse_special=False)]
    expected_first, expected_other = anew(model, first, 12), anew(model, other, 12)
    model.backend.forget(0, 0)
    decode(model, first[:-1])
    assert model.backend.share(0, 1, 4)
    for n_cells, n_open in ((512, N_SEQUENCES), (256, 2), (512, N_SEQUENCES)):
        assert model.backend.resize(n_cells, n_open)
        assert (model.backend.n_cells, model.backend.n_open) == (n_cells, n_open)
    assert generate(model, first, 12, n_kept=len(first) - 1) == expected_first
    assert model.backend.resize(256, N_SEQUENCES)
    assert generate(model, other, 12, sequence=1, n_kept=4) == expected_other
    model.backend.forget(0, len(first))
    assert generate(model, first[:-1], 1, n_kept=0, sequence=2) == anew(model, first[:-1], 1)


def test_a_pool_is_opened_small_where_it_can_grow(tiny_model: Path, cpu: CpuBackend) -> None:
    model = LlamaModel(tiny_model, cpu)
    model.open_context(n_ctx=2048, first=(256, 2), n_batch=N_BATCH, n_sequences=N_SEQUENCES, n_outputs=32, n_threads=1)
    assert (model.n_ctx, model.backend.n_cells, model.n_sequences, model.backend.n_open) == (2048, 256, N_SEQUENCES, 2)
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
        assert model.backend.n_cells == n_cells


@pytest.mark.parametrize(
    ("n_original", "n_booked", "n_ctx", "n_cells"),
    [(None, 512, 4096, 256), (1024, 512, 1024, 256), (256, 512, 512, 512)],
)
def test_a_pool_that_cannot_grow_has_what_is_booked(
    n_original: int | None, n_booked: int, n_ctx: int, n_cells: int, tmp_path: Path, cpu: CpuBackend
) -> None:
    more = [] if n_original is None else [("llama.rope.scaling.original_context_length", UINT32, n_original)]
    model = LlamaModel(write_tiny_model(tmp_path, more=more), cpu)
    model.book(n_booked, 1000, 2)
    model.open_context(n_ctx=4096, first=(256, 2), n_batch=N_BATCH, n_sequences=N_SEQUENCES, n_outputs=32, n_threads=1)
    assert (model.n_ctx, model.backend.n_booked, model.backend.n_cells) == (n_ctx, n_booked, n_cells)


def test_a_pool_grows_beyond_what_is_booked_where_there_is_memory(
    tiny_model: Path, cpu: CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LlamaModel(tiny_model, cpu)
    model.book(512, 1_000_000, 2)
    model.open_context(n_ctx=4096, first=(256, 2), n_batch=N_BATCH, n_sequences=N_SEQUENCES, n_outputs=32, n_threads=1)
    left = 0
    monkeypatch.setattr(memory, "free_bytes", lambda: left)
    assert model.backend.resize(512, 2), "booked"
    assert not model.backend.resize(1024, 2)
    assert model.backend.n_cells == 512
    left = 10**9
    assert model.backend.resize(1024, 2)
    assert not model.backend.resize(2048, 2)
    assert model.backend.resize(512, 2), "smaller"


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
    assert model.backend.has_numbers(row)
    expected = pick(model, row, GREEDY)
    model.backend.forget(0, 0)
    model.set_scales((1.0,))
    assert not model.backend.has_numbers(
        decode(model, prompt[:10], 0, 1)
    )  # 64 cells of one sequence would be skipped as one
    model.set_scales((0.0,))
    assert not model.backend.has_numbers(decode(model, prompt)), "this is why the pool has to be wiped"
    model.backend.wipe()
    assert pick(model, decode(model, prompt), GREEDY) == expected
    model.backend.wipe()
    model.set_scales((1.0,))
    with pytest.raises(ModelUnavailable, match="no numbers"):
        model.warm_up()
    model.set_scales((0.0,))
    assert pick(model, decode(model, prompt), GREEDY) == expected, "a warm-up leaves the pool clean"


def test_a_pool_grows_with_its_adapters_as_they_are_set(tiny_model: Path, cpu: CpuBackend, tmp_path: Path) -> None:
    model = LlamaModel(tiny_model, cpu)
    for seed in (1, 2):
        model.add_adapter(write_tiny_adapter(tmp_path, seed=seed))
    model.open_context(n_ctx=2048, first=(256, 2), n_batch=N_BATCH, n_sequences=N_SEQUENCES, n_outputs=32, n_threads=1)
    prompt = tokens_of(model, PROMPT)
    for n_cells in (512, 256):
        model.set_scales((0.0, 1.0))
        adapted = anew(model, prompt, 12)
        assert model.backend.resize(n_cells, 2)
        assert anew(model, prompt, 12) == adapted
    model.set_scales((0.0, 0.0))
    plain = anew(model, prompt, 12)
    assert plain != adapted
    for n_cells in (512, 256):
        model.remove_adapter(0)
        assert model.backend.resize(n_cells, 2)
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
        model.open_context(
            n_ctx=4096, n_batch=N_BATCH, n_sequences=1, n_outputs=1, n_threads=1, kv_type="f32" if exact else "f16"
        )
        chats = [f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n" for prompt in prompts]
        texts.append([tuple(anew(model, tokens_of(model, chat), n_tokens)) for chat in chats])
    assert len(set(texts[0])) == len(prompts)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("reason", "kind", "says_what_to_do"),
    [
        ("K cache type q8_0 with block size 32 does not divide n_embd_head_k=16", ModelUnavailable, True),
        ("failed to allocate buffer for kv cache", OutOfMemory, False),
    ],
)
def test_another_type_of_cells_is_advised_where_it_is_not_memory_that_lacks(
    reason: str, kind: type[ModelUnavailable], says_what_to_do: bool, tiny_model: Path, cpu: CpuBackend,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    model = LlamaModel(tiny_model, cpu)
    monkeypatch.setattr(llama, "llama_init_from_model", lambda *_: None)
    monkeypatch.setattr(log, "reason", lambda: reason)
    with pytest.raises(ModelUnavailable) as raised:
        model.open_context(n_ctx=256, n_batch=32, n_sequences=1, n_outputs=1, n_threads=1, kv_type="q8_0")
    assert type(raised.value) is kind
    assert reason in raised.value.message
    assert ("--kv-type f16" in raised.value.message) == says_what_to_do
    model.close()
