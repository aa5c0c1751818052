"""From the bytes of tokens to the text a reader may see. Knows UTF-8 and stop strings; knows nothing of tokens or HTTP.

Both classes are fed piece by piece and flushed once at the end. However the same input is cut, the output is the same.
"""

from codecs import utf_8_decode


class TextDecoder:
    """Bytes to text: an incomplete character waits for its other bytes, invalid bytes become U+FFFD."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, data: bytes) -> str:
        if self._tail:
            data = self._tail + data
        text, n_decoded = utf_8_decode(data, "replace", False)
        self._tail = data[n_decoded:]
        return text

    def flush(self) -> str:
        """What is left when no more bytes come: U+FFFD where a character was never finished."""
        data, self._tail = self._tail, b""
        return data.decode("utf-8", "replace")


class StopFilter:
    """Ends a text where a stop string is first complete, and holds back what may become one.

    When several stop strings are complete at the same character, the one that began first counts, so that no part of it
    is seen. `matched` is the stop string that ended the text; from then on every piece is empty.
    """

    __slots__ = ("_first_characters", "_held", "_longest", "_stop", "matched")

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = tuple(text for text in stop if text)
        self._first_characters = frozenset(text[0] for text in self._stop)
        self._longest = max(map(len, self._stop), default=0)
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        if self.matched is not None:
            return ""
        if not self._held and self._first_characters.isdisjoint(text):
            return text
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            _, start, self.matched = min(found)
            self._held = ""
            return text[:start]
        start = self._start_of_unfinished(text)
        self._held = text[start:]
        return text[:start]

    def flush(self) -> str:
        """What was held back, now that no stop string can be completed any more."""
        text, self._held = self._held, ""
        return text

    def _start_of_unfinished(self, text: str) -> int:
        """Where the longest ending of `text` starts that is the beginning of a stop string."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first_characters:
                ending = text[start:]
                if any(stop.startswith(ending) for stop in self._stop):
                    return start
        return len(text)
