"""When a worker is given up, by a clock of the test's own; and what a worker tells of its threads."""

import math
from collections.abc import Sequence

import pytest

from shimmy.wire.worker_options import look_every_s
from shimmy.workers.hang_verdict import Watch


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Watched:
    """A watch that looks as often as it should."""

    def __init__(self, worker_timeout_s: float = 40.0, load_timeout_s: float = 80.0) -> None:
        self.clock = Clock()
        self.watch = Watch(self.clock)
        self.watch.limit(worker_timeout_s, load_timeout_s)
        self.n_said = 0

    def pass_s(
        self, seconds: float, *, is_loaded: bool = True, has_work: bool = True, beats: Sequence[float | None] = ()
    ) -> str | None:
        """The verdict after so many seconds, in each of which it says the next of `beats`."""
        end_s = self.clock.now_s + seconds
        told = iter(beats)
        while self.clock.now_s < end_s:
            self.clock.now_s += 1.0
            for stalled_s in told:
                self.watch.told(stalled_s)
                break
            verdict = self.watch.verdict(is_loaded=is_loaded, has_work=has_work, n_said=self.n_said)
            if verdict is not None:
                return verdict
        return None


def test_a_worker_that_beats_is_kept_for_ever() -> None:
    watched = Watched()
    assert watched.pass_s(1000, beats=[0.5] * 1000) is None
    assert watched.pass_s(1000, has_work=False, beats=[None] * 1000) is None


@pytest.mark.parametrize("has_work", [False, True])
def test_silence_is_the_end_with_work_and_without(has_work: bool) -> None:
    watched = Watched()
    assert watched.pass_s(5, has_work=has_work, beats=[0.0 if has_work else None] * 5) is None
    assert watched.pass_s(39, has_work=has_work) is None
    verdict = watched.pass_s(2, has_work=has_work)
    assert verdict is not None
    assert "no sign of life for 40 s" in verdict
    assert "--worker-timeout" in verdict


def test_before_its_first_word_a_worker_has_the_time_of_a_load() -> None:
    watched = Watched()
    assert watched.pass_s(79, is_loaded=False) is None
    verdict = watched.pass_s(2, is_loaded=False)
    assert verdict is not None
    assert "--load-timeout" in verdict


def test_a_step_may_take_long_while_it_loads_but_not_for_ever() -> None:
    watched = Watched()
    stalled = [float(second) for second in range(200)]
    verdict = watched.pass_s(200, is_loaded=False, beats=stalled)
    assert verdict is not None
    assert "got no further for 80 s" in verdict
    assert "--load-timeout" in verdict


def test_a_worker_that_lives_and_does_not_get_on_is_given_up() -> None:
    watched = Watched()
    stalled = [float(second) for second in range(100)]
    assert watched.pass_s(39, beats=stalled[:39]) is None
    verdict = watched.pass_s(5, beats=stalled[39:])
    assert verdict is not None
    assert "got no further for 40 s" in verdict
    assert "--worker-timeout" in verdict


def test_work_that_got_lost_is_noticed_and_a_worker_that_answers_is_not_suspected() -> None:
    watched = Watched()
    assert watched.pass_s(300, has_work=False, beats=[None] * 300) is None
    assert watched.pass_s(39, beats=[None] * 39) is None
    watched.n_said += 1
    assert watched.pass_s(39, beats=[None] * 39) is None
    verdict = watched.pass_s(5, beats=[None] * 5)
    assert verdict is not None
    assert "nothing to do although it was given work" in verdict


def test_time_in_which_the_server_itself_did_not_run_is_not_held_against_a_worker() -> None:
    watched = Watched()
    watched.pass_s(5, beats=[0.0] * 5)
    watched.clock.now_s += 500
    assert watched.watch.verdict(is_loaded=True, has_work=True, n_said=0) is None
    assert watched.pass_s(39) is None
    assert watched.pass_s(2) is not None


def test_without_limits_there_is_no_verdict() -> None:
    watched = Watched(math.inf, math.inf)
    assert watched.pass_s(10_000) is None


@pytest.mark.parametrize(
    ("limits", "every_s"),
    [((40, 80), 5), ((8, 300), 1), ((1, 300), 0.125), ((math.inf, 4), 0.5), ((math.inf, math.inf), 5)],
)
def test_a_limit_is_looked_after_often_enough(limits: tuple[float, float], every_s: float) -> None:
    assert look_every_s(*limits) == every_s
