"""What is told of a load while the system reads the model's files."""

import mmap
import threading
from pathlib import Path

import pytest

from shimmy.engine import load_progress
from shimmy.engine.load_progress import progress_told
from shimmy.messages.model_info import LoadProgress

_HALF_BYTES = 4 << 20


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "1.gguf", tmp_path / "2.gguf"]
    for path in paths:
        path.write_bytes(b"x" * _HALF_BYTES)
    return paths


class Told:
    """What was told, and a wait for more."""

    def __init__(self) -> None:
        self.all: list[LoadProgress] = []
        self._was_told = threading.Condition()

    def __call__(self, progress: LoadProgress) -> None:
        with self._was_told:
            self.all.append(progress)
            self._was_told.notify_all()

    def wait(self, share: float) -> None:
        with self._was_told:
            assert self._was_told.wait_for(lambda: bool(self.all) and self.all[-1].share >= share, 30)


def test_the_pages_that_were_read_of_all_files_are_told(monkeypatch: pytest.MonkeyPatch, files: list[Path]) -> None:
    monkeypatch.setattr(load_progress, "_FIRST_S", 0.01)
    monkeypatch.setattr(load_progress, "_EVERY_S", 0.01)
    told = Told()
    with files[0].open("rb") as first, files[1].open("rb") as second, progress_told(files, told):
        maps = []
        for file in (first, second):
            flags = mmap.MAP_PRIVATE | mmap.MAP_POPULATE
            maps.append(mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ))
            told.wait(len(maps) / 2 - 0.05)
    n_told = len(told.all)
    assert {progress.total_bytes for progress in told.all} == {2 * _HALF_BYTES}
    shares = [progress.share for progress in told.all]
    assert shares == sorted(shares)
    assert shares[-1] <= 1
    for mapped in maps:
        mapped.close()
    assert len(told.all) == n_told, "nothing is told of a load that is over"


def test_a_load_that_is_soon_done_says_nothing(files: list[Path]) -> None:
    told = Told()
    with progress_told(files, told):
        pass
    assert told.all == []
    assert "progress" not in {thread.name for thread in threading.enumerate()}


def test_a_load_goes_on_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch, files: list[Path]) -> None:
    def refuse(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    told = Told()
    with progress_told(files, told):
        pass
    assert told.all == []
