"""How a text looks on a terminal: without control characters, and how many columns it takes.

Models, files and servers are not trusted: an escape sequence of theirs could rename the window, write into the
clipboard or hide what was said.
"""

import re

# C0 but tab and newline, DEL, C1, the marks that turn the direction of text around, and halves of characters.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_FIRST_PICTURE = 0x2400  # Unicode's pictures of control characters stand in their order
_DELETE, _DELETE_PICTURE = 0x7F, "\u2421"
_REPLACEMENT = "\ufffd"
_NO_WIDTH = {"Mn", "Me", "Cf"}  # categories of characters that take no column


def safe(text: str) -> str:
    """`text` with pictures in the place of what a terminal would obey. Tabs and newlines stay, returns are dropped."""
    return _UNSAFE.sub(_picture, text)


def safe_line(text: str) -> str:
    """The same for what has to stay on one line."""
    return safe(text.replace("\n", " ").replace("\t", " "))


def width(text: str) -> int:
    """The columns that a line of safe text takes."""
    return len(text) if text.isascii() else sum(map(character_width, text))


def character_width(character: str) -> int:
    if character.isascii():
        return 1
    from unicodedata import category, east_asian_width  # most texts do without

    if category(character) in _NO_WIDTH:
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def cut(text: str, n_columns: int) -> str:
    """A line of safe text, no wider than `n_columns` (at least 1); where something is missing stands `…`."""
    if width(text) <= n_columns:
        return text
    left = n_columns - 1
    for index, character in enumerate(text):
        left -= character_width(character)
        if left < 0:
            return f"{text[:index]}…"
    return text


def _picture(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] == "\r":
        return ""
    if code < ord(" "):
        return chr(_FIRST_PICTURE + code)
    return _DELETE_PICTURE if code == _DELETE else _REPLACEMENT
