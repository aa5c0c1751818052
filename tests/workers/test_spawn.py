"""A worker that is started ahead is taken once, and does not outlive the block that may take it."""

from typing import TYPE_CHECKING

import pytest

from shimmy.workers import spawn

if TYPE_CHECKING:
    import subprocess


@pytest.fixture(autouse=True)
def patient_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their programs do nothing until they are killed."""
    monkeypatch.setattr(spawn, "worker_command", lambda _fd, name: ["sh", "-c", "exec sleep 60", name])


def end(child: "subprocess.Popen[bytes]") -> None:
    child.kill()
    child.wait()
    assert child.stderr is not None
    child.stderr.close()


def test_a_worker_that_was_started_ahead_is_taken_once() -> None:
    with spawn.ahead():
        first, first_socket = spawn.start("one")
        second, second_socket = spawn.start("two")
    assert (first.args[-1], second.args[-1]) == ("ahead", "two")  # type: ignore[index]
    for child, ours in ((first, first_socket), (second, second_socket)):
        assert child.poll() is None
        end(child)
        assert ours.recv(1) == b""  # the other end was theirs alone
        ours.close()


def test_one_that_nobody_takes_ends_with_the_block() -> None:
    with pytest.raises(ZeroDivisionError), spawn.ahead():  # noqa: PT012
        ((child, ours),) = spawn._ahead
        raise ZeroDivisionError
    assert child.returncode is not None
    assert ours.fileno() == -1
    later, socket = spawn.start("later")
    assert later is not child
    end(later)
    socket.close()


def test_one_that_cannot_be_started_ahead_is_no_error_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spawn, "worker_command", lambda _fd, _name: ["/nowhere/shimmy"])
    with spawn.ahead(), pytest.raises(FileNotFoundError):
        spawn.start("one")
