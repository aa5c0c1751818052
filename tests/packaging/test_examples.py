"""Every file of examples/ is started: configurations by the server, clients against it, the git hook by git."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import PROGRAM, ROOT, Server, serving

EXAMPLES = ROOT / "examples"
CONFIGURATIONS = sorted(path.name for path in EXAMPLES.glob("*.toml"))
# The demo model's name, which the examples use; here it is a tiny one.
FILE, NAME = "SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct.q4-1"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Path:
    """A person's home with a model, and keys."""
    home = tmp_path_factory.mktemp("home")
    (home / "models").mkdir()
    shutil.copy(models / "alpha.gguf", home / "models" / FILE)
    (home / ".config/shimmy").mkdir(parents=True)
    (home / ".config/shimmy/keys").write_text("secret\n")
    return home


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), "--model-path", home / "models", "--n-predict", "64") as running:
        yield running


def test_the_page_lists_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text()
    assert [path.name for path in EXAMPLES.iterdir() if f"`{path.name}`" not in page] == ["README.md"]


@pytest.mark.parametrize(
    "name", [CONFIGURATIONS[0], *(pytest.param(name, marks=pytest.mark.thorough) for name in CONFIGURATIONS[1:])]
)
def test_a_configuration_starts_a_server(
    tmp_path: Path, home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    has_keys = "api_key_file" in tomllib.loads((EXAMPLES / name).read_text())
    headers = {"Authorization": "Bearer secret"} if has_keys else {}
    # Another server may have the example's port on this machine.
    with serving(tmp_path, "--config", EXAMPLES / name) as server:
        listed = server.request("GET", "/v1/models", headers=headers).json()["data"]
        assert NAME in {model["id"] for model in listed}
        body = {"model": NAME, "prompt": "hello", "max_tokens": 2}
        assert server.request("POST", "/v1/completions", body, headers).status == 200
        assert "WARNING" not in server.log
        if has_keys:
            assert server.get("/v1/models").status == 401
        assert server.stop() == 0


def run_example(server: Server, *command: str, stdin: str = "") -> str:
    settings = os.environ | {"OPENAI_BASE_URL": server.url}
    result = subprocess.run(
        command, input=stdin, env=settings, cwd=EXAMPLES, capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_chat_with_curl(server: Server) -> None:
    events = run_example(server, "sh", "chat.sh", 'Say "hello",\nplease \\ now', NAME).strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[0].removeprefix("data: "))["model"] == NAME


def test_a_conversation_in_the_terminal(server: Server) -> None:
    told = run_example(server, sys.executable, "chat.py", NAME, stdin="hello world\nand then?\n")
    assert told.count("\n") >= 2


def test_a_record_by_its_schema(server: Server) -> None:
    limited = run_example(server, sys.executable, "record.py", "Ada was born in 1815", NAME)
    assert json.loads(limited).keys() == {"name", "year_of_birth"}


def test_the_git_hook_proposes_a_message(tmp_path: Path, home: Path) -> None:
    program = tmp_path / "bin" / "shimmy"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {shlex.join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    person = {"NAME": "Ada", "EMAIL": "ada@example.com"}
    settings = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "GIT_EDITOR": "true",
        "HOME": str(tmp_path),
    }
    for role in ("AUTHOR", "COMMITTER"):
        settings |= {f"GIT_{role}_{key}": value for key, value in person.items()}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path / "work"), *arguments]
        return subprocess.run(command, env=settings, capture_output=True, text=True, check=True, timeout=60).stdout

    (tmp_path / "work").mkdir()
    git("init", "--quiet")
    shutil.copy(EXAMPLES / "prepare-commit-msg", tmp_path / "work/.git/hooks")
    (tmp_path / "work/file").write_text("hello world\n")
    git("add", "file")
    git("commit", "--message", "Without a model")
    git("config", "shimmy.model", str(home / "models" / FILE))
    (tmp_path / "work/file").write_text("hello\n")
    git("commit", "--all")
    assert len(git("log", "-1", "--format=%s").strip()) > 5
