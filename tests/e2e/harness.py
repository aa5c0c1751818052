"""Starts the program under test and talks to it: the file that SHIMMY_BIN names, or else the source tree.

Every server gets a folder of its own for its working directory, its log and its temporary files. Clients here are plain
sockets and http.client, so that a test holds the connection in its own hands.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, Self

from tests.e2e.processes import DEADLINE_S, children, command_line, listener, session, wait_for
from tests.forced_variant import FORCED

ROOT = Path(__file__).resolve().parents[2]
FROZEN_FILE = os.environ.get("SHIMMY_BIN")
FROM_SOURCE = (sys.executable, "-m", "shimmy")
# The arguments of tests/roots/in_root.py, for the frozen file in another system.
IN_ROOT = os.environ.get("SHIMMY_IN_ROOT")
_IN_ROOT = (sys.executable, str(ROOT / "tests" / "roots" / "in_root.py"), *IN_ROOT.split()) if IN_ROOT else ()
PROGRAM: tuple[str, ...] = (*_IN_ROOT, str(Path(FROZEN_FILE).resolve())) if FROZEN_FILE else FROM_SOURCE

Json = dict[str, Any]


def program_with(variable: str, value: str | Path) -> tuple[str, ...]:
    """The program with a variable that nothing in front of it gets to see."""
    if not IN_ROOT:
        return ("env", f"{variable}={value}", *PROGRAM)
    return (*PROGRAM[:2], "--set", f"{variable}={value}", *PROGRAM[2:])


HOST = "127.0.0.1"
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"

ENDLESS: Json = {"max_tokens": None}  # fields of a request that generates until the context is full

# Where a text is compared with the same text made in other company, rounding must not decide a token of it. The shape
# of a batch changes the last bit of a number now and then, and that of a key in F16 is enough for a head that hesitates
# between two tokens to look at the other one. With this seed these prompts lead to the same texts when all keys and
# values are rounded otherwise (tests/engine/llama/test_model.py), and the long one does so for 2,000 tokens.
STEADY_SEED = 29
_STEADY = (
    *(0, 1, 2, 3, 4, 5, 6, 11, 12, 14, 15, 16, 19, 20, 22, 23),
    *(24, 26, 31, 32, 33, 36, 39, 40, 41, 43, 44, 45, 47, 50, 52, 53),
)
PROMPTS = tuple(f"hello world {number} tell the user" for number in _STEADY)
LONG_PROMPT = "hello world 11 tell the user"


def environment(temporary: Path) -> dict[str, str]:
    """Ours without the variables that configure Shimmy, but for the CPU variant."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SHIMMY_")}
    python_path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH"))))
    if FORCED:
        kept["SHIMMY_CPU_VARIANT"] = FORCED
    places = {"TMPDIR": str(temporary), "XDG_CACHE_HOME": f"{temporary}-cache", "XDG_RUNTIME_DIR": f"{temporary}-run"}
    places["XDG_CONFIG_HOME"] = f"{temporary}-config"
    return kept | places | {"PYTHONPATH": python_path}


