"""Pulls from a hub: which files, into which places of the cache, and what is refused."""

from pathlib import Path
from random import Random

import pytest

from shimmy.errors import BadRequest, NotFound, PullFailed
from tests.hub.conftest import Place, Serve
from tests.hub.servers import COMMIT, FakeHub, Fault

MODEL = b"GGUF" + Random(1).randbytes(700_000)
NAME = "Owner/Tiny-GGUF"


def hub(serve: Serve, **files: bytes) -> FakeHub:
    made = FakeHub({NAME: {name.replace("__", "/"): data for name, data in files.items()} or {"tiny.gguf": MODEL}})
    serve(made)
    return made


def test_a_model_lies_in_the_cache_as_huggingface_hub_has_it(serve: Serve, place: Place) -> None:
    server = hub(serve)
    path = place.pull(server, "hf.co/owner/tiny-gguf")
    folder = place.cache / "models--Owner--Tiny-GGUF"
    assert path == folder / "snapshots" / COMMIT / "tiny.gguf"
    assert path.read_bytes() == MODEL
    digest = server.repositories[NAME]["tiny.gguf"].digest
    assert str(path.readlink()) == f"../../blobs/{digest}"
    assert (folder / "refs" / "main").read_text() == COMMIT
    assert not place.unfinished()
    assert place.kinds()[:2] == ["resolving", "files"]
    assert place.kinds()[-1] == "done"


def test_what_is_there_is_not_fetched_again(serve: Serve, place: Place) -> None:
    server = hub(serve)
    first = place.pull(server, NAME)
    n_fetched = len(server.paths("/signed/"))
    assert place.pull(server, NAME) == first
    assert len(server.paths("/signed/")) == n_fetched


def test_a_revision_has_its_own_ref(serve: Serve, place: Place) -> None:
    server = hub(serve)
    place.pull(server, f"{NAME}@v1")
    assert (place.cache / "models--Owner--Tiny-GGUF" / "refs" / "v1").read_text() == COMMIT
    with pytest.raises(NotFound, match="no such revision"):
        place.pull(server, f"{NAME}@v2")


