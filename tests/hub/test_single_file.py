"""GGUF files at URLs."""

import hashlib
import os
from random import Random

import pytest

from shimmy.errors import PullFailed
from shimmy.hub.transfer import ranges
from tests.hub.conftest import Place, Serve
from tests.hub.servers import Content, FakeFiles, Fault

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


def test_a_file_that_is_there_is_checked_by_its_digest(files: FakeFiles, place: Place) -> None:
    path = place.pull(files, f"{files.url}/m.gguf")
    with pytest.raises(PullFailed, match=r"another digest.*remove it first"):
        place.pull(files, f"{files.url}/m.gguf#sha256={'0' * 64}")
    assert path.read_bytes() == MODEL
    files.forget_requests()
    assert place.pull(files, f"{files.url}/m.gguf#sha256={hashlib.sha256(MODEL).hexdigest()}") == path
    assert not files.requests


def test_two_urls_with_one_file_name_are_told_apart(files: FakeFiles, place: Place) -> None:
    files.files["/other/m.gguf"] = Content(MODEL[::-1], is_large=True)
    files.files["/copy/m.gguf"] = files.files["/m.gguf"]
    path = place.pull(files, f"{files.url}/m.gguf?key=secret")
    assert place.pull(files, f"{files.url}/m.gguf?key=secret") == path
    for other in ("other/m.gguf", "copy/m.gguf", "m.gguf?key=another"):
        with pytest.raises(PullFailed, match=r"not from this URL.*#sha256=DIGEST"):
            place.pull(files, f"{files.url}/{other}")
    assert path.read_bytes() == MODEL
    assert place.pull(files, f"{files.url}/copy/m.gguf#sha256={hashlib.sha256(MODEL).hexdigest()}") == path
    assert not any(b"secret" in note.read_bytes() for note in place.folder.rglob("*.source"))


def test_a_file_that_somebody_put_in_the_place_of_a_pulled_one_is_not_taken_for_it(
    files: FakeFiles, place: Place
) -> None:
    path = place.pull(files, f"{files.url}/m.gguf")
    path.unlink()
    path.write_bytes(MODEL[::-1])
    os.utime(path, (0, 0))  # on another day
    with pytest.raises(PullFailed, match="not from this URL"):
        place.pull(files, f"{files.url}/m.gguf")
    path.unlink()
    assert place.pull(files, f"{files.url}/m.gguf").read_bytes() == MODEL


@pytest.mark.parametrize(("second", "goes_on"), [("m.gguf?signature=2", True), ("other/m.gguf", False)])
def test_a_pull_goes_on_with_the_same_file_of_the_same_url_without_its_query(
    files: FakeFiles, place: Place, monkeypatch: pytest.MonkeyPatch, second: str, goes_on: bool
) -> None:
    # One range after the other: with several at once, a later one may fail before the first has a byte.
    monkeypatch.setattr(ranges, "N_CONNECTIONS", 1)
    files.etag = '"1"'  # of every file
    files.files["/other/m.gguf"] = Content(MODEL[:4] + MODEL[:3:-1], is_large=True)
    files.faults.extend([Fault()] * 4 + [Fault(status=410)] * 20)
    with pytest.raises(PullFailed):
        place.pull(files, f"{files.url}/m.gguf?signature=1")
    files.faults.clear()
    files.forget_requests()
    path = place.pull(files, f"{files.url}/{second}")
    assert path.read_bytes() == files.files[f"/{second.partition('?')[0]}"].data
    starts = [headers["range"].partition("-")[0] for _, headers in files.requests[1:]]
    n_there = 3 if goes_on else 0  # of the ranges; one of the four replies told the size
    assert starts == [f"bytes={start}" for start in range(0, len(MODEL), ranges.CHUNK_BYTES)][n_there:]


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