def run(
    folder: Path, *arguments: str | Path, stdin: str = "", before: Callable[[], None] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run one command of the program to its end."""
    return subprocess.run(
        [*PROGRAM, *arguments],
        input=stdin, capture_output=True, text=True, check=False,
        cwd=folder, env=environment(folder), timeout=DEADLINE_S, preexec_fn=before, restore_signals=before is None,
    )  # fmt: skip


def chat_body(prompt: str, model: str = "alpha", **fields: object) -> Json:
    """Greedy, so that the text is the same each time."""
    message = {"role": "user", "content": prompt}
    return {"model": model, "messages": [message], "temperature": 0, "max_tokens": 64, **fields}


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def read(cls, response: HTTPResponse) -> "Reply":
        headers = {name.lower(): value for name, value in response.getheaders()}
        return cls(response.status, headers, response.read())

    def json(self) -> Json:
        value: Json = json.loads(self.body)
        return value

    @property
    def error(self) -> Json:
        error: Json = self.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error


class Call:
    """A request that has been sent; its reply is read when the test reads it. Leaving the `with` block closes it."""

    def __init__(self, port: int, path: str, body: Json, *, buffer_bytes: int | None = None) -> None:
        """With `buffer_bytes` the system takes hardly more of the reply than that before it is read."""
        self._connection = HTTPConnection(HOST, port, timeout=DEADLINE_S)
        if buffer_bytes is not None:
            self._connection.sock = _small_socket(port, buffer_bytes)
        self._connection.request("POST", path, json.dumps(body))

    @cached_property
    def response(self) -> HTTPResponse:
        return self._connection.getresponse()

    def reply(self) -> Reply:
        return Reply.read(self.response)

    def leave(self) -> None:
        """Close the connection, whatever is still to come."""
        if "response" in vars(self):
            self.response.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


class Stream(Call):
    """A streamed reply, with what was read of it so far."""

    def __init__(self, port: int, path: str, body: Json, *, buffer_bytes: int | None = None) -> None:
        self.text = ""
        self.n_pieces = 0
        self.progress: list[Json] = []  # that was told before the text
        self.finish_reason: str | None = None
        self.error: Json | None = None
        self.is_done = False
        self.n_pings = 0
        super().__init__(port, path, body | {"stream": True}, buffer_bytes=buffer_bytes)

    def read(self, n_pieces: int = 1) -> Self:
        """Read until `n_pieces` more pieces of text are here, or the reply ends."""
        wanted = self.n_pieces + n_pieces
        while self.n_pieces < wanted and self._read_event():
            pass
        return self

    def finish(self) -> Self:
        """Read to the end of the reply."""
        assert self.response.status == 200, self.response.read()
        while self._read_event():
            pass
        self.leave()
        return self

    def next_progress(self) -> Json:
        """The next that is told of how far it is, before the text."""
        n_before = len(self.progress)
        while len(self.progress) == n_before:
            assert not self.n_pieces
            assert self._read_event()
        return self.progress[-1]

    def wait_for_ping(self) -> None:
        while not self.n_pings:
            assert self._read_event(), "the reply ended without a ping"

    def _read_event(self) -> bool:
        """Take in the next event or ping; False at the end."""
        for line in iter(self.response.readline, b""):
            if line == b": ping\n":
                self.n_pings += 1
                return True
            if line.startswith(b"data: "):
                assert not self.is_done
                self._take(line.removeprefix(b"data: ").strip())
                return True
            assert line == b"\n", line
        return False

    def _take(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.is_done = True
            return
        event = json.loads(data)
        if "error" in event:
            self.error = event["error"]
            return
        if told := {name: event[name] for name in ("prompt_progress", "queue_position") if name in event}:
            self.progress.append(told)
            return
        for choice in event["choices"]:
            text = choice.get("text") or choice.get("delta", {}).get("content")
            if text:
                self.text += text
                self.n_pieces += 1
            self.finish_reason = choice["finish_reason"] or self.finish_reason


def _small_socket(port: int, buffer_bytes: int) -> socket.socket:
    """A connection over which little is on its way at any time."""
    connection = socket.socket()
    connection.settimeout(DEADLINE_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    # The sender's buffer grows with the size of a segment, which is 64 KiB on the loopback device.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    connection.connect((HOST, port))
    return connection


class Server:
    """A running `shimmy serve`; made by `serving`."""

    def __init__(self, folder: Path, arguments: Sequence[str | Path], program: Sequence[str], threads: str) -> None:
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self._log_path = folder / "stderr"
        self._output_path = folder / "stdout"
        with self._log_path.open("wb") as log, self._output_path.open("wb") as output:
            self.process = subprocess.Popen(
                [*program, "serve", *arguments, *(("--threads", threads) if threads else ())],
                stdin=subprocess.DEVNULL, stdout=output, stderr=log,
                cwd=folder, env=environment(self.temporary), start_new_session=True,
            )  # fmt: skip
        self.port = wait_for("the server's address", self._find_port)
        wait_for("/health", lambda: self.get("/health").status == 200)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/v1"

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    @property
    def output(self) -> str:
        return self._output_path.read_text(errors="replace")

    def _find_port(self) -> int:
        assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log}"
        match = re.search(r"Shimmy .* on http://\S+:(\d+)/v1", self.log)
        return int(match[1]) if match else 0

    # -- requests --------------------------------------------------------------------------------------------------

    def request(
        self, method: str, path: str, body: object = None, headers: Json | None = None, deadline_s: float = DEADLINE_S
    ) -> Reply:
        """One request on a connection of its own; `body` is bytes as they are, or a value to be sent as JSON."""
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = HTTPConnection(HOST, self.port, timeout=deadline_s)
        with closing(connection):
            connection.request(method, path, content, headers or {})
            return Reply.read(connection.getresponse())

    def get(self, path: str) -> Reply:
        return self.request("GET", path)

    def post(self, path: str, body: object) -> Reply:
        return self.request("POST", path, body)

    def chat(self, prompt: str, model: str = "alpha", **fields: object) -> str:
        """The text of a reply that is not streamed."""
        reply = self.post(CHAT, chat_body(prompt, model, **fields))
        assert reply.status == 200, reply.body
        text: str = reply.json()["choices"][0]["message"]["content"]
        return text

    def stream(self, prompt: str, model: str = "alpha", *, buffer_bytes: int | None = None, **fields: object) -> Stream:
        return Stream(self.port, CHAT, chat_body(prompt, model, **fields), buffer_bytes=buffer_bytes)

    def later(self, path: str, body: Json) -> Call:
        """A request whose reply the test reads later."""
        return Call(self.port, path, body)

    def connect(self) -> socket.socket:
        return socket.create_connection((HOST, self.port), DEADLINE_S)

    def metric(self, name: str, model: str | None = None) -> float:
        """The value of a metric, 0 while it has none."""
        labels = re.escape(f'{{model="{model}"}}') if model else ""
        match = re.search(rf"^{name}{labels} (\S+)$", self.get("/metrics").body.decode(), re.MULTILINE)
        return float(match[1]) if match else 0.0

    def n_jobs(self, model: str) -> float:
        """Jobs that run or wait."""
        return self.metric("shimmy_jobs_running", model) + self.metric("shimmy_jobs_queued", model)

    def wait_until_idle(self, model: str) -> None:
        wait_for("every job to end", lambda: self.n_jobs(model) == 0)

    # -- processes -------------------------------------------------------------------------------------------------

    @cached_property
    def pid(self) -> int:
        """The process that serves. Of the frozen file it is a child of the one that unpacks it. In QEMU there is one
        more between, since a program that is started by a descriptor does not find its own file there."""
        return listener(self.port, self.processes())

    def workers(self) -> list[int]:
        """Those that have become workers: a child that was stopped before its `exec` would hold up the server's."""
        return [pid for pid in children(self.pid) if b"worker" in command_line(pid)]

    def worker(self) -> int:
        """The one worker there is, waited for."""
        (pid,) = wait_for("a worker", self.workers)
        return pid

    def leftovers(self) -> list[str]:
        """What lies in the folder for temporary files."""
        return sorted(path.name for path in self.temporary.iterdir())

    def processes(self) -> list[int]:
        """All that still runs of what was started, orphans included."""
        return session(self.process.pid)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; returns the exit code."""
        self.send(number)
        return self.wait()

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        return self.process.wait(deadline_s)

    def destroy(self) -> None:
        """Leave nothing of it, in whatever state it is."""
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.temporary, ignore_errors=True)


@contextmanager
def serving(
    folder: Path, *arguments: str | Path, program: Sequence[str] = PROGRAM, bind: str = f"{HOST}:0", threads: str = "1"
) -> Iterator[Server]:
    """A server for the length of the block. One thread is the quickest for models as tiny as those of the tests."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Server(folder, ["--bind", bind, *arguments] if bind else arguments, program, threads)
    try:
        yield server
    finally:
        server.destroy()
