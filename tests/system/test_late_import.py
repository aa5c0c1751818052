"""Modules that are read at their first use are whole then, and are read once."""

import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from shimmy.__main__ import _LATE
from shimmy.system.late_import import import_late


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "rare"
    folder.mkdir()
    (folder / "__init__.py").write_text("n_read = 0\n")
    (folder / "part.py").write_text(
        "import time, rare, rare.part\n"
        "rare.n_read += 1\nbefore = hasattr(rare.part, 'value')\ntime.sleep(0.05)\nvalue = 7\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("rare", "rare.part"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("package")
def test_a_module_is_read_when_it_is_used() -> None:
    import_late("rare.part")
    import rare.part  # type: ignore[import-not-found]

    assert rare.n_read == 0
    assert rare.part.value == 7
    assert not rare.part.before
    assert rare.n_read == 1
    assert type(rare.part) is type(sys)
    with pytest.raises(AttributeError, match="nothing"):
        _ = rare.part.nothing


@pytest.mark.usefixtures("package")
def test_names_are_taken_from_a_module() -> None:
    import_late("rare.part")
    from rare.part import value

    assert value == 7


@pytest.mark.usefixtures("package")
def test_threads_find_the_whole_module() -> None:
    import_late("rare.part")
    import rare.part

    values: list[Any] = []
    threads = [Thread(target=lambda: values.append(rare.part.value)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values == [7] * 5
    assert rare.n_read == 1


def test_a_module_that_is_there_stays() -> None:
    before = sys.modules["json"] if "json" in sys.modules else __import__("json")
    import_late("json")
    assert sys.modules["json"] is before


def test_a_server_does_not_use_them_at_its_start() -> None:
    code = (
        "import sys; sys.argv = ['shimmy', 'version']; from shimmy.__main__ import main; main(); import shimmy.server; "
    )
    code += "print(*[name for name, module in sys.modules.items() if type(module).__name__ == '_LateModule'])"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert set(output.splitlines()[-1].split()) == set(_LATE)
