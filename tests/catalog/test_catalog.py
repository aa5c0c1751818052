"""Names find their models and nothing but their models; catalogs differ by exactly what changed."""

from dataclasses import replace
from pathlib import Path

import pytest

from shimmy.catalog.assign_names import ModelLocation, model_name
from shimmy.catalog.catalog import BROKEN, Catalog, CatalogDiff, Model, Registry, Rejected, diff, shown
from shimmy.errors import ModelNotFound
from tests import fakes


def model(name: str, quantization: str = "") -> Model:
    return replace(fakes.model(name), path=Path("/models") / f"{name}.gguf", quantization=quantization)


def rejected(name: str, kind: str = BROKEN, reason: str = "it is cut off") -> Rejected:
    return Rejected(name, Path("/models") / f"{name}.gguf", kind, reason, (1, 1))


SMOLLM2 = model("smollm2-135m-instruct.q4-1", "Q4_1")
GEMMA_Q4 = model("gemma-3-270m-it-q4-k-m", "Q4_K_M")
GEMMA_Q8 = model("gemma-3-270m-it-q8-0", "Q8_0")
UNSLOTH = model("qwen3-8b-ud-q4-k-xl", "Q4_K_M")
PLAIN = model("my-model", "BF16")
CATALOG = Catalog([SMOLLM2, GEMMA_Q8, GEMMA_Q4, UNSLOTH, PLAIN])


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1", "smollm2-135m-instruct.q4-1"),
        ("My Model_v2", "my-model-v2"),
        ("bad\nname\udcff", "bad-name-"),
        ("Größe", "größe"),
    ],
)
def test_the_name_of_a_file(stem: str, name: str) -> None:
    assert model_name(stem) == name


def test_models_are_sorted_by_name() -> None:
    assert [model.name for model in CATALOG.models] == sorted(model.name for model in CATALOG.models)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smollm2-135m-instruct.q4-1", SMOLLM2),
        ("SmolLM2-135M-Instruct.Q4_1", SMOLLM2),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", SMOLLM2),
        ("smollm2-135m-instruct:q4_1", SMOLLM2),
        ("SmolLM2-135M-Instruct:Q4_1", SMOLLM2),
        ("smollm2-135m-instruct", SMOLLM2),
        ("smollm2-135m-instruct:", SMOLLM2),
        ("smollm2-135m-instruct:latest", SMOLLM2),
        ("gemma-3-270m-it:q8_0", GEMMA_Q8),
        ("gemma-3-270m-it:Q4_K_M", GEMMA_Q4),
        ("qwen3-8b", UNSLOTH),
        ("qwen3-8b:ud-q4_k_xl", UNSLOTH),
        ("qwen3-8b:q4_k_m", UNSLOTH),
        ("my-model:bf16", PLAIN),
        ("my-model:latest", PLAIN),
    ],
)
def test_what_a_name_means(name: str, expected: Model) -> None:
    assert CATALOG.resolve(name) is expected


