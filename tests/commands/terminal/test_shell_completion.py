"""The completion scripts, run by the shells themselves where these are."""

import shutil
import subprocess
from pathlib import Path

import pytest

from shimmy.arguments import argument_parser
from shimmy.commands.terminal.shell_completion import script

SHELLS = ("bash", "zsh", "fish")
NAMES = ("alpha", "$(>pwned)", "`>pwned`", "beta-2")


def needs(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A folder with the scripts of all shells, and a `shimmy` that lists models with odd names."""
    for shell in SHELLS:
        (tmp_path / shell).write_text(script(shell, argument_parser()))
    program = tmp_path / "bin" / "shimmy"
    program.parent.mkdir()
    lines = "\n".join(["NAME  TYPE", *NAMES, "", "ALIAS  MODEL", "short  alpha"])
    program.write_text(f"#!/bin/sh\n[ \"$*\" = list ] && cat <<'END'\n{lines}\nEND\n")
    program.chmod(0o755)
    (tmp_path / "some model.gguf").touch()
    return tmp_path


def run(scripts: Path, *command: str) -> list[str]:
    environment = {"PATH": f"{scripts / 'bin'}:/usr/bin:/bin", "HOME": str(scripts)}
    ended = subprocess.run(command, cwd=scripts, env=environment, capture_output=True, text=True, check=True)
    assert ended.stderr == ""
    assert not (scripts / "pwned").exists()
    return ended.stdout.splitlines()


def completed_by_bash(scripts: Path, *words: str) -> list[str]:
    needs("bash")
    code = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shimmy; printf "%s\\n" "${COMPREPLY[@]}"'
    return run(scripts, "bash", "-c", code, str(scripts / "bash"), *words)


def completed_by_fish(scripts: Path, line: str) -> list[str]:
    needs("fish")
    lines = run(scripts, "fish", "--no-config", "-c", f"source {scripts / 'fish'}; complete -C {line!r}")
    return [text.partition("\t")[0] for text in lines]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_can_read_its_script(shell: str, scripts: Path) -> None:
    needs(shell)
    run(scripts, shell, "-n", str(scripts / shell))


def test_every_command_and_option_is_in_every_script(scripts: Path) -> None:
    for shell in SHELLS:
        text = (scripts / shell).read_text()
        assert all(name in text for name in ("generate", "completion", "unload", "mapped repacked", "max-memory"))


def test_bash_completes_commands_options_values_models_and_files(scripts: Path) -> None:
    assert completed_by_bash(scripts, "shimmy", "ge") == ["generate"]
    assert completed_by_bash(scripts, "shimmy", "so") == ["some model.gguf"]
    assert completed_by_bash(scripts, "shimmy", "help", "ben") == ["bench"]
    assert completed_by_bash(scripts, "shimmy", "completion", "") == ["bash", "zsh", "fish"]
    assert completed_by_bash(scripts, "shimmy", "serve", "--prompt-c") == ["--prompt-cache"]
    assert completed_by_bash(scripts, "shimmy", "serve", "--weights", "m") == ["mapped"]
    assert completed_by_bash(scripts, "shimmy", "serve", "--model-path", "some") == ["some model.gguf"]
    assert completed_by_bash(scripts, "shimmy", "serve", "--parallel", "") == [""]
    assert completed_by_bash(scripts, "shimmy", "load", "al") == ["alpha"]
    names = [*NAMES, "short"]
    completed = completed_by_bash(scripts, "shimmy", "rm", "")
    assert completed[: len(names)] == names
    assert {*completed[len(names) :]} == {"bin", *SHELLS, "some model.gguf"}


def test_fish_completes_commands_options_values_and_models(scripts: Path) -> None:
    assert completed_by_fish(scripts, "shimmy gen") == ["generate"]
    assert completed_by_fish(scripts, "shimmy serve --prompt-c") == ["--prompt-cache"]
    assert completed_by_fish(scripts, "shimmy serve --weights m") == ["mapped"]
    assert "alpha" in completed_by_fish(scripts, "shimmy load al")
