"""Frames that wait to be written to one worker, which gets no more than it reads; large frames go out in parts.

A small frame is written at once when no other waits. Otherwise small and large frames take turns. The next part of a
large frame is encoded and written only when the socket has taken the part before it, and the event loop runs in
between. A frame that is called back before its first part was written is never sent. Knows frames; nothing of their
contents.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from shimmy.errors import Overloaded
from shimmy.text.json_writer import is_small
from shimmy.wire import codec, frames

# Of large frames. By default a request has at most 16 MiB (`--max-body-mb`).
MAX_WAITING_BYTES = 256 * 2**20


class Outbox:
    """Used on the event loop alone. `write` hands bytes to the socket, which calls `pause` when its buffer is full."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._is_paused = False
        self._small: deque[_Waiting] = deque()
        self._large: deque[_Waiting] = deque()
        self._n_bytes = 0  # of the large ones
        self._begun: Iterator[bytes] | None = None  # the parts of a large frame that are still to be written
        self._was_small = False  # the last frame that was written, of those that waited
        self._scheduled: asyncio.Handle | None = None

    def put(self, message: frames.Frame, ids: Iterable[int] = (), n_bytes: int = 0) -> None:
        """Send `message`, which has the jobs or the call with these `ids` and `n_bytes`, roughly.

        Raises Overloaded where too much waits already.
        """
        if not is_small(message):
            if self._n_bytes + n_bytes > MAX_WAITING_BYTES and self._n_bytes:
                raise Overloaded("the model's worker has not read what it was sent before; try again later")
            self._large.append(_Waiting({*ids}, message, n_bytes))
            self._n_bytes += n_bytes
        elif self._is_paused or self._begun is not None or self._has_waiting():
            self._small.append(_Waiting({*ids}, message, 0))
        else:
            self._write(frames.frame(message))
            return
        self._go_on()

    def call_back(self, job_id: int) -> bool:
        """Whether the job or call with this id had to wait; it is not sent then."""
        for waiting in (self._small, self._large):
            for each in waiting:
                if job_id in each.ids:
                    each.ids.discard(job_id)
                    each.message = codec.without(each.message, job_id)
                    if not each.ids:
                        waiting.remove(each)
                        self._n_bytes -= each.n_bytes
                    return True
        return False

    def pause(self) -> None:
        self._is_paused = True

    def resume(self) -> None:
        self._is_paused = False
        self._go_on()

    def close(self) -> None:
        """Drop the frames that wait: there is no reader any more."""
        self._small.clear()
        self._large.clear()
        self._begun = None
        self._n_bytes = 0
        self._is_paused = True

    def _go_on(self) -> None:
        has_work = self._begun is not None or self._has_waiting()
        if has_work and not self._is_paused and self._scheduled is None:
            self._scheduled = asyncio.get_running_loop().call_soon(self._step)

    def _step(self) -> None:
        """Write one part, or one small frame."""
        self._scheduled = None
        if self._is_paused:
            return
        if self._begun is None:
            self._begin()
        if self._begun is not None:
            part = next(self._begun, None)
            if part is None:
                self._begun = None
            else:
                self._write(part)
        self._go_on()

    def _begin(self) -> None:
        """Begin the next frame: small and large ones take turns where there are both."""
        if not self._has_waiting():
            return
        self._was_small = bool(self._small) and not (self._was_small and self._large)
        waiting = self._small if self._was_small else self._large
        next_one = waiting.popleft()
        self._n_bytes -= next_one.n_bytes
        self._begun = frames.parts(next_one.message)

    def _has_waiting(self) -> bool:
        return bool(self._small or self._large)


class _Waiting:
    """A frame of which nothing was written."""

    __slots__ = ("ids", "message", "n_bytes")

    def __init__(self, ids: set[int], message: frames.Frame, n_bytes: int) -> None:
        self.ids = ids
        self.message = message
        self.n_bytes = n_bytes
