"""How large the values of a chat template may get, one by one and all those of a render. Knows nothing of Jinja."""

from sys import getsizeof
from threading import local

from shimmy.errors import TemplateFailed

MAX_VALUE_BYTES = 16 * 1024 * 1024  # of one value, the prompt included: one step of C over such a value takes 0.1 s
MAX_TOTAL_BYTES = 256 * 1024 * 1024  # of all values made in one render


class RenderMeter(local):
    """Counts the bytes that a render may still make. A render has a thread of its own, and so a new count."""

    left_bytes = MAX_TOTAL_BYTES

    def spend(self, size_bytes: int) -> None:
        """Count a value that is made or about to be made. Raises TemplateFailed where it, or all, are too large."""
        left_bytes = self.left_bytes = self.left_bytes - size_bytes
        if size_bytes > MAX_VALUE_BYTES or left_bytes < 0:
            raise TemplateFailed("the chat template makes too much text", param="messages")


def weight_bytes(value: object) -> int:
    """The size of a value with everything inside, counted once for each time it is inside; stops above MAX_VALUE_BYTES.

    `[x, x]` of `[y, y]` of … is small in memory, but printing or comparing it takes time for every path through it.
    """
    total, waiting = 0, [value]
    while waiting and total <= MAX_VALUE_BYTES:
        item = waiting.pop()
        total += getsizeof(item)
        if isinstance(item, dict):
            waiting.extend(item)
            waiting.extend(item.values())
        elif isinstance(item, list | tuple):
            waiting.extend(item)
    return total
