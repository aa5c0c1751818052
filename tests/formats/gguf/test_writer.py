"""A GGUF that several threads write, each a tensor at a time: the same file, and an end to it where one fails."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shimmy.formats.gguf.writer import GGML_CODES, GgufType, TensorInfo, write_file

METADATA = [("general.architecture", GgufType.STRING, "llama")]
TENSORS = [TensorInfo(f"t{index}", (index + 1, 3), GGML_CODES["F32"]) for index in range(20)]


def content(tensor: TensorInfo) -> Iterator[memoryview]:
    """In chunks of 7 bytes, which are no whole numbers."""
    data = bytes(range(tensor.n_bytes % 251)) * 251
    for start in range(0, tensor.n_bytes, 7):
        yield memoryview(data)[start : min(start + 7, tensor.n_bytes)]


def ignore(share: float) -> None:
    del share


def test_threads_write_the_same_file(tmp_path: Path) -> None:
    written, shares = [], list[float]()
    for n_threads in (1, 3):
        path = tmp_path / f"{n_threads}.gguf"
        write_file(path, METADATA, [(one, content(one)) for one in TENSORS], shares.append, n_threads)
        written.append(path.read_bytes())
        assert shares[-1] == 1
    assert written[0] == written[1]


def test_a_tensor_that_fails_ends_the_others(tmp_path: Path) -> None:
    waits, failed = threading.Event(), threading.Event()

    def failing() -> Iterator[memoryview]:
        waits.wait(10)
        failed.set()
        raise OSError(28, "No space left on device")
        yield memoryview(b"")

    def endless() -> Iterator[memoryview]:
        waits.set()
        while True:
            failed.wait(10)
            yield memoryview(b"")

    tensors = [(TENSORS[0], failing()), (TENSORS[1], endless()), (TENSORS[2], content(TENSORS[2]))]
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "some.gguf", METADATA, tensors, ignore, 2)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_what_the_progress_raises_ends_the_writing(tmp_path: Path, n_threads: int) -> None:
    def endless() -> Iterator[memoryview]:
        while True:
            yield memoryview(b"\0")

    def stop(_share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "some.gguf", METADATA, [(one, endless()) for one in TENSORS], stop, n_threads)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_tensor_with_other_bytes_than_it_says_is_a_fault(tmp_path: Path, n_threads: int) -> None:
    with pytest.raises(ValueError, match="`t3` has 48 bytes, and 12 were written"):
        write_file(tmp_path / "some.gguf", METADATA, [(TENSORS[3], content(TENSORS[0]))], ignore, n_threads)
