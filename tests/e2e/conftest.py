"""The models and servers that end-to-end tests share, and their marker."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import pytest

from tests.e2e.harness import STEADY_SEED, Server, serving
from tests.e2e.processes import PATIENCE
from tests.tiny_models import write_tiny_model

StartServer = Callable[..., Server]


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests here, and let each take as much longer as it has to."""
    here = f"{Path(__file__).parent}{os.sep}"
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker("e2e")
            if PATIENCE != 1:
                own = item.get_closest_marker("timeout")
                limit_s = own.args[0] if own else float(config.getini("timeout"))
                item.add_marker(pytest.mark.timeout(limit_s * PATIENCE), append=False)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `alpha`, a context of 4,096 tokens, and `beta`, another model with 512."""
    folder = tmp_path_factory.mktemp("models")
    write_tiny_model(folder, "alpha", n_ctx_train=4096, seed=STEADY_SEED)
    write_tiny_model(folder, "beta", seed=1)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Server]:
    """A server for tests that leave it as it was."""
    with serving(tmp_path_factory.mktemp("server"), "--model-path", models) as running:
        yield running


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the one model `alpha` and a context that takes minutes to fill: such a job ends by being ended."""
    folder = tmp_path_factory.mktemp("endless")
    write_tiny_model(folder, "alpha", n_ctx_train=65536, seed=STEADY_SEED)
    with serving(folder / "server", "--model-path", folder / "alpha.gguf", "--ctx-size", "65536") as running:
        yield running


@pytest.fixture
def start(tmp_path: Path, models: Path) -> Iterator[StartServer]:
    """Starts servers of the test's own, by default with the shared models."""
    numbers = count()
    with ExitStack() as servers:

        def start_server(*arguments: str | Path, folder: Path | None = None, **settings: str) -> Server:
            paths = arguments if "--model-path" in arguments else ("--model-path", models, *arguments)
            own_folder = folder or tmp_path / f"server-{next(numbers)}"
            return servers.enter_context(serving(own_folder, *paths, **settings))

        yield start_server
