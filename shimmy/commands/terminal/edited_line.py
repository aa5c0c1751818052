"""A text that is being typed: its cursor, and what keys do to it. Knows no terminal."""

import re
from collections.abc import Callable, Mapping
from typing import ClassVar

_WORD = re.compile(r"\w+")


class EditedLine:
    """One line, or several where newlines were typed or pasted; `cursor` stands before a character of `text`."""

    def __init__(self, text: str = "", cut: str = "") -> None:
        self.text = text
        self.cursor = len(text)
        self.cut = cut  # what `yank` puts back

    def set(self, text: str) -> None:
        self.text, self.cursor = text, len(text)

    def insert(self, text: str) -> None:
        self.text = self.text[: self.cursor] + text + self.text[self.cursor :]
        self.cursor += len(text)

    def press(self, key: str) -> bool:
        """Do what a key with this name does to a text; False where it does nothing to any."""
        action = self._ACTIONS.get(key)
        if action is not None:
            action(self)
        return action is not None

    def move_line(self, by: int) -> bool:
        """Move to the line above (-1) or below (1); False where there is none."""
        lines = self.text.split("\n")
        row = self.text.count("\n", 0, self.cursor)
        column = self.cursor - self._line_start()
        if not 0 <= row + by < len(lines):
            return False
        before = sum(len(line) + 1 for line in lines[: row + by])
        self.cursor = before + min(column, len(lines[row + by]))
        return True

    def _line_start(self) -> int:
        return self.text.rfind("\n", 0, self.cursor) + 1

    def _line_end(self) -> int:
        end = self.text.find("\n", self.cursor)
        return len(self.text) if end < 0 else end

    def _word_start(self) -> int:
        found = [match.start() for match in _WORD.finditer(self.text, 0, self.cursor)]
        return found[-1] if found else 0

    def _word_end(self) -> int:
        match = _WORD.search(self.text, self.cursor)
        return match.end() if match else len(self.text)

    def _remove(self, start: int, end: int, *, keep: bool = True) -> None:
        if keep and start < end:
            self.cut = self.text[start:end]
        self.text = self.text[:start] + self.text[end:]
        self.cursor = start

    def _move(self, to: int) -> None:
        self.cursor = max(0, min(to, len(self.text)))

    _ACTIONS: ClassVar[Mapping[str, Callable[["EditedLine"], None]]] = {
        "left": lambda self: self._move(self.cursor - 1),
        "right": lambda self: self._move(self.cursor + 1),
        "home": lambda self: self._move(self._line_start()),
        "end": lambda self: self._move(self._line_end()),
        "word left": lambda self: self._move(self._word_start()),
        "word right": lambda self: self._move(self._word_end()),
        "backspace": lambda self: self._remove(max(0, self.cursor - 1), self.cursor, keep=False),
        "delete": lambda self: self._remove(self.cursor, self.cursor + 1, keep=False),
        "cut to end": lambda self: self._remove(self.cursor, max(self._line_end(), self.cursor)),
        "cut to start": lambda self: self._remove(self._line_start(), self.cursor),
        "cut word": lambda self: self._remove(self._word_start(), self.cursor),
        "cut next word": lambda self: self._remove(self.cursor, self._word_end()),
        "yank": lambda self: self.insert(self.cut),
        "newline": lambda self: self.insert("\n"),
    }
