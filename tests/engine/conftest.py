"""Tiny models, written once for all tests of the engine."""

from pathlib import Path

import pytest

from tests.tiny_models import write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 0.6 MB with a ChatML template and a training length of 512."""
    return write_tiny_model(tmp_path_factory.mktemp("models"))
