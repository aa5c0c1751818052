"""Which request is prepared next, and on which thread, so that none waits for a long one.

Requests are prepared one after the other, in order. One that is not done after PATIENCE_S goes on beside the next ones:
its thread then takes turns with the threads of other slow requests. Large requests wait for small ones, and only a few
of them are begun at a time. Knows frames and threads; what preparing a frame means is up to `main`.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from heapq import heappop, heappush
from time import perf_counter
from typing import Any

from shimmy.engine import deep_thread
from shimmy.engine.pulse import Activity
from shimmy.errors import BadRequest, OutOfMemory

logger = logging.getLogger(__name__)

Frame = dict[str, Any]

# The next request waits so long for the one before it. Most requests take a millisecond.
PATIENCE_S = 0.02
MAX_PREPARING_S = 60.0
# A larger frame is expected to take long.
LARGE_BYTES = 1 << 16
_MAX_LARGE = 4  # large requests that are begun at a time
_LARGE_BYTES_PER_S = 1e6  # a request with 1 MB more lets those pass that arrive up to 1 s later
_MAX_THREADS = 64
_MAX_IDLE = 2
# Tokenizing takes 5 MB of stack at most; only the used part of a stack takes memory.
_STACK_BYTES = 32 << 20


class Cancelled(Exception):
    """The request was cancelled."""


class Work:
    """A request to prepare, and whether it was cancelled."""

    def __init__(self, frame: Frame, n_bytes: int, turns: "LaneTurns", activity: Activity) -> None:
        self.id: int = frame["id"]
        self.frame = frame
        self.is_large = n_bytes > LARGE_BYTES
        self.is_cancelled = False
        self.begun_s = 0.0
        self.rank = perf_counter() + n_bytes / _LARGE_BYTES_PER_S
        self._turns = turns
        self._activity = activity
        self._has_turn = False

    def __lt__(self, other: "Work") -> bool:
        return self.rank < other.rank

    def pause(self) -> None:
        """The preparing thread calls this often, to let other slow requests get on. Raises Cancelled, and BadRequest
        where the request takes too long."""
        self._activity.n_steps += 1
        if self.is_cancelled:
            raise Cancelled
        taken_s = perf_counter() - self.begun_s
        if taken_s > MAX_PREPARING_S:
            raise BadRequest(f"the request could not be prepared within {MAX_PREPARING_S:g} s: make it smaller")
        if self._has_turn:
            self._turns.pass_on()
        elif taken_s > PATIENCE_S:
            self._turns.take()
            self._has_turn = True
        if self.is_cancelled:
            raise Cancelled

    def end(self) -> None:
        if self._has_turn:
            self._turns.give_back()
            self._has_turn = False


class LaneTurns:
    """One turn, which threads take one after the other, first come, first served."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_taken = False
        self._waiting: deque[threading.Event] = deque()

    def take(self) -> None:
        with self._lock:
            if not self._is_taken:
                self._is_taken = True
                return
            mine = self._queue()
        mine.wait()

    def pass_on(self) -> None:
        """Give the turn to the next waiting thread, and wait for it to come round; returns at once where none waits."""
        with self._lock:
            if not self._waiting:
                return
            mine = self._queue()
            self._waiting.popleft().set()
        mine.wait()

    def give_back(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._is_taken = False

    def _queue(self) -> threading.Event:
        mine = threading.Event()
        self._waiting.append(mine)
        return mine


class Lanes:
    """The requests of one worker. `put` and `cancel` belong to the thread that reads them."""

    def __init__(self, prepare: Callable[[Work], None], activity: Activity) -> None:
        """`prepare` is called on threads of its own, more than one at a time."""
        self._prepare = prepare
        self._activity = activity
        self._turns = LaneTurns()
        self._changed = threading.Condition()  # guards all below
        self._small: deque[Work] = deque()
        self._large: list[Work] = []  # a heap
        self._begun: dict[int, Work] = {}
        self._known: dict[int, Work] = {}  # not done yet
        self._n_idle = 0
        self._n_threads = 0

    def put(self, frame: Frame, n_bytes: int) -> None:
        """Queue a frame of `n_bytes`; raises OutOfMemory where no thread can be started for it."""
        work = Work(frame, n_bytes, self._turns, self._activity)
        with self._changed:
            self._known[work.id] = work
            if work.is_large:
                heappush(self._large, work)
            else:
                self._small.append(work)
            try:
                self._wake_or_start()
            except OutOfMemory:
                if not self._n_threads:  # otherwise a running thread will take it
                    del self._known[work.id]
                    (self._large if work.is_large else self._small).remove(work)
                    raise

    def _wake_or_start(self) -> None:
        """Wake an idle thread, or start one, to take the next request."""
        if self._n_idle:
            self._changed.notify()
        elif self._n_threads < _MAX_THREADS:
            deep_thread.start(self._run, _STACK_BYTES)
            self._n_threads += 1

    def cancel(self, request_id: int) -> None:
        """Cancel a request; one that is done or unknown is fine."""
        with self._changed:
            work = self._known.get(request_id)
            if work is not None:
                work.is_cancelled = True

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                if not work.is_cancelled:
                    self._prepare(work)
            except Exception:  # `prepare` answers with its own errors; the thread is for all requests
                logger.exception("could not prepare a request")
            finally:
                work.end()
                self._forget(work)

    def _next(self) -> Work | None:
        """Wait for the next request that may begin; None where enough other threads are idle."""
        with self._changed:
            while True:
                wait_s = self._wait_s()
                if wait_s == 0:
                    return self._begin()
                if wait_s is None and self._n_idle >= _MAX_IDLE:
                    self._n_threads -= 1
                    return None
                self._n_idle += 1
                self._changed.wait(wait_s)
                self._n_idle -= 1

    def _wait_s(self) -> float | None:
        """How long the next request waits for the one that began last; None where no request can begin."""
        n_large = sum(work.is_large for work in self._begun.values())
        if not self._small and (not self._large or n_large >= _MAX_LARGE):
            return None
        newest_s = max((work.begun_s for work in self._begun.values()), default=0.0)
        return max(0.0, newest_s + PATIENCE_S - perf_counter())

    def _begin(self) -> Work:
        work = self._small.popleft() if self._small else heappop(self._large)
        work.begun_s = perf_counter()
        self._begun[work.id] = work
        self._activity.begin()
        if self._small or self._large:
            with suppress(OutOfMemory):
                self._wake_or_start()
        return work

    def _forget(self, work: Work) -> None:
        with self._changed:
            del self._begun[work.id]
            self._known.pop(work.id, None)
            self._activity.n_steps += 1
            if not self._begun:
                self._activity.end()
