"""The scheduler with prompts on the disk: a job goes on from what another scheduler has computed, and says the same."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shimmy.engine.kv.prompt_files import PromptFiles, Stored
from shimmy.engine.kv.prompt_store import PromptStore, Scales
from shimmy.messages.model_info import PromptCacheStats
from tests.engine.fake_backend import FakeBackend
from tests.engine.schedule.harness import Harness, expected

LONG = "".join(chr(ord("a") + place * place % 26) for place in range(400))
OTHER = "".join(chr(ord("a") + place * place * place % 25) for place in range(300))
FAR_S = 10.0**9


class Disk:
    """Houses that share a folder, as a worker and the one that comes after it do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.traffic: list[PromptCacheStats] = []

    def harness(self, n_ctx: int = 2048, *, in_part: bool = True) -> Harness:
        backend = FakeBackend(n_ctx=n_ctx, n_batch=128)
        backend.can_rewind = in_part
        cache = PromptFiles(self.folder, 10**6, max_tokens=n_ctx, in_part=in_part)
        return Harness(backend, prompts=PromptStore(cache, self.key_of, backend, self.traffic.append))

    @staticmethod
    def key_of(scales: Scales) -> bytes:
        return repr(scales).encode().ljust(32)

    @property
    def n_files(self) -> int:
        return len(list(self.folder.glob("*.prompt")))

    @property
    def n_hits(self) -> int:
        return sum(traffic.n_hits for traffic in self.traffic)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def ended(disk: Disk, prompt: str, scales: Scales = ()) -> None:
    """A worker has done a job with `prompt` and ended."""
    harness = disk.harness()
    harness.submit(1, prompt, scales=scales)
    harness.run()
    harness.scheduler.store_all(FAR_S)


def test_a_job_goes_on_from_what_a_worker_before_computed(disk: Disk) -> None:
    ended(disk, LONG)
    assert disk.n_files == 1
    harness = disk.harness()
    prompt = LONG + expected(LONG) + "?"
    harness.submit(1, prompt)
    harness.run()
    assert harness.text(1) == expected(prompt)
    assert harness.finished(1).usage.n_cached == 407, "the last token of the reply has no cells"
    assert disk.traffic[-1] == PromptCacheStats(n_hits=1, n_tokens=407, read_bytes=407)


def test_only_a_part_of_it_may_be_of_use(disk: Disk) -> None:
    ended(disk, LONG)
    harness = disk.harness()
    prompt = LONG[:350] + "??"
    harness.submit(1, prompt)
    harness.run()
    assert harness.text(1) == expected(prompt)
    assert harness.finished(1).usage.n_cached == 350
    harness.submit(2, LONG + "!")
    harness.run()
    assert harness.text(2) == expected(LONG + "!")


def test_what_the_pool_has_more_of_is_not_read(disk: Disk) -> None:
    ended(disk, LONG)
    harness = disk.harness()
    harness.submit(1, LONG + OTHER)
    harness.run()
    assert disk.n_hits == 1
    harness.submit(2, LONG + OTHER + "?")
    harness.run()
    assert disk.n_hits == 1
    assert harness.finished(2).usage.n_cached == 700
    assert harness.text(2) == expected(LONG + OTHER + "?")


def test_jobs_that_begin_alike_read_it_once_and_share_it(disk: Disk) -> None:
    ended(disk, LONG)
    harness = disk.harness()
    for job_id in range(1, 5):
        harness.submit(job_id, f"{LONG}{job_id}")
    harness.run()
    for job_id in range(1, 5):
        assert harness.text(job_id) == expected(f"{LONG}{job_id}")
        assert harness.finished(job_id).usage.n_cached == 400
    assert disk.n_hits == 1


def test_a_job_that_wants_nothing_cached_gets_nothing(disk: Disk) -> None:
    ended(disk, LONG)
    harness = disk.harness()
    harness.submit(1, LONG + "?", cache_prompt=False)
    harness.submit(2, LONG + "!", n_logprobs=0, echo=True)
    harness.run()
    assert [harness.finished(job_id).usage.n_cached for job_id in (1, 2)] == [0, 0]
    assert harness.text(1) == expected(LONG + "?")
    assert disk.traffic == [PromptCacheStats(n_misses=1)], "only the first worker's job asked"


def test_cells_of_other_scales_are_not_taken(disk: Disk) -> None:
    ended(disk, LONG, (0.5,))
    harness = disk.harness()
    harness.submit(1, LONG + "?", scales=(1.0,))
    harness.run()
    assert (disk.n_hits, harness.text(1)) == (0, expected(LONG + "?", scales=(1.0,)))
    harness.backend.scales_of_stored = (0.5,)
    harness.submit(2, LONG + "?", scales=(0.5,))
    harness.run()
    assert (disk.n_hits, harness.text(2)) == (1, expected(LONG + "?", scales=(0.5,)))


