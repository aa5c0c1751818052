"""Where a text can be cut so that the tokens of its slices are those of the whole text.

A text can be cut before a special token, as llama.cpp takes these out of a text first, and between words where a
pre-tokenizer ends a word in any context. Knows these rules (llama.cpp, src/llama-vocab.cpp and src/unicode.cpp); calls
no engine.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from shimmy.text.literals import any_of

MAX_SLICE_CHARACTERS = 16_384  # of a text that can be cut; they take a tenth of a second at worst
# Of all special tokens together, and of one; gemma-3 has 6,000 of about ten characters.
_MAX_SPECIAL_CHARACTERS = 200_000
_MAX_SPECIAL_LENGTH = 100
_NEVER = re.compile(r"(?!)")


class CutPlace(NamedTuple):
    """Two neighbours between which a text may be cut, each as a class of characters, and what has to follow them."""

    before: str
    behind: str
    then: str = ""


# Every pre-tokenizer begins a word with this space, except those below.
WORD = CutPlace("[A-Za-z]", " ", "[A-Za-z]")
_PLACES: Mapping[str, CutPlace | None] = {  # by `tokenizer.ggml.pre`, where a space does not always begin a word
    "gemma4": CutPlace(r"[^\n]", r"\n"),
    "sarvam-moe": CutPlace(r"[^\n]", r"\n"),
    "exaone-moe": CutPlace("[A-Za-z]", r"\n"),
    "superbpe": CutPlace("[A-Za-z]", "[0-9]"),
    "whitespace": None,
}


def place_of(pre: str) -> CutPlace | None:
    """Where a byte-level text may be cut, by the name of its pre-tokenizer; None: nowhere."""
    return _PLACES.get(pre, WORD)


class Cuts:
    """Finds where to cut the texts of one vocabulary. `specials` are the texts of its special tokens."""

    def __init__(self, specials: Sequence[str] | None, place: CutPlace | None, *, swallows: bool = False) -> None:
        """`specials` is None where they are unknown. With `swallows`, white space beside a special token may belong to
        the token."""
        self._swallows = swallows
        self._place = self._special = self._any = _NEVER
        self.is_known = specials is not None and sum(map(len, specials)) <= _MAX_SPECIAL_CHARACTERS and (
            max(map(len, specials), default=0) <= _MAX_SPECIAL_LENGTH
        )  # fmt: skip
        if specials is None or not self.is_known:
            return
        self._any = re.compile(any_of(specials))
        self._special = re.compile(any_of(_uncrossed(specials)))
        if place is not None and not any(re.search(place.before + place.behind, text) for text in specials):
            self._place = re.compile(f"{place.before}(?={place.behind}{place.then})")

    def end(self, text: str, start: int, n_characters: int) -> int:
        """Where the slice ends that begins at `start`: after about so many characters, or at the next place to cut."""
        half = n_characters // 2
        if len(text) - start <= n_characters:
            return len(text)
        for first in range(start + half, len(text), half):
            last = first + half + _MAX_SPECIAL_LENGTH
            if found := self._place.search(text, first, last):
                return found.end()
            for found in self._special.finditer(text, first, last):
                if not (self._swallows and text[found.start() - 1].isspace()):
                    return found.start()
        return len(text)

    def parts(self, text: str) -> list[str]:
        """`text` as text, special token, text, special token and so on; the last one is text."""
        found: list[str] = []
        start = 0
        for special in self._any.finditer(text):
            found += (text[start : special.start()], special[0])
            start = special.end()
        return [*found, text[start:]]

    def n_specials(self, text: str, at_most: int) -> int:
        """How many special tokens `text` has, but no more than `at_most`."""
        n_found = 0
        for _ in self._any.finditer(text):
            n_found += 1
            if n_found == at_most:
                break
        return n_found


def _uncrossed(texts: Iterable[str]) -> list[str]:
    """The texts whose occurrences cannot overlap with an occurrence of another of these texts."""
    whole = set(texts)
    beginnings = {text[:length] for text in whole for length in range(1, len(text))}
    # What stands at the end of one and begins another, and those that stand inside of another.
    shared = {text[start:] for text in whole for start in range(1, len(text))} & (beginnings | whole)
    inside = {
        text[start:end] for text in whole for start in range(1, len(text)) for end in range(start + 1, len(text) + 1)
        if text[start:end] in whole
    }  # fmt: skip
    return [
        text
        for text in sorted(whole - inside)
        if not any(text[:length] in shared for length in range(1, len(text) + 1))
        and not any(text[start:] in beginnings for start in range(1, len(text)))
    ]
