"""The engine that is loaded is the one beside the binding, whatever a user's settings lead to."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

LIBRARIES = ("libggml-base.so.0", "libggml.so.0", "libllama.so")
WHAT_IS_MAPPED = """
from pathlib import Path
from shimmy.engine.llama import binding
print({line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()})
"""


def library_folder() -> Path:
    spec = find_spec("llama_cpp")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).resolve().parent / "lib"


def imported(**settings: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", WHAT_IS_MAPPED]
    return subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("setting", ["LD_LIBRARY_PATH", "LLAMA_CPP_LIB_PATH", "GGML_BACKEND_PATH"])
def test_settings_lead_to_no_other_engine(tmp_path: Path, setting: str) -> None:
    for name in LIBRARIES:
        shutil.copy(library_folder() / name, tmp_path)
    result = imported(**{setting: str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert str(tmp_path) not in result.stdout
    assert all(str(library_folder() / name.partition(".so")[0]) in result.stdout for name in LIBRARIES)


def test_another_engine_in_front_is_refused_and_named(tmp_path: Path) -> None:
    other = tmp_path / "libother.so"
    shutil.copy(library_folder() / "libggml-base.so.0", other)
    result = imported(LD_PRELOAD=str(other))
    assert result.returncode != 0
    assert f"`LD_PRELOAD={other}` brings another engine: unset it" in result.stderr
