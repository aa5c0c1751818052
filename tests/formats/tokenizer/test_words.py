"""Words are cut as by the `tokenizers` library, whose cuts were recorded (tests/golden/record_words.py)."""

# ruff: noqa: RUF001 -- signs that look like others are what is cut

import json
import lzma
import re
import unicodedata
from random import Random

import pytest

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.tokenizer import words
from shimmy.formats.tokenizer.pretokenizers import WORDS, byte_letters
from shimmy.formats.tokenizer.words import Words
from tests.golden.record_words import FILE, odd_texts
from tests.tokenizer_folders import Json

GOLDEN: Json = json.loads(lzma.decompress(FILE.read_bytes()))
NAMES = sorted(WORDS.values())
LETTERS = "".join(byte_letters())


@pytest.mark.parametrize("name", NAMES)
def test_odd_texts_are_cut_alike(name: str) -> None:
    cut, different = Words(name), []
    for text, lengths in zip(odd_texts(), GOLDEN["lengths"][name], strict=True):
        found = cut.written(text).split(" ")
        assert "".join(found) == "".join(LETTERS[byte] for byte in text.encode())
        if list(map(len, found)) != lengths:
            different.append(text)
    assert different == [], json.dumps(different)


@pytest.mark.parametrize("name", GOLDEN["classes"])
def test_each_class_has_the_same_characters(name: str) -> None:
    """Of those that Python knows: its Unicode is older."""
    recorded = {code for first, last in GOLDEN["classes"][name] for code in range(first, last + 1)}
    assert recorded, "there is something to compare"
    pattern = re.compile(f"[{words._characters(name.split(maxsplit=1)[0])}]")
    different = [
        code
        for code in range(0x110000)
        if (pattern.match(chr(code)) is not None) != (code in recorded) and unicodedata.category(chr(code)) != "Cn"
    ]
    assert [hex(code) for code in different] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_text_is_cut_as_its_parts_are(name: str) -> None:
    """What stands between two ends of words is cut by itself, and most of it is cut once."""
    letters, random = "azAZ\u0410\u044fぁんァヶ一龥가힣", Random(1)
    ends = [*map(chr, range(0x80)), *"、。，", *letters, "\u0301", "é", "ع", "\u3000", "１"]
    texts = [*odd_texts()[:300], *("".join(random.choices([*letters, *ends], k=20)) for _ in range(1000))]
    cut = Words(name)
    assert [text for text in texts if cut.written(text) != cut._written(text)] == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("run", ["1", " ", "\n", "A", "a", "é", "中", "\u0301", "'", ".", " .", " \u0e01", "'s", "\r/"])
def test_the_time_grows_with_the_text(name: str, run: str) -> None:
    """Where each character looked at all others, this took minutes."""
    text = run * 50_000 + "é"
    assert len(Words(name).written(text).replace(" ", "")) == len(text.encode())


def test_half_characters_are_those_of_the_tokenizers_bytes() -> None:
    assert Words("falcon3").written("a\ud800b") == "a ? b"
    assert Words("falcon3").written("") == ""


def test_only_known_words_are_cut() -> None:
    with pytest.raises(Unconvertible, match="of another version"):
        Words("falcon-4")


def test_a_vocabulary_has_to_leave_spaces_out() -> None:
    vocabulary = [letter for byte, letter in enumerate(LETTERS) if byte not in (0xC0, 0xC1, *range(0xF5, 0x100))]
    words.require(vocabulary, ["<|im_start|>", "õ", "<｜User｜>", "<tool call>｜"])
    with pytest.raises(Unconvertible, match="bytes without a token"):
        words.require(vocabulary[:-1], [])
    for token in (" ", "<0x20>"):
        with pytest.raises(Unconvertible, match="spaces that are put between words"):
            words.require([*vocabulary, token], [])
    for token in ("Ġthe", "a b", "é", "  "):
        with pytest.raises(Unconvertible, match="could be found where words are written"):
            words.require(vocabulary, ["<s>", token])
