import errno
import os
from pathlib import Path

import pytest

from shimmy.system import files
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


def test_a_file_in_memory_has_a_path() -> None:
    descriptor = files.in_memory("some")
    assert descriptor is not None
    with os.fdopen(descriptor, "wb") as file:
        file.write(b"content")
        file.flush()
        assert (files.OPEN_FILES / str(descriptor)).read_bytes() == b"content"


def test_where_there_are_none_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), name)

    with monkeypatch.context() as on_an_old_kernel:
        on_an_old_kernel.setattr(os, "memfd_create", refused)
        assert files.in_memory("some") is None
    monkeypatch.setattr(files, "OPEN_FILES", tmp_path / "no-proc")
    assert files.in_memory("some") is None
