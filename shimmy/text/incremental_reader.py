"""Reading text that comes in pieces. Knows marks and how JSON is written; knows nothing of what is said in either."""

import json
import re
from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

from shimmy.text.string_matcher import StringMatcher

# What a JSON text may have between its parts; the rest of Unicode's white space is text.
SPACE = " \t\r\n"
# Outside and inside of a string: what changes where its value ends.
_STRUCTURE = re.compile(r'["{}\[\]]')
_STRING_STRUCTURE = re.compile(r'["\\]')
_SCALAR_END = re.compile(r"[,}\]\s]")

Say = Callable[[str], None]
T = TypeVar("T")
Reading = Generator[None, None, T]  # pauses where more text is needed


class Unexpected(Exception):
    """What was read has not the form that was asked for; as much as was taken of it is in `unsaid`."""


class IncrementalReader:
    """Text that comes in pieces, for readers that are written as if it were all there.

    `ahead` is not read yet; `unsaid` was read and is neither said nor dropped so far.
    """

    __slots__ = ("ahead", "is_last", "unsaid")

    def __init__(self) -> None:
        self.ahead = ""
        self.is_last = False  # nothing comes behind `ahead`
        self.unsaid: list[str] = []

    def has_only_space(self) -> bool:
        """Whether all that is unsaid is white space, if there is any."""
        return not any(part.strip(SPACE) for part in self.unsaid)

    def take(self, n_characters: int) -> str:
        taken, self.ahead = self.ahead[:n_characters], self.ahead[n_characters:]
        if taken:
            self.unsaid.append(taken)
        return taken

    def space(self) -> Reading[None]:
        """Take white space, if there is any."""
        while True:
            self.take(len(self.ahead) - len(self.ahead.lstrip(SPACE)))
            if self.ahead or self.is_last:
                return
            yield

    def peek(self) -> Reading[str]:
        """The next character, or none at the end."""
        while not self.ahead and not self.is_last:
            yield
        return self.ahead[:1]

    def expect(self, text: str) -> Reading[bool]:
        """Take `text` if it comes next."""
        while len(self.ahead) < len(text) and text.startswith(self.ahead) and not self.is_last:
            yield
        is_next = self.ahead.startswith(text)
        if is_next:
            self.take(len(text))
        return is_next

    def one_of(self, texts: Iterable[str]) -> Reading[str]:
        """Take the longest of `texts` that comes next; an empty text where none does."""
        left = [text for text in texts if text.startswith(self.ahead) or self.ahead.startswith(text)]
        while not self.is_last and any(len(text) > len(self.ahead) for text in left):
            yield
            left = [text for text in left if text.startswith(self.ahead) or self.ahead.startswith(text)]
        found = max((text for text in left if self.ahead.startswith(text)), key=len, default="")
        self.take(len(found))
        return found

    def require(self, text: str) -> Reading[None]:
        """Take `text` behind white space."""
        yield from self.space()
        if not (yield from self.expect(text)):
            raise Unexpected

    def until(self, marks: StringMatcher, say: Say) -> Reading[str]:
        """Say everything up to the first mark, and take that; at the end of the text there is none."""
        while True:
            text, self.ahead = self.ahead, ""
            if marks.cannot_begin_in(text):
                say(text)
            elif found := marks.find(text):
                start, mark = found
                say(text[:start])
                self.ahead = text[start:]
                return self.take(len(mark))
            else:
                start = len(text) if self.is_last else marks.start_of_unfinished(text)
                say(text[:start])
                self.ahead = text[start:]
            if self.is_last:
                return ""
            yield

    def before(self, end: re.Pattern[str], limit: int) -> Reading[str]:
        """Take what stands in front of `end`, and `end`, if it is complete within so many characters."""
        while True:
            if found := end.search(self.ahead, 0, limit):
                text = self.take(found.start())
                self.take(len(found[0]))
                return text
            if self.is_last or len(self.ahead) >= limit:
                raise Unexpected
            yield

    def value(self, say: Say) -> Reading[None]:
        """Say the JSON value that comes next, in pieces, to its end or to that of the text.

        Nothing is checked but quotes and brackets, and of these only their number, so no depth is too great.
        """
        if (yield from self.peek()) not in {"{", "[", '"'}:
            yield from self._scalar(say)
            return
        depth = position = 0
        in_string = False
        while True:
            text, self.ahead = self.ahead, ""
            while position < len(text):
                found = (_STRING_STRUCTURE if in_string else _STRUCTURE).search(text, position)
                if not found:
                    position = len(text)
                    break
                position = found.end()
                match found[0]:
                    case "\\":
                        position += 1
                    case '"':
                        in_string = not in_string
                    case "{" | "[":
                        depth += 1
                    case _:
                        depth -= 1
                if not depth and not in_string:
                    say(text[:position])
                    self.ahead = text[position:]
                    return
            say(text)
            if self.is_last:
                return
            position -= len(text)  # 1 where the next piece begins with what a backslash protects
            yield

    def _scalar(self, say: Say) -> Reading[None]:
        while True:
            found = _SCALAR_END.search(self.ahead)
            end = found.start() if found else len(self.ahead)
            say(self.ahead[:end])
            self.ahead = self.ahead[end:]
            if found or self.is_last:
                return
            yield

    def string(self) -> Reading[str]:
        """Take a JSON string behind white space, and decode it."""
        yield from self.space()
        if (yield from self.peek()) != '"':
            raise Unexpected
        start = len(self.unsaid)
        yield from self.value(self.unsaid.append)
        try:
            return str(json.loads("".join(self.unsaid[start:]), strict=False))
        except ValueError as exc:
            raise Unexpected from exc
