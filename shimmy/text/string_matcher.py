"""Finding marks in text that comes in pieces, and ending it at stop strings. Knows strings, not what they mean."""


class StringMatcher:
    """Some strings that mean something wherever they are complete; empty ones are none."""

    __slots__ = ("_first_characters", "_longest", "_marks")

    def __init__(self, *marks: str) -> None:
        self._marks = tuple(mark for mark in marks if mark)
        self._first_characters = frozenset(mark[0] for mark in self._marks)
        self._longest = max(map(len, self._marks), default=0)

    def cannot_begin_in(self, text: str) -> bool:
        """That neither a mark nor the beginning of one is in `text`; cheap, and what is true of most pieces."""
        return self._first_characters.isdisjoint(text)

    def find(self, text: str) -> tuple[int, str] | None:
        """Where the mark that is complete first starts, and which it is.

        When several are complete at the same character, the one that began first counts.
        """
        found = [(start + len(mark), start, mark) for mark in self._marks if (start := text.find(mark)) >= 0]
        return min(found)[1:] if found else None

    def start_of_unfinished(self, text: str) -> int:
        """Where the longest ending of `text` starts that is the beginning of a mark."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first_characters:
                ending = text[start:]
                if any(mark.startswith(ending) for mark in self._marks):
                    return start
        return len(text)


class MarkRemover:
    """Takes marks out of a text that comes in pieces, and holds back what may become one."""

    __slots__ = ("_held", "_marks")

    def __init__(self, *marks: str) -> None:
        self._marks = StringMatcher(*marks)
        self._held = ""

    def feed(self, text: str) -> str:
        if not self._held and self._marks.cannot_begin_in(text):
            return text
        text, said = self._held + text, []
        while found := self._marks.find(text):
            start, mark = found
            said.append(text[:start])
            text = text[start + len(mark) :]
        start = self._marks.start_of_unfinished(text)
        self._held = text[start:]
        return "".join((*said, text[:start]))

    def flush(self) -> str:
        """What was held back, now that no mark can be completed any more."""
        text, self._held = self._held, ""
        return text


class StopFilter:
    """Ends a text where a stop string is first complete, and holds back what may become one.

    Fed piece by piece and flushed once at the end. However the same text is cut, what comes out is the same.

    When several stop strings are complete at the same character, the one that began first counts, so that no part of it
    is seen. `matched` is the stop string that ended the text; from then on every piece is empty.
    """

    __slots__ = ("_held", "_stop", "matched")

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = StringMatcher(*stop)
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        if self.matched is not None:
            return ""
        if not self._held and self._stop.cannot_begin_in(text):
            return text
        text = self._held + text
        if found := self._stop.find(text):
            start, self.matched = found
            self._held = ""
            return text[:start]
        start = self._stop.start_of_unfinished(text)
        self._held = text[start:]
        return text[:start]

    def flush(self) -> str:
        """What was held back, now that no stop string can be completed any more."""
        text, self._held = self._held, ""
        return text
