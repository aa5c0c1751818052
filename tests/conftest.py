"""A tiny model, written once for all tests, and the CPU variant that the engine runs on."""

from pathlib import Path

import pytest

from tests import forced_variant
from tests.tiny_models import write_tiny_model

forced_variant.force()  # before the tests look for variants, which some do when they are imported


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 0.6 MB with a ChatML template and a training length of 512."""
    return write_tiny_model(tmp_path_factory.mktemp("models"))
