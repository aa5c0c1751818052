"""The decoder for JSON texts that are too large for the one in C to have them whole.

That one holds Python's lock for as long as a text takes, a second for some of 16 MiB. Here it is given parts that take
a millisecond or so, so that other threads have their turns. Both agree on what is valid and on what it means. Knows
nothing of bodies and bounds; how deep a text may be is its caller's matter.
"""

import json
import re
from codecs import getincrementaldecoder
from json.decoder import JSONDecodeError, scanstring  # type: ignore[attr-defined] # the stubs do not know it
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from codecs import IncrementalDecoder
    from collections.abc import Callable

_STEP = 1 << 16  # characters that the decoder in C is given at once
# Of one text that is not ASCII: Python has up to four bytes for each of them, and putting it together is one step.
MAX_CHARACTERS = 1 << 23

_SPACE = re.compile(r"[ \t\n\r]*")
_INSIDE = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)  # of a string
# Whole characters and escapes of a string, and never the first half of a surrogate pair without the second.
_WHOLE = re.compile(
    r"(?:[^\\]++|\\[^u]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}"
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u(?![dD][89abAB])[0-9a-fA-F]{4}|(?=[^\\]|\\[^u]|\\u[dD][89abAB])))++"
)
# Items of an array, or members of an object, each with its comma, whose values hold no values that hold others. What
# is in them is for the decoder in C to check.
_STRING = rf'"{_INSIDE.pattern}"'
_FLAT = rf'(?:[^"\[\]{{}}]++|{_STRING})*+'
_ITEMS = re.compile(rf'(?:(?:[^"\[\]{{}},]++|{_STRING}|\[{_FLAT}\]|\{{{_FLAT}\}})++,)++', re.DOTALL)


_PLAIN = json.JSONDecoder()


class Unreadable(Exception):
    """The text cannot be read; the message says why, as the end of a sentence."""


class LargeJson:
    """One text. With `is_utf8` its characters are bytes of UTF-8: a single emoji would make all of it four times as
    large, so strings are decoded one by one. `plain` decodes parts."""

    def __init__(self, text: str, plain: json.JSONDecoder = _PLAIN, *, is_utf8: bool = False) -> None:
        self._is_utf8 = is_utf8
        self._text = text
        self._decode: Callable[[str], Any] = plain.decode
        self._scan: Callable[[str, int], tuple[object, int]] = plain.scan_once  # type: ignore[attr-defined]
        self._at = 0  # what comes next
        self._names: dict[str, str] = {}  # each is kept once

    def value(self) -> object:
        """All of the text; raises JSONDecodeError and Unreadable."""
        value = self._value()
        if self._next():
            self._fail("Extra data", self._at)
        return value

    def _next(self) -> str:
        """The next character that is no space, which stays there; none at the end."""
        text, at = self._text, self._at
        while text[at : at + 1] in " \t\n\r" and at < len(text):
            match = _SPACE.match(text, at, at + _STEP)
            assert match
            at = match.end()
        self._at = at
        return text[at : at + 1]

    def _value(self) -> object:
        match self._next():
            case '"':
                self._at += 1
                return self._string()
            case "{":
                self._at += 1
                return self._object()
            case "[":
                self._at += 1
                return self._array()
        try:
            value, self._at = self._scan(self._text, self._at)
        except StopIteration as exc:
            self._fail("Expecting value", exc.value)
        return value

    def _object(self) -> dict[str, object]:
        found: dict[str, object] = {}
        if self._next() == "}":
            self._at += 1
            return found
        while True:
            while some := self._items("{", "}"):
                found.update(some)
            if self._next() != '"':
                self._fail("Expecting property name enclosed in double quotes", self._at)
            self._at += 1
            name = self._string()
            name = self._names.setdefault(name, name)
            if self._next() != ":":
                self._fail("Expecting ':' delimiter", self._at)
            self._at += 1
            found[name] = self._value()
            if self._ends("}"):
                return found

    def _array(self) -> list[object]:
        found: list[object] = []
        if self._next() == "]":
            self._at += 1
            return found
        while True:
            while some := self._items("[", "]"):
                found += some
            found.append(self._value())
            if self._ends("]"):
                return found

    def _ends(self, bracket: str) -> bool:
        """Take what stands behind a value, and say whether it is this bracket."""
        character = self._next()
        if character not in (",", bracket) or not character:
            self._fail("Expecting ',' delimiter", self._at)
        self._at += 1
        return character == bracket

    def _items(self, opening: str, closing: str) -> Any:
        """As many items, or members, as the decoder in C takes in one step, in what was opened; None where it cannot.

        There are more behind them: each stands before a comma.
        """
        text, at = self._text, self._at
        match = _ITEMS.match(text, at, at + _STEP)
        if match is None:
            return None
        self._at = match.end()
        try:
            items = self._decode(f"{opening}{self._part(at, self._at - 1)}{closing}")
        except JSONDecodeError as exc:
            raise JSONDecodeError(exc.msg, text, at + exc.pos - 1) from None
        return items or self._fail("Expecting value", at)

    def _string(self) -> str:
        """The string whose first character comes next."""
        text, start = self._text, self._at
        end = self._closing_quote(start)
        if end - start <= _STEP:
            self._at = end + 1
            return self._unescaped(self._part(start, end), start)
        decoder = getincrementaldecoder("utf-8")()
        parts: list[str] = []
        while start < end:
            match = _WHOLE.match(text, start, min(start + _STEP, end))
            stop = match.end() if match else end
            parts.append(self._unescaped(self._part(start, stop, decoder, is_last=stop == end), start))
            start = stop
        self._at = end + 1
        if sum(map(len, parts)) > MAX_CHARACTERS and not all(map(str.isascii, parts)):
            raise Unreadable(f"has a text of more than {MAX_CHARACTERS} characters that are not all ASCII")
        return "".join(parts)

    def _unescaped(self, part: str, at: int) -> str:
        """What a part of a string means that begins at `at`."""
        try:
            return str(scanstring(f'{part}"', 0, True)[0])
        except JSONDecodeError as exc:
            raise JSONDecodeError(exc.msg, self._text, at + exc.pos) from None

    def _part(self, start: int, end: int, decoder: "IncrementalDecoder | None" = None, *, is_last: bool = True) -> str:
        """The characters from `start` to `end`; with a `decoder` the last one may be left to the next part."""
        part = self._text[start:end]
        if not self._is_utf8 or (decoder is None and part.isascii()):
            return part
        data = part.encode("latin-1")
        try:
            return data.decode() if decoder is None else decoder.decode(data, is_last)
        except UnicodeDecodeError as exc:
            place = end - len(exc.object) + exc.start
            raise Unreadable(f"is not UTF-8 text: byte {place} is wrong") from exc

    def _closing_quote(self, start: int) -> int:
        text, end = self._text, start
        while end < len(text):
            match = _INSIDE.match(text, end, end + _STEP)
            assert match
            if match.end() < min(end + _STEP, len(text)) and text[match.end()] == '"':
                return match.end()
            if match.end() == end:  # a backslash, and nothing behind it
                break
            end = match.end()
        raise JSONDecodeError("Unterminated string starting at", text, start - 1)

    def _fail(self, reason: str, at: int) -> NoReturn:
        raise JSONDecodeError(reason, self._text, at)
