"""What these tests need of this machine: NVIDIA's compiler and headers, which are not fetched for a test."""

import shutil

import pytest

from tools.cuda.toolkit import Toolkit, installed


@pytest.fixture(scope="session")
def cuda() -> Toolkit:
    found = installed()
    if found is None or shutil.which("g++") is None:
        pytest.skip("no CUDA compiler of the build's version is here (`make cuda-check` fetches it)")
    return found
