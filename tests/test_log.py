import fcntl
import json
import logging
import os
import re
import sys
import threading
import warnings
from contextlib import closing
from io import TextIOWrapper
from pathlib import Path

import pytest

from shimmy import log


@pytest.fixture
def root() -> logging.Logger:
    return logging.getLogger()


def test_text_is_a_line_on_stderr_with_time_level_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("info", "text")
    logging.getLogger("shimmy.pool.pool").warning("loaded `%s`", "tiny")
    printed = capsys.readouterr()
    time, level, message = printed.err.split(maxsplit=2)
    assert time.count(":") == 2
    assert (level, message) == ("WARNING", "loaded `tiny`\n")
    assert printed.out == ""


def test_json_is_one_object_a_line_whatever_is_in_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("info", "json")
    logging.getLogger("shimmy.pool.pool").error('two\nlines, "quotes", %s', "\udcff é")
    (line,) = capsys.readouterr().err.splitlines()
    fields = json.loads(line)
    assert isinstance(fields.pop("time"), float)
    assert fields == {
        "level": "error", "logger": "shimmy.pool.pool", "message": 'two\nlines, "quotes", \udcff é',
    }  # fmt: skip


def test_json_carries_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("info", "json")
    try:
        raise KeyError("lost")
    except KeyError:
        logging.getLogger("shimmy").exception("something broke")
    fields = json.loads(capsys.readouterr().err)
    assert fields["message"] == "something broke"
    assert fields["traceback"].splitlines()[-1] == "KeyError: 'lost'"


