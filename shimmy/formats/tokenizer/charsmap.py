"""What SentencePiece's table of characters, as Hugging Face's `Precompiled` reads it, makes of a text.

Knows the table's format: a double array (Darts-clone) that leads from the bytes of a text to its replacements, in UTF-8
and ended by a zero each. It is untrusted: what leads out of it leads nowhere.
"""

import re
import struct
import unicodedata
from functools import cache

from shimmy.formats.format_errors import Unconvertible

_MAX_BYTES = 4 << 20  # XLM-RoBERTa's has 238 KB
_MAX_REPLACEMENT_BYTES = 256  # the longest of Unicode's has 33
_MAX_GRAPHEME_BYTES = 5  # longer ones are replaced character by character
_JOINERS = "\u200c\u200d\uff9e\uff9f"  # join what is before them, and are no marks
_LABEL = 1 << 31 | 0xFF


class Charsmap:
    """A table; raises Unconvertible for bytes that are none."""

    def __init__(self, data: bytes) -> None:
        (size,) = struct.unpack_from("<I", data) if 4 <= len(data) <= _MAX_BYTES else (0,)
        if not size or size % 4 or size + 4 > len(data):
            raise Unconvertible("its tokenizer has a `precompiled_charsmap` that is none")
        self._units = struct.unpack_from(f"<{size // 4}I", data, 4)
        self._replacements = data[4 + size :]
        if max(map(len, self._replacements.split(b"\0"))) > _MAX_REPLACEMENT_BYTES:
            raise Unconvertible("its tokenizer has a `precompiled_charsmap` that makes long texts of single characters")
        self._characters = _Characters(self)

    def apply(self, text: str) -> str:
        """The text with everything replaced that the table has."""
        parts = _graphemes().split(text)  # text, grapheme of several characters, text ...
        for index, part in enumerate(parts):
            found = self.replacement(part) if index % 2 and len(part.encode()) <= _MAX_GRAPHEME_BYTES else None
            parts[index] = part.translate(self._characters) if found is None else found
        return "".join(parts)

    def replacement(self, text: str) -> str | None:
        """What stands for `text`: the shortest beginning of it that the table has decides, as in Hugging Face's."""
        units, node = self._units, 0
        node ^= _offset(units[node])
        for byte in text.encode("utf-8", "surrogatepass"):
            node ^= byte
            if not byte or node >= len(units) or units[node] & _LABEL != byte:
                return None
            unit = units[node]
            node ^= _offset(unit)
            if unit >> 8 & 1:
                return self._text(units[node] & 0x7FFFFFFF) if node < len(units) else None
        return None

    def _text(self, start: int) -> str | None:
        end = self._replacements.find(b"\0", start)
        return self._replacements[start:end].decode("utf-8", "replace") if end >= 0 else None


class _Characters(dict[int, str]):
    """What stands for each character, for `str.translate`. Filled as needed."""

    def __init__(self, table: Charsmap) -> None:
        super().__init__()
        self._table = table

    def __missing__(self, code: int) -> str:
        found = self._table.replacement(chr(code))
        self[code] = result = chr(code) if found is None else found
        return result


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 1 << 9) >> 6)


@cache
def _graphemes() -> re.Pattern[str]:
    """Several characters that are one to a reader: a line end of two, and one with marks."""
    marks, controls = list(_JOINERS), []
    for character in map(chr, range(0x10000)):
        category = unicodedata.category(character)
        if category[0] == "M":
            marks.append(character)
        elif category in {"Cc", "Cf", "Zl", "Zp"} and character not in _JOINERS:
            controls.append(character)
    joined, alone = (re.escape("".join(characters)) for characters in (marks, controls))
    return re.compile(f"(\r\n|[^{alone}][{joined}]+)")
