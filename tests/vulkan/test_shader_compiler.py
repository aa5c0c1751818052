"""Which of Debian's packages compile the shaders: the pinned ones that Debian still has."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.steps import BuildError
from tools.vulkan import shader_compiler
from tools.vulkan.shader_compiler import EDITIONS, Edition, Package, edition


@pytest.fixture(autouse=True)
def no_choice_is_remembered() -> Iterator[None]:
    edition.cache_clear()
    yield
    edition.cache_clear()


def edition_of(version: str) -> Edition:
    digest = hashlib.sha256(version.encode()).hexdigest()
    compiler = (Package("glslc", version, digest), Package("libshaderc1", version, digest))
    return Edition(
        compiler, Package("libvulkan-dev", version, digest), Package("spirv-headers", version, digest, "all")
    )


class Debian:
    """Keeps packages of some versions; what they hold is the version, or what is given here."""

    def __init__(self, folder: Path, **contents: str) -> None:
        self.folder = folder
        self.contents = contents

    def binary_package(self, name: str, architecture: str, version: str) -> Path:
        if version not in self.contents:
            raise BuildError(f"Debian has no {name} {version}")
        path = self.folder / f"{name}_{version}_{architecture}.deb"
        if not path.exists():
            path.write_text(self.contents[version])
        return path


def debian(monkeypatch: pytest.MonkeyPatch, folder: Path, **contents: str) -> None:
    monkeypatch.setattr(shader_compiler, "EDITIONS", (edition_of("new"), edition_of("old")))
    monkeypatch.setattr(shader_compiler, "sources", Debian(folder, **contents))


def test_the_first_edition_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    debian(monkeypatch, tmp_path, new="new", old="old")
    assert edition() == edition_of("new")


def test_the_second_takes_the_place_of_one_that_is_gone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    debian(monkeypatch, tmp_path, old="old")
    assert edition() == edition_of("old")
    assert "Debian has no glslc new" in (said := capsys.readouterr().err)
    assert "taking glslc old in its place" in said


def test_without_any_the_last_error_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    debian(monkeypatch, tmp_path)
    with pytest.raises(BuildError, match="Debian has no glslc old"):
        edition()


def test_a_package_with_another_hash_is_refused_and_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    debian(monkeypatch, tmp_path, old="forged")
    with pytest.raises(BuildError, match=r"glslc_old_amd64\.deb has the hash"):
        edition()
    assert not list(tmp_path.iterdir())


def test_what_is_made_with_another_edition_has_another_name() -> None:
    assert len({chosen.key for chosen in EDITIONS}) == len(EDITIONS)