@pytest.mark.parametrize(
    ("level", "seen"),
    [
        ("debug", ["debug", "info", "warning", "error"]), ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]), ("error", ["error"]),
    ],
)  # fmt: skip
def test_the_level_is_the_least_that_is_seen(level: str, seen: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up(level, "json")
    for name in ("debug", "info", "warning", "error"):
        logging.getLogger("shimmy.any").log(logging.getLevelName(name.upper()), "message")
    assert [json.loads(line)["level"] for line in capsys.readouterr().err.splitlines()] == seen


def test_setting_up_again_replaces_what_was_there(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("info", "text")
    log.set_up("info", "json")
    assert len(root.handlers) == 1
    logging.getLogger("shimmy").info("once")
    assert capsys.readouterr().err.count("once") == 1


HOSTILE = "\x1b]0;x\x07\r\n12:00:00 ERROR   forged \u202eab\x7f\x9b"


def test_a_line_has_nothing_that_a_terminal_obeys_and_a_message_begins_no_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.set_up("info", "text")
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("shimmy").exception("`%s`", HOSTILE)
    first, *others = capsys.readouterr().err.splitlines()
    assert first.endswith(r" ERROR   `\x1b]0;x\x07\r")
    assert others[0] == r"  12:00:00 ERROR   forged \u202eab\x7f\x9b`"
    assert others[1].strip() == "Traceback (most recent call last):"
    assert all(line.startswith("  ") and line.isprintable() for line in others)


@pytest.mark.parametrize("style", ["text", "json"])
def test_what_a_process_of_ours_says_has_nothing_that_a_terminal_obeys(
    style: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log.set_up("info", style)
    assert not log.pass_on("a \x1b]0;x\x07\r12:00:00 ERROR   forged \u202eab\x7f\x9b")
    assert log.pass_on('{"time": 1, "level": "info", "message": "\u202e"}')
    assert log.pass_on("12:00:00 INFO    \x1b[2J")
    for handler in logging.getLogger().handlers:
        logging.getLogger().removeHandler(handler)
    assert not log.pass_on("\x1b[2J")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all(line.isprintable() for line in lines)
    if style == "json":
        assert json.loads(lines[0])["message"].endswith("\u202eab\x7f\x9b")


# -- what reads the log is slow, or gone ------------------------------------------------------------------------------


class Pipe:
    """A pipe of 4 KB in the place of stderr, which is read when the test reads it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, style: str = "text") -> None:
        self._read_end, self._write_end = os.pipe()
        fcntl.fcntl(self._write_end, fcntl.F_SETPIPE_SZ, 4096)
        monkeypatch.setattr(sys, "stderr", TextIOWrapper(os.fdopen(self._write_end, "wb", 0, closefd=False)))
        log.set_up("info", style)

    def read(self, *, until: str) -> str:
        said = ""
        while until not in said:
            said += os.read(self._read_end, 65536).decode()
        return said

    def fill(self) -> int:
        """Log until lines are dropped; how many were."""
        before = log.n_dropped()
        for number in range(2000):
            logging.getLogger("shimmy").info("%d %s", number, "x" * 1000)
        return log.n_dropped() - before

    def close_reader(self) -> None:
        os.close(self._read_end)

    def close(self) -> None:
        os.close(self._write_end)


def test_nothing_waits_for_a_reader_and_what_was_dropped_is_counted_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(monkeypatch)
    before = log.n_dropped()
    n_dropped = pipe.fill()
    assert 1000 < n_dropped < 2000
    log.flush()  # it gives up
    logging.getLogger("shimmy").info("no room for this either %s", "x" * 1000)
    said = pipe.read(until="200 x")
    logging.getLogger("shimmy").info("the last")
    said += pipe.read(until="the last")
    told = [int(number.replace(",", "")) for number in re.findall(r"WARNING ([\d,]+) lines? of the log dropped", said)]
    assert sum(told) == n_dropped + 1 == log.n_dropped() - before
    numbers = [int(number) for number in re.findall(r"INFO    (\d+) x{1000}", said)]
    assert numbers == sorted(numbers)
    assert len(numbers) == 2000 - n_dropped
    pipe.close()


@pytest.mark.parametrize("style", ["text", "json"])
def test_tracebacks_and_warnings_do_not_wait_either(monkeypatch: pytest.MonkeyPatch, style: str) -> None:
    pipe = Pipe(monkeypatch, style)
    log.take_stderr()
    pipe.fill()
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    sys.__excepthook__(KeyError, KeyError("lost"), None)
    print("printed", file=sys.stderr)  # noqa: T201
    pipe.read(until="200 x")
    log.flush()
    print("half", end="", file=sys.stderr)  # noqa: T201
    print(" a line", file=sys.stderr)  # noqa: T201
    said = pipe.read(until="half a line")
    if style == "json":
        assert json.loads(said.splitlines()[-1])["message"] == "half a line"
    pipe.close()


def test_a_reader_that_left_costs_its_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(monkeypatch)
    pipe.close_reader()
    before = log.n_dropped()
    logging.getLogger("shimmy").info("to nobody")
    log.flush()
    assert log.n_dropped() == before + 1
    pipe.close()


def test_a_descriptor_that_another_process_made_nonblocking_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(monkeypatch)
    os.set_blocking(sys.stderr.fileno(), False)
    for number in range(20):
        logging.getLogger("shimmy").info("%d %s", number, "x" * 1000)
    said = pipe.read(until=" 19 x")
    assert re.findall(r"INFO    (\d+) x", said) == [str(number) for number in range(20)]
    pipe.close()


def test_a_full_disk_costs_its_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Path("/dev/full").open("w")) as full:
        monkeypatch.setattr(sys, "stderr", full)
        log.set_up("info", "text")
        before = log.n_dropped()
        logging.getLogger("shimmy").info("no space left")
        log.flush()
        assert log.n_dropped() == before + 1


def test_lines_come_out_without_a_thread_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pipe = Pipe(monkeypatch)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    logging.getLogger("shimmy").error("can't start new thread")
    assert "ERROR   can't start new thread" in pipe.read(until="thread")
    assert pipe.fill() > 1900
    pipe.close()


def test_a_line_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(monkeypatch)
    logging.getLogger("shimmy").info("x" * 1_000_000)
    assert len(pipe.read(until="(cut)\n")) < 20_000
    pipe.close()


def test_a_message_with_a_mistake_in_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(monkeypatch)
    logging.getLogger("shimmy").info("%d", "x")
    assert "test_log.py" in pipe.read(until="cannot be written")
    pipe.close()


def test_a_forked_child_logs_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(monkeypatch)
    logging.getLogger("shimmy").info("parent")
    pipe.read(until="parent")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of forks beside threads
        pid = os.fork()
    if not pid:
        logging.getLogger("shimmy").info("child")
        log.flush()
        os._exit(0)
    assert "child" in pipe.read(until="child")
    os.waitpid(pid, 0)
    pipe.close()


# -- the last line of a terminal --------------------------------------------------------------------------------------


class Screen:
    """A terminal in the place of stderr."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, style: str = "text", term: str = "xterm") -> None:
        self._master, self._slave = os.openpty()
        monkeypatch.setenv("TERM", term)
        monkeypatch.setattr(sys, "stderr", TextIOWrapper(os.fdopen(self._slave, "wb", 0, closefd=False)))
        log.set_up("info", style)

    def close(self) -> None:
        for descriptor in (self._master, self._slave):
            os.close(descriptor)

    def shown(self) -> list[str]:
        """All lines, as they stand there after what was written: a return begins the line anew, and erases it."""
        log.flush()
        os.write(self._slave, b"\0")
        said = b""
        while not said.endswith(b"\0"):
            said += os.read(self._master, 65536)
        lines = said[:-1].decode().replace("\r\n", "\n").split("\n")
        for line in lines:
            assert line.count("\r") == line.count("\r\x1b[K"), "what stands there is erased before another is written"
        return [re.sub(r"\x1b\[\?7[lh]", "", line).rpartition("\r\x1b[K")[2] for line in lines]


def test_the_last_line_of_a_terminal_is_rewritten_below_the_lines_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Screen(monkeypatch)) as screen:
        assert log.has_last_line()
        for percent in range(10):
            log.show(f"loading tiny: {percent} %\x1b[2J\n")
            log.flush()
            if percent % 3 == 0:
                logging.getLogger("shimmy").info("line %d", percent)
        log.pass_on("12:00:00 INFO    of a worker")
        *lines, last = screen.shown()
        assert [line.partition("INFO")[2].strip() for line in lines] == [
            *("line 0", "line 3", "line 6", "line 9", "of a worker"),
        ]
        assert last.startswith("loading tiny: 9 %")
        assert last.isprintable()
        log.show("")
        assert screen.shown() == [""]
        logging.getLogger("shimmy").info("and on")
        (line, last) = screen.shown()
        assert line.endswith("INFO    and on")
        assert last == ""


@pytest.mark.parametrize(("style", "term"), [("json", "xterm"), ("text", "dumb")])
def test_a_log_for_programs_has_no_last_line(monkeypatch: pytest.MonkeyPatch, style: str, term: str) -> None:
    with closing(Screen(monkeypatch, style, term)) as screen:
        assert not log.has_last_line()
        log.show("loading tiny: 1 %")
        assert screen.shown() == [""]


def test_a_pipe_has_no_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe(monkeypatch)
    log.show("loading tiny: 1 %")
    logging.getLogger("shimmy").info("the only one")
    assert pipe.read(until="\n").endswith("INFO    the only one\n")
    assert not log.has_last_line()
    pipe.close()
