"""Where drivers keep the programs that they compile."""

import os
from pathlib import Path

import pytest

from shimmy.engine.gpu import devices


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment, which is empty."""
    found: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", found)
    return found


def test_programs_of_drivers_are_kept_where_no_other_user_can_write(tmp_path: Path, variables: dict[str, str]) -> None:
    folder = tmp_path / devices._CACHES_FOLDER
    folder.mkdir(parents=True)
    folder.parent.chmod(0o777)
    folder.chmod(0o777)
    devices._keep_shaders(tmp_path)
    assert [variables.get(name) for name in devices._CACHES] == 3 * [str(folder)]
    assert [path.stat().st_mode & 0o077 for path in (folder.parent, folder)] == [0, 0]


@pytest.mark.parametrize("prepared", ["vulkan", "vulkan/shaders"])
def test_a_folder_that_another_user_has_prepared_is_not_used(
    prepared: str, tmp_path: Path, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = tmp_path / prepared
    foreign.mkdir(parents=True)
    own_stat = Path.stat

    def stat(path: Path) -> os.stat_result:
        status = own_stat(path)
        return os.stat_result((*status[:4], os.geteuid() + 1, *status[5:])) if path == foreign else status

    monkeypatch.setattr(Path, "stat", stat)
    devices._keep_shaders(tmp_path)
    assert not {*devices._CACHES} & {*variables}


@pytest.mark.parametrize(
    ("setting", "places", "named"),
    [(None, "01", "0,1"), ("3,2,1", "20", "1,3"), ("GPU-a,GPU-b", "1", "GPU-b"), ("5", "1", "1")],
)
def test_cuda_is_named_devices_as_its_variable_calls_them(setting: str | None, places: str, named: str) -> None:
    """Its driver counts only those that the variable lets be seen."""
    assert ",".join(devices._among_visible(list(places), setting)) == named
