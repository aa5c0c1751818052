"""How much of a model's files has been read while the engine loads them, for the parent.

The engine maps the files, and the system reads all of them within that one call, before the engine's own callback says
anything. So the pages of files count that this process has by now (Linux tells their number, other systems do not).
Knows nothing of what is loaded. A load that is soon done says nothing.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shimmy.engine import pulse
from shimmy.messages.model_info import LoadProgress

_FIRST_S = 1.0
_EVERY_S = 0.4
_PAGES = Path("/proc/self/statm")  # in pages: size, resident, and which of these belong to files or are shared


@contextmanager
def progress_told(paths: Iterable[Path], tell: Callable[[LoadProgress], None]) -> Iterator[None]:
    """Call `tell` on a thread now and then while more of `paths` is read, until the `with` ends."""
    is_over = threading.Event()
    before = _n_bytes_of_files()
    thread = threading.Thread(target=_tell_all, args=(paths, before, tell, is_over), name="progress", daemon=True)
    with suppress(RuntimeError):  # there may be no thread left for us, and the load does not need it
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        if thread.ident is not None:
            thread.join()  # nothing is told of a load that is over


def _tell_all(
    paths: Iterable[Path], before: int, tell: Callable[[LoadProgress], None], is_over: threading.Event
) -> None:
    with suppress(OSError):  # the load will say what is wrong with the files
        total = sum(path.stat().st_size for path in paths)
        wait_s, n_most = _FIRST_S, 0
        while not is_over.wait(wait_s):
            n_bytes = _n_bytes_of_files() - before
            if n_bytes > n_most:
                pulse.engine.n_steps += 1  # within the system's call nothing else shows that the engine gets on
                n_most = n_bytes
                tell(LoadProgress(min(1.0, n_bytes / max(1, total)), total))
            wait_s = _EVERY_S


def _n_bytes_of_files() -> int:
    """0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        return int(_PAGES.read_bytes().split()[2]) * os.sysconf("SC_PAGE_SIZE")
    return 0
