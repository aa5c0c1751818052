"""What a tokenizer does to text that llama.cpp does not do: the worker does it before llama.cpp sees the text.

Knows Unicode's normal forms, the rules by which SentencePiece and BERT tokenizers of Hugging Face change text, and how
all that is written into a GGUF (`shimmy.tokenizer.normalizer`). Knows nothing of tokens' ids.
"""

import json
import re
import unicodedata
from base64 import b64decode
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Literal, get_args

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.tokenizer.charsmap import Charsmap
from shimmy.text.literals import any_of

KEY = "shimmy.tokenizer.normalizer"

Form = Literal["", "NFC", "NFD", "NFKC", "NFKD"]
Prefix = Literal["", "each", "always", "first"]
Spaces = Literal["", "merge", "strip", "split"]
Cuts = Literal["", "kimi", "kimi-words"]

# A letter (cuneiform A) that stands for a word longer than a WordPiece tokenizer looks at: it must be an unknown one.
UNKNOWN_LETTER = "\U00012000"

_SPACE, _META_SPACE = " ", "▁"
_SLICE_CHARACTERS = 1 << 16
_SPACES = re.compile(" {2,}")
# The script Han of Unicode, as a class of characters: its letters, and all of it.
CHINESE_LETTERS = "\u3005\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
CHINESE = CHINESE_LETTERS + "\u2e80-\u2fd5\u3007\u3021-\u3029\u3038-\u303b"
_END_OF_NUMBERS = 0x1FBFA  # no character behind them has a category N
_BEFORE_WORD = re.compile("[A-Za-z](?= [A-Za-z])")
# Blocks that BERT takes for Chinese, from BertNormalizer of Hugging Face, which has 2B920 where Unicode has 2B820.
_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


@dataclass(frozen=True)
class Bert:
    """BertNormalizer, BertPreTokenizer and the longest word of WordPiece, in one."""

    lowercase: bool
    strip_accents: bool
    max_word: int  # characters; a longer word is an unknown one


@dataclass(frozen=True)
class Normalizer:
    """Changes a text as a tokenizer of Hugging Face would; see `apply`. The default changes nothing."""

    form: Form = ""
    # A space before: each part of a text between special tokens; the same unless it begins with one (`always`); only
    # the beginning of the text (`first`), unless it is a space or a special token.
    prefix: Prefix = ""
    bert: Bert | None = None
    charsmap: str = ""  # SentencePiece's table of characters, in base64
    # Of what is left then: several spaces become one; so do they, and none stays behind the text; all white space
    # becomes one space between words.
    spaces: Spaces = ""
    special: tuple[str, ...] = ()  # tokens that a text may hold where special tokens are parsed, never changed
    plain: tuple[str, ...] = ()  # added tokens that every text may hold
    lstrip: tuple[str, ...] = ()  # of both: those that swallow white space before them
    rstrip: tuple[str, ...] = ()  # and behind them
    # Where words end for the tokenizer, and not for llama.cpp's pre-tokenizer: between every third digit of a number
    # and the next, a line's end and `/`, a letter of Chinese and an apostrophe; with `-words` before and behind all of
    # Chinese, and before a space that Chinese follows (`pretokenizers.KIMI`).
    cuts: Cuts = ""

    def __bool__(self) -> bool:
        changes = self.form or self.prefix or self.bert or self.charsmap or self.spaces or self.lstrip or self.rstrip
        return bool(changes or self.cuts)

    def to_text(self) -> str:
        """How a GGUF holds it: JSON without what is empty."""
        return json.dumps({name: value for name, value in asdict(self).items() if value}, ensure_ascii=False)

    @classmethod
    def from_text(cls, text: str) -> "Normalizer":
        """The opposite of `to_text`; raises Unconvertible for anything else."""
        try:
            value = json.loads(text)
            bert = value.pop("bert", None)
            form, prefix = value.pop("form", ""), value.pop("prefix", "")
            charsmap, spaces = str(value.pop("charsmap", "")), value.pop("spaces", "")
            cuts = value.pop("cuts", "")
            kinds = ((form, Form), (prefix, Prefix), (spaces, Spaces), (cuts, Cuts))
            if any(found not in get_args(kind) for found, kind in kinds):
                raise ValueError(form, prefix, spaces, cuts)
            tokens = {name: tuple(map(str, items)) for name, items in value.items()}
            found = cls(form, prefix, None if bert is None else Bert(**bert), charsmap, spaces, cuts=cuts, **tokens)
            found._table  # noqa: B018 - is read now, for its errors
        except (ValueError, TypeError, AttributeError, RecursionError) as exc:
            raise Unconvertible(f"its `{KEY}` is of another version, or broken") from exc
        return found

    def apply(self, text: str, *, parse_special: bool = True) -> str:
        """The text to tokenize instead of `text`; costs about as much as tokenizing. `cuts` are left out."""
        return "".join(self._changed_parts(text, parse_special=parse_special))

    def parts(self, text: str, *, parse_special: bool = True) -> list[str]:
        """What `apply` makes, in parts that are to be tokenized one by one."""
        changed = self._changed_parts(text, parse_special=parse_special)
        if not self.cuts:
            return ["".join(changed)]
        found: list[list[str]] = [[]]
        for index, part in enumerate(changed):
            first, *others = _cut(part, self.cuts) if index % 2 == 0 else [part]
            found[-1].append(first)
            found += ([other] for other in others)
        return list(map("".join, found))  # to add to a string again and again takes the square of its length

    def _changed_parts(self, text: str, *, parse_special: bool) -> list[str]:
        """Text, token, text, token, text and so on."""
        parts = self._pattern(parse_special).split(text)  # text, token, text, token, text ...
        for index in range(0, len(parts), 2):
            part = parts[index]
            if index and parts[index - 1] in self.rstrip:
                part = part.lstrip()
            if index + 1 < len(parts) and parts[index + 1] in self.lstrip:
                part = part.rstrip()
            parts[index] = self._changed(part, is_first=index == 0) if part else ""
        return parts

    def _changed(self, part: str, *, is_first: bool) -> str:
        form, bert = self.form, self.bert
        if form:
            part = "".join(unicodedata.normalize(form, each) for each in _slices(part))
        if bert is not None:
            return " ".join(filter(None, (self._words(each, bert) for each in _slices(part))))
        if self._table is not None:
            part = "".join(self._table.apply(each) for each in _slices(part))
        if self.spaces == "split":
            part = " ".join(part.split())
        elif self.spaces:
            part = _SPACES.sub(_SPACE, part)
            part = part.rstrip() if self.spaces == "strip" else part
        if not part:
            return part
        has_space = part.startswith((_SPACE, _META_SPACE))
        if self.prefix == "each" or (self.prefix and not has_space and (is_first or self.prefix == "always")):
            return _SPACE + part
        return part

    def _words(self, part: str, bert: Bert) -> str:
        if bert.strip_accents:
            part = unicodedata.normalize("NFD", part)
        words = part.translate(self._characters).split()
        return " ".join(UNKNOWN_LETTER if len(word) > bert.max_word or _is_misread(word) else word for word in words)

    @cached_property
    def _table(self) -> Charsmap | None:
        return Charsmap(b64decode(self.charsmap)) if self.charsmap else None

    @cached_property
    def _characters(self) -> "_BertCharacters":
        assert self.bert is not None
        return _BertCharacters(self.bert)

    def _pattern(self, parse_special: bool) -> re.Pattern[str]:
        return self._all_tokens if parse_special else self._plain_tokens

    @cached_property
    def _all_tokens(self) -> re.Pattern[str]:
        return _any_of((*self.special, *self.plain))

    @cached_property
    def _plain_tokens(self) -> re.Pattern[str]:
        return _any_of(self.plain)


