"""`serve --background` and `stop`: a server that outlives the command that started it, and how it is ended."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.harness import CHAT, HOST, LONG_PROMPT, PROGRAM, Stream, chat_body, environment
from tests.e2e.processes import DEADLINE_S, command_line, wait_for
from tests.e2e.test_log_pipe import free_port


class Shell:
    """Runs commands of the program as a person's shell does, whose servers are nobody else's."""

    def __init__(self, folder: Path, models: Path) -> None:
        self.environment = environment(folder)
        self.runtime = Path(self.environment["XDG_RUNTIME_DIR"])
        self.runtime.mkdir()
        self.temporary = folder
        self.models = models
        self.cwd = folder

    def run(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*PROGRAM, *arguments],
            cwd=self.cwd, env=self.environment, capture_output=True, text=True, check=False, timeout=DEADLINE_S,
        )  # fmt: skip

    def serve(self, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        options = arguments if "--bind" in arguments else ("--bind", f"{HOST}:0", *arguments)
        return self.run("serve", "--background", "--model-path", self.models, "--threads", "1", *options)

    def started(self, *arguments: str | Path) -> str:
        """The base URL of a new server."""
        ended = self.serve(*arguments)
        assert ended.returncode == 0, ended.stderr
        url = ended.stdout.removesuffix("\n")
        assert url.startswith("http://")
        assert "\n" not in url
        return url

    @property
    def folders(self) -> list[Path]:
        """Of servers, dead ones included."""
        return [*self.runtime.glob("shimmy/*")]

    def record(self) -> dict[str, object]:
        (folder,) = self.folders
        fields: dict[str, object] = json.loads((folder / "server.json").read_text())
        return fields

    def log(self) -> str:
        (folder,) = self.folders
        return (folder / "log").read_text()

    def n_jobs(self, url: str) -> int:
        with urlopen(f"{url}/api/models/alpha/status", timeout=DEADLINE_S) as reply:
            return int(json.load(reply)["jobs"])

    def processes(self) -> list[int]:
        """All that run with this shell's variables."""
        mark = f"TMPDIR={self.temporary}\0".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (path / "environ").read_bytes() and " Z " not in (path / "stat").read_text():
                    found.append(int(path.name))
        return found

    def check_nothing_is_left(self) -> None:
        wait_for("every process to end", lambda: not self.processes())
        assert self.folders == []
        assert not list(self.temporary.glob("_MEI*"))


@pytest.fixture
def shell(tmp_path: Path, models: Path) -> Iterator[Shell]:
    folder = tmp_path / "shell"
    folder.mkdir()
    shell = Shell(folder, models)
    yield shell
    for pid in shell.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_server_starts_answers_and_stops(shell: Shell) -> None:
    shell.cwd = Path("/proc")  # nobody writes there
    url = shell.started("--api-key", "secret")
    assert shell.run("health", "--url", url, "--model", "alpha", "--api-key", "secret").returncode == 0
    pid = int(str(shell.record()["pid"]))
    assert Path(f"/proc/{pid}/fd/0").samefile(os.devnull)
    assert os.getsid(pid) != os.getsid(0)
    (folder,) = shell.folders
    assert (folder.stat().st_mode & 0o777, (folder / "log").stat().st_mode & 0o777) == (0o700, 0o600)
    assert "serves 2 models" in (folder / "log").read_text()
    ended = shell.run("stop")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{url} has ended\n", "")
    shell.check_nothing_is_left()


