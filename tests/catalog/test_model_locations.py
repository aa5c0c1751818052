"""Layouts that other programs write are found under the names those programs use."""

import hashlib
import json
import logging
import os
from pathlib import Path

import pytest

from shimmy import config
from shimmy.catalog.catalog import Catalog, diff
from shimmy.catalog.header_cache import Headers
from shimmy.catalog.scan import scan
from shimmy.errors import ModelNotFound
from shimmy.messages.model_info import ModelDefaults
from tests.ollama_store import put_in_ollama
from tests.tiny_checkpoints import write_tiny_llama
from tests.tiny_models import STRING, Metadata, Tensor, encode_gguf, write_tiny_model


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


def adapter(kind: str = "adapter", seed: int = 0) -> bytes:
    metadata: Metadata = [("general.architecture", STRING, "llama"), ("general.type", STRING, kind)]
    return encode_gguf(metadata, [Tensor("weights", (8,), bytes([seed] * 32))])


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


def test_the_hubs_cache_is_where_the_hub_looks_for_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_CACHES", str(home / "caches"))
    put_in_hub(home / "xdg" / "huggingface" / "hub", "org/repo", "a.gguf")
    put_in_hub(home / "hf" / "hub", "org/repo", "b.gguf", 1)
    put_in_hub(home / "old", "org/repo", "c.gguf", 2)
    put_in_hub(home / "caches" / "new", "org/repo", "d.gguf", 3)
    variables = {
        "XDG_CACHE_HOME": f"{home}/xdg", "HF_HOME": f"{home}/hf", "HUGGINGFACE_HUB_CACHE": f"{home}/old",
        "HF_HUB_CACHE": "$MY_CACHES/new",
    }  # fmt: skip
    for number, name in enumerate("abcd", 1):
        assert names(find(**dict([*variables.items()][:number]))) == [name], "the later variable decides"


def test_the_plain_name_is_that_of_the_current_revision(home: Path) -> None:
    hub = home / ".cache" / "huggingface" / "hub"
    old, new = "0" * 40, "f" * 40
    for seed, revision in enumerate((old, new)):
        put_in_hub(hub, "org/repo-GGUF", "Tiny-Q4_K_M.gguf", seed, revision)
    main = hub / "models--org--repo-GGUF" / "refs" / "main"
    for current, other in ((old, new), (new, old)):
        main.write_text(current)
        catalog = find()
        assert names(catalog) == ["tiny-q4-k-m", f"tiny-q4-k-m@{other}"]
        for name in ("tiny-q4-k-m", "Tiny-Q4_K_M", "tiny-q4-k-m.gguf", "org/repo-GGUF", "ORG/repo-gguf:q4_k_m"):
            assert catalog.resolve(name).path.parent.name == current, name
        assert catalog.resolve(f"tiny-q4-k-m@{other}").path.parent.name == other


def test_of_revisions_in_safetensors_the_current_one_has_the_plain_name(home: Path) -> None:
    repository = home / ".cache/huggingface/hub/models--Some-Org--Whole"
    for seed, revision in enumerate("ab"):
        write_tiny_llama(repository / "snapshots" / revision, seed=seed)
    (repository / "refs").mkdir()
    for current, other in ("ab", "ba"):
        (repository / "refs" / "main").write_text(f"{current}\n")
        catalog = find()
        assert {model.name: model.path.name for model in catalog.models} == {"whole": current, f"whole@{other}": other}
        assert catalog.resolve("Some-Org/Whole").path.name == current


@pytest.mark.parametrize("revision", ["", "..", "../../etc", "missing", "\0", "a" * 10_000])
def test_a_revision_that_is_none_chooses_nothing(home: Path, revision: str) -> None:
    hub = home / ".cache" / "huggingface" / "hub"
    for seed, name in enumerate("ab"):
        put_in_hub(hub, "org/repo", "tiny.gguf", seed, name)
    (hub / "models--org--repo" / "refs" / "main").write_text(revision)
    assert names(find()) == ["tiny", "tiny@b"]


