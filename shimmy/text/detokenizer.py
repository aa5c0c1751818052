"""From the bytes of tokens to the text of a job. Knows UTF-8; knows nothing of tokens or formats."""

from codecs import utf_8_decode


class TextDecoder:
    """Bytes to text: an incomplete character waits for its other bytes, invalid bytes become U+FFFD.

    Fed piece by piece and flushed once at the end. However the same bytes are cut, the text is the same.
    """

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
