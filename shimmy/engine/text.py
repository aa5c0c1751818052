"""From the bytes of tokens to the text of a job. Knows UTF-8 and stop strings; knows nothing of tokens or formats.

Both classes are fed piece by piece and flushed once at the end. However the same input is cut, the output is the same.
"""

from codecs import utf_8_decode

from shimmy.marks import Marks


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

    __slots__ = ("_held", "_stop", "matched")

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = Marks(*stop)
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
