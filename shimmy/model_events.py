"""Publishes what happens to models, such as loads and swaps, to all listeners. Knows neither causes nor listeners."""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import time

MAX_UNREAD = 1_000


@dataclass(frozen=True, slots=True)
class ModelEvent:
    """One thing that happened to one model: `kind` is `added`, `loaded`, `swapped` and so on."""

    kind: str
    model: str
    details: Mapping[str, object] = field(default_factory=dict)
    time_s: float = field(default_factory=time)  # since the epoch


class Listener:
    """Iterate to get every event from now on. A listener with too many unread events ends, since it would miss some."""

    def __init__(self) -> None:
        self._unread: deque[ModelEvent] = deque()
        self._is_over = False
        self._woken = asyncio.Event()

    def put(self, event: ModelEvent) -> None:
        if len(self._unread) >= MAX_UNREAD:
            self.end()
        elif not self._is_over:
            self._unread.append(event)
            self._woken.set()

    def end(self) -> None:
        self._is_over = True
        self._woken.set()

    def __aiter__(self) -> "Listener":
        return self

    async def __anext__(self) -> ModelEvent:
        while not self._unread:
            if self._is_over:
                raise StopAsyncIteration
            self._woken.clear()
            await self._woken.wait()
        return self._unread.popleft()


class ModelEvents:
    """Hands each event to all listeners. Used on the event loop's thread only."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()

    def publish(self, kind: str, model: str, **details: object) -> None:
        event = ModelEvent(kind, model, details)
        for listener in self._listeners:
            listener.put(event)

    def listen(self) -> Listener:
        """`leave` has to be called with what this returns."""
        listener = Listener()
        self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        self._listeners.discard(listener)

    def close(self) -> None:
        """End every listener, after what it has not read yet."""
        for listener in self._listeners:
            listener.end()