@cache
def _ends(cuts: Cuts) -> re.Pattern[str]:
    """What stands before each cut of `Normalizer.cuts`."""
    numbers = "".join(chr(code) for code in range(_END_OF_NUMBERS) if unicodedata.category(chr(code))[0] == "N")
    ends = [f"[{numbers}]{{3}}(?=[{numbers}])", r"[\r\n](?=/)", f"[{CHINESE_LETTERS}](?=')"]
    if cuts == "kimi-words":
        letter = CHINESE_LETTERS
        ends += [f"[^{CHINESE}](?=[{letter}])", f"[{letter}](?=[^{CHINESE}])", rf"\s(?=[^\S\r\n][{letter}])"]
    return re.compile("|".join(ends))


def _cut(part: str, cuts: Cuts) -> list[str]:
    ends = [found.end() for found in _ends(cuts).finditer(part)]
    return [part[start:end] for start, end in pairwise([0, *ends, len(part)])]


def _is_misread(word: str) -> bool:
    """Whether llama.cpp would take a letter inside a word, which no token has there, for the beginning of a word."""
    return _META_SPACE in word and len(word) > 1


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """The first of `tokens` in a text, there the longest; as a group, so that `split` keeps it."""
    return re.compile(f"({any_of(tokens)})")


def _slices(text: str) -> Iterator[str]:
    """`text` in parts that are changed one by one as the whole would be: another thread may get on between two.

    It is cut before a space between letters of ASCII, where nothing is put together and no word goes on.
    """
    start = 0
    while start < len(text):
        found = _BEFORE_WORD.search(text, start + _SLICE_CHARACTERS)
        end = len(text) if found is None else found.end()
        yield text[start:end]
        start = end


class _BertCharacters(dict[int, str]):
    """What BERT makes of each character, for `str.translate`: words get white space between them. Filled as needed."""

    def __init__(self, bert: Bert) -> None:
        super().__init__()
        self._bert = bert

    def __missing__(self, code: int) -> str:
        self[code] = result = self._replacement(code)
        return result

    def _replacement(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if character in "\t\n\r" or category[0] == "Z":
            return _SPACE
        if code == 0xFFFD or (category[0] == "C" and category != "Cn"):
            return ""
        if self._bert.strip_accents and category == "Mn":
            return ""
        if self._bert.lowercase:
            character = character.lower()
        if category[0] == "P" or 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126:
            return f" {character} "
        if any(first <= code <= last for first, last in _CHINESE):
            return f" {character} "
        return character
