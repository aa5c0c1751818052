"""A server for one chat: on a free port of this machine, with a key that only the chat has; it ends with the chat."""

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shimmy.commands import server_records
from shimmy.commands.console import CommandCall, CommandFailed
from shimmy.commands.serve_background import READY_S, end, show_end_of, spawn, until_ready
from shimmy.commands.server_client import ServerAddress
from shimmy.commands.server_records import NoPlace, ServerFolder
from shimmy.config import OPTIONS
from shimmy.option_kinds import DEFAULT_HOST
from shimmy.system.parent_process import ending_with

if TYPE_CHECKING:
    import subprocess

_COMMAND = "run"
# Options of `run` that concern its requests, or where a server is.
_OF_REQUESTS = {"seed", "temp"}
SERVER_OPTIONS = tuple(row for row in OPTIONS if _COMMAND in row.also and row.name not in _OF_REQUESTS)


class OwnServer:
    """`arguments` are those of `serve`. `start` and `restart` raise CommandFailed where there will be no server."""

    def __init__(self, call: CommandCall, arguments: Sequence[str]) -> None:
        bind, stay = ("--bind", f"{DEFAULT_HOST}:0"), "--keep-alive=-1"
        self._call = replace(call, arguments=["serve", "--background", *bind, stay, *arguments])
        # Beside those of servers in the background, which `stop` ends.
        self._places = [path.with_name(f"{path.name}-run") for path in server_records.places(call.config.cache_dir)]
        self.key = os.urandom(16).hex()
        self.wants_devices = bool(call.config.rpc or call.config.devices)  # which a person has named
        self._end_with_us = ending_with(os.getpid(), signal.SIGTERM)  # however this process ends
        self._running: tuple[subprocess.Popen[bytes], ServerFolder] | None = None

    @property
    def is_running(self) -> bool:
        return self._running is not None and self._running[0].poll() is None

    def start(self) -> ServerAddress:
        server_records.remove_dead(self._places)
        try:
            folder = ServerFolder.make(self._places)
        except NoPlace as exc:
            raise CommandFailed(str(exc)) from exc
        try:
            variables = {"SHIMMY_API_KEY": self.key}
            process = spawn(self._call, folder, folder.log_path, variables=variables, in_child=self._end_with_us)
        except BaseException:
            folder.remove()
            raise
        self._running = process, folder
        folder.unlock()
        try:
            return until_ready(folder, process, READY_S)
        except BaseException as exc:
            end(process, folder)
            if isinstance(exc, CommandFailed):
                show_end_of(folder.log_path, 0)
            self.close()
            raise

    def restart(self) -> ServerAddress:
        """Another one in the place of one that has ended; the last lines of its log go to stderr."""
        if self._running is not None:
            show_end_of(self._running[1].log_path, 0)
        self.close()
        return self.start()

    def close(self) -> None:
        """End it, and leave nothing of it."""
        if self._running is not None:
            process, folder = self._running
            self._running = None
            end(process, folder)
            folder.remove()


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