def test_a_job_is_computed_where_what_was_read_cannot_be_loaded(disk: Disk) -> None:
    ended(disk, LONG)
    harness = disk.harness()
    harness.backend.can_load = False
    harness.submit(1, LONG + "?")
    harness.run()
    assert harness.text(1) == expected(LONG + "?")
    assert harness.finished(1).usage.n_cached == 0


def test_a_model_that_cannot_rewind_takes_all_of_it_or_nothing(disk: Disk) -> None:
    ended(disk, LONG)
    for prompt, n_cached in ((LONG + "?", 0), (LONG + expected(LONG) + "?", 407)):
        harness = disk.harness(in_part=False)
        harness.submit(1, prompt)
        harness.run()
        assert harness.text(1) == expected(prompt)
        assert harness.finished(1).usage.n_cached == n_cached


def test_a_full_pool_makes_room_for_it(disk: Disk) -> None:
    ended(disk, LONG)
    harness = disk.harness(n_ctx=600)
    harness.submit(1, OTHER)
    harness.run()
    harness.submit(2, LONG + "?")
    harness.run()
    assert harness.text(2) == expected(LONG + "?")
    assert harness.finished(2).usage.n_cached == 400


def test_what_is_evicted_goes_to_the_disk(disk: Disk) -> None:
    harness = disk.harness(n_ctx=600)
    harness.submit(1, LONG)
    harness.run()
    assert disk.n_files == 0
    harness.submit(2, OTHER)
    harness.run()
    assert harness.prompts is not None
    harness.prompts.flush(10)
    assert disk.n_files == 1
    harness.submit(3, LONG + "?")
    harness.run()
    assert harness.finished(3).usage.n_cached == 400
    assert harness.text(3) == expected(LONG + "?")


def test_at_leisure_one_is_stored_after_the_other(disk: Disk) -> None:
    harness = disk.harness(n_ctx=4096)
    assert not harness.scheduler.store_one()
    harness.submit(1, LONG)
    assert not harness.scheduler.store_one(), "somebody waits"
    harness.scheduler.step()
    assert not harness.scheduler.store_one(), "a job runs"
    harness.run()
    harness.submit(2, OTHER)
    harness.run()
    n_asked = 0
    while harness.scheduler.store_one():
        n_asked += 1
        assert harness.prompts is not None
        harness.prompts.flush(10)
    assert (n_asked, disk.n_files) == (2, 2)


def test_at_the_end_what_runs_is_stored_too_as_far_as_there_is_time(disk: Disk) -> None:
    harness = disk.harness()
    harness.submit(1, LONG, n_predict=100)
    for _ in range(8):
        harness.scheduler.step()
    assert harness.scheduler.n_running == 1
    harness.scheduler.store_all(-1.0)
    assert disk.n_files == 0
    harness.scheduler.store_all(FAR_S)
    assert disk.n_files == 1
    later = disk.harness()
    later.submit(1, LONG + "?")
    later.run()
    assert later.finished(1).usage.n_cached == 400
    assert later.text(1) == expected(LONG + "?")


@pytest.fixture
def may_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No file is read before it is set."""
    event, read = threading.Event(), PromptFiles.read

    def slowly(cache: PromptFiles, stored: Stored) -> memoryview | None:
        assert event.wait(10)
        return read(cache, stored)

    monkeypatch.setattr(PromptFiles, "read", slowly)
    yield event
    event.set()


def test_others_go_on_while_it_is_read(disk: Disk, may_read: threading.Event) -> None:
    ended(disk, LONG)
    harness = disk.harness()
    harness.submit(1, "short", n_predict=20)
    harness.scheduler.step()
    harness.submit(2, LONG + "?")
    harness.submit(3, "also short")
    for _ in range(12):
        harness.scheduler.step()
    assert harness.finished(3).usage.n_completion == 8, "who comes later need not wait for the disk either"
    assert len(harness.text(1)) > 10
    assert harness.scheduler.n_waiting == 1
    may_read.set()
    harness.run()
    assert [harness.text(job_id) for job_id in (1, 2, 3)] == [
        expected("short", 20), expected(LONG + "?"), expected("also short")
    ]  # fmt: skip
    assert harness.finished(2).usage.n_cached == 400


def test_a_job_that_is_cancelled_while_it_waits_leaves_nothing_behind(disk: Disk, may_read: threading.Event) -> None:
    ended(disk, LONG)
    harness = disk.harness()
    harness.submit(1, "short", n_predict=20)
    harness.scheduler.step()
    harness.submit(2, LONG + "?")
    harness.scheduler.step()
    harness.scheduler.cancel(2)
    may_read.set()
    harness.run()
    assert harness.text(1) == expected("short", 20)
    assert harness.samplers[2].is_closed
    while harness.scheduler.store_one():
        pass
    harness.submit(3, LONG + "!")
    harness.run()
    assert harness.text(3) == expected(LONG + "!")
