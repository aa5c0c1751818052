"""The scheduler with prompts on the disk: a job goes on from what another scheduler has computed, and says the same."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shimmy.engine.kv.prompt_files import PromptCache, Stored
from shimmy.engine.kv.prompt_store import PromptStore, Scales
from shimmy.messages.model_info import PromptCacheStats
from tests.engine.fake_backend import FakeBackend
from tests.engine.schedule.test_scheduler import House, expected

LONG = "".join(chr(ord("a") + place * place % 26) for place in range(400))
OTHER = "".join(chr(ord("a") + place * place * place % 25) for place in range(300))
FAR_S = 10.0**9


class Disk:
    """Houses that share a folder, as a worker and the one that comes after it do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.traffic: list[PromptCacheStats] = []

    def house(self, n_ctx: int = 2048, *, in_part: bool = True) -> House:
        backend = FakeBackend(n_ctx=n_ctx, n_batch=128)
        backend.can_rewind = in_part
        cache = PromptCache(self.folder, 10**6, max_tokens=n_ctx, in_part=in_part)
        return House(backend, prompts=PromptStore(cache, self.key_of, backend, self.traffic.append))

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
    house = disk.house()
    house.submit(1, prompt, scales=scales)
    house.run()
    house.scheduler.store_all(FAR_S)


def test_a_job_goes_on_from_what_a_worker_before_computed(disk: Disk) -> None:
    ended(disk, LONG)
    assert disk.n_files == 1
    house = disk.house()
    prompt = LONG + expected(LONG) + "?"
    house.submit(1, prompt)
    house.run()
    assert house.text(1) == expected(prompt)
    assert house.finished(1).usage.n_cached == 407, "the last token of the reply has no cells"
    assert disk.traffic[-1] == PromptCacheStats(n_hits=1, n_tokens=407, read_bytes=407)


def test_only_a_part_of_it_may_be_of_use(disk: Disk) -> None:
    ended(disk, LONG)
    house = disk.house()
    prompt = LONG[:350] + "??"
    house.submit(1, prompt)
    house.run()
    assert house.text(1) == expected(prompt)
    assert house.finished(1).usage.n_cached == 350
    house.submit(2, LONG + "!")
    house.run()
    assert house.text(2) == expected(LONG + "!")


def test_what_the_pool_has_more_of_is_not_read(disk: Disk) -> None:
    ended(disk, LONG)
    house = disk.house()
    house.submit(1, LONG + OTHER)
    house.run()
    assert disk.n_hits == 1
    house.submit(2, LONG + OTHER + "?")
    house.run()
    assert disk.n_hits == 1
    assert house.finished(2).usage.n_cached == 700
    assert house.text(2) == expected(LONG + OTHER + "?")


def test_jobs_that_begin_alike_read_it_once_and_share_it(disk: Disk) -> None:
    ended(disk, LONG)
    house = disk.house()
    for job_id in range(1, 5):
        house.submit(job_id, f"{LONG}{job_id}")
    house.run()
    for job_id in range(1, 5):
        assert house.text(job_id) == expected(f"{LONG}{job_id}")
        assert house.finished(job_id).usage.n_cached == 400
    assert disk.n_hits == 1


def test_a_job_that_wants_nothing_cached_gets_nothing(disk: Disk) -> None:
    ended(disk, LONG)
    house = disk.house()
    house.submit(1, LONG + "?", cache_prompt=False)
    house.submit(2, LONG + "!", n_logprobs=0, echo=True)
    house.run()
    assert [house.finished(job_id).usage.n_cached for job_id in (1, 2)] == [0, 0]
    assert house.text(1) == expected(LONG + "?")
    assert disk.traffic == [PromptCacheStats(n_misses=1)], "only the first worker's job asked"


def test_cells_of_other_scales_are_not_taken(disk: Disk) -> None:
    ended(disk, LONG, (0.5,))
    house = disk.house()
    house.submit(1, LONG + "?", scales=(1.0,))
    house.run()
    assert (disk.n_hits, house.text(1)) == (0, expected(LONG + "?", scales=(1.0,)))
    house.backend.scales_of_stored = (0.5,)
    house.submit(2, LONG + "?", scales=(0.5,))
    house.run()
    assert (disk.n_hits, house.text(2)) == (1, expected(LONG + "?", scales=(0.5,)))


def test_a_job_is_computed_where_what_was_read_cannot_be_loaded(disk: Disk) -> None:
    ended(disk, LONG)
    house = disk.house()
    house.backend.can_load = False
    house.submit(1, LONG + "?")
    house.run()
    assert house.text(1) == expected(LONG + "?")
    assert house.finished(1).usage.n_cached == 0


