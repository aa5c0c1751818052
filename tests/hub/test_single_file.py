"""GGUF files at URLs."""

import hashlib
from random import Random

import pytest

from shimmy.errors import PullFailed
from tests.hub.conftest import Place, Serve
from tests.hub.servers import FakeFiles, Fault

MODEL = b"GGUF" + Random(1).randbytes(300_000)


@pytest.fixture
def files(serve: Serve) -> FakeFiles:
    parts = {f"/d/m-0000{number}-of-00002.gguf": MODEL + bytes([number]) for number in (1, 2)}
    made = FakeFiles({"/m.gguf": MODEL, "/page.gguf": b"<html>" * 20_000, "/empty.gguf": b"", **parts})
    serve(made)
    return made


@pytest.fixture(autouse=True)
def no_hub(place: Place) -> None:
    place.options = {"endpoint": "http://hub.invalid"}


def test_a_file_lies_in_the_folder(files: FakeFiles, place: Place) -> None:
    path = place.pull(files, f"{files.url}/m.gguf")
    assert path == place.folder / "m.gguf"
    assert path.read_bytes() == MODEL
    assert not place.unfinished()
    assert place.pull(files, f"{files.url}/m.gguf") == path


def test_all_parts_of_a_model_come(files: FakeFiles, place: Place) -> None:
    path = place.pull(files, f"{files.url}/d/m-00002-of-00002.gguf")
    assert path.name == "m-00001-of-00002.gguf"
    assert sorted(entry.name for entry in place.folder.glob("*.gguf")) == [f"m-0000{n}-of-00002.gguf" for n in (1, 2)]


def test_a_digest_may_be_asked_for(files: FakeFiles, place: Place) -> None:
    with pytest.raises(PullFailed, match="digest"):
        place.pull(files, f"{files.url}/m.gguf#sha256={'0' * 64}")
    assert not [*place.folder.glob("*.gguf*")]
    assert place.pull(files, f"{files.url}/m.gguf#sha256={hashlib.sha256(MODEL).hexdigest()}").exists()


@pytest.mark.parametrize("name", ["page.gguf", "empty.gguf"])
def test_what_is_no_model_is_refused(files: FakeFiles, place: Place, name: str) -> None:
    with pytest.raises(PullFailed, match="not a GGUF file"):
        place.pull(files, f"{files.url}/{name}")
    assert not [*place.folder.glob("*.gguf*")]


def test_a_missing_file_is_an_error(files: FakeFiles, place: Place) -> None:
    with pytest.raises(PullFailed, match="404"):
        place.pull(files, f"{files.url}/none.gguf")


def test_a_file_of_unknown_length_comes_whole(files: FakeFiles, place: Place) -> None:
    files.has_ranges = files.tells_length = False
    assert place.pull(files, f"{files.url}/m.gguf").read_bytes() == MODEL


def test_a_file_that_has_changed_is_fetched_from_its_beginning(files: FakeFiles, place: Place) -> None:
    files.faults.extend([Fault()] * 4 + [Fault(status=410)] * 20)
    with pytest.raises(PullFailed):
        place.pull(files, f"{files.url}/m.gguf")
    assert place.unfinished()
    other = MODEL[:4] + Random(2).randbytes(300_000)
    files.files["/m.gguf"].data = other
    files.faults.clear()
    assert place.pull(files, f"{files.url}/m.gguf").read_bytes() == other
