"""The folder of a release, and the workflow that makes one."""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.e2e.harness import ROOT
from tools.packages.machines import MACHINES
from tools.packages.release import PAPERS, SUMS, release
from tools.papers import LICENSES, beside
from tools.steps import BuildError

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def make(dist: Path) -> Path:
    dist.mkdir()
    for machine in MACHINES:
        file = dist / f"shimmy-linux-{machine}"
        file.write_text(f"#!/bin/sh\necho {machine}\n")
        file.chmod(0o755)
        for paper in PAPERS:
            beside(file, paper).write_text(f"{paper} of {machine}\n")
    return release(dist)


def test_a_release_has_files_packages_and_sums(tmp_path: Path) -> None:
    folder = make(tmp_path / "dist")
    names = {path.name for path in folder.iterdir()}
    files = {f"shimmy-linux-{machine}{ending}" for machine in MACHINES for ending in ("", *PAPERS)}
    assert {"install.sh", SUMS} | files <= names
    assert sorted(name.rpartition(".")[2] for name in names - files - {"install.sh", SUMS}) == [
        "deb", "deb", "whl", "whl",
    ]  # fmt: skip
    sums = dict(line.split()[::-1] for line in (folder / SUMS).read_text().splitlines())
    assert sums.keys() == names - {SUMS}
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=folder, check=True, timeout=30)


def test_two_releases_are_the_same_bytes(tmp_path: Path) -> None:
    assert (make(tmp_path / "here") / SUMS).read_bytes() == (make(tmp_path / "there") / SUMS).read_bytes()


def test_there_is_no_release_without_licences(tmp_path: Path) -> None:
    (tmp_path / "shimmy-linux-x86_64").touch()
    with pytest.raises(BuildError, match=LICENSES):
        release(tmp_path)


def test_there_is_no_release_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="run `make dist` first"):
        release(tmp_path)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_uses_pinned_actions_and_targets_that_exist(workflow: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    jobs = yaml.safe_load(workflow.read_text())["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert steps
    for step in steps:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step.get("uses", f"a/b@{'0' * 40}")), step
        assert "${{" not in step.get("run", ""), "text of others would become part of a script"
        assert set(re.findall(r"^make ([a-z-]+)", step.get("run", ""), re.MULTILINE)) <= targets
    assert all({job.get("needs", "build")} <= jobs.keys() for job in jobs.values())
