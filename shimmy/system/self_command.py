"""The program itself as a command, and what it needs to be one. Light: workers, which start it once more, import it."""

import os
import sys

_ENGINE_LIBRARIES = ("libggml", "libllama")
_ENGINE_SYMBOL = b"ggml_init"


def own_program() -> list[str]:
    """How this program is started once more, beside `executable`. Where there is no /proc, the frozen file finds itself
    by its first word, which is that of the file's inner one where this runs with the C library of the file."""
    if not getattr(sys, "frozen", False):
        return [sys.executable, "-m", "shimmy"]
    return [sys.argv[0] if sys.executable.startswith("/proc/") else sys.executable]


def executable() -> str | None:
    """The file to start `own_program` from; None where its first word names it.

    Of the frozen file it is the one that runs here, even if its name is gone or another file's by now: this process has
    it open, which a child that has closed its descriptors finds by the process's number. (/proc/self/exe is another
    program where the file's inner one runs, see tools/bootloader.c.)
    """
    if not getattr(sys, "frozen", False):
        return None
    return sys.executable.replace("/proc/self/", f"/proc/{os.getpid()}/", 1)


def first_environment() -> dict[str, str]:
    """What a program inherits that is no part of this one: the frozen file unpacks a folder of its own for it, and
    sockets of a service manager are not for it."""
    ours = ("_SHIMMY_", "_PYI_", "LISTEN_", *(("LD_LIBRARY_PATH",) if getattr(sys, "frozen", False) else ()))
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def environment() -> dict[str, str]:
    """What a process with the engine inherits: all of ours, but no other build of the engine in front of its own."""
    kept = dict(os.environ)
    preloaded = kept.get("LD_PRELOAD", "").replace(":", " ").split()
    harmless = [path for path in preloaded if not _has_an_engine(path)]
    if harmless != preloaded:
        kept["LD_PRELOAD"] = ":".join(harmless)
    return kept


def _has_an_engine(library: str) -> bool:
    """Whether a library is a part of ggml or llama.cpp, or uses one, by its name or by the names in it."""
    if library.rpartition("/")[2].startswith(_ENGINE_LIBRARIES):
        return True
    from pathlib import Path

    try:
        return _ENGINE_SYMBOL in Path(library).read_bytes()
    except OSError:  # the loader does not find it either, or somewhere else
        return False
