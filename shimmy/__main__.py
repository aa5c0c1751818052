"""The program's entry. A worker is dispatched before anything else is imported: it shares no module with the server."""

import gc
import os
import sys

_NEEDS_A_WORKER = ("generate", "probe", "bench")
_FOR_OTHER_MACHINES = ("rpc-look", "rpc-engine")
# What Starlette and Hypercorn import and a server hardly uses: 10 ms of its start, 1 MB of its memory.
_LATE = ("calendar", "copy", "hashlib", "html", "http.client", "http.cookies", "lzma", "tomllib")
# What the standard library and packages try to import, and the frozen file has not: each search takes 0.5 ms.
_ABSENT = ("_hashlib", "_uuid", "bz2", "msvcrt", "multipart", "org", "python_multipart", "sniffio", "winreg")


def main() -> int:
    """Run the command line in `sys.argv`; returns the exit code."""
    gc.disable()
    _hold_standard_streams()
    if getattr(sys, "frozen", False):
        from shimmy.system import unpacked_folder

        unpacked_folder.keep()
        sys.modules.update(dict.fromkeys(_ABSENT))  # type: ignore[arg-type]
    if sys.argv[1:2] == ["worker"]:
        from shimmy.engine import preload_libraries

        socket_fd = int(sys.argv[2])
        try:
            preload_libraries.begin()
            from shimmy.engine.main import main as worker_main
        except BaseException as error:
            from shimmy.engine import last_words
            from shimmy.errors import ShimmyError

            last_words.say(socket_fd, error)
            if isinstance(error, ShimmyError):  # no bug, and the parent tells it
                return 1
            raise
        _look_for_garbage()
        return worker_main(socket_fd)
    if sys.argv[1:2] == ["quantize"]:
        from shimmy.engine.llama.quantize import main as quantize_main

        _look_for_garbage()
        return quantize_main(sys.argv[2:])
    if sys.argv[1:2] == ["calibrate"]:
        from shimmy.engine.llama.calibration import main as calibrate_main

        _look_for_garbage()
        return calibrate_main(sys.argv[2:])
    if sys.argv[1:2] == ["unpack"]:
        from shimmy.engine.convert_checkpoint import main as unpack_main

        return unpack_main(sys.argv[2:])
    if sys.argv[1:2] == ["trial"]:
        from shimmy.engine.tune.trial import main as trial_main

        _look_for_garbage()
        return trial_main(sys.argv[2:])
    if sys.argv[1:2] == ["gpu-probe"]:
        _ask_drivers(*sys.argv[2:])
    if sys.argv[1:2] and sys.argv[1] in _FOR_OTHER_MACHINES:
        return _with_other_machines(*sys.argv[1:])
    if sys.argv[1:2] and sys.argv[1] in _NEEDS_A_WORKER:
        from shimmy.workers import spawn

        with spawn.ahead():
            return _command_line()
    return _command_line()


def _ask_drivers(api: str = "vulkan") -> None:
    """For their devices; the process ends with that."""
    if api == "cuda":
        from shimmy.gpus.cuda_probe import main as cuda_main

        cuda_main()
    from shimmy.gpus.probe import main as probe_main

    probe_main()


def _with_other_machines(command: str, *arguments: str) -> int:
    """Ask them, or compute for one of them."""
    if command == "rpc-look":
        from shimmy.rpc.look import main as look_main

        return look_main()
    from shimmy.engine.remote.serve_client import main as engine_main

    _look_for_garbage()
    return engine_main(arguments)


def _hold_standard_streams() -> None:
    """Open what our caller has closed (`2>&-`): another file would get its number, and the lines meant for stderr."""
    for descriptor, mode in enumerate("rww"):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
            stream = open(descriptor, mode, closefd=False)  # noqa: SIM115 - for the life of the process
            setattr(sys, ("stdin", "stdout", "stderr")[descriptor], stream)


def _look_for_garbage() -> None:
    """Not among what was made until now, by imports: that stays, and looking at it takes a start 6 ms."""
    gc.freeze()
    gc.enable()


def _command_line() -> int:
    import signal

    from shimmy.system.signals import ignore

    # Ctrl-C reaches the program twice: by itself and through the one-file program's outer process. The second one
    # would meet the interpreter at its end. A command that goes on after an interrupt sets a handler of its own.
    def interrupt(number: int, _frame: object) -> None:
        ignore(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        from shimmy.system.late_import import import_late

        import_late(*_LATE)
        from shimmy.cli import main as cli_main

        _look_for_garbage()
        return cli_main(sys.argv[1:])
    except KeyboardInterrupt:  # before the command began
        sys.stderr.write("shimmy: interrupted\n")
        return 130


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before there was a handler of ours
        os._exit(130)  # a second one would meet the interpreter at its end
