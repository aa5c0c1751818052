"""What goes to the disk and comes back, with a backend whose cells are the tokens themselves."""

import threading
from array import array
from collections.abc import Sequence
from pathlib import Path

import pytest

from shimmy.engine.kv.prompt_files import PromptFiles, Stored
from shimmy.engine.kv.prompt_store import PromptStore, Ready, Scales
from shimmy.messages.model_info import PromptCacheStats

PROMPT = [7 * place % 1000 for place in range(400)]


class FakeBackend:
    """Cells of sequences, four bytes for a token."""

    def __init__(self) -> None:
        self.cells: dict[int, list[int]] = {}
        self.n_saved = 0
        self.token_bytes = 4

    def save_sequence(self, sequence: int, n_tokens: int) -> list[bytes | memoryview] | None:
        self.n_saved += 1
        tokens = self.cells[sequence]
        return [array("i", tokens).tobytes()] if len(tokens) == n_tokens else None

    def load_sequence(self, sequence: int, n_tokens: int, data: memoryview) -> bool:
        self.cells[sequence] = array("i", data.tobytes()).tolist()
        return len(self.cells[sequence]) == n_tokens

    def sequence_bytes(self, sequence: int) -> int:
        return self.token_bytes * len(self.cells[sequence])


class Harness:
    def __init__(self, folder: Path, max_bytes: int = 10**6) -> None:
        self.backend = FakeBackend()
        self.told: list[PromptCacheStats] = []
        self.cache = PromptFiles(folder, max_bytes, max_tokens=4096)
        self.prompts = PromptStore(self.cache, self.key_of, self.backend, self.told.append)

    @staticmethod
    def key_of(scales: Scales) -> bytes | None:
        return None if scales == (0.5,) else bytes([len(scales)]) * 32

    def keep(
        self, tokens: list[int], scales: Scales = (), *, is_urgent: bool = False, held: list[int] | None = None
    ) -> bool:
        self.backend.cells[0] = tokens if held is None else held
        is_kept = self.prompts.keep(tokens, scales, 0, is_urgent=is_urgent)
        self.prompts.flush(10)
        return is_kept

    def fetch(self, prompt: Sequence[int], scales: Scales = (), n_resident: int = 0) -> Ready | None:
        assert not self.prompts.is_coming(prompt, scales, n_resident, wait=True)
        return self.prompts.take(prompt, scales, n_resident)


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


def test_what_was_kept_comes_back(harness: Harness, tmp_path: Path) -> None:
    assert harness.keep(PROMPT)
    later = Harness(tmp_path)
    ready = later.fetch([*PROMPT, 5, 6])
    assert ready is not None
    assert (ready.tokens, ready.n_tokens) == (PROMPT, 400)
    assert later.backend.load_sequence(3, 400, ready.cells)
    assert later.backend.cells[3] == PROMPT
    assert later.told == [PromptCacheStats(n_hits=1, n_tokens=400, read_bytes=1600)]


