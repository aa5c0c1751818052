"""How packages of Debian's are fetched: by lists of our own, which are fetched anew when they are old."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tools.portable import sources
from tools.steps import BuildError


class Apt:
    """Stands in for apt: downloads what its newest lists name, once these were fetched as often as it takes."""

    def __init__(self, folder: Path, n_updates_needed: int) -> None:
        self.folder = folder
        self.n_updates_needed = n_updates_needed
        self.n_updates = 0
        self.downloads: list[str] = []

    def run(self, command: Sequence[str | Path], **__: str) -> str:
        words = [str(word) for word in command]
        if "indextargets" in words:
            return "http://mirror.example/debian/ bookworm\n"
        if words[-1] == "update":
            self.n_updates += 1
        elif self.n_updates < self.n_updates_needed:
            raise BuildError("404 Not Found")
        else:
            name = words[words.index("download") + 1]
            self.downloads.append(name)
            package, _, version = name.partition("=")
            package, _, architecture = package.partition(":")
            (self.folder / f"{package}_{version}_{architecture or 'all'}.deb").write_text("package")
        return ""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sources, "_DOWNLOADS", tmp_path / "downloads")
    monkeypatch.setattr(sources, "_APT", tmp_path / "apt")
    return tmp_path / "downloads"


@pytest.mark.parametrize(("architecture", "asked"), [("amd64", "glslc:amd64=2.1-1"), ("all", "glslc=2.1-1")])
def test_a_package_is_fetched_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, asked: str
) -> None:
    apt = Apt(folder, n_updates_needed=1)
    monkeypatch.setattr(sources, "run", apt.run)
    for _ in range(2):
        assert sources.binary_package("glslc", architecture, "2.1-1").read_text() == "package"
    assert (apt.downloads, apt.n_updates) == ([asked], 1)


def test_old_lists_are_fetched_anew_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = Apt(folder, n_updates_needed=2)
    monkeypatch.setattr(sources, "run", apt.run)
    assert sources.binary_package("glslc", "amd64", "2.1-1").exists()
    assert apt.n_updates == 2
    apt.n_updates_needed = 4
    with pytest.raises(BuildError, match="404"):
        sources.binary_package("glslc", "amd64", "2.2-1")
    assert apt.n_updates == 3


def test_a_mirror_without_the_coming_release_stops_no_build(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = Apt(folder, n_updates_needed=1)
    listed = folder.parent / "apt" / "sources.list"

    def run(command: Sequence[str | Path], **__: str) -> str:
        if command[-1] == "update" and f" {sources.TO_COME} " in listed.read_text():
            raise BuildError("it does not have a Release file")
        return apt.run(command)

    monkeypatch.setattr(sources, "run", run)
    for version in ("2.1-1", "2.2-1"):
        assert sources.binary_package("glslc", "amd64", version).exists()
    assert apt.n_updates == 1
    assert f" {sources.RELEASED} " in listed.read_text()


def test_a_system_without_apt_is_told_to_be_no_debian(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="frozen files are built on Debian: there is no apt here"):
        sources.newest_packages(["libc6"], "bookworm", tmp_path)
