"""What goes wrong on the way: cuts, wrong bytes, busy servers, expired links, full disks, two pulls at once."""

import errno
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from random import Random

import pytest

from shimmy.errors import PullFailed
from shimmy.hub.transfer import download, part_file, patience, ranges
from shimmy.hub.transfer.digests import openssl_sha256
from tests.hub.conftest import Place, Serve
from tests.hub.servers import FakeHub, Fault

MODEL = b"GGUF" + Random(1).randbytes(1_000_000)
NAME = "o/tiny"
_BUSY_SHARE = ranges.BUSY_SHARE  # before the fixtures of tests change it


@pytest.fixture
def hub(serve: Serve) -> FakeHub:
    made = FakeHub({NAME: {"tiny.gguf": MODEL}})
    serve(made)
    return made


def assert_pulled(place: Place, server: FakeHub, **options: object) -> None:
    assert place.pull(server, NAME, **options).read_bytes() == MODEL
    assert not place.unfinished()


def assert_nothing_is_served(place: Place) -> None:
    assert not [*place.cache.rglob("*.gguf")]
    assert not [path for path in place.cache.rglob("blobs/*") if ".shimmy." not in path.name]


def test_a_hundred_cuts_end_in_the_right_bytes(hub: FakeHub, place: Place) -> None:
    random = Random(7)
    hub.faults.extend(
        random.choice((Fault(), Fault(cut_after=random.randrange(1, 65_000)), Fault(status=502))) for _ in range(150)
    )
    assert sum(fault != Fault() for fault in hub.faults) >= 90
    assert_pulled(place, hub)


def test_connections_join_while_the_line_is_slow(hub: FakeHub, place: Place) -> None:
    hub.faults.extend([Fault(), *[Fault(n_connections=ranges.N_CONNECTIONS)] * ranges.N_CONNECTIONS])
    assert_pulled(place, hub)
    assert hub.most_connections <= ranges.N_CONNECTIONS + 1


def test_connections_do_not_join_where_it_is_this_machine_that_is_slow(
    hub: FakeHub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_slowly(part: part_file.PartFile, data: memoryview, at: int) -> None:
        threading.Event().wait(0.01)
        write(part, data, at)

    write = part_file.PartFile.write
    monkeypatch.setattr(part_file.PartFile, "write", write_slowly)
    monkeypatch.setattr(ranges, "BUSY_SHARE", _BUSY_SHARE)
    monkeypatch.setattr(ranges, "MORE_EVERY_S", 0.08)
    assert_pulled(place, hub)
    assert len(hub.paths("/signed/")) > 16
    assert hub.most_connections < 4


class OneAtATime(FakeHub):
    """Lets an address have one connection for contents, and refuses all others."""

    def __init__(self, repositories: Mapping[str, Mapping[str, bytes]]) -> None:
        super().__init__(repositories)
        self.is_busy = threading.Lock()
        self.n_refused = 0

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        if not handler.path.startswith("/signed/"):
            super().answer(handler)
        elif self.is_busy.acquire(blocking=False):
            try:
                threading.Event().wait(0.1)
                super().answer(handler)
            finally:
                self.is_busy.release()
        else:
            self.n_refused += 1
            self.send(handler, 503)


def test_a_server_that_lets_one_connection_through_is_pulled_from(
    place: Place, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(patience, "LONGEST_WAIT_S", 0.4)  # a second for all tries: the pull takes two
    hub = OneAtATime({NAME: {"tiny.gguf": MODEL}})
    serve(hub)
    assert place.pull(hub, NAME).read_bytes() == MODEL
    assert hub.n_refused >= patience.TRIES  # of one connection, as others wait for it


def test_a_pull_goes_on_where_an_earlier_one_was_killed(hub: FakeHub, place: Place) -> None:
    hub.faults.extend([Fault()] * 9 + [Fault(status=410)] * 40)
    with pytest.raises(PullFailed, match="410"):
        place.pull(hub, NAME)
    assert_nothing_is_served(place)
    (part,) = (name for name in place.unfinished() if name.endswith(part_file.PART))
    n_there = part_file.PartFile(
        next(place.cache.rglob(part)).with_name(part.removesuffix(part_file.PART)),
        hub.repositories[NAME]["tiny.gguf"].digest,
        len(MODEL),
    )
    with n_there:
        n_bytes = n_there.n_there
    assert n_bytes >= 5 * 65_536
    hub.faults.clear()
    hub.forget_requests()
    assert_pulled(place, hub)
    fetched = 0
    for path, headers in hub.requests:
        if path.startswith("/signed/"):
            start, end = headers["range"].removeprefix("bytes=").split("-")
            fetched += int(end) - int(start) + 1
    assert fetched <= len(MODEL) - n_bytes + 1  # the one byte that is asked for to find the size


def test_a_part_file_that_was_changed_is_fetched_once_more(hub: FakeHub, place: Place) -> None:
    hub.faults.extend([Fault()] * 9 + [Fault(status=410)] * 40)
    with pytest.raises(PullFailed):
        place.pull(hub, NAME)
    hub.faults.clear()
    part = next(place.cache.rglob(f"*{part_file.PART}"))
    with part.open("r+b") as file:
        file.write(b"XXXX")
    assert_pulled(place, hub)


def test_a_journal_without_sense_counts_as_none(hub: FakeHub, place: Place) -> None:
    hub.faults.extend([Fault()] * 9 + [Fault(status=410)] * 40)
    with pytest.raises(PullFailed):
        place.pull(hub, NAME)
    hub.faults.clear()
    journal = next(place.cache.rglob(f"*{part_file.JOURNAL}"))
    with journal.open("ab") as file:
        file.write(b"-5 10\n0 99999999999\nx y\n\xff\n7\n12 ")
    assert_pulled(place, hub)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault(body=b"GGUFwrong"), "digest"),
        (Fault(content_range=f"bytes 0-65535/{len(MODEL) + 1}"), "another `tiny.gguf`"),
        (Fault(content_range="bytes 1-2/3"), "another `tiny.gguf`"),
        (Fault(content_range="nonsense"), "another `tiny.gguf`"),
        (Fault(headers={"Content-Encoding": "gzip"}), "compressed"),
        (Fault(status=451), "451"),
    ],
)
def test_what_is_wrong_is_an_error_and_never_served(hub: FakeHub, place: Place, fault: Fault, says: str) -> None:
    hub.faults.extend([Fault(), *[fault] * 60])
    with pytest.raises(PullFailed, match=says):
        place.pull(hub, NAME)
    assert_nothing_is_served(place)


