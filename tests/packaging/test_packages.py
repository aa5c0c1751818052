"""The wheel and the Debian package: their bytes, what is in them, and that what they install runs."""

import base64
import csv
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from shimmy import __version__
from shimmy.config import load
from tests.e2e.harness import FROM_SOURCE, ROOT
from tests.packaging.conftest import debian_program
from tools import debian_tools
from tools.packages import deb as debian
from tools.packages.__main__ import package
from tools.packages.machines import MACHINES
from tools.papers import LICENSES, SBOM, beside

# Who publishes the package gives an address; the text of the licences and the size are no matter of a test's file.
MAINTAINER = "Tests <nobody@localhost>"
ALLOWED_TAGS = "bogus-mail-host,bogus-mail-host-in-debian-changelog"

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="there is no dpkg here")


def make(folder: Path, program: bytes, machine: str = "x86_64") -> tuple[Path, Path]:
    """A wheel and a Debian package of a program."""
    folder.mkdir()
    (folder / "shimmy").write_bytes(program)
    beside(folder / "shimmy", LICENSES).write_text("The licences of what is inside.\n")
    beside(folder / "shimmy", SBOM).write_text("{}\n")
    wheel, deb = package(folder / "shimmy", machine, folder, wheel_name="shimmy", maintainer=MAINTAINER)
    return wheel, deb


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Packages of a program that does nothing."""
    return make(tmp_path_factory.mktemp("small") / "packages", b"#!/bin/sh\nexit 0\n")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, frozen_file: Path) -> tuple[Path, Path]:
    return make(tmp_path_factory.mktemp("real") / "packages", frozen_file.read_bytes(), platform.machine())


def output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("machine", MACHINES)
def test_the_bytes_depend_on_nothing_but_the_file(
    tmp_path: Path, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [path.read_bytes() for path in make(tmp_path / "here", b"program", machine)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    os.umask(os.umask(0o077))
    assert [path.read_bytes() for path in make(tmp_path / "there", b"program", machine)] == first


def test_the_wheel_has_a_record_of_all_files(small: tuple[Path, Path]) -> None:
    wheel, _ = small
    tags = "manylinux_2_17_x86_64.musllinux_1_1_x86_64"
    assert wheel.name == f"shimmy-{__version__}-py3-none-{tags}.whl"
    with zipfile.ZipFile(wheel) as archive:
        record = next(name for name in archive.namelist() if name.endswith("RECORD"))
        rows = list(csv.reader(archive.read(record).decode().splitlines()))
        assert [name for name, _, _ in rows] == archive.namelist()
        for name, digest, size in rows[:-1]:
            content = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            assert (digest, size) == (f"sha256={expected}", str(len(content)))
        assert rows[-1] == [record, "", ""]
        described = archive.read(record.replace("RECORD", "WHEEL")).decode()
        assert re.findall("^Tag: (.*)$", described, re.MULTILINE) == [f"py3-none-{tag}" for tag in tags.split(".")]


@pytest.mark.frozen
def test_pip_installs_a_program_that_runs(tmp_path: Path, real: tuple[Path, Path]) -> None:
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--disable-pip-version-check"]
    output(*pip, "install", "--no-index", real[0])
    program = tmp_path / "venv" / "bin" / "shimmy"
    assert output(program, "version") == f"shimmy {__version__}\n"
    output(*pip, "uninstall", "--yes", "shimmy")
    assert not program.exists()


@needs_dpkg
def test_dpkg_understands_the_package(small: tuple[Path, Path]) -> None:
    _, deb = small
    assert deb.name == f"shimmy_{__version__}-1_amd64.deb"
    assert output("dpkg-deb", "--field", deb, "Package", "Architecture", "Depends") == (
        "Package: shimmy\nArchitecture: amd64\n"
    )
    rows = [line.split() for line in output("dpkg-deb", "--contents", deb).splitlines()]
    modes = {row[5]: (row[0], row[1]) for row in rows}
    assert {owner for _, owner in modes.values()} == {"root/root"}
    assert modes["./usr/bin/shimmy"][0] == "-rwxr-xr-x"
    assert modes[f"./{debian.MODELS_FOLDER}/"][0] == "drwxr-xr-x"
    for name in ("shimmy.service", "shimmy.socket"):
        assert modes[f"./usr/lib/systemd/system/{name}"][0] == "-rw-r--r--"
    assert {"./etc/shimmy/shimmy.toml", "./usr/share/man/man1/shimmy.1.gz"} <= modes.keys()


@needs_dpkg
@pytest.mark.skipif(os.geteuid() != 0, reason="dpkg installs for root")
def test_dpkg_installs_and_removes_the_package(tmp_path: Path, small: tuple[Path, Path]) -> None:
    root = tmp_path / "root"
    for folder in ("info", "updates", "parts"):
        (root / "var/lib/dpkg" / folder).mkdir(parents=True)
    for file in ("status", "available"):
        (root / "var/lib/dpkg" / file).touch()
    dpkg = ("dpkg", f"--root={root}", "--force-script-chrootless", f"--log={tmp_path}/log")
    output(*dpkg, "--install", small[1])
    assert output(*dpkg, "--verify", "shimmy") == ""
    model = root / debian.MODELS_FOLDER / "mine.gguf"
    model.touch()
    output(*dpkg, "--remove", "shimmy")
    assert not (root / "usr/bin/shimmy").exists()
    assert (root / "etc/shimmy/shimmy.toml").exists(), "a configuration stays until the package is purged"
    output(*dpkg, "--purge", "shimmy")
    assert not (root / "etc/shimmy").exists()
    assert model.exists(), "a person's models stay"


@pytest.mark.frozen
@needs_dpkg
@pytest.mark.timeout(180)  # it is fetched
def test_lintian_has_nothing_to_say(real: tuple[Path, Path]) -> None:
    _, deb = real
    is_static = "Requesting program interpreter" not in output("readelf", "-lW", deb.parent / "shimmy")
    tags = ALLOWED_TAGS if is_static else f"{ALLOWED_TAGS},undeclared-elf-prerequisites"
    lintian = debian_program("lintian", "lintian")
    result = subprocess.run(
        [lintian, "--suppress-tags", tags, "--fail-on", "error,warning", deb],
        env=os.environ | debian_tools.environment(Path(lintian).parents[2]),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.frozen
@needs_dpkg
def test_the_program_in_the_package_runs(tmp_path: Path, real: tuple[Path, Path]) -> None:
    output("dpkg-deb", "--extract", real[1], tmp_path)
    assert output(tmp_path / "usr/bin/shimmy", "version") == f"shimmy {__version__}\n"


def test_the_configuration_of_the_service_is_one(tmp_path: Path) -> None:
    text = (ROOT / "packaging/debian/shimmy.toml").read_text()
    in_full = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE).replace("/etc/shimmy/keys", f"{tmp_path}/keys")
    (tmp_path / "keys").write_text("secret\n")
    config = load({}, {}, tomllib.loads(in_full))
    assert config.model_paths == (Path("/", debian.MODELS_FOLDER),)
    assert config.api_keys == ("secret",)


def test_the_man_page_has_every_command() -> None:
    page = (ROOT / "packaging/debian/shimmy.1").read_text()
    commands = re.findall(r"^    (\w+) +\w", output(*FROM_SOURCE, "--help"), re.MULTILINE)
    assert len(commands) > 8
    assert [name for name in commands if not re.search(rf"^\.B\w*\b.*\b{name}\b", page, re.MULTILINE)] == []
