"""Which request is prepared next: none waits for a long one, and what nobody waits for is not prepared."""

import threading
from collections.abc import Callable
from itertools import pairwise
from queue import SimpleQueue
from time import sleep

import pytest

from shimmy.engine import deep_thread, prepare_lanes
from shimmy.engine.prepare_lanes import LARGE_BYTES, Cancelled, Lanes, LaneTurns, Work
from shimmy.engine.pulse import Activity
from shimmy.errors import BadRequest, OutOfMemory

WAIT_S = 20


class Requests:
    """Lanes whose requests do what a test says, by their ids."""

    def __init__(self) -> None:
        self.activity = Activity()
        self.lanes = Lanes(self._prepare, self.activity)
        self.ended: SimpleQueue[int] = SimpleQueue()
        self._actions: dict[int, Callable[[Work], None]] = {}
        self._n = 0

    def put(self, action: Callable[[Work], None] = lambda _: None, n_bytes: int = 10) -> int:
        self._n += 1
        self._actions[self._n] = action
        self.lanes.put({"id": self._n, "op": "job"}, n_bytes)
        return self._n

    def _prepare(self, work: Work) -> None:
        try:
            self._actions[work.id](work)
        finally:
            self.ended.put(work.id)

    def next_ended(self) -> int:
        return self.ended.get(timeout=WAIT_S)


class Held:
    """An action that goes on until it is let go."""

    def __init__(self) -> None:
        self.is_begun = threading.Event()
        self._may_end = threading.Event()

    def __call__(self, _: Work) -> None:
        self.is_begun.set()
        assert self._may_end.wait(WAIT_S)

    def let_go(self) -> None:
        self._may_end.set()


def test_requests_are_prepared_in_their_order() -> None:
    requests = Requests()
    ids = [requests.put() for _ in range(200)]
    assert [requests.next_ended() for _ in ids] == ids


def test_none_waits_for_one_that_takes_long() -> None:
    requests = Requests()
    held = [Held() for _ in range(8)]
    slow = [requests.put(each) for each in held]
    quick = requests.put()
    assert requests.next_ended() == quick
    assert requests.activity.is_busy
    for each in held:
        each.let_go()
    assert {requests.next_ended() for _ in held} == set(slow)


def test_few_large_ones_are_begun_and_the_smaller_ones_first() -> None:
    requests = Requests()
    held = [Held() for _ in range(4)]
    slow = [requests.put(each, LARGE_BYTES + 1) for each in held]
    for each in held:
        assert each.is_begun.wait(WAIT_S)
    larger, smaller = (requests.put(n_bytes=n * LARGE_BYTES) for n in (300, 200))
    quick = requests.put()
    assert requests.next_ended() == quick, "small ones are not held up by large ones"
    held[0].let_go()
    assert [requests.next_ended() for _ in range(3)] == [slow[0], smaller, larger]
    for each in held[1:]:
        each.let_go()


def test_what_is_cancelled_before_its_turn_is_not_prepared() -> None:
    requests = Requests()
    held = Held()
    slow = requests.put(held)
    assert held.is_begun.wait(WAIT_S)
    seen: list[int] = []
    requests.lanes.cancel(requests.put(lambda work: seen.append(work.id)))
    requests.lanes.cancel(12345)  # unknown: fine
    held.let_go()
    last = requests.put()
    assert [requests.next_ended() for _ in range(2)] == [slow, last]
    assert not seen


def test_what_is_cancelled_meanwhile_ends_at_its_next_pause() -> None:
    requests = Requests()
    held, errors = Held(), SimpleQueue[Exception]()

    def action(work: Work) -> None:
        work.pause()
        held(work)
        try:
            work.pause()
        except Cancelled as exc:
            errors.put(exc)

    requests.put(action)
    assert held.is_begun.wait(WAIT_S)
    requests.lanes.cancel(1)
    held.let_go()
    assert isinstance(errors.get(timeout=WAIT_S), Cancelled)


def test_what_takes_too_long_is_refused_at_its_next_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_lanes, "MAX_PREPARING_S", 0.0)
    requests, errors = Requests(), SimpleQueue[Exception]()

    def action(work: Work) -> None:
        try:
            work.pause()
        except BadRequest as exc:
            errors.put(exc)

    requests.put(action)
    assert "within 0 s" in str(errors.get(timeout=WAIT_S))


def test_long_ones_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_lanes, "PATIENCE_S", 0.0)
    requests = Requests()
    both_begun = threading.Barrier(2)
    seen: list[int] = []

    def action(work: Work) -> None:
        both_begun.wait(WAIT_S)
        for _ in range(50):
            work.pause()
            seen.append(work.id)
            sleep(0.001)  # it works, and the other comes to want its turn

    requests.put(action)
    requests.put(action)
    assert {requests.next_ended(), requests.next_ended()} == {1, 2}
    assert sum(one != other for one, other in pairwise(seen)) > 40, "or one would go on until it is done"


def test_a_turn_goes_round_in_the_order_of_those_who_want_it() -> None:
    turns = LaneTurns()
    turns.take()
    took: SimpleQueue[str] = SimpleQueue()

    def other() -> None:
        turns.take()
        took.put("other")
        turns.give_back()

    thread = threading.Thread(target=other)
    thread.start()
    while not turns._waiting:
        sleep(0.001)
    turns.pass_on()
    took.put("again")
    assert [took.get(timeout=WAIT_S) for _ in range(2)] == ["other", "again"]
    turns.give_back()
    thread.join(WAIT_S)
    turns.take()


def test_an_error_of_ours_ends_one_request_and_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    requests = Requests()

    def action(_: Work) -> None:
        raise RuntimeError("a bug")

    ids = [requests.put(action), requests.put(action), requests.put()]
    assert [requests.next_ended() for _ in ids] == ids
    assert "could not prepare a request" in caplog.text


def test_where_no_thread_can_be_started_whoever_asks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> threading.Thread:
        raise OutOfMemory("no thread")

    requests = Requests()
    with monkeypatch.context() as patch:
        patch.setattr(deep_thread, "start", refuse)
        for n_bytes in (10, 2 * LARGE_BYTES):
            with pytest.raises(OutOfMemory):
                requests.put(n_bytes=n_bytes)
    following = requests.put()
    assert requests.next_ended() == following


def test_threads_that_are_too_many_end() -> None:
    requests = Requests()
    held = [Held() for _ in range(10)]
    for each in held:
        requests.put(each)
    for each in held:
        assert each.is_begun.wait(WAIT_S)
        each.let_go()
    for _ in held:
        requests.next_ended()
    while requests.lanes._n_threads > 3:
        sleep(0.001)
