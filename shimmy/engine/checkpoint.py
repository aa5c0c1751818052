"""A folder in SafeTensors as a GGUF file that the engine opens: converted once, and quantised where that is asked for.

Knows what a person asked for and where the cache is; how a folder becomes a GGUF, `formats.convert` knows.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from shimmy.engine.quantize import quantize
from shimmy.errors import ModelUnavailable
from shimmy.formats import convert
from shimmy.formats.safetensors import InvalidSafetensors
from shimmy.formats.unconvertible import Unconvertible

CACHE_FOLDER = "converted"  # in the cache folder


def gguf_of(
    folder: Path, cache_dir: Path | None, file_type: str | None, n_threads: int, on_progress: Callable[[float], None]
) -> Path:
    """The GGUF of `folder`, made now or found in the cache; where nothing can be written, in this process's memory.

    `file_type` is one of config.SAFETENSORS_TYPES; None keeps the weights as they are. Raises ModelUnavailable.
    """

    cache = None if cache_dir is None else cache_dir / CACHE_FOLDER
    finish = None if file_type is None else partial(quantize, file_type=file_type, n_threads=n_threads)
    try:
        return convert.cached(folder, cache, on_progress, target_type=file_type or "", finish=finish).path
    except (Unconvertible, InvalidSafetensors) as exc:
        raise ModelUnavailable(f"`{folder.name}` cannot be converted: {exc}") from exc
    except OSError as exc:
        raise ModelUnavailable(f"`{folder.name}` cannot be converted: {exc.strerror or exc}") from exc