def test_a_repository_of_the_hub_is_a_name_of_what_is_in_it(home: Path) -> None:
    hub = home / ".cache" / "huggingface" / "hub"
    for seed, name in enumerate(("Some_Model-Q4_K_M.gguf", "Some_Model-Q8_0.gguf")):
        put_in_hub(hub, "Some-Org/Some_Model-GGUF", name, seed)
    put_in_hub(hub, "gpt2", "small.gguf", 2)
    write_tiny_llama(hub / "models--Some-Org--Whole" / "snapshots" / ("0" * 40))
    catalog = find()
    for name, found in {
        "Some-Org/Some_Model-GGUF:Q8_0": "some-model-q8-0", "some-org/some-model-gguf:q4_k_m": "some-model-q4-k-m",
        "gpt2": "small", "Some-Org/Whole": "whole", "some-org/whole:latest": "whole",
    }.items():  # fmt: skip
        assert catalog.resolve(name).name == found, name
    with pytest.raises(ModelNotFound, match="could be any of `some-model-q4-k-m` and `some-model-q8-0`"):
        catalog.resolve("Some-Org/Some_Model-GGUF")
    for name in ("Some-Org", "Some-Org/", "/Some_Model-GGUF", "Some-Org/Some_Model-GGUF:Q5_0", "models--gpt2"):
        with pytest.raises(ModelNotFound):
            catalog.resolve(name)


def test_what_the_hub_knows_not_to_exist_is_no_model(home: Path) -> None:
    repository = home / ".cache/huggingface/hub/models--org--repo"
    put(repository / ".no_exist" / ("0" * 40), "nothing")
    put_in_hub(repository.parent, "org/repo", "a.gguf", 1)
    assert names(find()) == ["a"]


def test_a_file_in_two_snapshots_is_one_model(home: Path) -> None:
    hub = home / ".cache" / "huggingface" / "hub"
    put_in_hub(hub, "org/repo", "a.gguf")
    put_in_hub(hub, "org/repo", "a.gguf", revision="1" * 40)
    assert names(find()) == ["a"]


def test_a_repository_in_safetensors_has_its_own_name(home: Path) -> None:
    snapshot = home / ".cache/huggingface/hub/models--Some-Org--Some-Model_1B/snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    assert [(entry.name, entry.path) for entry in find().rejected] == [("some-model-1b", snapshot)]


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
    for name in ("llama3", "llama3:latest", "llama3:8b"):
        assert catalog.resolve(name).name == "llama3:8b"
    put_in_ollama(store, "registry.ollama.ai/library/other/1b")
    assert find().resolve("other:1b").other_names == ("llama3:latest", "other:1b")


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


LLAMA = "registry.ollama.ai/library/llama3/8b"
MARIO = "registry.ollama.ai/library/mario/latest"


def test_what_ollamas_manifest_brings(home: Path) -> None:
    params = {
        "temperature": 0.5, "top_k": 20, "top_p": 0.9, "min_p": 0, "seed": 42, "repeat_penalty": 1.1,
        "repeat_last_n": -1, "num_predict": 128, "num_ctx": 4096, "stop": ["<|eot|>", "User:"], "num_gpu": 1,
    }  # fmt: skip
    put_in_ollama(home / ".ollama" / "models", LLAMA, params=json.dumps(params).encode(), system="Sei kühn.".encode())
    (model,) = find().models
    assert model.defaults == ModelDefaults(
        sampling=(
            ("seed", 42), ("temperature", 0.5), ("top_k", 20), ("top_p", 0.9), ("min_p", 0.0), ("repeat_last_n", -1),
            ("repeat_penalty", 1.1),
        ),
        n_predict=128,
        stop=("<|eot|>", "User:"),
        system="Sei kühn.",
    )  # fmt: skip
    assert [type(value) for _, value in model.defaults.sampling] == [int, float, int, float, float, int, float]


