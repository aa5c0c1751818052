"""What a value of foreign JSON can be: a function returns the one that it is given, or raises ValueError or TypeError.

Knows JSON's types and ranges; nothing of messages.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

# Of what people get to read, and of the marks of a format.
MAX_LABEL = 500
MAX_MARK = 8_192

Made = TypeVar("Made")
Value = TypeVar("Value")


def printable(text: str, n_most: int) -> str:
    """`text` as people may be shown it: without control characters, and no longer than `n_most` characters."""
    shown = "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)
    return shown if len(shown) <= n_most else shown[: n_most - 1] + "…"


def made(kind: Callable[..., Made], fields: object, readers: Mapping[object, Callable[[Any], object]]) -> Made:
    """A dataclass of what is in `fields`, each of them read as its annotation says; all have to be there."""
    known = members(fields)
    read = {name: readers[annotation](known.pop(name)) for name, annotation in kind.__annotations__.items()}
    return kind(**read, **known)


def optional(read: Callable[[Any], Value]) -> Callable[[Any], Value | None]:
    return lambda value: None if value is None else read(value)


def members(value: object) -> dict[str, Any]:
    if type(value) is not dict:
        raise TypeError("no object")
    return dict(value)


def items(value: object) -> list[Any]:
    if type(value) is not list:
        raise TypeError("no list")
    return value


def count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError("no count")
    return value


def large_count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("no count")
    return value


def number(value: object) -> float:
    if type(value) not in (int, float) or not -1e15 < value < 1e15:  # type: ignore[operator]
        raise ValueError("no number")
    return float(value)  # type: ignore[arg-type]


def duration(value: object) -> float:
    seconds = number(value)
    if seconds < 0:
        raise ValueError("no duration")
    return seconds


def truth(value: object) -> bool:
    if type(value) is not bool:
        raise TypeError("no boolean")
    return value


def text(value: object) -> str:
    if type(value) is not str:
        raise TypeError("no text")
    return value


def mark(value: object) -> str:
    string = text(value)
    if len(string) > MAX_MARK:
        raise ValueError("mark")
    return string


def label(value: object) -> str:
    return printable(text(value), MAX_LABEL)
