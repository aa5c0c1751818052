import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from shimmy.system import cgroups, cpu
from shimmy.system.cpu import n_physical_cores

Computer = Callable[..., None]


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Computer:
    """Puts another computer under the test: which threads share a core, what is allowed, and its control groups."""

    def build(
        cores: Iterable[str],
        allowed: Iterable[int],
        own_groups: str = "0::/\n",
        limits: Mapping[str, str] | None = None,
    ) -> None:
        """`own_groups` is what stands in /proc/self/cgroup, `limits` the files under /sys/fs/cgroup."""
        for siblings in cores:
            for processor in siblings.split(","):
                _write(tmp_path / f"cpu{processor}/topology/thread_siblings_list", siblings)
        for file, text in (limits or {}).items():
            _write(tmp_path / "groups" / file, text)
        _write(tmp_path / "own", own_groups)
        monkeypatch.setattr(cpu, "_CPU_FOLDER", tmp_path)
        monkeypatch.setattr(cgroups, "_ROOT", tmp_path / "groups")
        monkeypatch.setattr(cgroups, "_OWN", tmp_path / "own")
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(allowed))
        monkeypatch.setattr(os, "cpu_count", lambda: 64)

    return build


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


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
        ("150000 100000", 1), ("0 100000", 1), ("100000 0", 4), ("", 4), ("nonsense", 4),
    ],
)  # fmt: skip
def test_a_container_leaves_whole_cores_and_at_least_one(limit: str, n_cores: int, computer: Computer) -> None:
    computer(["0", "1", "2", "3"], range(4), limits={"cpu.max": limit})
    assert n_physical_cores() == n_cores


@pytest.mark.parametrize(
    ("own_groups", "limits", "n_cores"),
    [
        # Version 2: the own group, or any group above it; of several limits the least holds.
        ("0::/pod/box", {"pod/box/cpu.max": "200000 100000"}, 2),
        ("0::/pod/box", {"pod/cpu.max": "200000 100000", "pod/box/cpu.max": "max 100000"}, 2),
        ("0::/pod/box", {"pod/cpu.max": "500000 100000", "pod/box/cpu.max": "300000 100000"}, 3),
        ("0::/pod/box", {"pod/other/cpu.max": "100000 100000"}, 16),
        # A container that sees its own group as the root, under a path of its host.
        ("0::/system.slice/docker-1234.scope", {"cpu.max": "250000 100000"}, 2),
        # Version 1: a file for each figure, -1 for no limit, and other controllers beside this one.
        (
            "4:memory:/box\n3:cpu,cpuacct:/box",
            {"cpu/box/cpu.cfs_quota_us": "600000", "cpu/box/cpu.cfs_period_us": "100000"},
            6,
        ),
        (
            "3:cpu,cpuacct:/box",
            {
                "cpu/box/cpu.cfs_quota_us": "-1",
                "cpu/box/cpu.cfs_period_us": "100000",
                "cpu/cpu.cfs_quota_us": "150000",
                "cpu/cpu.cfs_period_us": "50000",
            },
            3,
        ),
        ("3:cpuset:/box", {"cpu/box/cpu.cfs_quota_us": "100000", "cpu/box/cpu.cfs_period_us": "100000"}, 16),
        ("nonsense", {"cpu.max": "100000 100000"}, 16),
        ("", {}, 16),
    ],
)  # fmt: skip
def test_the_limits_of_our_control_groups_hold(
    own_groups: str, limits: Mapping[str, str], n_cores: int, computer: Computer
) -> None:
    computer(map(str, range(16)), range(16), own_groups, limits)
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


@pytest.mark.parametrize(
    ("cores", "fast", "limits", "counts"),
    [
        (["0", "1", "2", "3"], None, {}, [4]),
        (["0,4", "1,5", "2,6", "3,7"], None, {}, [4, 8]),
        # Two performance cores with two threads each, and four others.
        (["0,1", "2,3", "4", "5", "6", "7"], "0-3", {}, [6, 2, 8]),
        (["0,1", "2,3", "4", "5", "6", "7"], "0,2", {}, [6, 2, 8]),
        (["0", "1"], "nonsense", {}, [2]),
        # Short trials would not feel a limit.
        (["0,4", "1,5", "2,6", "3,7"], None, {"cpu.max": "300000 100000"}, [3]),
        (["0,4", "1,5", "2,6", "3,7"], None, {"cpu.max": "400000 100000"}, [4]),
    ],
)
def test_other_numbers_of_threads_may_be_better(
    cores: list[str], fast: str | None, limits: Mapping[str, str], counts: list[int],
    computer: Computer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    n_processors = sum(len(siblings.split(",")) for siblings in cores)
    computer(cores, range(n_processors), limits=limits)
    monkeypatch.setattr(cpu, "_FAST_PROCESSORS", tmp_path / "fast")
    if fast is not None:
        _write(tmp_path / "fast", fast)
    assert cpu.thread_counts() == counts


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor\t: 0\nmodel\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel name\t: other\n", "AMD EPYC"),
        ("processor\t: 0\nCPU part\t: 0xd40\n", "0xd40"),
        ("", ""),
        (None, ""),
    ],
)
def test_a_processor_has_a_name(cpuinfo: str | None, name: str, tmp_path: Path) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert cpu.processor_name(tmp_path / "cpuinfo") == name
