"""Keys of cells: the same for the same files, others for anything that would change what is computed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shimmy.engine.kv.cache_keys import Keys, OpenFiles, Sources, digest_of
from shimmy.messages.model_info import Adapter
from tests.tiny_models import write_tiny_adapter, write_tiny_model

ENGINE = b"engine"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path)


OPEN: list[Sources | OpenFiles] = []


@pytest.fixture(autouse=True)
def _closing() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def sources(model: Path, *adapters: Path) -> Sources:
    OPEN.append(found := Sources(model, adapters))
    return found


def digest(path: Path) -> bytes:
    OPEN.append(files := OpenFiles([path]))
    return files.digest()


def keys(model: Path, *adapters: Path, engine: bytes = ENGINE) -> Keys:
    return sources(model, *adapters).keys([Adapter(str(path), 1.0) for path in adapters], engine)


def retimed(path: Path, like: os.stat_result) -> Path:
    os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))
    return path


def test_the_same_file_has_the_same_key_wherever_it_lies(model: Path, tmp_path: Path) -> None:
    before = keys(model).of(())
    assert before is not None
    assert len(before) == 32
    assert keys(model).of(()) == before
    assert keys(model.rename(tmp_path / "other.gguf")).of(()) == before


def test_another_model_with_the_same_name_size_and_time_has_another_key(model: Path, tmp_path: Path) -> None:
    before, status = keys(model).of(()), model.stat()
    model.unlink()
    other = retimed(write_tiny_model(tmp_path, seed=1), status)
    assert other == model
    assert other.stat().st_size == status.st_size
    assert keys(other).of(()) != before


def test_a_file_that_was_written_at_another_time_has_another_key(model: Path) -> None:
    before = keys(model).of(())
    os.utime(model, ns=(0, 0))
    assert keys(model).of(()) != before


def test_shards_count_all(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, n_shards=2)
    before = keys(path).of(())
    last = path.with_name(path.name.replace("00001-of", "00002-of"))
    status = last.stat()
    data = bytearray(last.read_bytes())
    data[-1] ^= 1
    last.write_bytes(data)
    retimed(last, status)
    assert keys(path).of(()) != before


def test_a_large_file_is_known_by_samples(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(40 * 2**20)
    status = path.stat()
    before = digest(path)
    with path.open("r+b") as file:
        for start in range(8 * 2**20, 40 * 2**20, 2**18):
            file.seek(start)
            file.write(b"x")
    retimed(path, status)
    assert digest(path) != before


def test_engine_and_adapters_count_with_their_scales(model: Path, tmp_path: Path) -> None:
    one, two = write_tiny_adapter(tmp_path, "one"), write_tiny_adapter(tmp_path, "two", seed=1)
    plain = keys(model).of(())
    both = keys(model, one, two)
    found = [both.of(scales) for scales in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.0), (1.0, 1.0))]
    assert len({*found, plain, keys(model, engine=b"other").of(())}) == 6
    assert None not in found
    assert both.of((0.0, 0.0)) == plain, "an adapter that is not applied changes nothing"
    assert keys(model, two).of((1.0,)) == found[1]


def test_a_file_that_is_replaced_while_it_loads_has_no_key(model: Path, tmp_path: Path) -> None:
    opened = sources(model)
    write_tiny_model(tmp_path, "new", seed=1).replace(model)
    with pytest.raises(OSError, match="replaced"):
        opened.keys([], ENGINE)


def test_one_that_is_replaced_later_keeps_its_key(model: Path, tmp_path: Path) -> None:
    found = keys(model)
    before = found.of(())
    write_tiny_model(tmp_path, "new", seed=1).replace(model)
    assert found.of(()) == before, "the engine has the old one mapped"


def test_one_that_is_written_into_has_none_any_more(model: Path) -> None:
    found = keys(model)
    with model.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    os.utime(model, ns=(0, 0))
    assert found.of(()) is None


def test_an_adapter_that_could_not_be_read_has_none_where_it_is_applied(model: Path, tmp_path: Path) -> None:
    found = keys(model, tmp_path / "missing.gguf")
    assert found.of((1.0,)) is None
    assert found.of((0.0,)) == keys(model).of(())


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Sources(tmp_path / "missing.gguf", [])


def test_the_engine_is_known_by_all_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "library"
    path.write_bytes(bytes(10**5))
    before = digest_of(path)
    path.write_bytes(bytes(10**5 - 1) + b"x")
    assert digest_of(path) != before
