"""Where drivers keep the programs that they compile."""

import os
from pathlib import Path

import pytest

from shimmy.engine.vulkan import devices, library


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment, which is empty."""
    found: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", found)
    return found


def test_programs_of_drivers_are_kept_where_no_other_user_can_write(tmp_path: Path, variables: dict[str, str]) -> None:
    folder = tmp_path / library.FOLDER / "shaders"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o777)
    folder.chmod(0o777)
    devices._keep_shaders(tmp_path)
    assert [variables.get(name) for name in devices._CACHES] == 2 * [str(folder)]
    assert [path.stat().st_mode & 0o077 for path in (folder.parent, folder)] == [0, 0]


@pytest.mark.parametrize("prepared", [library.FOLDER, f"{library.FOLDER}/shaders"])
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