def test_a_model_that_cannot_rewind_takes_all_of_it_or_nothing(disk: Disk) -> None:
    ended(disk, LONG)
    for prompt, n_cached in ((LONG + "?", 0), (LONG + expected(LONG) + "?", 407)):
        house = disk.house(in_part=False)
        house.submit(1, prompt)
        house.run()
        assert house.text(1) == expected(prompt)
        assert house.finished(1).usage.n_cached == n_cached


def test_a_full_pool_makes_room_for_it(disk: Disk) -> None:
    ended(disk, LONG)
    house = disk.house(n_ctx=600)
    house.submit(1, OTHER)
    house.run()
    house.submit(2, LONG + "?")
    house.run()
    assert house.text(2) == expected(LONG + "?")
    assert house.finished(2).usage.n_cached == 400


def test_what_is_evicted_goes_to_the_disk(disk: Disk) -> None:
    house = disk.house(n_ctx=600)
    house.submit(1, LONG)
    house.run()
    assert disk.n_files == 0
    house.submit(2, OTHER)
    house.run()
    assert house.prompts is not None
    house.prompts.flush(10)
    assert disk.n_files == 1
    house.submit(3, LONG + "?")
    house.run()
    assert house.finished(3).usage.n_cached == 400
    assert house.text(3) == expected(LONG + "?")


def test_at_leisure_one_is_stored_after_the_other(disk: Disk) -> None:
    house = disk.house(n_ctx=4096)
    assert not house.scheduler.store_one()
    house.submit(1, LONG)
    assert not house.scheduler.store_one(), "somebody waits"
    house.scheduler.step()
    assert not house.scheduler.store_one(), "a job runs"
    house.run()
    house.submit(2, OTHER)
    house.run()
    n_asked = 0
    while house.scheduler.store_one():
        n_asked += 1
        assert house.prompts is not None
        house.prompts.flush(10)
    assert (n_asked, disk.n_files) == (2, 2)


def test_at_the_end_what_runs_is_stored_too_as_far_as_there_is_time(disk: Disk) -> None:
    house = disk.house()
    house.submit(1, LONG, n_predict=100)
    for _ in range(8):
        house.scheduler.step()
    assert house.scheduler.n_running == 1
    house.scheduler.store_all(-1.0)
    assert disk.n_files == 0
    house.scheduler.store_all(FAR_S)
    assert disk.n_files == 1
    later = disk.house()
    later.submit(1, LONG + "?")
    later.run()
    assert later.finished(1).usage.n_cached == 400
    assert later.text(1) == expected(LONG + "?")


@pytest.fixture
def may_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No file is read before it is set."""
    event, read = threading.Event(), PromptCache.read

    def slowly(cache: PromptCache, stored: Stored) -> memoryview | None:
        assert event.wait(10)
        return read(cache, stored)

    monkeypatch.setattr(PromptCache, "read", slowly)
    yield event
    event.set()


def test_others_go_on_while_it_is_read(disk: Disk, may_read: threading.Event) -> None:
    ended(disk, LONG)
    house = disk.house()
    house.submit(1, "short", n_predict=20)
    house.scheduler.step()
    house.submit(2, LONG + "?")
    house.submit(3, "also short")
    for _ in range(12):
        house.scheduler.step()
    assert house.finished(3).usage.n_completion == 8, "who comes later need not wait for the disk either"
    assert len(house.text(1)) > 10
    assert house.scheduler.n_waiting == 1
    may_read.set()
    house.run()
    assert [house.text(job_id) for job_id in (1, 2, 3)] == [
        expected("short", 20), expected(LONG + "?"), expected("also short")
    ]  # fmt: skip
    assert house.finished(2).usage.n_cached == 400


def test_a_job_that_is_cancelled_while_it_waits_leaves_nothing_behind(disk: Disk, may_read: threading.Event) -> None:
    ended(disk, LONG)
    house = disk.house()
    house.submit(1, "short", n_predict=20)
    house.scheduler.step()
    house.submit(2, LONG + "?")
    house.scheduler.step()
    house.scheduler.cancel(2)
    may_read.set()
    house.run()
    assert house.text(1) == expected("short", 20)
    assert house.samplers[2].is_closed
    while house.scheduler.store_one():
        pass
    house.submit(3, LONG + "!")
    house.run()
    assert house.text(3) == expected(LONG + "!")
