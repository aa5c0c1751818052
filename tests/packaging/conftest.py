"""Which of these tests the program under test can answer, and a file to make packages of."""

from pathlib import Path

import pytest

from tests.e2e.harness import FROZEN_FILE, STEADY_SEED
from tests.tiny_models import write_tiny_model

MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}  # and what Debian calls them


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only the frozen file can answer while the source tree is under test."""
    if FROZEN_FILE:
        return
    left_out = [item for item in items if item.get_closest_marker("frozen")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


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
