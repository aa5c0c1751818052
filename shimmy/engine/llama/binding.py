"""The only importer of llama_cpp: its low-level module, the functions it does not declare, and the engine's own log."""

import ctypes
import importlib.util
import logging
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from shimmy import log as process_log
from shimmy.engine import pulse
from shimmy.engine.llama import unpack_libraries
from shimmy.errors import ModelUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

_LOG_ERROR = 4  # ggml_log_level
_LOG_CONTINUED = 5
# How often a thread of the engine looks for the others before it sleeps. A larger number burns the time
# that the others wait for when other programs use the processor as well; 1,000 costs 10 % of the speed when none do.
_SPIN_COUNT = "100000"
# The libraries that libllama needs, each after those it needs itself; and variables that lead to other builds of these.
_BENEATH = ("libggml-base.so.0", "libggml.so.0")
_MISLEADING = ("LLAMA_CPP_LIB_PATH", "GGML_BACKEND_PATH")


def _import_binding() -> Any:
    """Import only the low-level module: the package's `__init__` would bring numpy, jinja2 and diskcache (220 ms)."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise ModelUnavailable("the engine is not installed: run `make` to build it")
    library_folder = Path(spec.submodule_search_locations[0]) / "lib"
    unpack_libraries.unpack(library_folder)
    _load_beneath(library_folder)
    package = ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


def _load_beneath(folder: Path) -> None:
    """Load the libraries that libllama needs from its own folder.

    LD_LIBRARY_PATH would come before the folder that libllama names, but a loaded library is not searched for again.
    """
    if hasattr(ctypes.CDLL(None), "ggml_init"):
        raise ModelUnavailable(f"`LD_PRELOAD={os.environ.get('LD_PRELOAD', '')}` brings another engine: unset it")
    for name in _MISLEADING:
        os.environ.pop(name, None)
    for name in _BENEATH:
        if (folder / name).exists():
            ctypes.CDLL(str(folder / name))


# On an abort ggml would start a debugger where one is installed, and the dead worker would hang in it.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)  # read by the engine when it is loaded, on the next line
llama = _import_binding()
# Where libllama and, in an installed engine or packed in the frozen file, the CPU variants are.
LIBRARY_FOLDER = Path(llama._base_path)
LIBRARY = Path(llama._lib._name)


def function(name: str, restype: Any, *argtypes: Any) -> Any:
    """A function of ggml or llama.cpp that the binding does not declare."""
    function = getattr(llama._lib, name)
    function.restype = restype
    function.argtypes = argtypes
    return function


class _EngineLog:
    """Passes the engine's own log on, and keeps its last errors to explain a load that failed."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.listener: Callable[[str], None] | None = None  # is told every line, or part of one
        self._level = 0
        # The engine calls this pointer for the life of the process; a collected callback would be a segfault.
        self.callback = llama.llama_log_callback(self._on_line)

    def _on_line(self, level: int, text: bytes, _user_data: object) -> None:
        pulse.engine.n_steps += 1
        self._level = self._level if level == _LOG_CONTINUED else level
        line = text.decode("utf-8", "replace").rstrip()
        if not line:
            return
        if self._level == _LOG_ERROR:
            self.errors = [*self.errors[-3:], line]
        logger.debug("%s", line)
        if self.listener is not None:
            self.listener(line)

    def reason(self) -> str:
        return "; ".join(self.errors) or "the engine gave no reason"


class _Aborts:
    """Reports why the engine aborts the process, which it does where one of its assertions fails.

    Without this the engine writes to stderr itself, and may wait there for a reader.
    """

    def __init__(self) -> None:
        self.handler: Callable[[str], None] | None = None  # called with the reason; the process ends when it returns
        # The engine calls this pointer for the life of the process; a collected callback would be a segfault.
        self.callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(self._on_abort)

    def _on_abort(self, text: bytes) -> None:
        reason = text.decode("utf-8", "replace").strip()
        place, _, rest = reason.partition(": ")
        reason = f"{rest} ({Path(place).name})" if rest else reason  # without the folder that the engine was built in
        logger.error("the engine gives up: %s", reason)
        process_log.flush()
        if self.handler is not None:
            self.handler(reason)


log = _EngineLog()
llama.llama_log_set(log.callback, None)
aborts = _Aborts()
function("ggml_set_abort_callback", ctypes.c_void_p, ctypes.c_void_p)(ctypes.cast(aborts.callback, ctypes.c_void_p))