def test_without_threads_prompts_are_read_at_once_and_not_kept(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot_start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    assert harness.keep(PROMPT)
    monkeypatch.setattr(threading.Thread, "start", cannot_start)
    later = Harness(tmp_path)
    ready = later.fetch([*PROMPT, 5, 6])
    assert ready is not None
    assert ready.n_tokens == 400
    assert not later.keep([token + 1 for token in PROMPT])


def test_a_part_of_it_does_for_a_prompt_that_goes_on_otherwise(harness: Harness) -> None:
    harness.keep(PROMPT)
    ready = harness.fetch([*PROMPT[:300], 5, 6, 7])
    assert ready is not None
    assert (ready.tokens, ready.n_tokens) == (PROMPT, 300)


@pytest.mark.parametrize(
    ("prompt", "n_resident", "is_miss"),
    [
        ([5, *PROMPT], 0, True),
        ([*PROMPT, 5], 272, True),  # 128 tokens are gained
        ([*PROMPT, 5], 273, False),
        ([*PROMPT, *PROMPT], 273, True),  # there is more to compute, of which the disk has little
        (PROMPT[:200], 0, True),
        (PROMPT[:100], 0, False),
    ],
)
def test_what_saves_little_is_not_read(harness: Harness, prompt: list[int], n_resident: int, is_miss: bool) -> None:
    harness.keep(PROMPT)
    ready = harness.fetch(prompt, n_resident=n_resident)
    is_hit = n_resident == 272
    assert (ready is not None) is is_hit
    assert [told for told in harness.told if told.n_misses] == (
        [PromptCacheStats(n_misses=1)] * (is_miss and not is_hit)
    )


def test_a_long_file_is_not_read_for_a_short_beginning(harness: Harness) -> None:
    long = [*PROMPT, *range(3000)]
    harness.keep(long)
    assert harness.fetch([*PROMPT, 5]) is None
    assert harness.fetch([*long[:1000], 5]) is not None


def test_other_scales_make_other_cells(harness: Harness) -> None:
    harness.keep(PROMPT, (1.0,))
    assert harness.fetch([*PROMPT, 5]) is None
    assert harness.fetch([*PROMPT, 5], (1.0,)) is not None


def test_cells_of_a_file_nobody_knows_any_more_stay_out(harness: Harness) -> None:
    assert not harness.keep(PROMPT, (0.5,))
    assert harness.fetch([*PROMPT, 5], (0.5,)) is None


def test_what_is_there_already_is_not_copied_again(harness: Harness) -> None:
    assert harness.keep(PROMPT)
    assert not harness.keep(PROMPT)
    assert not harness.keep([*PROMPT, *range(100)])
    assert not harness.keep(PROMPT[:255])
    assert harness.backend.n_saved == 1
    assert harness.keep([*PROMPT, *range(1000, 1256)])
    assert harness.backend.n_saved == 2


def test_what_the_pool_has_lost_is_not_kept(harness: Harness) -> None:
    assert not harness.keep(PROMPT, held=PROMPT[:-1])


def test_what_takes_long_to_copy_waits_until_nothing_runs(harness: Harness) -> None:
    harness.cache.max_bytes = 10**9
    harness.backend.token_bytes = 10**5
    assert not harness.keep(PROMPT, is_urgent=True)
    assert harness.backend.n_saved == 0
    assert harness.keep(PROMPT)
    harness.backend.token_bytes = 1000
    assert harness.keep(PROMPT[::-1], is_urgent=True)


def test_what_is_larger_than_the_cache_is_not_even_copied(tmp_path: Path) -> None:
    harness = Harness(tmp_path, max_bytes=1000)
    assert not harness.keep(PROMPT)
    assert harness.backend.n_saved == 0


class SlowReads:
    """Lets each read go on when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        self.has_begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        read = PromptFiles.read

        def slowly(cache: PromptFiles, stored: Stored) -> memoryview | None:
            self.names.append(stored.name)
            self.has_begun.release()
            assert self.may_end.acquire(timeout=10)
            return read(cache, stored)

        monkeypatch.setattr(PromptFiles, "read", slowly)


def test_a_prompt_waits_while_others_run_and_all_that_want_one_file_read_it_once(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.keep(PROMPT)
    reads = SlowReads(monkeypatch)
    first, second = [*PROMPT, 5], [*PROMPT, 6]
    for prompt in (first, second, first):
        assert harness.prompts.is_coming(prompt, (), 0, wait=False)
    assert not harness.prompts.is_coming([5, *PROMPT], (), 0, wait=False), "others need not wait"
    reads.may_end.release()
    assert not harness.prompts.is_coming(first, (), 0, wait=True)
    assert harness.prompts.take(first, (), 0) is not None
    # The first one holds the cells by now, and the second shares them.
    assert not harness.prompts.is_coming(second, (), 400, wait=False)
    assert harness.prompts.take(second, (), 400) is None
    assert len(reads.names) == 1


def test_one_file_is_read_after_the_other(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    other = PROMPT[::-1]
    harness.keep(PROMPT)
    harness.keep(other)
    reads = SlowReads(monkeypatch)
    assert harness.prompts.is_coming([*PROMPT, 5], (), 0, wait=False)
    assert reads.has_begun.acquire(timeout=10)
    assert harness.prompts.is_coming([*other, 5], (), 0, wait=False)
    assert len(reads.names) == 1
    reads.may_end.release(2)
    assert not harness.prompts.is_coming([*PROMPT, 5], (), 0, wait=True)
    assert harness.prompts.take([*PROMPT, 5], (), 0) is not None
    assert not harness.prompts.is_coming([*other, 5], (), 0, wait=True)
    assert harness.prompts.take([*other, 5], (), 0) is not None
    assert len(reads.names) == 2


def test_what_nobody_came_for_gives_way(harness: Harness) -> None:
    other = PROMPT[::-1]
    harness.keep(PROMPT)
    harness.keep(other)
    assert not harness.prompts.is_coming([*PROMPT, 5], (), 0, wait=True)
    ready = harness.fetch([*other, 5])
    assert ready is not None
    assert ready.tokens == other
    harness.prompts.is_coming([*PROMPT, 5], (), 0, wait=True)
    harness.prompts.rest()
    assert harness.prompts.take([*PROMPT, 5], (), 0) is None


def test_a_damaged_file_is_a_miss_and_nobody_waits_for_it_again(harness: Harness, tmp_path: Path) -> None:
    harness.keep(PROMPT)
    (path,) = tmp_path.glob("*.prompt")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert harness.fetch([*PROMPT, 5]) is None
    assert harness.told[-1] == PromptCacheStats(n_misses=1)
    assert not harness.prompts.is_coming([*PROMPT, 5], (), 0, wait=False)
    assert not path.exists()
