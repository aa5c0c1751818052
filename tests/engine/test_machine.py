import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from shimmy.engine import machine
from shimmy.engine.machine import n_physical_cores

Computer = Callable[..., None]


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Computer:
    """Puts another computer under the test: which threads share a core, what is allowed, and cgroup's limit."""

    def build(cores: Iterable[str], allowed: Iterable[int], limit: str | None = None) -> None:
        for siblings in cores:
            for processor in siblings.split(","):
                folder = tmp_path / f"cpu{processor}/topology"
                folder.mkdir(parents=True)
                (folder / "thread_siblings_list").write_text(siblings + "\n")
        if limit is not None:
            (tmp_path / "cpu.max").write_text(limit + "\n")
        monkeypatch.setattr(machine, "_CPU_FOLDER", tmp_path)
        monkeypatch.setattr(machine, "_CPU_MAX", tmp_path / "cpu.max")
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(allowed))
        monkeypatch.setattr(os, "cpu_count", lambda: 64)

    return build


def test_two_threads_of_a_core_count_once(computer: Computer) -> None:
    computer(["0,4", "1,5", "2,6", "3,7"], range(8))
    assert n_physical_cores() == 4


def test_only_what_this_process_may_use_counts(computer: Computer) -> None:
    computer(["0,4", "1,5", "2,6", "3,7"], [0, 4, 5])
    assert n_physical_cores() == 2


def test_without_topology_every_processor_is_a_core(computer: Computer) -> None:
    computer([], range(6))
    assert n_physical_cores() == 6


@pytest.mark.parametrize(
    ("limit", "n_cores"),
    [
        ("max 100000", 4), ("200000 100000", 2), ("350000 100000", 3), ("50000 100000", 1), ("900000 100000", 4),
        ("", 4), ("nonsense", 4), (None, 4),
    ],
)  # fmt: skip
def test_a_container_leaves_whole_cores_and_at_least_one(limit: str | None, n_cores: int, computer: Computer) -> None:
    computer(["0", "1", "2", "3"], range(4), limit)
    assert n_physical_cores() == n_cores


def test_a_system_without_affinity_has_all_its_processors(computer: Computer, monkeypatch: pytest.MonkeyPatch) -> None:
    computer(["0,1", "2,3"], [])
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert n_physical_cores() == 2
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert n_physical_cores() == 1


def test_this_machine_has_a_core() -> None:
    assert 1 <= n_physical_cores() <= (os.cpu_count() or 1)
