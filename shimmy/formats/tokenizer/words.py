"""Cuts text into words for llama.cpp, where none of its own pre-tokenizers cuts as a tokenizer of Hugging Face does.

Knows the steps of `pretokenizers.WORDS`, as `tokenizers` 0.23 takes them: the characters that its regular expressions
and its other steps tell apart, in the version of Unicode that Python has. Knows nothing of tokens: special ones are to
be taken out of a text first.
"""

import re
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator
from functools import cache, lru_cache
from itertools import groupby, pairwise

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.tokenizer.pretokenizers import (
    BYTES,
    DIGITS,
    DIGITS_FROM_THE_RIGHT,
    PUNCTUATION,
    WORDS,
    WORDS_KEY,
    byte_letters,
    shown,
)

# Each tokenizer of `WORDS` ends a word between two of these, whatever stands around: a letter of Latin, Russian,
# Japanese, Chinese or Korean, and white space or a sign that no letter goes on behind, as it may behind an apostrophe.
LETTER = "[A-Za-z\u0410-\u044f\u3041-\u3093\u30a1-\u30f6\u4e00-\u9fa5\uac00-\ud7a3]"
_END = re.compile(LETTER + "(?=[\0-&(-@\\[-`{-\x7f\u3001\u3002\uff0c])")
# What stands between two of these is mostly a word that comes again.
_N_KNOWN = 1 << 14
_MAX_KNOWN = 64  # characters of one
_SPACE = " "
_LETTERS = dict(enumerate(byte_letters()))
_BYTES_OF_TEXT = (*range(0xC0), *range(0xC2, 0xF5))  # in UTF-8; DeepSeek has added tokens of the letters of others

_END_OF_CATEGORIES = 0x323B0  # behind them are variation selectors alone, of those that matter
_SELECTORS = (0xE0100, 0xE01EF)
_WHITE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # without \x1c to \x1f, as Python has it
# Letters and numbers that count as part of a word for \b, beside categories L, M, Nd, Nl, Pc.
_OF_WORDS = "\xb2\xb3\xb9\xbc-\xbe\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189"
# Of category P in Unicode 16, but not for the step Punctuation, whose table is that of Unicode 8.
_LATE_PUNCTUATION = re.compile(
    "[\u061d\u09fd\u0a76\u0c77\u0c84\u1b4e\u1b4f\u1b7d-\u1b7f\u2e43-\u2e4f\u2e52-\u2e5d\U00010d6e\U00010ead"
    "\U00010f55-\U00010f59\U00010f86-\U00010f89\U000113d4-\U000113d8\U0001144b-\U0001144f\U0001145a-\U0001145d"
    "\U00011660-\U0001166c\U000116b9\U0001183b\U00011944-\U00011946\U000119e2\U00011a3f-\U00011a46"
    "\U00011a9a-\U00011aa2\U00011b00-\U00011b09\U00011be1\U00011c41-\U00011c45\U00011c70\U00011c71\U00011ef7"
    "\U00011ef8\U00011f43-\U00011f4f\U00011fff\U00012ff1\U00012ff2\U00016d6d-\U00016d6f\U00016e97-\U00016e9a"
    "\U00016fe2\U0001e5ff\U0001e95e\U0001e95f]"
)
_OTHER_PUNCTUATION = "!-/:-@\\[-`{-~\u166d\U000111c9"  # signs of ASCII are some of them of category S

# `\s+$` without looking at a run of spaces once more from each of its characters.
_IN_PYTHON = {r"\s+$": r"(?<!\s)\s+\Z", DIGITS: r"\p{N}", PUNCTUATION: r"\p{Punctuation}+"}
_CLASS = re.compile(r"\\p\{(\w+)\}|\\.|[\[\]]")

_Step = Callable[[str], Iterator[str]]


class Words:
    """Cuts text as the tokenizer of one name in `pretokenizers.WORDS` does. Any thread may use it."""

    def __init__(self, name: str) -> None:
        """Raises Unconvertible for a name that is not known."""
        steps = next((steps for steps, known in WORDS.items() if known == name), None)
        if steps is None:
            raise Unconvertible(f"its `{WORDS_KEY}` is of another version, or broken")
        n_before = steps.index(BYTES)
        self._of_text = [_step(step) for step in steps[:n_before]]
        self._of_letters = [_step(step) for step in steps[n_before + 1 :]]
        self._known = lru_cache(_N_KNOWN)(self._written)

    def written(self, text: str) -> str:
        """The words of `text` in letters that stand for its bytes, with a space between each and the next.

        Each takes a step of Python at least, so that another thread may get on between two.
        """
        ends = (found.end() for found in _END.finditer(text))
        stretches = (text[start:end] for start, end in pairwise([0, *ends, len(text)]) if start < end)
        return _SPACE.join(
            self._known(stretch) if len(stretch) <= _MAX_KNOWN else self._written(stretch) for stretch in stretches
        )

    def _written(self, text: str) -> str:
        words = _taken(self._of_text, [text])
        if not self._of_letters:
            return _in_letters(words)
        return _SPACE.join(_taken(self._of_letters, map(_in_letters, ([word] for word in words))))


