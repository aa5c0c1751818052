"""JSON text of values of any size, in pieces: no single step of it takes long.

The encoder in C holds Python's lock for as long as a value takes, which is a second for some that a caller can send. It
is given small values and parts of large ones here. Knows how JSON is written; nothing of what is said in it.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import islice

# What is encoded in one step, half a millisecond or so: characters, and values that count as so many.
_STEP = 1 << 16
_VALUE = 1 << 6
_N_VALUES = _STEP // _VALUE

_SCALARS = frozenset({int, float, bool, type(None)})
_ascii = json.JSONEncoder(separators=(",", ":")).encode
_unicode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


def pieces(value: object, *, ensure_ascii: bool = True) -> Iterator[str]:
    """What `json.dumps` writes of `value` without spaces, in pieces; `value` has no circles and is not deep.

    An iterator in it is an array, whose items are asked for as they are written.
    """
    if is_small(value):
        yield (_ascii if ensure_ascii else _unicode)(value)
    elif isinstance(value, str):
        yield from _text(value, ensure_ascii=ensure_ascii)
    elif isinstance(value, dict):
        yield from _object(value, ensure_ascii=ensure_ascii)
    elif isinstance(value, list | tuple):
        yield "["
        yield from _items(value, ensure_ascii=ensure_ascii)
        yield "]"
    else:
        assert isinstance(value, Iterator)
        before = "["
        while some := list(islice(value, _N_VALUES)):
            yield before
            yield from _items(some, ensure_ascii=ensure_ascii)
            before = ","
        yield "[]" if before == "[" else "]"


def is_small(value: object) -> bool:
    """Whether `pieces` makes one piece of it."""
    return _left(value, _STEP) >= 0


def _text(text: str, *, ensure_ascii: bool) -> Iterator[str]:
    encode = _ascii if ensure_ascii else _unicode
    yield '"'
    for start in range(0, len(text), _STEP):
        yield encode(text[start : start + _STEP])[1:-1]
    yield '"'


def _object(value: dict[str, object], *, ensure_ascii: bool) -> Iterator[str]:
    before = "{"
    for name, item in value.items():
        yield before
        yield from pieces(name, ensure_ascii=ensure_ascii)
        yield ":"
        yield from pieces(item, ensure_ascii=ensure_ascii)
        before = ","
    yield "}"


def _items(value: Sequence[object], *, ensure_ascii: bool) -> Iterator[str]:
    encode = _ascii if ensure_ascii else _unicode
    start = 0
    while start < len(value):
        if start:
            yield ","
        n_small = _n_small(value[start : start + _N_VALUES])
        if n_small:
            yield encode(value[start : start + n_small])[1:-1]
        else:
            yield from pieces(value[start], ensure_ascii=ensure_ascii)
        start += max(1, n_small)


def _n_small(values: Sequence[object]) -> int:
    """How many of the first of `values` can be encoded in one step."""
    if _SCALARS.issuperset(map(type, values)):
        return len(values)
    left = _STEP
    for index, value in enumerate(values):
        left = _left(value, left)
        if left < 0:
            return index
    return len(values)


def _left(value: object, left: int) -> int:
    """What is left of a step behind `value`: below 0 where that is too large for it."""
    left -= _VALUE
    if type(value) in _SCALARS:
        return left
    if isinstance(value, str):
        return left - len(value)
    if isinstance(value, dict):
        for name, item in value.items():
            left = _left(item, left - len(name))
            if left < 0:
                break
    elif isinstance(value, list | tuple):
        for item in value:
            left = _left(item, left)
            if left < 0:
                break
    elif isinstance(value, Iterator):
        return -1
    return left
