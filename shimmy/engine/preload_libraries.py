"""What a worker does on other threads while its first one imports it: the frozen file's engine is unpacked.

Only a head start: the code that needs the engine unpacks the libraries itself, or waits for the thread that is at it,
and raises the errors. Imports next to nothing before the threads run, and on them only what unpacking takes.
"""

import sys
from _thread import start_new_thread


def begin() -> None:
    """Start the threads; in a source tree there is nothing to unpack."""
    # `unpacked_folder.folder()`; that module imports `logging`, which can wait.
    home: str | None = getattr(sys, "_MEIPASS", None)
    if home is not None:
        try:
            start_new_thread(_unpack_variant, (home,))  # which takes longer
            start_new_thread(_unpack, (home,))
        except RuntimeError:  # there are no threads to be had, and it is told later
            return


def _unpack(home: str) -> None:
    from contextlib import suppress
    from pathlib import Path

    from shimmy.engine.llama import unpack_libraries
    from shimmy.errors import ModelUnavailable

    with suppress(ModelUnavailable):
        unpack_libraries.unpack(Path(home, unpack_libraries.ENGINE_FOLDER))


def _unpack_variant(home: str) -> None:
    from contextlib import suppress
    from pathlib import Path

    from shimmy.engine.cpu_variants import variants
    from shimmy.engine.llama import unpack_libraries
    from shimmy.errors import ModelUnavailable

    with suppress(ModelUnavailable):
        next(variants.libraries(Path(home, unpack_libraries.ENGINE_FOLDER), None), None)
