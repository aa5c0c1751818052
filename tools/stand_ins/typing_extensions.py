"""Stands in for `typing_extensions` in the frozen file: the names that anyio, starlette and the binding take from it on
Python 3.11 and later, which mean nothing while a program runs. The real one costs each start 5 ms."""

import typing
from typing import Any, Self, TypeAlias, TypeVarTuple, Unpack

__all__ = ["Self", "TypeAlias", "TypeIs", "TypeVar", "TypeVarTuple", "Unpack", "deprecated", "override", "sentinel"]

TypeIs = typing.TypeGuard


def TypeVar(name: str, *constraints: Any, default: Any = None, **options: Any) -> Any:  # noqa: ARG001, N802
    return typing.TypeVar(name, *constraints, **options)


def deprecated(*_arguments: Any, **_options: Any) -> Any:
    return lambda what: what


def override(what: Any) -> Any:
    return what


def sentinel(name: str) -> Any:
    return type(name, (), {})()
