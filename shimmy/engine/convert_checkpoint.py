"""A folder in SafeTensors as a GGUF file that the engine opens: converted once, and quantised where that is asked for.

Knows the options and the cache; `formats.convert` converts a model's folder, `formats.convert.peft` an adapter's, and
`engine.layouts` computes with quantised weights.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shimmy.errors import ModelUnavailable
from shimmy.formats.convert import converted
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf import block_fit, importance, reader
from shimmy.formats.safetensors.checkpoint import InvalidSafetensors
from shimmy.wire.worker_options import matrix_fault

if TYPE_CHECKING:
    from shimmy.formats.convert.convert import ConversionPlan
    from shimmy.formats.convert.peft import Base
    from shimmy.formats.convert.settle_types import Unpacker

logger = logging.getLogger(__name__)

_SHOWN_SHARE = 0.005
CACHE_FOLDER = "converted"  # in the cache folder


def gguf_of(
    folder: Path,
    cache_dir: Path | None,
    file_type: str | None,
    matrix: Path | None,
    n_threads: int,
    on_progress: Callable[[float], None],
) -> Path:
    """The GGUF of `folder`, converted now or found in the cache; in this process's memory where no file can be written.

    `file_type` is one of SAFETENSORS_TYPES; None keeps the weights as they are. `matrix` is an importance matrix, which
    is used where it is this model's. Raises ModelUnavailable.
    """
    try:
        used, digest, plan = _used(matrix, folder, cache_dir, file_type)
        made = converted.found(folder, _cache(cache_dir), file_type or "", digest)
        if made is not None:
            on_progress(1.0)
            return made
        from shimmy.formats.convert import convert  # a start with a folder that was converted before does without

        finish = None
        if file_type is not None:
            finish = partial(
                _quantise, folder.name, file_type=file_type, n_threads=n_threads, matrix=used,
                on_progress=lambda share: on_progress((1 + share) / 2),
            )  # fmt: skip
        return convert.cached(
            folder,
            _cache(cache_dir),
            on_progress,
            found=plan,
            target_type=file_type or "",
            matrix=digest,
            finish=finish,
            unpacker=unpacker,
        ).path
    except (Unconvertible, InvalidSafetensors) as exc:
        raise ModelUnavailable(f"`{folder.name}` cannot be converted: {exc}") from exc
    except importance.InvalidMatrix as exc:
        reason = f"the importance matrix cannot be used: {exc}"
        raise ModelUnavailable(f"`{folder.name}` cannot be converted: {reason}") from exc
    except OSError as exc:
        raise ModelUnavailable(f"`{folder.name}` cannot be converted: {_reason(exc)}") from exc


def _reason(exc: OSError) -> str:
    """In words, with the file where there is one."""
    file = f"`{Path(os.fsdecode(exc.filename)).name}`: " if isinstance(exc.filename, str | bytes) else ""
    return f"{file}{exc.strerror or exc}"


def _quantise(model: str, source: Path, target: Path, *, file_type: str, **how: Any) -> None:
    """`quantize`, and say what became of weights that do not fit `file_type`."""
    # With it comes llama.cpp, which a process that only unpacks is without.
    from shimmy.engine.llama.quantize import quantize

    try:
        quantize(source, target, file_type=file_type, **how)
    except ModelUnavailable as exc:
        raise Unconvertible(exc.message) from exc
    for notice in block_fit.written(file_type, reader.contents(target).tensors.values()):
        logger.info("`%s`: %s", model, notice)


def _used(
    path: Path | None, folder: Path, cache_dir: Path | None, file_type: str | None
) -> "tuple[importance.ImportanceMatrix | None, str, ConversionPlan | None]":
    """The importance matrix at `path` and the digest of its content; None and '' where it is of another model, or the
    type takes none. And the plan of the folder, where one was made.

    Raises Unconvertible for a type that needs one, InvalidMatrix for a file that is none, and what a plan raises.
    """
    foreign, plan = "", None
    if path is not None and matrix_fault(file_type, has_matrix=True) is None:
        try:
            matrix = importance.read(path)
            digest = matrix.digest()
        except OSError as exc:
            raise importance.InvalidMatrix(f"`{path.name}` cannot be read: {exc.strerror or exc}") from exc
        if converted.found(folder, _cache(cache_dir), file_type or "", digest) is not None:
            return matrix, digest, None
        from shimmy.formats.convert import convert

        plan = convert.plan(folder)
        try:
            for notice in importance.check(matrix, plan.shapes):
                logger.warning("`%s`: %s", folder.name, notice)
        except importance.InvalidMatrix as exc:
            foreign = f"the importance matrix `{path.name}` cannot be used: {exc}"
        else:
            return matrix, digest, plan
    if fault := matrix_fault(file_type, has_matrix=False):
        raise Unconvertible(foreign or fault)
    if foreign:
        logger.warning("`%s` is quantised without it: %s", folder.name, foreign)
    return None, "", plan


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
    except (Unconvertible, InvalidSafetensors, ModelUnavailable) as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    except OSError as exc:
        sys.stderr.write(f"{_reason(exc)}\n")
        return 1
    return 0


def _cache(cache_dir: Path | None) -> Path | None:
    return None if cache_dir is None else cache_dir / CACHE_FOLDER
