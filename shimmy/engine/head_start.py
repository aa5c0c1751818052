"""What a worker does on a second thread while its first one imports it: the frozen file's engine is unpacked.

A head start and nothing more: whoever needs the engine unpacks it, or waits for whoever is at it, and finds the errors.
"""

import contextlib
import threading
from pathlib import Path

from shimmy import frozen
from shimmy.engine import packed, variants
from shimmy.errors import ModelUnavailable


def begin() -> None:
    """Start the thread; in a source tree there is nothing to unpack."""
    home = frozen.folder()
    if home is not None:
        threading.Thread(target=_unpack, args=(home / packed.ENGINE_FOLDER,), daemon=True).start()


def _unpack(folder: Path) -> None:
    with contextlib.suppress(ModelUnavailable):
        packed.unpack(folder)
        next(variants.libraries(folder, None), None)
