"""OpenAI's client for Node: each test of `openai.test.mjs`, by Node's own test runner."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.conftest import NEEDS_NPM
from tools.clients import NODE_FOLDER

SCRIPT = Path(__file__).with_name("openai.test.mjs")
TESTS = re.findall(r'^test\("([^"]+)"', SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script where Node finds the packages that it imports: beside them."""
    folder = tmp_path_factory.mktemp("node")
    (folder / "node_modules").symlink_to(NODE_FOLDER / "node_modules")
    return Path(shutil.copy(SCRIPT, folder))


@NEEDS_NPM
@pytest.mark.parametrize("name", TESTS)
def test_openai_for_node(script: Path, name: str) -> None:
    command = ["node", "--test", "--test-reporter=spec", f"--test-name-pattern=^{re.escape(name)}$", script.name]
    result = subprocess.run(command, cwd=script.parent, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "pass 1\n" in result.stdout
