"""Where texts may be cut: against a copy of llama.cpp's search for special tokens, and what it costs to look."""

from random import Random

import pytest

from shimmy.engine.llama.text_slices import WORD, CutPlace, Cuts, place_of


def slices(text: str, cuts: Cuts) -> list[str]:
    parts, start = [], 0
    while start < len(text):
        end = cuts.end(text, start, 8)
        assert end > start
        parts.append(text[start:end])
        start = end
    return parts


def partition(text: str, specials: list[str]) -> list[tuple[bool, str]]:
    """As `tokenizer_st_partition` does: one special token after the other, the longest first."""
    parts = [(False, text)] if text else []
    for special in sorted(specials, key=len, reverse=True):
        found: list[tuple[bool, str]] = []
        for is_special, part in parts:
            if is_special:
                found.append((True, part))
                continue
            for index, plain in enumerate(part.split(special)):
                found += [(True, special)] * bool(index)
                found += [(False, plain)] * bool(plain)
        parts = found
    return parts


VOCABULARIES = [
    ["<|im_start|>", "<|im_end|>", "<s>", "</s>"],
    ["<a>", ">b<", "b<a", "<a>b"],
    ["\n", "\n\n", "\n\n\n", "ab", "ba", "aab"],
    ["<", "<<", "<<<a"],
    ["a b", "<x>"],
    ["x", "<x>", "<x", "x>"],
]


@pytest.mark.parametrize("specials", VOCABULARIES)
@pytest.mark.parametrize("place", [WORD, None])
def test_slices_have_the_special_tokens_of_the_whole_text(specials: list[str], place: CutPlace | None) -> None:
    random = Random(1)
    cuts = Cuts(specials, place)
    atoms = [*specials, *"ab <>x\n", " b", "a b c "]
    for _ in range(400):
        text = "".join(random.choices(atoms, k=random.choice([2, 10, 60])))
        found = [each for part in slices(text, cuts) for each in partition(part, specials)]
        assert joined(found) == joined(partition(text, specials)), text


def joined(parts: list[tuple[bool, str]]) -> list[tuple[bool, str]]:
    """Plain neighbours as one: they are cut at words, which the pre-tokenizers are tried for with the engine."""
    result: list[tuple[bool, str]] = []
    for is_special, text in parts:
        if result and not is_special and not result[-1][0]:
            result[-1] = False, result[-1][1] + text
        else:
            result.append((is_special, text))
    return result


def test_a_text_is_cut_wherever_it_can_be() -> None:
    chat = Cuts(["<|im_start|>", "<|im_end|>"], WORD)
    assert slices("<|im_start|>hi<|im_end|>" * 3, chat) == ["<|im_start|>hi", "<|im_end|>"] * 3
    assert slices("some words to cut", chat) == ["some words", " to cut"]
    assert slices("A" * 100, chat) == ["A" * 100]


def test_no_text_is_cut_where_a_special_token_may_stand_across() -> None:
    assert slices("some words to cut", Cuts(["e w"], WORD)) == ["some words to cut"]
    assert slices("<a>" * 10, Cuts(["<a>", "><"], None)) == ["<a>" * 10]


def test_white_space_that_a_special_token_swallows_stays_beside_it() -> None:
    text = "<a>  <a>  <a>  <a>"
    assert len(slices(text, Cuts(["<a>"], None))) > 1
    assert slices(text, Cuts(["<a>"], None, swallows=True)) == [text]


def test_a_vocabulary_that_is_too_odd_is_not_known() -> None:
    for specials in (None, ["x" * 101], [f"<{number:060}>" for number in range(10_000)]):
        cuts = Cuts(specials, WORD)
        assert not cuts.is_known
        assert slices("some words to cut", cuts) == ["some words to cut"]


def test_thousands_of_special_tokens_are_found_by_one_pattern() -> None:
    cuts = Cuts([f"<unused{number}>" for number in range(6000)], None)
    text = "<unused17><unused1><unused5999><unused6000>"
    assert cuts.n_specials(text, 100) == 3
    assert cuts.n_specials(text, 2) == 2


@pytest.mark.parametrize(("pre", "text"), [("gemma4", "a\nb"), ("exaone-moe", "a\nb"), ("superbpe", "a1"), ("", "a b")])
def test_each_pre_tokenizer_has_its_places(pre: str, text: str) -> None:
    place = place_of(pre)
    assert place is not None
    assert slices(text * 20, Cuts([], place))[0].endswith("a")
    assert place_of("whitespace") is None
