"""Every name that is listed means its own model, however odd the files are called, and stays with it."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Literal

import pytest

from shimmy import config
from shimmy.catalog.assign_names import MAX_FILES, ModelLocation, Names, model_name
from shimmy.catalog.catalog import Catalog, Registry
from shimmy.catalog.header_cache import Headers
from shimmy.catalog.publisher import CatalogPublisher
from shimmy.catalog.scan import scan
from shimmy.errors import ModelNotFound
from tests.fakes import on_loop
from tests.tiny_models import write_tiny_model

Form = Literal["NFC", "NFD"]
FORMS: tuple[Form, ...] = ("NFC", "NFD")


class House:
    """Models in one folder, and the names that their files have from one look to the next, and after a restart."""

    def __init__(self, folder: Path, cache: Path | None = None) -> None:
        self.folder, self.cache = folder, cache
        self.start()

    def start(self) -> None:
        settings = config.load({"model_dirs": [str(self.folder)]}, {})
        self.registry, self.names = Registry(), Names(self.cache, settings.roots)
        self.now_s = 0.0
        self.librarian = CatalogPublisher(
            settings, self.registry, Headers(), lambda _: None, lambda: self.now_s, names=self.names
        )
        self.librarian.publish_first()
        self.names.save()

    async def look(self) -> None:
        for _ in range(2):
            self.now_s += 1.0
            await self.librarian.look()
        self.names.save()

    @property
    def paths(self) -> dict[str, str]:
        """Where what is listed lies."""
        return {name: str(model.path.relative_to(self.folder)) for name, model in self.registry.listed()}

    def path(self, name: str) -> str:
        return str(self.registry.resolve(name).path.relative_to(self.folder))


def put(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = write_tiny_model(path.parent, "source-of-a-model", seed=seed)
    return source.rename(path)


def scan_folder(folder: Path) -> Catalog:
    return scan(config.load({"model_dirs": [str(folder)]}, {}), Headers())


PIECES = (
    *("a", "A", "b", "model", "Model", "MODEL", "-", "_", " ", ".", "..", "--", "@", ":", "#", "%41", "?", "+", "~"),
    *(".gguf", ".GGUF", "q4_0", "-q4_0", ".Q4_0", "-Q8_0", ":latest", "@b", "@x-2", "é", "e\u0301", "É", "İ", "ß", "Σ"),
    *(
        "\uff46",
        "ﬁ",
        "\u212b",
        "\x01",
        "\n",
        "\udcff",
        "日本",
        "🦙",
        "\u00a0",
        "\u200b",
        "'",
        '"',
        "\\",
        "*",
        "[a]",
        "$HOME",
    ),
)


def odd_stem(random: Random) -> str:
    while True:
        stem = "".join(random.choice(PIECES) for _ in range(random.randint(1, 4)))
        if stem not in {"", ".", ".."} and len(os.fsencode(stem)) < 200:
            return stem


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_model(tmp_path_factory.mktemp("source"), "source").read_bytes()


@pytest.mark.parametrize("seed", range(40))
def test_every_listed_name_is_its_own_model_and_every_stem_its_file(tmp_path: Path, content: bytes, seed: int) -> None:
    random = Random(seed)
    folders = [tmp_path / name for name in ("x", "b", "x/b", "y")]
    stems = [odd_stem(random) for _ in range(12)]
    stems += [random.choice(stems) + random.choice((".gguf", "", "@b")) for _ in range(6)]
    stems += [random.choice((str.upper, str.lower, str.title))(random.choice(stems)) for _ in range(6)]
    stems += [unicodedata.normalize(random.choice(FORMS), random.choice(stems)) for _ in range(6)]
    written: dict[str, list[Path]] = {}
    for stem in stems:
        path = random.choice(folders) / f"{stem}.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() and not stem.startswith("._"):
            path.write_bytes(content)
            written.setdefault(stem, []).append(path)
    catalog = scan_folder(tmp_path)
    assert sorted(model.path for model in catalog.models) == sorted(path for some in written.values() for path in some)
    listed = {model.name: model for model in catalog.models}
    assert len(listed) == len(catalog.models)
    for name, model in listed.items():
        assert name.isprintable()
        assert catalog.resolve(name) is model, name
        assert catalog.resolve(model_name(name)) is model
    for stem, paths in written.items():
        if len(paths) == 1 and stem not in listed:
            assert catalog.resolve(stem).path == paths[0], stem
    assert [model.name for model in scan_folder(tmp_path).models] == [*listed], "the same at the next start"


def test_a_listed_name_comes_before_any_tidying(tmp_path: Path) -> None:
    for name in ("pair.gguf", "pair.gguf.gguf", "pair.gguf.gguf.gguf"):
        put(tmp_path / name)
    catalog = scan_folder(tmp_path)
    assert [model.name for model in catalog.models] == ["pair", "pair.gguf", "pair.gguf.gguf"]
    for model in catalog.models:
        assert catalog.resolve(model.name) is model
        assert catalog.resolve(model.name.upper()) is model
    assert catalog.resolve("pair.gguf.gguf.gguf").path.name == "pair.gguf.gguf.gguf"


def test_what_is_written_just_so_has_the_name_and_each_is_found_as_it_is_written(tmp_path: Path) -> None:
    for name in ("Tiny_Model.gguf", "tiny-model.gguf", "TINY-MODEL.gguf"):
        put(tmp_path / "house" / name)
    catalog = scan_folder(tmp_path)
    assert {model.name: model.path.name for model in catalog.models} == {
        "tiny-model": "tiny-model.gguf",
        "tiny-model@house": "TINY-MODEL.gguf",
        "tiny-model@house-2": "Tiny_Model.gguf",
    }
    for name in ("Tiny_Model", "tiny-model", "TINY-MODEL", "Tiny_Model.gguf"):
        assert catalog.resolve(name).path.name == f"{name.removesuffix('.gguf')}.gguf"
    assert catalog.resolve("Tiny-Model").path.name == "tiny-model.gguf"


def test_several_files_that_are_written_so_are_candidates(tmp_path: Path) -> None:
    put(tmp_path / "c" / "tiny.gguf")
    for place in ("a", "b"):
        put(tmp_path / place / "Tiny.gguf")
    with pytest.raises(ModelNotFound, match="`Tiny` could be any of `tiny@a` and `tiny@b`; use one of these"):
        scan_folder(tmp_path).resolve("Tiny")


@pytest.mark.parametrize("form", FORMS)
def test_names_are_compared_composed(tmp_path: Path, form: Form) -> None:
    stem = "Modèle-Ångström"
    put(tmp_path / f"{unicodedata.normalize(form, stem)}.gguf")
    catalog = scan_folder(tmp_path)
    (model,) = catalog.models
    assert model.name == unicodedata.normalize("NFC", stem.lower())
    registry = Registry([(unicodedata.normalize("NFD", "Été"), model.name)], unicodedata.normalize("NFD", model.name))
    registry.publish(catalog)
    for other in FORMS:
        assert catalog.resolve(unicodedata.normalize(other, stem)) is model
        assert registry.resolve(unicodedata.normalize(other, "été")) is model
    assert registry.resolve("anything") is model


def test_both_forms_of_one_name_are_two_models(tmp_path: Path) -> None:
    for form in FORMS:
        put(tmp_path / "house" / f"{unicodedata.normalize(form, 'é')}.gguf")
    catalog = scan_folder(tmp_path)
    assert [model.name for model in catalog.models] == ["é", "é@house"]
    for model in catalog.models:
        assert catalog.resolve(model.path.stem) is model


ARRIVALS: dict[str, Callable[[Path], object]] = {
    "a file of this name in a folder that comes before": lambda folder: put(folder / "a" / "model-q4.gguf", 1),
    "a file of another spelling that comes before": lambda folder: put(folder / "m" / "MODEL_Q4.gguf", 1),
    "a link that comes before": lambda folder: (folder / "m" / "a.gguf").symlink_to(folder / "m" / "model-q4.gguf"),
    "a hard link that comes before": lambda folder: os.link(folder / "m" / "model-q4.gguf", folder / "m" / "a.gguf"),
    "a linked folder that comes before": lambda folder: (folder / "a").symlink_to(folder / "m"),
    "a link of this name to another model": lambda folder: (
        put(folder / "a" / "x.gguf").parent / "model-q4.gguf"
    ).symlink_to(put(folder / "z" / "other.gguf", 1)),
    "a broken file of this name": lambda folder: put(folder / "a" / "model-q4.gguf").write_bytes(b"broken"),
    "a file that is called like the one in a folder": lambda folder: put(folder / "m" / "model-q4@m.gguf", 1),
}


@pytest.mark.parametrize("arrival", ARRIVALS)
@on_loop
async def test_a_name_in_service_keeps_its_file(tmp_path: Path, arrival: str) -> None:
    folder = tmp_path / "models"
    put(folder / "m" / "model-q4.gguf")
    house = House(folder, tmp_path / "cache")
    model = house.registry.resolve("model-q4")
    ARRIVALS[arrival](folder)
    await house.look()
    assert house.registry.catalog.find("model-q4") == model, "and its worker is not replaced"
    listed = house.paths
    house.start()
    assert house.registry.catalog.find("model-q4") == model, "after a restart, too"
    assert house.paths == listed


@on_loop
async def test_a_name_given_for_want_of_another_stays_as_well(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    for place in ("a", "b"):
        put(folder / place / "model.gguf", seed=ord(place))
    house = House(folder, tmp_path / "cache")
    assert house.paths == {"model": "a/model.gguf", "model@b": "b/model.gguf"}
    put(folder / "a" / "model@b.gguf", 1)
    await house.look()
    assert house.paths["model@b"] == "b/model.gguf"
    assert house.path("model@b@a") == "a/model@b.gguf"
    (folder / "a" / "model.gguf").unlink()
    await house.look()
    assert house.path("model") == house.path("model@b") == "b/model.gguf", "its file has both names now"
    put(folder / "a" / "model.gguf", 2)
    await house.look()
    house.start()
    assert house.path("model") == house.path("model@b") == "b/model.gguf"
    assert house.path("model@a") == "a/model.gguf"


@on_loop
async def test_every_path_to_a_file_is_a_name_of_it(tmp_path: Path) -> None:
    qwen = put(tmp_path / "qwen.gguf")
    house = House(tmp_path)
    (tmp_path / "gpt-4.gguf").symlink_to(qwen)
    (tmp_path / "Claude_3.gguf").hardlink_to(qwen)
    await house.look()
    assert [model.name for model in house.registry.catalog.models] == ["qwen"]
    assert set(house.paths) == {"qwen", "gpt-4", "claude-3"}
    for name in ("qwen", "gpt-4", "GPT-4", "gpt-4.gguf", "gpt-4:latest", "Claude_3", "claude-3"):
        assert house.path(name) == "qwen.gguf"
    llama = put(tmp_path / "llama.gguf", 1)
    (tmp_path / "gpt-4.gguf").unlink()
    (tmp_path / "gpt-4.gguf").symlink_to(llama)
    await house.look()
    assert house.path("gpt-4") == "llama.gguf"
    (tmp_path / "gpt-4.gguf").unlink()
    await house.look()
    with pytest.raises(ModelNotFound):
        house.path("gpt-4")


def test_a_file_comes_before_the_links_to_it(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").symlink_to("qwen.gguf")
    put(tmp_path / "qwen.gguf")
    (model,) = scan_folder(tmp_path).models
    assert (model.name, model.path.name, model.other_names) == ("qwen", "qwen.gguf", ("a",))


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"names": 1}', b'{"names": {"a": 1}, "others": []}', b"[" * 9999]
)
def test_a_damaged_memory_is_of_no_use_and_does_no_harm(tmp_path: Path, damage: bytes) -> None:
    folder = tmp_path / "models"
    put(folder / "model.gguf")
    house = House(folder, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(damage)
    house.start()
    assert house.paths == {"model": "model.gguf"}
    assert b"model.gguf" in file.read_bytes()


def test_those_who_search_other_folders_share_no_names(tmp_path: Path) -> None:
    for place in ("a", "b"):
        put(tmp_path / place / "model.gguf", seed=ord(place))
    cache = tmp_path / "cache"
    assert House(tmp_path / "b", cache).paths == {"model": "model.gguf"}
    assert House(tmp_path, cache).path("model") == "a/model.gguf"
    assert House(tmp_path / "b", cache).paths == {"model": "model.gguf"}


def test_the_names_of_few_lists_of_folders_are_remembered(tmp_path: Path) -> None:
    for number in range(MAX_FILES + 3):
        put(tmp_path / str(number) / "model.gguf")
        House(tmp_path / str(number), tmp_path / "cache")
    assert len([*(tmp_path / "cache").iterdir()]) == MAX_FILES


def test_a_base_is_what_comes_before_the_quantisation_and_not_before_an_at_sign(tmp_path: Path) -> None:
    put(tmp_path / "user@host-q4_0.gguf")
    catalog = scan_folder(tmp_path)
    assert catalog.resolve("user@host").name == "user@host-q4-0"
    with pytest.raises(ModelNotFound):
        catalog.resolve("user")


def test_the_name_of_a_name_is_itself() -> None:
    random = Random(1)
    for _ in range(2_000):
        name = model_name(odd_stem(random))
        assert model_name(name) == name


def test_a_place_without_a_suffix_has_its_whole_name() -> None:
    stems = {
        name: ModelLocation.of_file(Path("/models") / name).stem for name in ("a.gguf", "a.GGUF", ".gguf", "a.q4_0")
    }
    assert stems == {"a.gguf": "a", "a.GGUF": "a", ".gguf": ".gguf", "a.q4_0": "a.q4_0"}
