"""What every step of the build shares: where things lie, how a command runs, and when a step has nothing to do.

Knows no step. Everything that the build makes lies in the checkout, in folders that git ignores.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
VENV = ROOT / ".venv"
MODELS = ROOT / "models"
WORK = ROOT / "build"
DIST = ROOT / "dist"


class BuildError(Exception):
    """A step failed; the message says what happened and where to look."""


class NotFetched(BuildError):
    """A package cannot be had now, as without a network."""


def say(text: str) -> None:
    """Tell the person at the terminal what goes on; standard output stays free for data."""
    print(text, file=sys.stderr, flush=True)


def run(command: Sequence[str | Path], **environment: str) -> str:
    """Run a command to its end and return its standard output; its standard error comes with the error, if any."""
    result = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        words = " ".join(str(word) for word in command)
        raise BuildError(f"`{words}` ended with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result.stdout


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of this file, which other processes wait for, for the length of the block."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def unpack_once(archive: Path, folder: Path) -> Path:
    """Have `folder`, with the content of the one folder that is in a tar archive; returns it."""
    if not folder.exists():
        unfinished = folder.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        with tarfile.open(archive) as package:
            package.extractall(unfinished)
        (inner,) = unfinished.iterdir()
        inner.rename(folder)
        unfinished.rmdir()
    return folder


def pip(python: str, *arguments: str | Path) -> None:
    """Run pip quietly; its warnings appear only when it fails. No setting for other Pythons reaches it."""
    run([python, "-I", "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *arguments])


def venv_python(venv: Path = VENV) -> str:
    """The interpreter of an environment."""
    return f"{venv}/bin/python"


def requirements(*extras: str) -> list[str]:
    """The pinned packages of pyproject.toml: those of the program, and those of the named extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *(name for extra in extras for name in project["optional-dependencies"][extra])]


def key_of(*parts: str | bytes) -> str:
    """A short name for these inputs: equal inputs, equal name."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:16]


def key_of_files(paths: Iterable[Path]) -> str:
    """Like key_of, of the names and contents of files."""
    parts: list[str | bytes] = []
    for path in sorted(paths):
        parts += [path.relative_to(ROOT).as_posix(), path.read_bytes()]
    return key_of(*parts)


class Stamp:
    """A file that says for which inputs a step was last done; written only after the step."""

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key

    def holds(self) -> bool:
        """True when the step was done for the same inputs."""
        return self.path.exists() and self.path.read_text() == self.key

    def write(self) -> None:
        """Note that the step is done."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.key)