def test_the_log_goes_where_it_is_wanted(shell: Shell, tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("from before\n")
    shell.started("--log-file", log)
    assert log.read_text().startswith("from before\n")
    assert "serves 2 models" in log.read_text()
    assert shell.run("stop").returncode == 0


@pytest.mark.parametrize("bind", ["0.0.0.0", "[::]", "localhost"])
def test_the_url_can_be_used_whatever_the_server_listens_on(shell: Shell, bind: str) -> None:
    url = shell.started("--bind", f"{bind}:0")
    assert "0.0.0.0" not in url
    assert "[::]" not in url
    assert shell.run("health", "--url", url).returncode == 0
    port = url.rpartition(":")[2]
    assert shell.run("stop", "--bind", f"{bind}:{port}").stdout == f"{url} has ended\n"
    shell.check_nothing_is_left()


def test_a_name_and_its_address_are_the_same_server(shell: Shell) -> None:
    port = shell.started().rpartition(":")[2]
    assert "has ended" in shell.run("stop", "--bind", f"localhost:{port}").stdout
    shell.check_nothing_is_left()


def test_an_address_in_use_is_told(shell: Shell) -> None:
    url = shell.started()
    ended = shell.serve("--bind", url.removeprefix("http://"))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "Address already in use" in ended.stderr
    assert "ended with exit code 3" in ended.stderr
    assert len(shell.folders) == 1
    assert shell.run("stop", "--url", url).returncode == 0
    shell.check_nothing_is_left()


def test_of_two_at_once_for_an_address_one_is_there(shell: Shell) -> None:
    bind = f"{HOST}:{free_port()}"
    command: list[str | Path] = [*PROGRAM, "serve", "--background", "--bind", bind, "--model-path", shell.models]
    nothing = subprocess.DEVNULL
    both = [
        subprocess.Popen(command, cwd=shell.cwd, env=shell.environment, stdout=nothing, stderr=nothing)
        for _ in range(2)
    ]
    assert sorted(process.wait(DEADLINE_S) for process in both) == [0, 1]
    assert shell.run("health", "--bind", bind).returncode == 0
    assert shell.run("stop", "--bind", bind).returncode == 0
    shell.check_nothing_is_left()


def test_several_servers_are_told_apart(shell: Shell) -> None:
    first, second, third = (shell.started() for _ in range(3))
    unclear = shell.run("stop")
    assert unclear.returncode == 1
    assert all(url in unclear.stderr for url in (first, second, third))
    assert shell.run("stop", "--url", second).stdout == f"{second} has ended\n"
    assert shell.run("health", "--url", first).returncode == 0
    everything = shell.run("stop", "--all")
    assert everything.returncode == 0
    assert sorted(everything.stdout.splitlines()) == sorted(f"{url} has ended" for url in (first, third))
    shell.check_nothing_is_left()


def test_a_server_that_is_not_ready_in_time_is_ended(shell: Shell) -> None:
    ended = shell.serve("--wait", "0")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.endswith("shimmy: the server does not answer after 0 s\n")
    wait_for("every process to end", lambda: not shell.processes())
    assert shell.folders == []  # what it was unpacking when it was ended is swept by the next start


def test_stopping_what_does_not_run_is_no_error(shell: Shell) -> None:
    for arguments in (("--all",), ("--bind", f"{HOST}:{free_port()}")):
        ended = shell.run("stop", *arguments)
        assert (ended.returncode, ended.stdout) == (0, "")
        assert ended.stderr.startswith("shimmy: no server in the background")


def test_a_server_in_the_foreground_is_not_stopped(shell: Shell, start: StartServer) -> None:
    server = start()
    ended = shell.run("stop", "--bind", f"{HOST}:{server.port}")
    assert ended.returncode == 1
    assert "was not started with `serve --background`" in ended.stderr
    assert server.get("/health").status == 200


def test_a_stream_may_finish(shell: Shell) -> None:
    """Failed on a busy machine: 1,500 tokens had to outlast the start of `stop` and end within the server's 5 s."""
    url = shell.started()
    assert shell.run("health", "--url", url, "--model", "alpha").returncode == 0
    (worker,) = [pid for pid in shell.processes() if b"worker" in command_line(pid)]
    os.kill(worker, signal.SIGSTOP)  # until the server has been told to end
    with Stream(int(url.rpartition(":")[2]), CHAT, chat_body(LONG_PROMPT, max_tokens=16)) as stream:
        wait_for("the job", lambda: shell.n_jobs(url) == 1)
        stop = [*PROGRAM, "stop"]
        with subprocess.Popen(stop, cwd=shell.cwd, env=shell.environment, stdout=subprocess.PIPE) as stopping:
            wait_for("the end to begin", lambda: "1 job may take 5 s to finish" in shell.log())
            os.kill(worker, signal.SIGCONT)
            stream.finish()
            assert (stream.finish_reason, stream.is_done) == ("length", True)
            assert stopping.communicate(timeout=DEADLINE_S)[0].decode() == f"{url} has ended\n"
    shell.check_nothing_is_left()


def test_a_server_that_hangs_is_killed(shell: Shell) -> None:
    url = shell.started()
    assert shell.run("health", "--url", url, "--model", "alpha").returncode == 0
    os.kill(int(str(shell.record()["pid"])), signal.SIGSTOP)
    ended = shell.run("stop", "--wait", "0.2")
    assert ended.returncode == 0
    assert ended.stdout == f"{url} has ended\n"
    assert "has not ended within 0.2 s, and is killed" in ended.stderr
    wait_for("every process to end", lambda: not shell.processes())
    assert shell.folders == []


def test_the_pid_of_a_dead_server_means_nothing(shell: Shell) -> None:
    url = shell.started()
    for pid in shell.processes():
        os.kill(pid, signal.SIGKILL)
    wait_for("every process to end", lambda: not shell.processes())
    (folder,) = shell.folders
    with subprocess.Popen(["sleep", "60"]) as other:
        (folder / "server.json").write_text(json.dumps(shell.record() | {"pid": other.pid, "started": ""}))
        for arguments in (("--url", url), ("--all",)):
            ended = shell.run("stop", *arguments)
            assert ended.returncode == 0
            assert "no server in the background" in ended.stderr
        assert other.poll() is None
        other.kill()


def test_where_the_usual_place_is_forbidden_another_one_is_found(shell: Shell) -> None:
    shell.environment["XDG_RUNTIME_DIR"] = "/proc"
    url = shell.started()
    assert shell.folders == []
    assert len([*shell.temporary.glob("shimmy-*/server-*")]) == 1
    assert shell.run("stop").stdout == f"{url} has ended\n"


def test_a_full_disk_is_passed_over(shell: Shell) -> None:
    full = 'mount -t tmpfs -o size=4k tmpfs "$XDG_RUNTIME_DIR" && head -c 4096 /dev/zero > "$XDG_RUNTIME_DIR/full"'
    alone = ["unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",))]
    command = [*alone, "sh", "-c", f'{full} && exec "$@"', "sh", *PROGRAM, "serve", "--background"]
    ended = subprocess.run(
        [*command, "--bind", f"{HOST}:0", "--model-path", shell.models],
        cwd=shell.cwd, env=shell.environment, capture_output=True, text=True, check=False, timeout=DEADLINE_S,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert len([*shell.temporary.glob("shimmy-*/server-*")]) == 1
    assert shell.run("stop").stdout == f"{ended.stdout.strip()} has ended\n"


@pytest.mark.parametrize("arguments", [("serve", "--wait", "1"), ("stop", "--all", "--bind", ":1")])
def test_options_that_go_together(shell: Shell, arguments: tuple[str, ...]) -> None:
    ended = shell.run(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