def require(vocabulary: Container[str], added: Iterable[str]) -> None:
    """Raise Unconvertible where llama.cpp could not tokenize what `Words` writes: with spaces that are no tokens.

    `vocabulary` has the tokens that merges make and begin with, `added` those that are taken out of a text before.
    """
    letters = {_LETTERS[byte] for byte in _BYTES_OF_TEXT}
    if not all(letter in vocabulary for letter in letters):
        raise Unconvertible("its tokenizer has bytes without a token")
    if _SPACE in vocabulary or f"<0x{ord(_SPACE):02X}>" in vocabulary:
        raise Unconvertible("its tokenizer has a token for the spaces that are put between words")
    for text in added:
        if letters.issuperset(text.replace(_SPACE, "")) and not (text.isascii() and _SPACE not in text):
            raise Unconvertible(f"its added token {shown(text)} could be found where words are written")


def _taken(steps: Iterable[_Step], words: Iterable[str]) -> Iterable[str]:
    for step in steps:
        words = [part for word in words for part in step(word)]
    return words


def _in_letters(words: Iterable[str]) -> str:
    return _SPACE.join(word.encode("utf-8", "replace").decode("latin-1").translate(_LETTERS) for word in words)


def _step(step: str) -> _Step:
    if step == DIGITS_FROM_THE_RIGHT:
        return _numbers_from_the_right()
    return _isolated(re.compile(_in_python(_IN_PYTHON.get(step, step))))


def _isolated(pattern: re.Pattern[str]) -> _Step:
    """Each match by itself, and what is between two."""

    def cut(text: str) -> Iterator[str]:
        start = 0
        for found in pattern.finditer(text):
            if start < found.start():
                yield text[start : found.start()]
            yield found.group()
            start = found.end()
        if start < len(text):
            yield text[start:]

    return cut


def _numbers_from_the_right() -> _Step:
    """Digits in threes, counted from the end of a number, where no word goes on behind it."""
    pattern = re.compile(_in_python(r"(?<!\d)\d+(?!\w)"))

    def cut(text: str) -> Iterator[str]:
        end = 0
        for found in pattern.finditer(text):
            if end < found.start():
                yield text[end : found.start()]
            start, end = found.span()
            for first, last in pairwise([start, *range(end - (end - start - 1) // 3 * 3, end, 3), end]):
                yield text[first:last]
        if end < len(text):
            yield text[end:]

    return cut


def _in_python(expression: str) -> str:
    """An expression of Oniguruma's as `re` takes it, with its classes written out."""
    is_inside = False

    def written(found: re.Match[str]) -> str:
        nonlocal is_inside
        escape, name = found[0], found[1] or found[0][1:]
        if escape in {"[", "]"}:
            is_inside = escape == "["
        elif escape == r"\S":
            return f"[^{_WHITE}]"
        elif found[1] or name in {"s", "d", "w"}:
            return _characters(name) if is_inside else f"[{_characters(name)}]"
        return escape

    return _CLASS.sub(written, expression)


@cache
def _characters(name: str) -> str:
    """What stands for a class between brackets: `\\s` and so on, or categories of Unicode that begin with `name`."""
    match name:
        case "s":
            return _WHITE
        case "d":
            return _characters("Nd")
        case "w":
            return "".join(map(_characters, ("L", "M", "Nd", "Nl", "Pc"))) + _OF_WORDS
        case "Punctuation":
            codes = (code for first, last in _categories()["P"] for code in range(first, last + 1))
            return _OTHER_PUNCTUATION + "".join(
                f"\\U{code:08x}" for code in codes if not _LATE_PUNCTUATION.match(chr(code))
            )
        case _:
            return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in _categories()[name])


@cache
def _categories() -> dict[str, list[tuple[int, int]]]:
    """The ranges of characters of each category, and of all with one first letter (`L` and `Lu`)."""
    found: dict[str, list[tuple[int, int]]] = {"M": [_SELECTORS], "Mn": [_SELECTORS]}
    for name, group in groupby(range(_END_OF_CATEGORIES), lambda code: unicodedata.category(chr(code))):
        codes = list(group)
        for key in (name[0], name):
            found.setdefault(key, []).append((codes[0], codes[-1]))
    return found
