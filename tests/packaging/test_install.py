"""`install.sh` against a web server on this machine: what it installs, what it refuses, and what it leaves alone."""

import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.harness import ROOT
from tests.packaging.conftest import debian_program
from tests.packaging.web import FILES, publish, published

SCRIPT = ROOT / "install.sh"
# What the script asks of a system beside a shell and a way to download.
TOOLS = ("chmod", "cut", "grep", "mkdir", "mktemp", "mv", "rm", "sed", "sha256sum")
WITHOUT_RIGHTS = 65534


@dataclass
class Installer:
    """A folder of a release on a web server, and a person's home."""

    release: Path
    home: Path
    url: str
    tools: Path
    shell: tuple[str, ...] = ("/bin/sh",)
    settings: dict[str, str] = field(default_factory=dict)
    user: int | None = None

    @property
    def folder(self) -> Path:
        return self.home / ".local" / "bin"

    @property
    def program(self) -> Path:
        return self.folder / "shimmy"

    def publish(self, version: str, machine: str = "x86_64", *, damage: bytes = b"") -> None:
        """A release whose program does nothing but say its version."""
        content = f'#!/bin/sh\n[ "$1" = version ] && echo "shimmy {version}"\n'.encode()
        (self.release / FILES[machine]).write_bytes(content + damage)
        line = f"{hashlib.sha256(content).hexdigest()}  {FILES[machine]}\n"
        (self.release / "SHA256SUMS").write_text(f"{'0' * 64}  {FILES[machine]}.sig\n{line}")

    def pretend(self, system: str, machine: str) -> None:
        """Let `uname` tell of another machine."""
        script = self.tools / "uname"
        script.write_text(f'#!/bin/sh\ncase $1 in -s) echo "{system}" ;; -m) echo "{machine}" ;; esac\n')
        script.chmod(0o755)

    def run(self, *arguments: str, path: str = "") -> "subprocess.CompletedProcess[str]":
        environment = {"HOME": str(self.home), "PATH": f"{self.tools}{path}", "SHIMMY_BASE_URL": self.url}
        return subprocess.run(
            [*self.shell, SCRIPT, *arguments],
            env=environment | self.settings, capture_output=True, text=True, check=False, timeout=30, user=self.user,
        )  # fmt: skip

    def leftovers(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.exists() else []

    def refusal(self, *arguments: str) -> str:
        """What the script says when it fails."""
        result = self.run(*arguments)
        assert result.returncode == 1, result.stdout
        return result.stderr


def link_tools(folder: Path, *, downloader: str, busybox: str | None = None) -> None:
    """A PATH with nothing but what the script may use."""
    folder.mkdir()
    for name in (*TOOLS, downloader):
        target = busybox or shutil.which(name)
        assert target, name
        (folder / name).symlink_to(target)


@pytest.fixture
def installer(tmp_path: Path) -> Iterator[Installer]:
    for name in ("release", "home"):
        (tmp_path / name).mkdir()
    link_tools(tmp_path / "tools", downloader="curl")
    with published(tmp_path / "release") as web:
        installer = Installer(tmp_path / "release", tmp_path / "home", web.url, tmp_path / "tools")
        installer.pretend("Linux", "x86_64")
        installer.publish("1.2.3")
        yield installer


@pytest.mark.parametrize("kind", ["curl", "wget", "busybox"])
def test_installs_and_uninstalls(installer: Installer, kind: str) -> None:
    if kind == "wget" and shutil.which("wget") is None:
        pytest.skip("there is no wget here")
    if kind != "curl":
        busybox = debian_program("busybox", "busybox-static") if kind == "busybox" else None
        if busybox is not None:
            installer.shell = (busybox, "ash")
        shutil.rmtree(installer.tools)
        link_tools(installer.tools, downloader="wget", busybox=busybox)
        installer.pretend("Linux", "x86_64")
    result = installer.run()
    assert result.returncode == 0, result.stderr
    assert f"installed shimmy 1.2.3 as {installer.program}" in result.stdout
    assert "is not on your PATH" in result.stdout
    assert (
        subprocess.run([installer.program, "version"], check=True, capture_output=True, text=True).stdout
        == "shimmy 1.2.3\n"
    )
    assert installer.leftovers() == [".shimmy-installed", "shimmy"]
    installer.publish("1.2.4")
    assert "is not on your PATH" not in installer.run(path=f":{installer.folder}").stdout
    assert "1.2.4" in installer.program.read_text()
    removed = installer.run("--uninstall")
    assert removed.returncode == 0
    assert f"removed {installer.program}" in removed.stdout
    assert f"{installer.home}/.cache/shimmy" in removed.stdout, "says what stays"
    assert installer.leftovers() == []
    assert "there is no" in installer.refusal("--uninstall")


@pytest.mark.parametrize("machine", ["aarch64", "arm64"])
def test_takes_the_file_for_the_machine(installer: Installer, machine: str) -> None:
    installer.pretend("Linux", machine)
    assert "does not name shimmy-linux-aarch64" in installer.refusal()
    installer.publish("1.2.3", "aarch64")
    assert installer.run().returncode == 0


@pytest.mark.parametrize(
    ("system", "machine", "reason"),
    [
        ("Darwin", "arm64", "no file for macOS"),
        ("MINGW64_NT-10.0", "x86_64", "no file for Windows: run this script in WSL"),
        ("FreeBSD", "amd64", "no file for FreeBSD"),
        ("Linux", "armv7l", "install a 64-bit one"),
        ("Linux", "riscv64", "no file for this processor (riscv64)"),
    ],
)
def test_refuses_other_machines(installer: Installer, system: str, machine: str, reason: str) -> None:
    installer.pretend(system, machine)
    assert reason in installer.refusal()
    assert installer.leftovers() == []


def test_a_damaged_file_changes_nothing(installer: Installer) -> None:
    installer.run()
    installer.publish("1.2.4", damage=b"#")
    assert "is damaged" in installer.refusal()
    assert "1.2.3" in installer.program.read_text()
    assert installer.leftovers() == [".shimmy-installed", "shimmy"]


def test_an_interrupted_download_changes_nothing(installer: Installer) -> None:
    installer.run()
    installer.publish("1.2.4")
    (installer.release / f"{FILES['x86_64']}.cut").touch()
    assert "cannot download" in installer.refusal()
    assert "1.2.3" in installer.program.read_text()
    assert installer.leftovers() == [".shimmy-installed", "shimmy"]


@pytest.mark.parametrize("name", ["SHA256SUMS", FILES["x86_64"]])
def test_a_missing_file_changes_nothing(installer: Installer, name: str) -> None:
    (installer.release / name).unlink()
    assert f"cannot download {installer.url}/{name}" in installer.refusal()
    assert installer.leftovers() == []


def test_a_file_that_does_not_run_is_not_installed(installer: Installer) -> None:
    content = b"#!/bin/sh\nexit 1\n"
    (installer.release / FILES["x86_64"]).write_bytes(content)
    (installer.release / "SHA256SUMS").write_text(f"{hashlib.sha256(content).hexdigest()}  {FILES['x86_64']}\n")
    assert "does not run on this machine" in installer.refusal()
    assert installer.leftovers() == []


def test_installs_the_version_that_was_asked_for_or_none(installer: Installer) -> None:
    assert "has shimmy 1.2.3, not shimmy 1.2.4" in installer.refusal("--version", "1.2.4")
    assert installer.leftovers() == []
    assert installer.run("--version", "v1.2.3").returncode == 0
    assert "--version needs a version" in installer.refusal("--version")
    assert "unknown argument --verbose" in installer.refusal("--verbose")


def test_leaves_a_program_alone_that_it_did_not_install(installer: Installer) -> None:
    installer.folder.mkdir(parents=True)
    installer.program.write_text("of somebody else")
    assert "was not installed by this script" in installer.refusal()
    assert "was not installed by this script" in installer.refusal("--uninstall")
    assert installer.program.read_text() == "of somebody else"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which root may")
def test_says_where_it_may_not_write(installer: Installer, tmp_path: Path) -> None:
    for folder in [*reversed(tmp_path.parents), tmp_path]:
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    installer.user = WITHOUT_RIGHTS
    assert f"cannot make the folder {installer.folder}" in installer.refusal()
    installer.settings["SHIMMY_INSTALL_DIR"] = str(installer.release)
    assert f"cannot write to {installer.release}" in installer.refusal()


def test_installs_where_it_is_told_to(installer: Installer, tmp_path: Path) -> None:
    installer.settings |= {"SHIMMY_INSTALL_DIR": str(tmp_path / "my programs"), "HOME": ""}
    assert installer.run().returncode == 0
    assert (tmp_path / "my programs" / "shimmy").exists()
    del installer.settings["SHIMMY_INSTALL_DIR"]
    assert "HOME is not set" in installer.refusal()


def test_does_not_guess_where_it_is_published(installer: Installer) -> None:
    installer.settings["SHIMMY_BASE_URL"] = ""
    assert "set SHIMMY_BASE_URL" in installer.refusal()


@pytest.mark.frozen
def test_installs_the_real_file(installer: Installer, frozen_file: Path) -> None:
    installer.pretend("Linux", platform.machine())
    publish(installer.release, frozen_file)
    result = installer.run()
    assert result.returncode == 0, result.stderr
    assert installer.program.read_bytes() == frozen_file.read_bytes()
