"""Records which characters the `tokenizers` library tells apart, and its cuts of odd texts: tests/golden/words.json.xz.

Run from the repository's folder, in an environment of its own that has `tokenizers` (0.23.3 it was):

    python -m tests.golden.record_words
"""

# ruff: noqa: RUF001 -- signs that look like others are what is cut

import importlib
import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.published_tokenizers import WORDS
from tests.tokenizer_folders import Json
from tools.steps import say

FILE = Path(__file__).parent / "words.json.xz"
CLASSES = ("L", "N", "M", "Lu", "Ll", "Lt", "Lm", "Lo", "s", "d", "w")
N_TEXTS = 1000
# Of each kind that some tokenizer takes for another than its neighbours.
_PARTS = (
    *(" ", "  ", "\n", "\r\n", "\t", "\x0b", "\u3000", "\u2003", "\xa0", "\x85", "\x1c", "\u2028", "\u200b", "\ufeff"),
    *("'s", "'S", "'ſ", "'re", "'LL", "'", "a", "B", "é", "É", "ǅ", "ʰ", "ª", "ƻ", "ʕ", "ß", "ı", "İ", "K", "Ω", "ﬁ"),
    *("中", "文", "〇", "ア", "한", "\ud7ff", "ࠀ", "ᜀ", "ع", "ש", "\u0301", "ि", "ๆ", "ไทย", "Ａ", "ａ", "𐐀", "𞤀"),
    *("0", "1", "12", "123", "1234567", "１", "٣", "²", "½", "Ⅷ", "①", "㊀", "Ⓐ", "🄰", "\U000e0101", "�"),
    *(".", ",", "!?", "$", "+", "_", "‿", "“", "‘", "—", "…", "。", "，", "！", "～", "؞", "⹒", "/", "//", "\\", "#"),
    *("<", ">", "|", "￥", "€", "(", ")", "[", "]", "{", "}", "~", "^", "`", "😀", "👩\u200d💻"),
)


def odd_texts() -> list[str]:
    """The texts whose cuts are recorded."""
    random = Random(7)
    return ["".join(random.choices(_PARTS, k=random.randrange(2, 16))) for _ in range(N_TEXTS)]


def main() -> None:
    library: Any = importlib.import_module("tokenizers")
    steps = library.pre_tokenizers
    classes = {
        name: steps.Split(library.Regex(rf"\p{{{name}}}" if name[0].isupper() else rf"\{name}"), "isolated")
        for name in CLASSES
    }
    found = {name: _ranges(_alone(step, "\0")) for name, step in classes.items()}
    found["N of Digits"] = _ranges(_alone(steps.Digits(individual_digits=True), "a"))
    found["Punctuation"] = _ranges(_alone(steps.Punctuation("isolated"), "a"))
    golden = {"classes": found, "lengths": {name: _lengths(library, step) for name, step in WORDS.items()}}
    FILE.write_bytes(lzma.compress(json.dumps(golden, separators=(",", ":")).encode(), preset=9 | lzma.PRESET_EXTREME))
    say(f"{FILE}: {FILE.stat().st_size} bytes")


def _alone(step: Any, between: str) -> Iterator[int]:
    """The characters that `step` takes out of a text where each stands between two that it does not."""
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(codes), 4096):
        for word, _ in step.pre_tokenize_str(between.join(map(chr, codes[start : start + 4096]))):
            if len(word) == 1 and word != between:
                yield ord(word)


def _ranges(codes: Iterable[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for code in sorted({*codes}):
        if found and found[-1][1] == code - 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return found


def _lengths(library: Any, pre_tokenizer: Json) -> list[list[int]]:
    """How many letters each word of the odd texts has."""
    empty = json.loads(library.Tokenizer(library.models.BPE()).to_str())
    cut = library.Tokenizer.from_str(json.dumps({**empty, "pre_tokenizer": pre_tokenizer})).pre_tokenizer
    return [[len(word) for word, _ in cut.pre_tokenize_str(text)] for text in odd_texts()]


if __name__ == "__main__":
    main()
