"""A folder in SafeTensors as a GGUF file that the engine opens: converted once, and quantised where that is asked for.

Knows the options and the cache; `formats.convert` converts a model's folder, `formats.convert.peft` an adapter's, and
`engine.layouts` computes with quantised weights.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shimmy.engine.llama.quantize import quantize
from shimmy.errors import ModelUnavailable
from shimmy.formats.convert import converted
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.safetensors.checkpoint import InvalidSafetensors
from shimmy.wire.worker_options import MATRIX_ADVICE, NEEDS_MATRIX

if TYPE_CHECKING:
    from shimmy.formats.convert.convert import Unpacker
    from shimmy.formats.convert.peft import Base

_SHOWN_SHARE = 0.005
CACHE_FOLDER = "converted"  # in the cache folder


def gguf_of(
    folder: Path, cache_dir: Path | None, file_type: str | None, n_threads: int, on_progress: Callable[[float], None]
) -> Path:
    """The GGUF of `folder`, converted now or found in the cache; in this process's memory where no file can be written.

    `file_type` is one of SAFETENSORS_TYPES; None keeps the weights as they are. Raises ModelUnavailable, also for a
    type that needs an importance matrix.
    """
    if file_type in NEEDS_MATRIX:
        raise ModelUnavailable(f"`{folder.name}` cannot be converted: `{file_type}` {MATRIX_ADVICE}")
    finish = None if file_type is None else partial(quantize, file_type=file_type, n_threads=n_threads)
    try:
        made = converted.found(folder, _cache(cache_dir), file_type or "")
        if made is not None:
            on_progress(1.0)
            return made
        from shimmy.formats.convert import convert  # a start with a folder that was converted before does without

        return convert.cached(
            folder,
            _cache(cache_dir),
            on_progress,
            target_type=file_type or "",
            finish=finish,
            unpacker=unpacker,
        ).path
    except (Unconvertible, InvalidSafetensors) as exc:
        raise ModelUnavailable(f"`{folder.name}` cannot be converted: {exc}") from exc
    except OSError as exc:
        raise ModelUnavailable(f"`{folder.name}` cannot be converted: {exc.strerror or exc}") from exc


def unpacker() -> "Unpacker":
    """What computes with quantised weights. It takes numpy, which few conversions need."""
    from shimmy.engine.layouts import unpack

    return unpack


@contextlib.contextmanager
def adapter_gguf_of(folder: Path, base: "Base", cache_dir: Path | None) -> Iterator[Path | None]:
    """The GGUF of the adapter in `folder` for the model `base`, good until the end of the `with`.

    None when the adapter is for models of another architecture. Raises ModelUnavailable.
    """
    from shimmy.formats.convert import peft

    try:
        made = peft.cached(peft.read(folder), base, _cache(cache_dir))
    except (Unconvertible, InvalidSafetensors) as exc:
        raise ModelUnavailable(str(exc)) from exc
    try:
        yield None if made is None else made.path
    finally:
        if made is not None and made.descriptor is not None:
            os.close(made.descriptor)


def main(arguments: Sequence[str]) -> int:
    """`unpack FOLDER TARGET TYPE`, a hidden sub-command: the GGUF of a folder with quantised weights.

    Writes the share that is done to stdout, a line each time, and the reason of a failure to stderr.
    """
    from shimmy.formats.convert import convert

    folder, target, target_type = arguments
    shown = -1.0

    def show(share: float) -> None:
        nonlocal shown
        if share - shown >= _SHOWN_SHARE:
            shown = share
            sys.stdout.write(f"{share:.3f}\n")
            sys.stdout.flush()

    try:
        convert.convert(Path(folder), Path(target), show, target_type=target_type, unpacker=unpacker)
    except (Unconvertible, InvalidSafetensors) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    except OSError as exc:
        sys.stderr.write(f"{exc.strerror or exc}\n")
        return 1
    return 0


def _cache(cache_dir: Path | None) -> Path | None:
    return None if cache_dir is None else cache_dir / CACHE_FOLDER
