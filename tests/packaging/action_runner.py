"""Runs a composite action of GitHub as its runner does: expressions, shell steps, the files that steps write to.

Knows as much of it as action.yml needs. `actions/cache` is played by a folder.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_EXPRESSION = re.compile(r"\$\{\{ (.*?) \}\}")
_CONDITION = re.compile(r"([\w.-]+) (==|!=) '([^']*)'")
_CACHE = re.compile(r"actions/cache@[0-9a-f]{40}")


@dataclass
class Runner:
    """A machine that runs steps of one job; `caches` outlives it."""

    action: Path
    home: Path
    caches: Path
    environment: dict[str, str] = field(default_factory=dict)
    path: list[str] = field(default_factory=list)
    log: str = ""

    def use(self, **inputs: str) -> "Use":
        """Run the action; the job goes on even if it fails."""
        definition = yaml.safe_load(self.action.read_text())
        given = {name: str(declared.get("default", "")) for name, declared in definition["inputs"].items()}
        named = {name.replace("_", "-"): value for name, value in inputs.items()}
        assert named.keys() <= given.keys()
        use = Use(self, given | named)
        for step in definition["runs"]["steps"]:
            if use.is_ok and use.holds(step.get("if", "")):
                use.run_step(step)
        if use.is_ok:
            use.save_caches()
        use.outputs = {name: use.filled(output["value"]) for name, output in definition["outputs"].items()}
        return use

    def shell(self, script: str, **settings: str) -> "subprocess.CompletedProcess[str]":
        """Run a script as a later step of the job does."""
        environment = {
            **self.environment, "HOME": str(self.home), "RUNNER_TEMP": str(self.home / "temp"),
            "PATH": os.pathsep.join([*self.path, os.environ["PATH"]]), **settings,
        }  # fmt: skip
        result = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script],
            env=environment, cwd=self.home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            text=True, check=False, timeout=60,
        )  # fmt: skip
        self.log += result.stdout
        return result


@dataclass
class Use:
    """One use of the action in a job."""

    runner: Runner
    inputs: dict[str, str]
    is_ok: bool = True
    steps: dict[str, dict[str, str]] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    caches: list[tuple[str, Path]] = field(default_factory=list)

    def filled(self, text: str) -> str:
        return _EXPRESSION.sub(lambda match: self._value(match[1]), text)

    def holds(self, condition: str) -> bool:
        if not condition:
            return True
        match = _CONDITION.fullmatch(condition)
        assert match is not None, f"teach the runner `{condition}`"
        return (self._value(match[1]) == match[3]) == (match[2] == "==")

    def _value(self, name: str) -> str:
        match name.split("."):
            case ["inputs", key]:
                return self.inputs[key]
            case ["steps", step, "outputs", key]:
                return self.steps.get(step, {}).get(key, "")
            case ["github", "action_path"]:
                return str(self.runner.action.parent)
            case ["runner", "temp"]:
                return str(self.runner.home / "temp")
        raise AssertionError(f"teach the runner `{name}`")

    def run_step(self, step: dict[str, Any]) -> None:
        if "uses" in step:
            assert _CACHE.fullmatch(step["uses"]), step["uses"]
            self._restore(self.filled(step["with"]["key"]), Path(self.filled(step["with"]["path"])))
            return
        assert step["shell"] == "bash"
        assert "${{" not in step["run"], "text of others would become part of a script"
        files = {name: self.runner.home / "temp" / name for name in ("GITHUB_ENV", "GITHUB_OUTPUT", "GITHUB_PATH")}
        for path in files.values():
            path.parent.mkdir(exist_ok=True)
            path.write_text("")
        settings = {name: self.filled(value) for name, value in step.get("env", {}).items()}
        result = self.runner.shell(step["run"], **settings, **{name: str(path) for name, path in files.items()})
        self.is_ok = result.returncode == 0
        self.steps[step.get("id", "")] = _assignments(files["GITHUB_OUTPUT"])
        self.runner.environment |= _assignments(files["GITHUB_ENV"])
        self.runner.path[:0] = files["GITHUB_PATH"].read_text().split("\n")[:-1]

    def _restore(self, key: str, path: Path) -> None:
        if (self.runner.caches / key).exists():
            shutil.copytree(self.runner.caches / key, path)
        else:
            self.caches.append((key, path))

    def save_caches(self) -> None:
        for key, path in self.caches:
            shutil.copytree(path, self.runner.caches / key)


def _assignments(file: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in file.read_text().splitlines())
