"""Stored responses, in memory and within limits: the least recently used one goes first.

Knows ids and JSON text, not what the text means. Used by the event loop, and by the thread that reads large bodies.
"""

from collections import OrderedDict
from dataclasses import dataclass
from threading import RLock

N_RESPONSES_MAX = 10_000
BYTES_MAX = 64 * 2**20

# Memory of an entry and of each item id beside the texts: objects, two dictionaries, ids.
_ENTRY_BYTES = 768
_ITEM_BYTES = 256


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response and what was new in its input, as JSON texts: an object and an array of items.

    `output` is where its array of items stands in the object, of which the rest may be nested deeper than a decoder
    can go. `item_ids` are the ids that this server gave to items of either array. The input before the new items is
    that of `previous_id` and its output.
    """

    id: str
    response: bytes
    output: slice
    input_items: bytes
    item_ids: tuple[str, ...] = ()
    previous_id: str | None = None

    @property
    def size_bytes(self) -> int:
        return len(self.response) + len(self.input_items) + _ENTRY_BYTES + _ITEM_BYTES * len(self.item_ids)


class ResponseStore:
    """At most `n_max` responses of `bytes_max` bytes together; one that is larger by itself is not kept."""

    def __init__(self, n_max: int = N_RESPONSES_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._n_max = n_max
        self._bytes_max = bytes_max
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()  # the most recently used one is the last
        self._response_of_item: dict[str, str] = {}
        self._size_bytes = 0
        self._lock = RLock()

    def put(self, stored: StoredResponse) -> None:
        """Keep `stored`, whose ids are new, and drop as many others as the limits require."""
        with self._lock:
            self._responses[stored.id] = stored
            self._response_of_item.update(dict.fromkeys(stored.item_ids, stored.id))
            self._size_bytes += stored.size_bytes
            while len(self._responses) > self._n_max or self._size_bytes > self._bytes_max:
                self.remove(next(iter(self._responses)))

    def get(self, response_id: str) -> StoredResponse | None:
        with self._lock:
            stored = self._responses.get(response_id)
            if stored is not None:
                self._responses.move_to_end(response_id)
            return stored

    def get_by_item(self, item_id: str) -> StoredResponse | None:
        """The response that has an item called `item_id` in its input or output."""
        return self.get(self._response_of_item.get(item_id, ""))

    def remove(self, response_id: str) -> bool:
        """Whether it was there."""
        with self._lock:
            stored = self._responses.pop(response_id, None)
            if stored is None:
                return False
            for item_id in stored.item_ids:
                del self._response_of_item[item_id]
            self._size_bytes -= stored.size_bytes
            return True
