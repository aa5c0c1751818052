"""Pulls from a registry as Ollama's is, into the store that Ollama and we read."""

import hashlib
import json
from random import Random

import pytest

from shimmy.errors import NotFound, PullFailed
from shimmy.formats import ollama_store
from shimmy.hub.pull import pull
from shimmy.hub.transfer.events import PullEvent
from tests.hub.conftest import Place, Serve
from tests.hub.servers import FakeRegistry, Fault

MODEL = b"GGUF" + Random(1).randbytes(300_000)
LAYERS = {"model": MODEL, "params": b'{"temperature": 0.5}', "system": b"Be kind.", "template": b"{{ .Prompt }}"}


@pytest.fixture
def registry(serve: Serve) -> FakeRegistry:
    made = FakeRegistry({"library/tiny:latest": LAYERS, "me/tiny:q4": LAYERS})
    serve(made)
    return made


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("ollama:tiny", "tiny:latest"),
        ("ollama:me/tiny:q4", "me/tiny:q4"),
        ("registry.ollama.ai/library/tiny", "tiny:latest"),
        ("https://ollama.com/library/tiny:latest", "tiny:latest"),
    ],
)
def test_a_name_lies_in_the_store_as_ollama_has_it(
    registry: FakeRegistry, place: Place, reference: str, name: str
) -> None:
    path = place.pull(registry, reference)
    assert ollama_store.is_store(place.store)
    warnings: list[object] = []
    (manifest,) = ollama_store.manifests(place.store, lambda *warning: warnings.append(warning))
    assert not warnings
    assert manifest.path == path
    assert manifest.name == name
    assert manifest.model.read_bytes() == MODEL
    assert manifest.defaults.system == "Be kind."
    assert dict(manifest.defaults.sampling) == {"temperature": 0.5}
    assert path.read_bytes() in registry.manifests.values()
    assert len([*(place.store / "blobs").iterdir()]) == 5  # with the config
    assert not place.unfinished()


def test_what_is_there_is_not_fetched_again(registry: FakeRegistry, place: Place) -> None:
    place.pull(registry, "ollama:tiny")
    n_fetched = len(registry.paths("/cdn/"))
    place.pull(registry, "ollama:me/tiny:q4")
    assert len(registry.paths("/cdn/")) == n_fetched


def test_a_registry_may_want_a_token_that_everyone_gets(serve: Serve, place: Place) -> None:
    server = FakeRegistry({"library/tiny:latest": LAYERS}, asks_for_token=True)
    serve(server)
    place.pull(server, "ollama:tiny", token="hf_secret")
    sent = [headers.get("authorization", "") for _, headers in server.requests]
    assert set(sent) == {"", "Bearer anonymous"}
    assert not [path for path, headers in server.requests if path.startswith("/cdn/") and "authorization" in headers]


def test_an_unknown_name_is_not_found(registry: FakeRegistry, place: Place) -> None:
    with pytest.raises(NotFound, match=r"library/tiny:q9"):
        place.pull(registry, "ollama:tiny:q9")
    assert not place.store.exists()


def test_a_wrong_digest_leaves_no_name(registry: FakeRegistry, place: Place) -> None:
    registry.faults.extend([Fault(), *[Fault(body=b"GGUFwrong")] * 30])
    with pytest.raises(PullFailed, match="digest"):
        place.pull(registry, "ollama:tiny")
    assert not (place.store / "manifests").exists()


def layer(kind: str, digest: str, size: object) -> bytes:
    row = {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": size}
    return json.dumps({"layers": [row]}).encode()


@pytest.mark.parametrize(
    "manifest",
    [
        b"not JSON",
        b"[]",
        b'{"layers": 7}',
        layer("model", "sha256:../../x", 5),
        layer("model", f"sha256:{'0' * 64}", -5),
        layer("model", f"sha256:{'0' * 64}", "5"),
        layer("params", f"sha256:{'0' * 64}", 5),
    ],
)
def test_manifests_without_sense_are_refused(registry: FakeRegistry, place: Place, manifest: bytes) -> None:
    registry.manifests["library/tiny:latest"] = manifest
    with pytest.raises(PullFailed):
        place.pull(registry, "ollama:tiny")
    assert not place.store.exists()


def test_a_blob_that_the_registry_lacks_is_an_error(registry: FakeRegistry, place: Place) -> None:
    del registry.blobs[f"sha256:{hashlib.sha256(MODEL).hexdigest()}"]
    with pytest.raises(PullFailed, match="404"):
        place.pull(registry, "ollama:tiny")
    assert not (place.store / "manifests").exists()


def test_nothing_is_removed_from_the_store_between_the_first_blob_and_the_manifest(
    registry: FakeRegistry, place: Place
) -> None:
    refused = []

    def remove(event: PullEvent) -> None:
        if event.kind == "progress":
            with pytest.raises(BlockingIOError), ollama_store.not_pulling(place.store):
                pass
            refused.append(event)

    pull("ollama:tiny", place.settings(registry), remove)
    assert refused
    with ollama_store.not_pulling(place.store):
        pass