def test_shards_and_projector_come_along(serve: Serve, place: Place) -> None:
    files = {f"Q8_0/big-Q8_0-0000{number}-of-00003.gguf": MODEL + bytes([number]) for number in (1, 2, 3)}
    server = FakeHub({NAME: {**files, "mmproj-F16.gguf": MODEL, "other-Q2_K.gguf": MODEL}})
    serve(server)
    path = place.pull(server, f"{NAME}:q8_0")
    assert path.name == "big-Q8_0-00001-of-00003.gguf"
    snapshot = path.parents[1]
    found = sorted(str(entry.relative_to(snapshot)) for entry in snapshot.rglob("*.gguf"))
    assert found == [*(f"Q8_0/big-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)), "mmproj-F16.gguf"]


def test_a_folder_of_safetensors_comes_with_what_it_needs(serve: Serve, place: Place) -> None:
    needed = {
        "config.json": b"{}",
        "model.safetensors": Random(2).randbytes(100_000),
        "tokenizer.json": b'{"a": 1}',
        "tokenizer.model": b"model",
        "hy.tiktoken": b"IQ== 0",
        "merges.txt": b"a b",
        "chat_template.jinja": b"{{ x }}",
        "1_Pooling/config.json": b"{ }",
        "2_Dense/config.json": b"{  }",
        "2_Dense/model.safetensors": b"dense",
    }
    others = {"README.md": b"read", "onnx/model.onnx": b"onnx", "consolidated.safetensors": b"twice"}
    server = FakeHub({"o/folder": needed | others})
    serve(server)
    path = place.pull(server, "o/folder")
    assert path == place.cache / "models--o--folder" / "snapshots" / COMMIT
    found = {str(entry.relative_to(path)): entry.read_bytes() for entry in path.rglob("*") if entry.is_file()}
    assert found == needed


def test_a_wrong_tag_is_refused_with_those_there_are(serve: Serve, place: Place) -> None:
    server = FakeHub({NAME: {"m-Q4_K_M.gguf": MODEL, "m-BF16.gguf": MODEL}})
    serve(server)
    with pytest.raises(BadRequest, match=r"no `F16`; it has BF16 \(0\.0 GB\), Q4_K_M"):
        place.pull(server, f"{NAME}:F16")
    assert not place.cache.exists()


def test_the_list_of_files_comes_in_pages(serve: Serve, place: Place) -> None:
    server = FakeHub({NAME: {f"m-Q{number}_0.gguf": MODEL for number in range(2, 9)}})
    server.page_rows = 3
    serve(server)
    assert place.pull(server, NAME).name == "m-Q8_0.gguf"


def test_a_token_is_for_the_hub_alone(serve: Serve, place: Place) -> None:
    server = hub(serve)
    server.token = "hf_secret"
    with pytest.raises(NotFound, match="HF_TOKEN"):
        place.pull(server, NAME)
    place.pull(server, NAME, token="hf_secret")
    behind_links = [headers for path, headers in server.requests if path.startswith("/signed/")]
    assert behind_links
    assert not any("authorization" in headers for headers in behind_links)


def test_a_gated_repository_says_what_to_do(serve: Serve, place: Place) -> None:
    server = hub(serve)
    server.error_code = "GatedRepo"
    with pytest.raises(PullFailed, match="ask for access"):
        place.pull(server, NAME)


def test_offline_means_the_cache(serve: Serve, place: Place) -> None:
    server = hub(serve)
    with pytest.raises(NotFound, match="HF_HUB_OFFLINE"):
        place.pull(server, NAME, is_offline=True)
    assert not server.requests
    path = place.pull(server, NAME)
    n_requests = len(server.requests)
    assert place.pull(server, NAME, is_offline=True) == path
    assert len(server.requests) == n_requests


@pytest.mark.parametrize("name", ["../../../evil.gguf", "/evil.gguf", "a/../../../../evil.gguf", "a\\..\\evil.gguf"])
def test_a_name_that_leaves_its_folder_is_refused(serve: Serve, place: Place, tmp_path: Path, name: str) -> None:
    server = FakeHub({NAME: {name: MODEL}})
    serve(server)
    with pytest.raises(PullFailed, match="leave its folder"):
        place.pull(server, NAME)
    assert not [*tmp_path.rglob("*evil*")]


@pytest.mark.parametrize(
    "row",
    [
        {"type": "file", "path": "m.gguf", "size": 10, "lfs": {"oid": "../../x", "size": 10}},
        {"type": "file", "path": "m.gguf", "size": 10, "lfs": {"oid": "0" * 64, "size": -1}},
        {"type": "file", "path": "m.gguf", "size": "10", "oid": "0" * 40},
        {"type": "file", "path": 7},
        "text",
        None,
    ],
)
def test_rows_without_sense_are_no_files(serve: Serve, place: Place, row: object) -> None:
    class Odd(FakeHub):
        def _answer_tree(self, handler, name, files):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202, ARG002
            self.send_json(handler, [row])

    server = Odd({NAME: {"m.gguf": MODEL}})
    serve(server)
    with pytest.raises(NotFound, match="has no model"):
        place.pull(server, NAME)


def test_a_page_in_place_of_a_model_is_refused(serve: Serve, place: Place) -> None:
    server = FakeHub({NAME: {"m.gguf": b"<html>not found</html>" * 10_000}})
    serve(server)
    with pytest.raises(PullFailed, match="not a GGUF file"):
        place.pull(server, NAME)
    assert not [*place.cache.rglob("*.gguf")]
    assert not place.unfinished()


def test_nothing_is_listed_until_all_is_there(serve: Serve, place: Place) -> None:
    parts = {f"m-Q8_0-0000{number}-of-00002.gguf": MODEL + bytes([number]) for number in (1, 2)}
    server = FakeHub({NAME: parts})
    serve(server)
    server.faults.extend([Fault()] * 14 + [Fault(status=404)] * 200)
    with pytest.raises(PullFailed):
        place.pull(server, NAME)
    assert not [*place.cache.rglob("*.gguf")]
    assert not (place.cache / "models--Owner--Tiny-GGUF" / "refs").exists()
    server.faults.clear()
    assert len([*place.pull(server, NAME).parent.iterdir()]) == 2
