"""The frozen file where it finds no room to unpack itself."""

import resource
import signal
from pathlib import Path

import pytest

from tests.e2e.harness import run


def no_room() -> None:
    """From here on no file of this process grows beyond a megabyte: writing more fails as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))


@pytest.mark.frozen
@pytest.mark.parametrize("command", ["version", "serve"])
def test_a_full_disk_is_told_and_ends_the_program(tmp_path: Path, command: str) -> None:
    ended = run(tmp_path, command, before=no_room)
    assert ended.returncode not in (0, None)
    assert "File too large" in ended.stderr
    assert [*tmp_path.iterdir()] == []