def test_a_file_of_another_size_than_the_list_says_is_refused(hub: FakeHub, place: Place) -> None:
    hub.faults.append(Fault(content_range="bytes 0-0/5"))
    with pytest.raises(PullFailed, match="5 bytes in place of"):
        place.pull(hub, NAME)


def test_bytes_behind_the_end_are_not_taken(hub: FakeHub, place: Place) -> None:
    hub.faults.extend([Fault(), *[Fault(extra=b"more")] * 16])
    assert_pulled(place, hub)


def test_a_server_without_ranges_sends_all_at_once(hub: FakeHub, place: Place) -> None:
    hub.has_ranges = False
    hub.faults.extend([Fault(), Fault(cut_after=300_000)])
    assert_pulled(place, hub)


def test_a_truncated_body_of_unknown_length_is_noticed(hub: FakeHub, place: Place) -> None:
    hub.has_ranges = hub.tells_length = False
    hub.faults.extend([Fault(), *[Fault(cut_after=300_000)] * 10])
    with pytest.raises(PullFailed, match="broke off"):
        place.pull(hub, NAME)
    assert_nothing_is_served(place)


def test_a_busy_server_is_asked_again_when_it_says(hub: FakeHub, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Event, "wait", waits := _Waits())
    hub.faults.extend([Fault(status=429, headers={"Retry-After": "37"}), Fault(status=503)])
    assert_pulled(place, hub)
    assert 37.0 in waits.asked
    said = [event.details for event in place.events if event.kind == "waiting"]
    assert [wait["seconds"] for wait in said] == [37.0, 0.0]
    assert "429" in str(said[0]["reason"])


