"""The text in the arguments of a call of a tool that takes nothing else, taken out while it is written.

Models write `{"input": "…"}`, to which a grammar holds them. Where that is not what comes, all of it is the text.
"""

import json
import re

from shimmy.messages.request import TEXT_ARGUMENT

_HEAD = re.compile(rf'\s*\{{\s*"{TEXT_ARGUMENT}"\s*:\s*"')
_WRITTEN_HEAD = f'{{"{TEXT_ARGUMENT}":"'  # without white space; a call may be cut within it
_HEAD_CHARACTERS = 64  # within which the text begins, or there is none
# Whole characters of a JSON string. A surrogate is not whole before the other half. Possessive, as each step that could
# be taken back costs a hundred bytes.
_WHOLE = re.compile(
    r'(?:[^"\\]++|\\["\\/bfnrt]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}'
    r"|\\u(?![dD][89abAB])[0-9a-fA-F]{4})++"
)
_BEGINNING = re.compile(r"(?:\\(?:u(?:[0-9a-fA-F]{0,3}|[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?))?)?")


class TextArgument:
    """Fed with the arguments as they come; what it gives back is the text, in parts."""

    def __init__(self) -> None:
        self._unread = ""
        self._has_begun = False
        self._is_over = False
        self._is_plain = False

    def feed(self, part: str) -> str:
        """What `part` adds to the text."""
        if self._is_plain:
            return part
        if self._is_over:
            return ""
        self._unread += part
        if not self._has_begun:
            head = _HEAD.match(self._unread)
            if head is None:
                if len(self._unread) < _HEAD_CHARACTERS:
                    return ""
                return self._plain()
            self._has_begun = True
            self._unread = self._unread[head.end() :]
        return self._text()

    def flush(self) -> str:
        """What was held back, now that nothing comes any more."""
        if self._has_begun or self._is_over:
            return ""
        written = "".join(self._unread.split())
        return "" if written == "{}" or _WRITTEN_HEAD.startswith(written) else self._plain()

    def _plain(self) -> str:
        text, self._unread, self._is_plain = self._unread, "", True
        return text

    def _text(self) -> str:
        said: list[str] = []
        text, place = self._unread, 0
        while True:
            whole = _WHOLE.match(text, place)
            if whole is not None:
                said.append(json.loads(f'"{whole[0]}"', strict=False))
                place = whole.end()
            if text.startswith('"', place):
                self._is_over, self._unread = True, ""
                return "".join(said)
            if _BEGINNING.fullmatch(text, place):
                self._unread = text[place:]
                return "".join(said)
            said.append(text[place])  # what begins no escape
            place += 1


def text_in(arguments: str) -> str:
    """The text of a whole call."""
    reader = TextArgument()
    return reader.feed(arguments) + reader.flush()
