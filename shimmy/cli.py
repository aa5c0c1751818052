"""The command line: what runs for each sub-command, and how it ends. What they take is in `arguments`.

Data goes to stdout, everything else to stderr. Exit codes: 0 fine, 1 failed, 2 wrong usage, 3 could not start, 130
interrupted. What a command does is in `commands`, or for `serve` in `server`, and is imported only by the command that
needs it.
"""

import argparse
import errno
import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shimmy import log
from shimmy.arguments import argument_parser, parse, serving_files
from shimmy.commands.console import EXIT_INTERRUPTED, CommandCall
from shimmy.config import load
from shimmy.errors import ShimmyError
from shimmy.option_kinds import ConfigError
from shimmy.system.frozen_program import UnpackedFolder
from shimmy.wire.worker_options import matrix_fault

if TYPE_CHECKING:
    from shimmy.config import Config
    from shimmy.model_events import ModelEvents

_THAT_STAY = ("serve", "rpc-worker")  # commands whose log is all that they say
EXIT_FAILED, EXIT_USAGE, EXIT_START = 1, 2, 3


# Of a disk behind our output; what else is written to has a name, and its own words for them.
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main(arguments: Sequence[str]) -> int:
    """Run one command, and have what it prints written; returns the exit code."""
    try:
        try:
            return _run_command(arguments)
        finally:  # also where argparse ends the program, which has printed a help
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has closed the pipe
        sys.stdout = None  # the interpreter would try once more at its end, and complain
        return EXIT_FAILED
    except OSError as error:
        if error.errno not in _CANNOT_WRITE or error.filename is not None:
            raise
        sys.stdout = None
        return _complain(ValueError(f"cannot write the answer: {error.strerror}"), EXIT_FAILED)


def _run_command(arguments: Sequence[str]) -> int:
    try:
        arguments = serving_files(arguments)
    except ConfigError as error:
        return _complain(error, EXIT_USAGE)
    options = parse(arguments)
    if options.command is None:
        argument_parser().print_help(sys.stderr)
        return EXIT_USAGE
    home = UnpackedFolder()
    try:
        config = load(vars(options), file=_config_file(options))
        is_quiet = options.command not in _THAT_STAY and not (options.log_level or os.environ.get("SHIMMY_LOG_LEVEL"))
        level = "warning" if is_quiet else config.log_level
        log.set_up(level, config.log_format)
        return _COMMANDS[options.command](CommandCall(config, options, home, arguments))
    except ConfigError as error:
        return _complain(error, EXIT_USAGE)
    except ShimmyError as error:
        return _complain(error, EXIT_FAILED)
    except FileNotFoundError:
        if _has_working_directory():
            raise
        return _complain(
            ValueError("the working directory was removed: give absolute paths, or go elsewhere"), EXIT_USAGE
        )
    except KeyboardInterrupt:
        print("shimmy: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    finally:
        home.leave()


def _complain(error: Exception, code: int) -> int:
    from shimmy.commands.terminal.screen_text import safe

    print(f"shimmy: {safe(str(error))}", file=sys.stderr)
    return code


def _has_working_directory() -> bool:
    try:
        return bool(Path.cwd())
    except FileNotFoundError:
        return False


def _config_file(options: argparse.Namespace) -> dict[str, Any]:
    path: str | None = getattr(options, "config", None)
    if path is None:
        return {}
    import tomllib

    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"--config: cannot read `{path}`: {exc}") from exc


# -- the commands ----------------------------------------------------------------------------------------------------


def _serve(call: CommandCall) -> int:
    announce = None
    _check_files(call.config)
    _check_matrix(call.config)
    if call.options.background:
        from shimmy.commands import serve_background
        from shimmy.commands.server_records import ServerFolder

        folder = ServerFolder.inherited()
        if folder is None:
            return serve_background.start(call)
        announce = serve_background.announcer(call, folder)
    elif call.options.wait is not None or call.options.log_file is not None:
        raise ConfigError("--wait and --log-file are for --background")
    gc.disable()  # what a start makes is there to stay; the server looks for garbage once it runs
    with _worker_ahead(call):
        from shimmy.server import BindError, serve

        try:
            serve(call.config, call.home, announce, _show_loads if log.has_last_line() else None)
        except BindError as error:
            return _complain(error, EXIT_START)
    return 0