class _Waits:
    """In place of waits that are long: what was asked for."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __get__(self, event: threading.Event, _: object) -> "object":
        def wait(timeout_s: float | None = None) -> bool:
            if timeout_s is not None and timeout_s > 1:
                self.asked.append(timeout_s)
                return event.is_set()
            with event._cond:  # type: ignore[attr-defined]
                return event._cond.wait_for(event.is_set, timeout_s)  # type: ignore[attr-defined, no-any-return]

        return wait


def test_no_connection_joins_while_one_waits_as_it_was_told(
    hub: FakeHub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(*_: object) -> None:
        monkeypatch.setattr(ranges, "MORE_EVERY_S", 0.0)
        n_asked.append(len(hub.paths("/signed/")))
        threading.Event().wait(0.3)  # in which three connections would join
        n_asked.append(len(hub.paths("/signed/")))

    n_asked: list[int] = []
    monkeypatch.setattr(ranges, "MORE_EVERY_S", 3600.0)
    monkeypatch.setattr(patience.Patience, "wait", wait)
    all_joined = [Fault(n_connections=ranges.N_CONNECTIONS)] * ranges.N_CONNECTIONS  # later they do
    hub.faults.extend([Fault(), Fault(status=429, headers={"Retry-After": "37"}), *all_joined])
    assert_pulled(place, hub)
    assert n_asked == [2, 2]  # for the size, and for the first range


def test_a_server_that_wants_hours_is_not_waited_for(hub: FakeHub, place: Place) -> None:
    hub.faults.extend([Fault(status=429, headers={"Retry-After": "7200"})] * 3)
    with pytest.raises(PullFailed, match="7200 s"):
        place.pull(hub, NAME)


def test_retry_after_may_be_a_date() -> None:
    assert patience.retry_after_s("Fri, 31 Dec 2100 23:59:59 GMT") > 10**8
    for text in ("", "soon", "Fri, 31 Dec 1999 23:59:59 GMT", "-1", "1" * 30, "Fri, 99 Xxx 20 99:99:99"):
        assert patience.retry_after_s(text) == 0


def test_a_server_that_stays_down_is_given_up(hub: FakeHub, place: Place) -> None:
    hub.faults.extend([Fault(status=503)] * 200)
    with pytest.raises(PullFailed, match=r"503.*tried 8 times"):
        place.pull(hub, NAME)


def test_links_that_expire_are_looked_up_again(hub: FakeHub, place: Place) -> None:
    hub.link_uses = 3
    assert_pulled(place, hub)
    assert len(hub.paths(f"/{NAME}/resolve")) >= 5


def test_a_full_disk_is_said_and_what_was_fetched_is_kept(
    hub: FakeHub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = os.pwrite
    n_writes = 0

    def full(fd: int, data: memoryview, at: int) -> int:
        nonlocal n_writes
        n_writes += 1
        if n_writes > 60:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(fd, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(PullFailed, match="is full"):
            place.pull(hub, NAME)
    assert_nothing_is_served(place)
    assert_pulled(place, hub)


def test_a_disk_without_room_is_said_before(hub: FakeHub, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SPARE_BYTES", 1 << 60)
    with pytest.raises(PullFailed, match="GB free"):
        place.pull(hub, NAME)


def test_a_lock_of_another_program_is_waited_for(hub: FakeHub, place: Place) -> None:
    digest = hub.repositories[NAME]["tiny.gguf"].digest
    lock = place.cache / ".locks" / "models--o--tiny" / f"{digest}.lock"
    lock.parent.mkdir(parents=True)
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        thread = threading.Thread(target=place.pull, args=(hub, NAME))
        thread.start()
        while "waiting" not in place.kinds():
            thread.join(0.05)
            assert thread.is_alive()
        assert not hub.paths("/signed/")
        other.communicate(b"")
    thread.join()
    assert place.kinds()[-1] == "done"


def test_sha256_of_openssl_is_that_of_hashlib() -> None:
    digest = openssl_sha256()
    assert digest is not None
    for part in (b"", b"a", MODEL):
        digest.update(memoryview(bytearray(part)))
    assert digest.hexdigest() == hashlib.sha256(b"a" + MODEL).hexdigest()


def test_a_link_in_place_of_the_part_file_is_not_followed(hub: FakeHub, place: Place, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    blobs = place.cache / "models--o--tiny" / "blobs"
    blobs.mkdir(parents=True)
    digest = hub.repositories[NAME]["tiny.gguf"].digest
    (blobs / f"{digest}{part_file.PART}").symlink_to(victim)
    with pytest.raises(PullFailed):
        place.pull(hub, NAME)
    assert victim.read_text() == "mine"
