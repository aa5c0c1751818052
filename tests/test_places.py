"""Layouts that other programs write are found under the names those programs use."""

import hashlib
import json
import logging
from pathlib import Path

import pytest

from shimmy import config
from shimmy.discovery import scan
from shimmy.headers import Headers
from shimmy.registry import Catalog
from tests.tiny_models import write_tiny_model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def find(**environment: str) -> Catalog:
    return scan(config.load({}, environment), Headers())


def names(catalog: Catalog) -> list[str]:
    return [model.name for model in catalog.models]


def put(folder: Path, name: str, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write_tiny_model(folder, name, seed=seed)


def put_in_hub(hub: Path, repository: str, file: str, seed: int = 0, revision: str = "0" * 40) -> None:
    """As huggingface_hub stores a file: the content under its hash, and a link to it in the snapshot."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    source = put(folder / "blobs", "new", seed)
    blob = source.rename(source.with_name(hashlib.sha256(source.read_bytes()).hexdigest()))
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True, exist_ok=True)
    (snapshot / file).symlink_to(Path("../../blobs") / blob.name)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(revision)


def put_in_ollama(store: Path, name: str, seed: int = 0, digest: str = "") -> None:
    """As `ollama pull` stores a model; `name` is HOST/NAMESPACE/NAME/TAG."""
    source = put(store / "blobs", "new", seed)
    digest = digest or "sha256:" + hashlib.sha256(source.read_bytes()).hexdigest()
    source.rename(source.with_name(digest.replace(":", "-").replace("/", "_")))
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "1" * 64, "size": 10},
        {"mediaType": "application/vnd.ollama.image.model", "digest": digest, "size": 10},
        {"mediaType": "application/vnd.ollama.image.params", "digest": "sha256:" + "2" * 64, "size": 10},
    ]
    manifest = store / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))


def test_the_usual_places_are_searched(home: Path) -> None:
    put(home / "models", "here")
    put(home / ".local" / "share" / "shimmy" / "models", "shared", 1)
    put(home / ".lmstudio" / "models" / "publisher" / "repo-GGUF", "Studio-Q4_K_M", 2)
    put(home / ".cache" / "lm-studio" / "models" / "publisher" / "repo", "older", 3)
    put_in_hub(home / ".cache" / "huggingface" / "hub", "org/repo", "From_Hub.gguf", 4)
    put_in_ollama(home / ".ollama" / "models", "registry.ollama.ai/library/llama3/8b", 5)
    assert names(find()) == ["from-hub", "here", "llama3:8b", "older", "shared", "studio-q4-k-m"]


def test_usual_places_that_are_missing_are_no_news(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert home.is_dir()
    with caplog.at_level(logging.INFO):
        assert names(find()) == []
    assert caplog.records == []


def test_a_place_that_is_named_takes_the_place_of_the_usual_ones(home: Path) -> None:
    put(home / "models", "usual")
    put(home / "own", "own", 1)
    assert names(find(SHIMMY_MODEL_PATHS=str(home / "own"))) == ["own"]


def test_other_programs_variables_are_followed(home: Path) -> None:
    put_in_hub(home / "hf" / "hub", "org/repo", "a.gguf")
    put_in_hub(home / "cache", "org/repo", "b.gguf", 1)
    put_in_ollama(home / "ollama", "registry.ollama.ai/library/qwen/latest", 2)
    assert names(find(HF_HOME=str(home / "hf"), OLLAMA_MODELS=str(home / "ollama"))) == ["a", "qwen:latest"]
    assert names(find(HF_HOME=str(home / "hf"), HF_HUB_CACHE=str(home / "cache"))) == ["b"]


def test_a_file_in_two_snapshots_is_one_model(home: Path) -> None:
    hub = home / ".cache" / "huggingface" / "hub"
    put_in_hub(hub, "org/repo", "a.gguf")
    put_in_hub(hub, "org/repo", "a.gguf", revision="1" * 40)
    assert names(find()) == ["a"]


def test_ollamas_names(home: Path) -> None:
    store = home / ".ollama" / "models"
    for seed, name in enumerate(
        ("library/llama3/8b", "library/llama3/latest", "somebody/mine/v2", "library/qwen/0.5b")
    ):
        put_in_ollama(store, f"registry.ollama.ai/{name}", seed)
    put_in_ollama(store, "hf.co/org/repo/Q4_K_M", 9)
    catalog = find()
    assert names(catalog) == [
        "hf.co/org/repo:q4-k-m", "llama3:8b", "llama3:latest", "qwen:0.5b", "somebody/mine:v2"
    ]  # fmt: skip
    for asked, found in {
        "llama3": "llama3:latest", "llama3:8b": "llama3:8b", "LLAMA3:8B": "llama3:8b", "qwen": "qwen:0.5b",
        "qwen:latest": "qwen:0.5b", "somebody/mine": "somebody/mine:v2",
        "hf.co/org/repo:Q4_K_M": "hf.co/org/repo:q4-k-m",
    }.items():  # fmt: skip
        assert catalog.resolve(asked).name == found


def test_a_tag_that_is_another_name_of_the_same_blob_finds_it(home: Path) -> None:
    store = home / ".ollama" / "models"
    put_in_ollama(store, "registry.ollama.ai/library/llama3/8b")
    put_in_ollama(store, "registry.ollama.ai/library/llama3/latest")
    catalog = find()
    assert names(catalog) == ["llama3:8b"]
    assert catalog.resolve("llama3:latest").name == "llama3:8b"


@pytest.mark.parametrize(
    "manifest",
    [
        "", "null", "[]", "{}", '{"layers": 3}', '{"layers": [{}]}', "[" * 100_000,
        '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../etc/passwd"}]}',
        '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": 7}]}',
        '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:' + "0" * 64 + '"}]}',
        '{"layers": []}' + " " * (1 << 20),
    ],
    ids=range(11),
)  # fmt: skip
def test_a_manifest_that_makes_no_sense_is_passed_over(home: Path, manifest: str) -> None:
    store = home / ".ollama" / "models"
    put_in_ollama(store, "registry.ollama.ai/library/good/1b")
    bad = store / "manifests" / "registry.ollama.ai" / "library" / "bad" / "1b"
    bad.parent.mkdir()
    bad.write_text(manifest)
    assert names(find()) == ["good:1b"]
