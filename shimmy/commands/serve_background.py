"""`serve --background`: a server is started in a session of its own; the command returns when it answers.

Knows processes and the server's log. `server_records` keeps what is known of the server afterwards, `stop` ends it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from shimmy.commands import server_records
from shimmy.commands.console import CommandCall, CommandFailed
from shimmy.commands.server_client import ServerAddress, answers
from shimmy.commands.server_records import NoPlace, ServerFolder
from shimmy.commands.terminal.screen_text import safe_line
from shimmy.system.self_command import executable, first_environment, own_program

READY_S = 60.0  # a server is given to answer, if --wait says nothing
_LOOK_EVERY_S = 0.02
_END_S = 15.0  # a server that did not come up is given to end; its requests have five seconds
_N_LINES, _TAIL_BYTES = 20, 1 << 16  # of the log, shown when a server does not come up


def announcer(call: CommandCall, folder: ServerFolder) -> Callable[[int], None]:
    """What a server in the background calls with its port when it listens."""

    def announce(port: int) -> None:
        try:
            folder.announce(ServerAddress.of(call.config.bind).hosts, port)
        except OSError as exc:
            raise CommandFailed(f"the server's record cannot be written to `{folder.path}`: {exc.strerror}") from exc

    return announce


def start(call: CommandCall) -> int:
    """Start this very command once more as a server, and return when that answers; stdout gets its base URL.

    Raises CommandFailed when there will be no server, of which nothing is left then.
    """
    places = server_records.places(call.config.cache_dir)
    server_records.remove_dead(places)
    try:
        folder = ServerFolder.make(places)
    except NoPlace as exc:
        raise CommandFailed(str(exc)) from exc
    log_path = Path(call.options.log_file).absolute() if call.options.log_file else folder.log_path
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # who ends this command wants no server
    log_start = log_path.stat().st_size if log_path.is_file() else 0
    process = None
    try:
        process = spawn(call, folder, log_path)
        folder.unlock()
        address = until_ready(folder, process, READY_S if call.options.wait is None else call.options.wait)
        print(address.url, flush=True)
        process.returncode = 0  # as if it had ended: it outlives us, and the interpreter need not warn of that
    except BaseException as exc:
        if process is not None:
            end(process, folder)
        if isinstance(exc, ServerNotReady):
            show_end_of(log_path, log_start)
        folder.remove()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    print(f"shimmy: the server's log is `{log_path}`", file=sys.stderr)
    return 0


class ServerNotReady(CommandFailed):
    """The server has ended, or does not answer in time."""


def spawn(
    call: CommandCall,
    folder: ServerFolder,
    log_path: Path,
    *,
    variables: Mapping[str, str] = MappingProxyType({}),
    in_child: Callable[[], None] | None = None,
) -> "subprocess.Popen[bytes]":
    """A server in a session of its own that holds nothing of ours but the lock of its folder.

    `variables` are put into its environment, and it runs `in_child` before it becomes the program.
    """
    assert folder.lock is not None
    try:
        with open(log_path, "ab", opener=_private) as log:
            return subprocess.Popen(
                [*own_program(), *call.arguments],
                executable=executable(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(folder.lock,),
                env=first_environment() | {**variables, server_records.VARIABLE: folder.inheritance},
                start_new_session=True,
                preexec_fn=in_child,  # noqa: PLW1509 - what is given here makes system calls and takes no lock
            )
    except OSError as exc:
        raise CommandFailed(f"the server cannot be started with its log in `{log_path}`: {exc.strerror}") from exc


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def until_ready(folder: ServerFolder, process: "subprocess.Popen[bytes]", within_s: float) -> ServerAddress:
    end_s = time.monotonic() + within_s
    while True:
        record = folder.record()
        if record is not None:
            for host in record.hosts:
                address = ServerAddress((host,), record.port)
                if answers(address):
                    return address
        code = process.poll()
        if code is not None:
            how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
            raise ServerNotReady(f"the server has ended with {how}")
        if time.monotonic() >= end_s:
            raise ServerNotReady(f"the server does not answer after {within_s:g} s")
        time.sleep(_LOOK_EVERY_S)


def end(process: "subprocess.Popen[bytes]", folder: ServerFolder) -> None:
    """End a server that did not come up, with all its processes."""
    folder.unlock()
    process.terminate()
    if not folder.is_free_within(_END_S):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def show_end_of(log_path: Path, start: int) -> None:
    """The last lines behind `start`, in bytes: others may have written to the same file before."""
    try:
        with log_path.open("rb") as log:
            log.seek(max(start, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()[-_N_LINES:]
    except OSError:
        return
    for line in lines:
        print(safe_line(line), file=sys.stderr)