def _check_files(config: "Config") -> None:
    """Raises ConfigError for a model file that is named and is not there. A folder may still come."""
    for path in config.model_paths:
        if path.suffix.lower() == ".gguf" and not os.path.lexists(path):
            raise ConfigError(f"--model-path: there is no file `{path}`")


def _check_matrix(config: "Config") -> None:
    """Raises ConfigError for an importance matrix that cannot be used, or one that is missing."""
    if fault := matrix_fault(config.safetensors_type, has_matrix=config.imatrix is not None):
        raise ConfigError(f"--safetensors-type, --imatrix: {fault}")
    if config.imatrix is None:
        return
    from shimmy.formats.gguf import importance

    try:
        importance.read(config.imatrix)
    except importance.InvalidMatrix as exc:
        raise ConfigError(f"--imatrix: `{config.imatrix}` cannot be used: {exc}") from exc
    except OSError as exc:
        raise ConfigError(f"--imatrix: `{config.imatrix}` cannot be read: {exc.strerror or exc}") from exc


async def _show_loads(events: "ModelEvents") -> None:
    from shimmy.commands.terminal.load_line import show_loads

    await show_loads(events, log.show)


def _worker_ahead(call: CommandCall) -> AbstractContextManager[None]:
    """A worker gets ready for the first model that is wanted from the start, while the server does."""
    if not call.config.preload:
        return nullcontext()
    from shimmy.workers import spawn

    return spawn.ahead()


def _version(call: CommandCall) -> int:
    from shimmy.commands.version import version

    return version(call)


def _completion(call: CommandCall) -> int:
    from shimmy.commands.terminal.shell_completion import script

    print(script(call.options.shell, argument_parser()), end="")
    return 0


def _with_models(call: CommandCall) -> int:
    from shimmy.commands.models import COMMANDS

    return COMMANDS[call.options.command](call)


def _pull(call: CommandCall) -> int:
    from shimmy.commands.model_files.pull import pull

    return pull(call)


def _rm(call: CommandCall) -> int:
    from shimmy.commands.model_files.remove import remove

    return remove(call)


def _cp(call: CommandCall) -> int:
    from shimmy.commands.model_files.copy import copy

    return copy(call)


def _bench(call: CommandCall) -> int:
    from shimmy.commands.bench import bench

    return bench(call)


def _with_a_server(call: CommandCall) -> int:
    from shimmy.commands.running import COMMANDS

    return COMMANDS[call.options.command](call)


def _run(call: CommandCall) -> int:
    from shimmy.commands.terminal_chat.run import run

    return run(call)


def _health(call: CommandCall) -> int:
    from shimmy.commands.health import health

    return health(call)


def _stop(call: CommandCall) -> int:
    from shimmy.commands.stop import stop

    return stop(call)


def _convert(call: CommandCall) -> int:
    from shimmy.commands.conversion import convert

    return convert(call)


def _gpu_info(call: CommandCall) -> int:
    from shimmy.commands.gpu_info import gpu_info

    return gpu_info(call)


def _rpc_worker(call: CommandCall) -> int:
    from shimmy.commands.machines.rpc_worker import rpc_worker

    return rpc_worker(call)


_COMMANDS: Mapping[str, Callable[[CommandCall], int]] = {
    "serve": _serve,
    **dict.fromkeys(("list", "probe", "generate"), _with_models),
    "run": _run,
    "pull": _pull,
    "rm": _rm,
    "cp": _cp,
    "bench": _bench,
    "convert": _convert,
    "health": _health,
    "stop": _stop,
    **dict.fromkeys(("ps", "discover", "load", "unload"), _with_a_server),
    "gpu-info": _gpu_info,
    "rpc-worker": _rpc_worker,
    "version": _version,
    "completion": _completion,
}
