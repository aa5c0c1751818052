"""A file to make packages of, and a model for it."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.harness import FROZEN_FILE, HOST, STEADY_SEED
from tests.tiny_models import write_tiny_model
from tools import debian_tools
from tools.steps import NotFetched

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}  # and what Debian calls them


@contextmanager
def skipped_where_not_fetched() -> Iterator[None]:
    """Skips the test whose tools cannot be fetched in the block; not in CI, which has a network."""
    try:
        yield
    except NotFetched as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error).partition("\n")[0])


def debian_program(name: str, package: str) -> str:
    """A program of this system, or of a package that is fetched where there is apt; elsewhere the test is skipped."""
    if (found := shutil.which(name)) is not None:
        return found
    if shutil.which("apt-get") is None:
        pytest.skip(f"there is no {name} here")
    with skipped_where_not_fetched():
        folder = debian_tools.unpacked(package)
    places = ("bin", "usr/bin", "usr/sbin")
    return next(str(path) for path in (folder / place / name for place in places) if path.exists())


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server((HOST, 0)) as server:
        port: int = server.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def frozen_file() -> Path:
    """The file that people download; only for tests with the marker `frozen`."""
    assert FROZEN_FILE is not None
    return Path(FROZEN_FILE).resolve()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model `alpha`."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder, "alpha", n_ctx_train=4096, seed=STEADY_SEED)
    return folder