def test_one_file_with_other_defaults_is_another_model(home: Path) -> None:
    store = home / ".ollama" / "models"
    put_in_ollama(store, LLAMA, system=b"Be brief.")
    put_in_ollama(store, LLAMA.replace("8b", "latest"), system=b"Be brief.")
    put_in_ollama(store, MARIO, system=b"You are Mario.")
    catalog = find()
    assert {model.name: model.defaults.system for model in catalog.models} == {
        "llama3:8b": "Be brief.",
        "mario:latest": "You are Mario.",
    }
    assert len({model.path for model in catalog.models}) == 1


def test_a_change_of_defaults_needs_no_new_worker(home: Path) -> None:
    store = home / ".ollama" / "models"
    put_in_ollama(store, LLAMA, system=b"Be brief.")
    before = find()
    put_in_ollama(store, LLAMA, system=b"Be long.")
    after = find()
    assert diff(before, after).is_empty
    assert after.models[0].defaults.system == "Be long."


def test_adapters_and_projectors_of_ollamas(home: Path) -> None:
    store = home / ".ollama" / "models"
    put_in_ollama(store, LLAMA, projector=adapter("mmproj"))
    put_in_ollama(store, MARIO, adapter=adapter())
    llama, mario = find().models
    assert (llama.adapters, llama.needs_adapters) == ((), False)
    assert llama.projector is not None
    assert llama.projector.read_bytes() == adapter("mmproj")
    (path,) = mario.adapters
    assert path.read_bytes() == adapter()
    assert (mario.needs_adapters, mario.projector) == (True, None)
    assert len(mario.files) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"ggla", "its adapter is broken: it has 4 bytes, too few for a GGUF file"),
        (adapter("mmproj"), "its adapter is a projector"),
    ],
)
def test_a_model_without_its_adapter_would_be_another_one(home: Path, content: bytes, reason: str) -> None:
    put_in_ollama(home / ".ollama" / "models", MARIO, adapter=content)
    with pytest.raises(ModelNotFound, match=f"^`mario:latest` cannot be served: {reason}$"):
        find().resolve("mario")


@pytest.mark.parametrize(
    "layer",
    [
        {"params": content}
        for content in (
            b"", b"[]", b"null", b"[" * 60_000, b'{"temperature": "hot"}', b'{"temperature": NaN}', b'{"top_k": 1.5}',
            b'{"temperature": true}', b'{"seed": 1e400}', b'{"top_k": 99999999999}', b'{"stop": 7}', b'{"stop": [""]}',
            b'{"stop": ["\\ud800"]}', b'{"repeat_penalty": 0}', b'{"top_p": 7}', b'{"num_predict": "many"}',
            json.dumps({"stop": ["x"] * 65}).encode(), json.dumps({"stop": "x" * 1025}).encode(),
            b"{}" + b" " * (1 << 16),
        )
    ]
    + [{"system": b"\xff"}, {"system": b"x" * ((1 << 17) + 1)}],
    ids=range(21),
)  # fmt: skip
def test_layers_that_make_no_sense_are_passed_over(
    home: Path, layer: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    put_in_ollama(home / ".ollama" / "models", LLAMA, 0, **layer)
    (model,) = find().models
    assert model.defaults == ModelDefaults()
    assert caplog.text.count("is passed over: ") == 1


def test_layers_that_are_missing_or_no_files_are_passed_over(home: Path) -> None:
    store = home / ".ollama" / "models"
    put_in_ollama(store, LLAMA, params=b'{"seed": 1}', system=b"Be brief.")
    for content in (b'{"seed": 1}', b"Be brief."):
        blob = store / "blobs" / f"sha256-{hashlib.sha256(content).hexdigest()}"
        blob.unlink()
        if content.startswith(b"Be"):
            os.mkfifo(blob)
    (model,) = find().models
    assert model.defaults == ModelDefaults()


def test_seeds_and_limits_that_ask_for_nothing(home: Path) -> None:
    put_in_ollama(home / ".ollama" / "models", LLAMA, params=b'{"seed": -1, "num_predict": -2, "stop": "END"}')
    (model,) = find().models
    assert model.defaults == ModelDefaults(stop=("END",))
