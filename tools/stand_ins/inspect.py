"""Stands in for `inspect` in the frozen file: the questions that asyncio, starlette and hypercorn ask of functions.
All else is answered by the real one, which is imported when somebody asks: with it come the syntax tree, the
disassembler and the tokenizer of Python, 5 ms of each start and 0.6 MB of an idle server."""

import functools
import types
from collections.abc import Awaitable
from typing import Any

CO_GENERATOR, CO_COROUTINE, CO_ITERABLE_COROUTINE, CO_ASYNC_GENERATOR = 0x20, 0x80, 0x100, 0x200


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    import inspect_in_full  # what shimmy.spec calls the real one

    return getattr(inspect_in_full, name)


def isclass(it: object) -> bool:
    return isinstance(it, type)


def isfunction(it: object) -> bool:
    return isinstance(it, types.FunctionType)


def ismethod(it: object) -> bool:
    return isinstance(it, types.MethodType)


def isgenerator(it: object) -> bool:
    return isinstance(it, types.GeneratorType)


def iscoroutine(it: object) -> bool:
    return isinstance(it, types.CoroutineType)


def isasyncgen(it: object) -> bool:
    return isinstance(it, types.AsyncGeneratorType)


def isawaitable(it: object) -> bool:
    if isinstance(it, types.GeneratorType):
        return bool(it.gi_code.co_flags & CO_ITERABLE_COROUTINE)
    return isinstance(it, Awaitable)


def isgeneratorfunction(it: object) -> bool:
    return _has_flag(it, CO_GENERATOR)


def iscoroutinefunction(it: object) -> bool:
    return _has_flag(it, CO_COROUTINE)


def isasyncgenfunction(it: object) -> bool:
    return _has_flag(it, CO_ASYNC_GENERATOR)


def _has_flag(it: Any, flag: int) -> bool:
    """Of a function, or of what methods and partials call in the end."""
    while isinstance(it, types.MethodType | functools.partial):
        it = it.__func__ if isinstance(it, types.MethodType) else it.func
    return isinstance(it, types.FunctionType) and bool(it.__code__.co_flags & flag)


def unwrap(it: Any) -> Any:
    """What was wrapped; ValueError when that goes round in a circle."""
    seen = {id(it)}
    while hasattr(it, "__wrapped__"):
        it = it.__wrapped__
        if id(it) in seen:
            raise ValueError(f"wrapper loop when unwrapping {it!r}")
        seen.add(id(it))
    return it
