"""What all tests have: a tiny model, written once, the CPU variant that the engine runs on, a quiet garbage collector,
the root logger as it was, which of them the program under test can answer, and a turn where they run side by side."""

import gc
import logging
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests import forced_variant
from tests.side_by_side import turn
from tests.tiny_models import write_tiny_model

forced_variant.force()  # before the tests look for variants, which some do when they are imported


# A shell starts commands in the background with interrupts ignored, `nohup` does so with the end of its terminal, and
# children ignore what is ignored here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before its timeout begins
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let a test with the marker `alone` have the machine for itself."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without the garbage collector, and have it never look at them: they stay, thousands of them, and a
    full collection would take half a second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only the frozen file can answer while the source tree is under test."""
    if os.environ.get("SHIMMY_BIN"):
        return
    left_out = [item for item in items if item.get_closest_marker("frozen")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 0.6 MB with a ChatML template and a training length of 512."""
    return write_tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def _root_logger_as_it_was() -> Iterator[None]:
    """A command sets it up for its process, and others' tests look at what is logged."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)


@pytest.fixture
def collections_as_in_a_server() -> Iterator[None]:
    """What other tests have left is not looked at by the garbage collector."""
    from shimmy.server import COLLECTIONS  # a server is more than most tests need

    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTIONS)
    yield
    gc.set_threshold(*thresholds)