@pytest.mark.parametrize("name", ["gemma-3-270m-it", "gemma-3-270m-it:latest", "Gemma-3-270M-IT"])
def test_an_ambiguous_name_lists_its_candidates(name: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        CATALOG.resolve(name)
    assert "`gemma-3-270m-it-q4-k-m` and `gemma-3-270m-it-q8-0`" in caught.value.message
    assert caught.value.param == "model"


@pytest.mark.parametrize("name", ["", ":", "gemma", "gemma-3-270m-it:q5_0", "my-model:q4_0", "q4-1"])
def test_no_name_means_a_model_it_does_not_say(name: str) -> None:
    with pytest.raises(ModelNotFound):
        CATALOG.resolve(name)


def test_an_unknown_name_gets_up_to_three_close_ones() -> None:
    with pytest.raises(
        ModelNotFound, match=r"no model `smolm2-135m-instruct`; did you mean `smollm2-135m-instruct.q4-1`\?"
    ):
        CATALOG.resolve("smolm2-135m-instruct")
    many = Catalog([model(f"llama-{n}b") for n in range(1, 9)])
    with pytest.raises(ModelNotFound) as caught:
        many.resolve("llama-9b")
    assert caught.value.message.count("`llama-") == 4  # the one asked for and three more


def test_a_far_off_name_is_told_where_the_list_is() -> None:
    with pytest.raises(ModelNotFound, match="there are 5 models, `shimmy list` or `GET /v1/models` lists them"):
        CATALOG.resolve("zzz")
    with pytest.raises(ModelNotFound, match="there is 1 model, "):
        Catalog([PLAIN]).resolve("zzz")
    with pytest.raises(ModelNotFound, match="no models were found"):
        Catalog().resolve("zzz")


def test_a_very_long_name_is_not_compared() -> None:
    with pytest.raises(ModelNotFound) as caught:
        CATALOG.resolve("my-model" * 100_000)
    assert len(caught.value.message) < 200


def test_a_name_given_to_another_folders_file() -> None:
    path = Path("/models/old/My-Model.gguf")
    catalog = Catalog([PLAIN, replace(model("my-model@old", "BF16"), path=path, places=(ModelLocation.of_file(path),))])
    assert catalog.resolve("my-model") is PLAIN
    assert catalog.resolve("My_Model@Old").name == "my-model@old"
    with pytest.raises(ModelNotFound, match="`my-model` and `my-model@old`"):
        catalog.resolve("my-model:bf16")


def test_the_registry_publishes_one_reference() -> None:
    registry = Registry()
    before = registry.catalog
    registry.publish(CATALOG)
    assert before.models == ()
    assert registry.catalog is CATALOG


def test_the_difference_of_two_catalogs() -> None:
    replaced = replace(PLAIN, mtime_ns=2)
    new = Catalog([SMOLLM2, GEMMA_Q4, UNSLOTH, replaced, model("fresh")])
    assert diff(CATALOG, new) == CatalogDiff(added=(model("fresh"),), changed=(replaced,), removed=(GEMMA_Q8,))
    assert diff(CATALOG, CATALOG) == CatalogDiff((), (), ())


@pytest.mark.parametrize("name", ["half", "Half.gguf", "half:latest"])
def test_what_cannot_be_served_says_why(name: str) -> None:
    catalog = Catalog([PLAIN], [rejected("half")])
    assert catalog.entry(name) == rejected("half")
    with pytest.raises(ModelNotFound, match=r"^`half` cannot be served: it is cut off$"):
        catalog.resolve(name)


def test_a_broken_file_is_found_by_its_tag() -> None:
    catalog = Catalog([SMOLLM2], [rejected("half-q4-k-m"), rejected("qwen:7b")])
    for name, found in {"half": "half-q4-k-m", "half:q4_k_m": "half-q4-k-m", "qwen": "qwen:7b"}.items():
        with pytest.raises(ModelNotFound, match=f"^`{found}` cannot be served"):
            catalog.resolve(name)


def test_no_other_model_answers_for_a_broken_one() -> None:
    catalog = Catalog([model("half-q4-k-m")], [rejected("half")])
    with pytest.raises(ModelNotFound, match="`half` cannot be served"):
        catalog.resolve("half")


def test_what_never_was_a_model_hides_none() -> None:
    catalog = Catalog([model("half-q4-k-m")], [rejected("half", "safetensors")])
    assert catalog.resolve("half").name == "half-q4-k-m"


def test_a_known_model_serves_while_its_new_file_is_broken() -> None:
    catalog = Catalog([PLAIN], [rejected(PLAIN.name), rejected("half")])
    assert catalog.resolve(PLAIN.name) is PLAIN
    assert catalog.rejected_reason(PLAIN.name) == "it is cut off"
    assert catalog.rejected_reason(SMOLLM2.name) is None
    assert catalog.unavailable == (rejected("half"),)


def test_where_nothing_can_be_served_the_reasons_are_told() -> None:
    with pytest.raises(ModelNotFound, match="`GET /api/models` says why"):
        Catalog([], [rejected("half")]).resolve("zzz")


def test_what_is_rejected_anew_is_a_difference() -> None:
    again = rejected("half", reason="it is empty")
    old, new = Catalog([], [rejected("half"), rejected("other")]), Catalog([], [again, rejected("other")])
    assert diff(old, new) == CatalogDiff((), (), (), (again,))
    assert not diff(old, new).is_empty
    assert diff(new, new).is_empty


def test_what_is_rejected_no_more_is_a_difference_once() -> None:
    gone = diff(Catalog([PLAIN], [rejected(PLAIN.name), rejected("half")]), Catalog([PLAIN]))
    assert gone == CatalogDiff((), (), (), mended=("half", PLAIN.name))  # a file that went, and a model as it was
    assert not gone.is_empty
    whole = model("half")
    assert diff(Catalog([], [rejected("half")]), Catalog([whole])) == CatalogDiff((whole,), (), ())
    assert diff(Catalog([whole], [rejected("half")]), Catalog()) == CatalogDiff((), (), (whole,))


def test_a_path_is_shown_without_what_cannot_be_printed() -> None:
    assert shown(Path("/Modèle 1/a.gguf")) == "/Modèle 1/a.gguf"
    assert shown(Path("/a\nb\x1b\udcff")) == "/a\\nb\\x1b\\udcff"


# -- names that a person gave ----------------------------------------------------------------------------------------


def registry(*aliases: tuple[str, str], default: str | None = None) -> Registry:
    made = Registry(aliases, default)
    made.publish(CATALOG)
    return made


def test_an_alias_means_its_model_and_a_pattern_every_name_that_fits() -> None:
    names = registry(("GPT-4o", "my-model"), ("gpt-*", "smollm2-135m-instruct"), ("claude", "gemma-3-270m-it:q8_0"))
    assert names.resolve("gpt-4o") is PLAIN
    assert names.resolve("GPT-4O") is PLAIN
    assert names.resolve("gpt-3.5-turbo") is SMOLLM2
    assert names.resolve("claude") is GEMMA_Q8
    assert [(alias, model.name) for alias, model in names.aliases()] == [
        ("gpt-4o", PLAIN.name),
        ("claude", GEMMA_Q8.name),
    ]


def test_a_models_own_name_comes_before_an_alias() -> None:
    names = registry(("*", "my-model"), ("smollm2-135m-instruct", "my-model"))
    assert names.resolve(SMOLLM2.name) is SMOLLM2
    assert names.resolve("smollm2-135m-instruct") is PLAIN, "but Ollama's form of it after"
    assert names.resolve("anything") is PLAIN


def test_the_default_answers_for_unknown_names_and_not_for_ambiguous_ones() -> None:
    names = registry(default="my-model")
    assert names.resolve("gpt-4") is PLAIN
    assert names.resolve("x" * 10_000) is PLAIN
    assert names.resolve("qwen3-8b") is UNSLOTH
    with pytest.raises(ModelNotFound, match="could be any of"):
        names.resolve("gemma-3-270m-it")


def test_without_aliases_and_default_nothing_else_is_served() -> None:
    with pytest.raises(ModelNotFound, match="no model `gpt-4`"):
        registry().resolve("gpt-4")


def test_an_alias_of_a_model_that_is_not_there_says_so() -> None:
    names = registry(("gpt-4", "missing"))
    with pytest.raises(ModelNotFound, match="no model `missing`"):
        names.resolve("gpt-4")
    assert names.aliases() == []


def test_a_list_of_aliases_compares_no_names_and_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def compare(*_: object) -> str:
        raise AssertionError("close names were looked for")

    monkeypatch.setattr(Catalog, "_did_you_mean", compare)
    targets = ("missing", "gemma-3-270m-it", "gemma-3-270m-it:q8_0", "my-model", "half-q4-k-m")
    names = Registry([(f"alias-{target}", target) for target in targets])
    names.publish(Catalog(CATALOG.models, [rejected("half-q4-k-m")]))
    expected = [("alias-gemma-3-270m-it:q8_0", GEMMA_Q8), ("alias-my-model", PLAIN)]
    assert names.aliases() == expected
    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "find", compare)
        assert names.aliases() == expected
    names.publish(Catalog([PLAIN]))
    assert names.aliases() == expected[1:]


def test_no_alias_and_no_default_answers_for_a_broken_model() -> None:
    names = Registry([("*", "my-model")], "my-model")
    names.publish(Catalog([PLAIN], [rejected("half-q4-k-m")]))
    with pytest.raises(ModelNotFound, match="`half-q4-k-m` cannot be served"):
        names.resolve("Half-Q4_K_M")
    assert names.resolve("anything") is PLAIN
    without_alias = Registry([], "my-model")
    without_alias.publish(names.catalog)
    with pytest.raises(ModelNotFound, match="`half-q4-k-m` cannot be served"):
        without_alias.resolve("half")
