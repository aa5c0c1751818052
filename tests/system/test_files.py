import os
from pathlib import Path

import pytest

from shimmy.system.files import NotRegular, open_regular, read_start, write_atomically


def test_the_start_of_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_atomically(path, b"abcdef")
    assert read_start(path, 3) == b"abc"
    assert read_start(path, 100) == b"abcdef"
    assert [*path.parent.iterdir()] == [path]


def test_nothing_waits_for_the_writer_of_a_fifo(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, Path("/dev/null")):
        with pytest.raises(NotRegular):
            open_regular(path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
