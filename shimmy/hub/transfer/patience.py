"""When to try again after trouble, and when to give up. Knows statuses and Retry-After; nothing of files."""

from threading import Event
from time import time

from shimmy.errors import PullFailed
from shimmy.hub.transfer.events import Meter
from shimmy.hub.transfer.web import HttpReply, Trouble, host_of

TRIES = 8  # without a byte in between
STRANGER_TRIES = 4  # of a server that this pull has never reached
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0
MAX_RETRY_AFTER_S = 300.0  # a server that wants more is not waited for
PASSING = {408, 409, 423, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}


class Patience:
    """Counts the tries of one thing. Used by one thread; `stop` ends all waits.

    For one of several connections (`has_others`) a try does not count where another one has got bytes since: servers
    may let an address have fewer connections than there are.
    """

    def __init__(self, meter: Meter, stop: Event, tries: int = TRIES, *, has_others: bool = False) -> None:
        self._meter = meter
        self._stop = stop
        self._tries = tries
        self._has_others = has_others
        self._n_failed = 0  # tries that count
        self._n_waits = 0
        self._n_received = meter.n_received  # at the latest failure

    def went_well(self) -> None:
        self._n_failed = self._n_waits = 0

    def wait(self, trouble: Trouble) -> None:
        """Before the next try. Raises PullFailed where there is none."""
        n_before, self._n_received = self._n_received, self._meter.n_received
        if self._has_others and self._n_received > n_before:
            self._n_failed = 0
        self._n_failed += 1
        if trouble.is_stranger and self._n_failed >= STRANGER_TRIES:
            raise PullFailed(
                f"{trouble}; tried {self._n_failed} times: is the address right, and this machine connected?"
            )
        if self._n_failed >= self._tries:
            raise PullFailed(f"{trouble}; tried {self._n_failed} times. What was fetched is kept: pull again later")
        if trouble.retry_after_s > MAX_RETRY_AFTER_S:
            raise PullFailed(f"{trouble}; it asks to come back in {trouble.retry_after_s:.0f} s")
        wait_s = max(trouble.retry_after_s, min(FIRST_WAIT_S * 2 ** min(self._n_waits, self._tries), LONGEST_WAIT_S))
        self._n_waits += 1
        self._meter.say("waiting", reason=str(trouble), seconds=round(wait_s, 1))
        if self._stop.wait(wait_s):
            raise Stopped


class Stopped(Exception):
    """Another thread of the pull has failed."""


def check(reply: HttpReply, *expected: int) -> None:
    """Raise Trouble for a status that may pass, and PullFailed for one that will not."""
    if reply.status in expected:
        return
    host = host_of(reply.target.url)
    said = f"`{host}` answers {reply.status} {reply.reason[:60]}".rstrip()
    if reply.status in PASSING:
        raise Trouble(said, retry_after_s(reply.header("Retry-After")))
    reason = reply.header("X-Error-Message")[:300]
    raise PullFailed(f"{said}{f': {reason}' if reason.isprintable() and reason else ''}")


def retry_after_s(text: str) -> float:
    """Of the header: seconds, or a date (RFC 9110, 10.2.3); 0 for nothing of sense."""
    if text.isdecimal() and len(text) < 10:
        return float(text)
    if not text or len(text) > 60:
        return 0.0
    from email.utils import parsedate_to_datetime

    try:
        return max(parsedate_to_datetime(text).timestamp() - time(), 0.0)
    except (ValueError, OverflowError):
        return 0.0
