"""What a model takes is reckoned from its header; what is left comes from the system's files."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shimmy.catalog.catalog import Model
from shimmy.formats.pooling_type import EmbeddingPlan, plan
from shimmy.pool import memory_estimate
from shimmy.pool.memory_estimate import MemoryEstimate, estimate
from shimmy.system import cgroups, memory
from shimmy.system.memory import shown
from shimmy.wire.worker_options import MOVING_SHARE
from tests.fakes import model

# SmolLM2-135M and gemma-3-270m, as their headers have them; and what a worker of each was seen to take, beside its
# weights, with eight jobs (Pss_Anon and its code): with 2,048 and 8,192 tokens of context.
SMOLLM2 = replace(model(), size_bytes=98_362_432, n_vocab=49_152, n_embd=576, n_ff=1536, n_heads=9, n_kv=11_520)
GEMMA = replace(model(), size_bytes=253_113_024, n_vocab=262_144, n_embd=640, n_ff=2048, n_heads=4, n_kv=9_216)
SEEN = [(SMOLLM2, 2048, 212e6), (SMOLLM2, 8192, 349e6), (GEMMA, 2048, 428e6), (GEMMA, 8192, 534e6)]


def reckoned(of: Model, n_ctx: int, n_sequences: int = 32, embeddings: EmbeddingPlan | None = None) -> MemoryEstimate:
    return estimate(of, n_ctx=n_ctx, n_batch=512, n_sequences=n_sequences, n_outputs=32, plan=embeddings)


@pytest.mark.parametrize(("of", "n_ctx", "seen_bytes"), SEEN)
def test_what_is_reckoned_is_a_little_more_than_what_was_seen(of: Model, n_ctx: int, seen_bytes: float) -> None:
    seen_bytes *= 2**20 / 10**6  # the figures are MiB
    assert 1.0 <= reckoned(of, n_ctx).total / seen_bytes <= 1.2


def test_kv_memory_is_that_of_llama_cpp() -> None:
    assert reckoned(SMOLLM2, 8192).kv == 180 * 2**20
    assert reckoned(SMOLLM2, 8192).weights == 98_362_432


@pytest.mark.parametrize(("of", "usual_mib", "exact_mib"), [(SMOLLM2, 21.51, 166.38), (GEMMA, 34.16, 105.97)])
def test_attention_that_is_exact_takes_scores_of_each_head(of: Model, usual_mib: float, exact_mib: float) -> None:
    """The compute buffers of llama.cpp for 512 rows in 8,192 cells, with flash attention and without."""
    usual, exact = (
        estimate(of, n_ctx=8192, n_batch=512, n_sequences=32, n_outputs=32, kv_type=kv_type)
        for kv_type in ("f16", "f32")
    )
    assert exact.kv == 2 * usual.kv
    more = exact.compute - usual.compute - int(MOVING_SHARE * usual.kv)
    assert 1.0 <= more / 2**20 / (exact_mib - usual_mib) <= 1.3


def test_a_recurrent_state_is_one_for_each_sequence() -> None:
    mamba = replace(model(), n_kv=0, n_state=1_000)
    assert reckoned(mamba, 8192, n_sequences=4).kv == 4 * 1_000 * 4


def test_layers_that_select_tokens_score_all_of_them() -> None:
    """For 512 rows in 131,072 cells a tiny DeepSeek V3.2 has a compute buffer of 514.9 MiB, and V3 one of 129.4."""
    plain = replace(model(), n_embd=64, n_ff=96, n_vocab=320)
    sizes = [reckoned(replace(plain, architecture=name), 131_072).compute for name in ("deepseek2", "deepseek32")]
    assert sizes[1] - sizes[0] == 3 * 128 * 2**20
    assert reckoned(replace(plain, architecture="glm-dsa"), 131_072).compute == sizes[1]


def test_layers_that_attend_to_blocks_have_masks_of_them() -> None:
    """For 512 rows in 32,768 cells a tiny MiniMax M3 of four heads of keys has a compute buffer of 609.7 MiB."""
    tiny = replace(model(), n_embd=64, n_ff=96, n_vocab=320)
    plain, blocks = (reckoned(replace(tiny, architecture=name), 32_768).compute for name in ("llama", "minimax-m3"))
    assert blocks - plain == (608 - 32) * 2**20


def test_embeddings_take_the_memory_of_their_context() -> None:
    # all-MiniLM-L6-v2 has no KV cache, and llama.cpp keeps room for the logits of every row, which nobody computes.
    minilm = replace(
        model(), size_bytes=91_000_000, n_ctx_train=512, n_vocab=30_522, n_embd=384, n_ff=1536, n_kv=0,
        is_embedding=True, is_causal=False, pooling="mean",
    )  # fmt: skip
    alone = reckoned(minilm, 8192, embeddings=plan(minilm, n_ctx=8192, n_batch=512))
    assert alone.kv == 0
    logits = 512 * 30_522 * 4
    assert logits < alone.compute < logits + memory_estimate.PROCESS_BYTES + 25e6
    text, both = (reckoned(SMOLLM2, 8192, embeddings=each) for each in (
        None, plan(SMOLLM2, n_ctx=8192, n_batch=512, embeddings=True),
    ))  # fmt: skip
    assert both.kv == 2 * text.kv
    assert both.compute > text.compute + 2 * 256 * 49_152 * 4


def test_figures_for_people() -> None:
    assert [shown(98_362_432), shown(1_250_000_000)] == ["98 MB", "1.2 GB"]


def test_this_process_takes_memory_and_another_one_nobody_knows() -> None:
    assert 10**6 < (memory.resident_bytes(os.getpid()) or 0) < 10**12
    assert memory.resident_bytes(2**30) is None


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Which control groups have a limit is looked up once; a test with others begins and ends without knowing any."""
    memory._limited_groups.cache_clear()
    yield
    memory._limited_groups.cache_clear()


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize(
    ("line", "limit", "usage", "folder"),
    [
        ("0::/box", "memory.max", "memory.current", "box"),
        ("0::/box/inner", "memory.max", "memory.current", "box"),
        ("5:cpu,memory:/box", "memory.limit_in_bytes", "memory.usage_in_bytes", "memory/box"),
        ("0::/not/visible/here", "memory.max", "memory.current", ""),
    ],
)
def test_the_limit_of_a_control_group_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, limit: str, usage: str, folder: str
) -> None:
    group = tmp_path / "cgroup" / folder
    group.mkdir(parents=True)
    (group / limit).write_text("1000000\n")
    (group / usage).write_text("400000\n")
    (group / "memory.stat").write_text("anon 1\nactive_file 20000\ninactive_file 30000\n")
    (tmp_path / "self").write_text(f"1:name=systemd:/\n{line}\n")
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 2000 kB\n")  # the true one changes all the time
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(cgroups, "_OWN", tmp_path / "self")
    assert memory.free_bytes() == 650_000
    (group / limit).write_text("max\n")
    memory._limited_groups.cache_clear()
    assert memory.free_bytes() == 2_048_000


@pytest.mark.usefixtures("forgetful")
def test_a_system_without_such_files_has_no_known_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "none")
    monkeypatch.setattr(cgroups, "_OWN", tmp_path / "none")
    assert memory.free_bytes() is None
