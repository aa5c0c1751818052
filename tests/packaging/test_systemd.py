"""The units: systemd understands them, finds them narrow, and the program works within their limits."""

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import PROGRAM, PROMPTS, ROOT, serving
from tests.packaging.sandbox import NUMBERS

UNITS = ROOT / "packaging" / "systemd"
SERVICES = ("shimmy.service", "user/shimmy.service")
HIGHEST_EXPOSURE = 3.0

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")


def analyze(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("folder", [".", "user"])
def test_systemd_understands_the_units(tmp_path: Path, folder: str) -> None:
    """Their program is not installed here, and a user's manager needs a login: neither is a matter of the units."""
    for name in ("shimmy.service", "shimmy.socket"):
        text = (UNITS / folder / name).read_text()
        (tmp_path / name).write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    result = analyze("verify", "--man=no", tmp_path / "shimmy.service", tmp_path / "shimmy.socket")
    assert (result.returncode, result.stderr) == (0, "")


def test_the_unit_is_narrow() -> None:
    result = analyze("security", "--offline=true", "--no-pager", UNITS / "shimmy.service")
    exposure = re.search(r"Overall exposure level for shimmy.service: ([\d.]+)", result.stdout)
    assert exposure is not None, result.stdout
    assert float(exposure[1]) < HIGHEST_EXPOSURE, result.stdout


needs_numbers = pytest.mark.skipif(
    not NUMBERS.exists() or platform.machine() != "x86_64", reason="needs the numbers of system calls"
)


def within(service: str, *program: str) -> tuple[str, ...]:
    return sys.executable, "-m", "tests.packaging.sandbox", str(UNITS / service), *program


@needs_numbers
@pytest.mark.parametrize("service", SERVICES)
def test_the_program_works_within_the_limits_of_the_unit(tmp_path: Path, models: Path, service: str) -> None:
    with serving(tmp_path, "--model-path", models, program=within(service, *PROGRAM)) as server:
        assert server.chat(PROMPTS[0], max_tokens=8)
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["a", "b"]}}}
        assert server.chat(PROMPTS[0], response_format=schema) in {'"a"', '"b"'}
        assert "Operation not permitted" not in server.log
        assert server.stop() == 0


@needs_numbers
@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("attempt", ["os.chroot('/')", "mmap.mmap(-1, 4096, prot=7)"])
def test_the_limits_are_there_in_the_test_above(service: str, attempt: str) -> None:
    command = within(service, sys.executable, "-c", f"import mmap, os; {attempt}")
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
    assert result.returncode == 1, result.stderr
    assert "PermissionError" in result.stderr
