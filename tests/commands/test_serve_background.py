"""`serve --background` with processes in the server's place that fail, hang or answer; no server and no engine runs."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from shimmy import cli
from shimmy.commands import serve_background, server_records
from shimmy.commands.console import CommandCall, CommandFailed
from shimmy.commands.server_records import ServerFolder
from shimmy.option_kinds import Bind

ANSWER = """
import http.server, json, os, sys
from pathlib import Path
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "15")
        self.end_headers()
        self.wfile.write(b'{"status":"ok"}')
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
folder = Path(os.environ["_SHIMMY_BACKGROUND"].partition(":")[2])
record = {"pid": os.getpid(), "started": "", "hosts": ["127.0.0.1"], "port": server.server_port}
(folder / "part").write_text(json.dumps(record))
(folder / "part").rename(folder / "server.json")
print(sys.argv[1:], flush=True)
server.serve_forever()
"""


@pytest.fixture(autouse=True)
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test's servers have their folders; what still runs is killed."""
    for name in list(os.environ):
        if name.startswith("SHIMMY_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield tmp_path / "shimmy"
    root.handlers = handlers
    root.setLevel(level)
    for _, record in server_records.running([tmp_path / "shimmy"]):
        with suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGKILL)


def stands_in(monkeypatch: pytest.MonkeyPatch, code: str) -> list[subprocess.Popen[bytes]]:
    """Run this in the server's place; the processes that were started come into the list."""
    started = []
    spawn = serve_background.spawn

    def remembered(call: CommandCall, folder: ServerFolder, log_path: Path) -> subprocess.Popen[bytes]:
        started.append(spawn(call, folder, log_path))
        return started[-1]

    monkeypatch.setattr(serve_background, "own_program", lambda: [sys.executable, "-c", code])
    monkeypatch.setattr(serve_background, "spawn", remembered)
    return started


def test_it_returns_when_the_server_answers_and_prints_the_url(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stands_in(monkeypatch, ANSWER)
    monkeypatch.setenv("_PYI_ARCHIVE_FILE", "one that goes away with the command")
    monkeypatch.setenv("_SHIMMY_PROGRAM", "one that goes away with the command")
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert cli.main(["serve", "--background", "--bind", "127.0.0.1:0", "--model-path", "x"]) == 0
    ((folder, record),) = server_records.running([run_folder])
    printed = capsys.readouterr()
    assert printed.out == f"http://127.0.0.1:{record.port}\n"
    assert printed.err == f"shimmy: the server's log is `{folder.log_path}`\n"
    assert "['serve', '--background', '--bind', '127.0.0.1:0', '--model-path', 'x']" in folder.log_path.read_text()
    environment = Path(f"/proc/{record.pid}/environ").read_bytes()
    assert not [name for name in (b"_PYI_", b"_SHIMMY_PROGRAM", b"LISTEN_") if name in environment]
    assert cli.main(["stop"]) == 0
    assert capsys.readouterr().out == f"http://127.0.0.1:{record.port} has ended\n"
    assert not folder.path.exists()
    os.waitpid(record.pid, 0)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import sys; print('line 1'); sys.exit('line 2')", "the server has ended with exit code 1"),
        ("import os; os.write(1, b'line 1\\nline 2\\n'); os.kill(os.getpid(), 9)", "the server has ended with SIGKILL"),
    ],
)
def test_a_server_that_ends_shows_its_log(
    code: str, reason: str, run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stands_in(monkeypatch, code)
    assert cli.main(["serve", "--background"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sorted(printed.err.splitlines()) == sorted(["line 1", "line 2", f"shimmy: {reason}"])
    assert [*run_folder.iterdir()] == []


def test_of_a_log_only_the_end_and_only_what_is_new_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    log.write_text("of yesterday\n")
    stands_in(monkeypatch, "print('new'); 1 / 0")
    assert cli.main(["serve", "--background", "--log-file", str(log)]) == 1
    told = capsys.readouterr().err
    assert "new" in told
    assert "of yesterday" not in told
    stands_in(monkeypatch, "for n in range(1000): print('line', n)\n1 / 0")
    assert cli.main(["serve", "--background", "--log-file", str(log)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 21


def test_a_server_that_does_not_come_up_is_ended_with_what_it_started(
    run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_background, "_END_S", 0.1)
    started = stands_in(
        monkeypatch, "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)"
    )
    assert cli.main(["serve", "--background", "--wait", "0.3"]) == 1
    assert capsys.readouterr().err == "shimmy: the server does not answer after 0.3 s\n"
    assert [*run_folder.iterdir()] == []
    assert [process.returncode for process in started] == [-signal.SIGKILL]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_interrupts_the_command_wants_no_server(
    number: signal.Signals, run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_seconds: float) -> None:
        monkeypatch.undo()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(run_folder.parent))
        os.kill(os.getpid(), number)

    started = stands_in(monkeypatch, "import time; time.sleep(99)")
    monkeypatch.setattr(time, "sleep", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["serve", "--background"]) == 130
    assert signal.getsignal(signal.SIGTERM) == before
    assert capsys.readouterr().err == "shimmy: interrupted\n"
    assert [*run_folder.iterdir()] == []
    assert [process.returncode for process in started] == [-signal.SIGTERM]


@pytest.mark.parametrize("log", ["missing/log", "."])
def test_a_log_that_cannot_be_written_is_told(
    log: str, tmp_path: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", "--background", "--log-file", str(tmp_path / log)]) == 1
    assert "the server cannot be started with its log in" in capsys.readouterr().err
    assert [*run_folder.iterdir()] == []


def test_no_place_for_the_record_is_told_with_the_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for name in ("XDG_RUNTIME_DIR", "TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "file"))
    assert cli.main(["serve", "--background"]) == 1
    assert "Not a directory" in capsys.readouterr().err


def test_a_record_that_cannot_be_written_ends_the_server(tmp_path: Path) -> None:
    class Call:
        class config:  # noqa: N801
            bind = Bind("0.0.0.0", 0)

    announce = serve_background.announcer(Call(), ServerFolder(tmp_path / "missing"))  # type: ignore[arg-type]
    with pytest.raises(CommandFailed, match="record cannot be written"):
        announce(80)


def test_a_server_of_another_container_is_not_touched(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ServerFolder.make([run_folder])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_records, "process_start", lambda _pid: "1")
        folder.announce(("127.0.0.1",), 80)
    assert cli.main(["stop", "--bind", "127.0.0.1:80"]) == 1
    assert "runs in another container or on another machine" in capsys.readouterr().err
    folder.unlock()


def test_the_end_of_a_log_obeys_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"one\n\x1b]0;two\x07\n")
    serve_background.show_end_of(log, 0)
    assert capsys.readouterr().err == "one\n\u241b]0;two\u2407\n"
