"""What many small pieces of data have in common, for deflate to begin each of them with: its dictionary.

Knows how such bytes are found, by the algorithm COVER (Liao, Petri, Moffat and Wirth, "Effective Construction of
Relative Lempel-Ziv Dictionaries", 2016); nothing of what the data is.
"""

from collections import Counter
from collections.abc import Collection
from itertools import accumulate

MAX_BYTES = 32_768  # as far as deflate looks back (RFC 1951, 2)
_PIECE_BYTES = 64
_GRAM_BYTES = 5


def common_bytes(samples: Collection[bytes]) -> bytes:
    """Up to MAX_BYTES that deflate's dictionary of data like `samples` can be; the most common ones last, which deflate
    reaches with the shortest distances."""
    counts: Counter[bytes] = Counter()
    for sample in samples:
        counts.update(set(_grams(sample)))
    worth = {gram: n for gram, n in counts.items() if n > 1}
    pieces = []
    text = b"".join(samples)
    stretch_bytes = max(len(text) // (MAX_BYTES // _PIECE_BYTES), _PIECE_BYTES)
    for start in range(0, len(text) - stretch_bytes + 1, stretch_bytes):
        gained, piece = _best_piece(text[start : start + stretch_bytes], worth)
        pieces.append((gained, piece))
        for gram in _grams(piece):
            worth.pop(gram, None)  # once is enough
    pieces.sort()
    return b"".join(piece for gained, piece in pieces if gained)[-MAX_BYTES:]


def _best_piece(stretch: bytes, worth: dict[bytes, int]) -> tuple[int, bytes]:
    """The piece of a stretch whose grams are worth most, and how much that is."""
    sums = list(accumulate((worth.get(gram, 0) for gram in _grams(stretch)), initial=0))
    n_grams = _PIECE_BYTES - _GRAM_BYTES + 1
    best = max(range(len(sums) - n_grams), key=lambda at: sums[at + n_grams] - sums[at])
    return sums[best + n_grams] - sums[best], stretch[best : best + _PIECE_BYTES]


def _grams(data: bytes) -> list[bytes]:
    return [data[at : at + _GRAM_BYTES] for at in range(len(data) - _GRAM_BYTES + 1)]
