"""Frozen dataclasses as objects of JSON, and back: the fields of a class are the one description of a message.

An annotation says how a field is read: a plain value, a dataclass, an enumeration, a tuple of one of these, or either
one of them or a plain value. Knows no message, and checks no value: these are for a reader that trusts the writer.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import cache, partial
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

from shimmy.wire.frames import Frame

_N_AT_ONCE = 64  # messages, and what else a prompt has many of
_PLAIN = (bool, int, float, str, NoneType)

Record = TypeVar("Record")
_Reader = Callable[[Any], Any]


def to_wire(record: Any, *without: str) -> Frame:
    """The fields of a dataclass, and of those in it; nothing else is copied. Of many, each is made as it is written."""
    return {name: _on_wire(getattr(record, name)) for name in _names(record.__class__) if name not in without}


def read(kind: type[Record], members: Frame, **known: object) -> Record:
    """The dataclass with these members, which may have others beside them; `known` are fields that are read already."""
    readers = _readers(kind, *known)  # type: ignore[arg-type] # mypy takes no class for hashable
    return kind(**{name: reader(members[name]) if reader else members[name] for name, reader in readers}, **known)


def _on_wire(value: Any) -> Any:
    if isinstance(value, tuple) and value and is_dataclass(value[0]):
        records = map(to_wire, value)
        return list(records) if len(value) <= _N_AT_ONCE else records
    return to_wire(value) if is_dataclass(value) else value


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple([field.name for field in fields(kind)])


@cache
def _readers(kind: Any, *known: str) -> tuple[tuple[str, _Reader | None], ...]:
    return tuple([(field.name, _reader(field.type)) for field in fields(kind) if field.name not in known])


def _reader(annotation: Any) -> _Reader | None:
    """What makes a field's value of JSON; None where that is the value. Raises TypeError for what has no form on it."""
    if annotation in _PLAIN:
        return None
    if isinstance(annotation, type):
        if is_dataclass(annotation):
            return partial(read, annotation)
        if issubclass(annotation, StrEnum):
            return annotation
    kinds = [kind for kind in get_args(annotation) if kind is not ...]
    readers = [reader for kind in kinds if (reader := _reader(kind)) is not None]
    origin = get_origin(annotation)
    if origin is tuple and not readers:
        return tuple
    if origin is tuple and len(kinds) == 1:
        return partial(_read_each, readers[0])
    if origin is UnionType and not readers:
        return None
    if origin is UnionType and len(readers) == 1:
        return partial(_read_unless, tuple([kind for kind in kinds if kind in _PLAIN]), readers[0])
    raise TypeError(f"{annotation} has no form on the wire")


def _read_each(reader: _Reader, values: list[Any]) -> tuple[Any, ...]:
    return tuple(map(reader, values))


def _read_unless(plain: tuple[type, ...], reader: _Reader, value: Any) -> Any:
    return value if isinstance(value, plain) else reader(value)
