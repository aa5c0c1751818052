"""The program itself as a command, and what it needs to be one. Light: workers, which start it once more, import it."""

import os
import sys

_ENGINE_LIBRARIES = ("libggml", "libllama")


def own_program() -> list[str]:
    """How this program is started once more, beside `executable`."""
    return [sys.argv[0]] if getattr(sys, "frozen", False) else [sys.executable, "-m", "shimmy"]


def executable() -> str | None:
    """The file to start `own_program` from; None where its first word names it.

    Of the frozen file it is the one that runs here, even if its name is gone or another file's by now.
    """
    if not getattr(sys, "frozen", False):
        return None
    return "/proc/self/exe" if sys.executable.startswith("/proc/") else sys.executable


def environment() -> dict[str, str]:
    """What a process with the engine inherits: all of ours, but no other build of the engine in front of its own."""
    kept = dict(os.environ)
    preloaded = kept.get("LD_PRELOAD", "").replace(":", " ").split()
    harmless = [path for path in preloaded if not path.rpartition("/")[2].startswith(_ENGINE_LIBRARIES)]
    if harmless != preloaded:
        kept["LD_PRELOAD"] = ":".join(harmless)
    return kept
