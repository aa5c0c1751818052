"""A server for one chat: on a free port of this machine, with a key that only the chat has; it ends with the chat."""

import ctypes
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from shimmy.commands import server_records
from shimmy.commands.console import CommandCall, CommandFailed
from shimmy.commands.serve_background import READY_S, end, show_end_of, spawn, until_ready
from shimmy.commands.server_client import ServerAddress
from shimmy.commands.server_records import NoPlace, ServerFolder
from shimmy.config import OPTIONS
from shimmy.option_kinds import DEFAULT_HOST

_COMMAND = "run"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Options of `run` that concern its requests, or where a server is.
_OF_REQUESTS = {"seed", "temp"}
SERVER_OPTIONS = tuple(row for row in OPTIONS if _COMMAND in row.also and row.name not in _OF_REQUESTS)


class OwnServer:
    """`arguments` are those of `serve`. Started at once; raises CommandFailed where that fails."""

    def __init__(self, call: CommandCall, arguments: Sequence[str]) -> None:
        bind, stay = ("--bind", f"{DEFAULT_HOST}:0"), "--keep-alive=-1"
        self._call = replace(call, arguments=["serve", "--background", *bind, stay, *arguments])
        # Beside those of servers in the background, which `stop` ends.
        self._places = [path.with_name(f"{path.name}-run") for path in server_records.places(call.config.cache_dir)]
        self.key = os.urandom(16).hex()
        self._end_with_us = _end_with_us(os.getpid())
        server_records.remove_dead(self._places)
        self.address = self._start()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def restart(self) -> None:
        """Another one in the place of one that has ended; the last lines of its log go to stderr."""
        show_end_of(self._folder.log_path, 0)
        self.close()
        self.address = self._start()

    def close(self) -> None:
        """End it, and leave nothing of it."""
        end(self._process, self._folder)
        self._folder.remove()

    def _start(self) -> ServerAddress:
        try:
            self._folder = ServerFolder.make(self._places)
        except NoPlace as exc:
            raise CommandFailed(str(exc)) from exc
        try:
            self._process = spawn(
                self._call,
                self._folder,
                self._folder.log_path,
                variables={"SHIMMY_API_KEY": self.key},
                in_child=self._end_with_us,
            )
            self._folder.unlock()
            return until_ready(self._folder, self._process, READY_S)
        except BaseException as exc:
            if hasattr(self, "_process"):
                end(self._process, self._folder)
            if isinstance(exc, CommandFailed):
                show_end_of(self._folder.log_path, 0)
            self._folder.remove()
            raise


def server_arguments(call: CommandCall, model_path: Path | None) -> list[str]:
    """What `serve` needs to serve as this call of `run` was asked to. `model_path` is the model, if it was named by
    its place."""
    arguments = [] if model_path is None else ["--model-path", str(model_path.absolute())]
    for row in SERVER_OPTIONS:
        given = getattr(call.options, row.name)
        if given is None or (model_path is not None and row.name in ("model_path", "model_dirs")):
            continue
        if row.is_switch:
            arguments.append(row.flag if given == "true" else row.flag.replace("--", "--no-", 1))
        else:
            arguments += [f"{row.flag}={text}" for text in (given if isinstance(given, list) else [given])]
    return arguments if call.options.config is None else [*arguments, "--config", call.options.config]


def _end_with_us(pid: int) -> Callable[[], None]:
    """For a child before it becomes the server: the kernel tells it to end when this process has, however that ends."""
    prctl = ctypes.CDLL(None).prctl

    def ask_the_kernel() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != pid:  # it has ended meanwhile
            os._exit(1)

    return ask_the_kernel
