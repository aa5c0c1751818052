"""`convert`: the GGUF file of a SafeTensors folder."""

import contextlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shimmy.commands.console import CommandCall, ProgressBar
from shimmy.commands.terminal.screen_text import safe_line
from shimmy.errors import NotFound
from shimmy.formats.convert import convert as conversion
from shimmy.formats.convert.convert import ConversionPlan
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf import importance
from shimmy.formats.safetensors.checkpoint import InvalidSafetensors
from shimmy.option_kinds import ConfigError
from shimmy.system.cpu import n_physical_cores
from shimmy.system.self_command import environment, executable, own_program
from shimmy.wire.worker_options import IGNORES_MATRIX, MATRIX_ADVICE, NEEDS_MATRIX


@dataclass(frozen=True, slots=True)
class _Quantisation:
    """How the weights are made smaller."""

    file_type: str
    n_threads: int
    matrix: Path | None  # a file with an importance matrix


def convert(call: CommandCall) -> int:
    folder = Path(call.options.folder)
    target = Path(call.options.output or f"{folder.absolute().name}.gguf")
    quantisation = _quantisation(call)
    bar = ProgressBar(f"{folder.absolute().name} -> {target.name}")
    try:
        notices = _write_gguf(folder, target, quantisation, bar.show)
    finally:
        bar.end()
    for notice in notices:
        print(f"shimmy: {safe_line(notice)}", file=sys.stderr)
    print(target)
    return 0


def _quantisation(call: CommandCall) -> _Quantisation | None:
    """What was asked for; raises ConfigError for options that do not go together."""
    file_type, matrix = call.config.safetensors_type, call.options.imatrix
    if file_type is None:
        if matrix:
            raise ConfigError("--imatrix is for --type: without a type nothing is quantised")
        return None
    if file_type in NEEDS_MATRIX and not matrix:
        raise ConfigError(f"`{file_type}` {MATRIX_ADVICE}")
    if file_type in IGNORES_MATRIX and matrix:
        raise ConfigError(f"`{file_type}` is the same with an importance matrix and without one: leave it out")
    return _Quantisation(file_type, call.config.n_threads or n_physical_cores(), Path(matrix) if matrix else None)


def _write_gguf(
    folder: Path, target: Path, quantisation: _Quantisation | None, on_progress: Callable[[float], None]
) -> tuple[str, ...]:
    """Write the GGUF of a SafeTensors folder, replacing `target` once it is whole; returns what a person has to know.

    Raises NotFound with what stands against it.
    """
    lossless, part = (target.with_name(f"{target.name}.{suffix}") for suffix in ("lossless", "quantized"))
    try:
        found = conversion.plan(folder)
        if quantisation is None:
            return _convert(folder, found, target, "", on_progress)
        about_matrix = _checked(quantisation.matrix, found) if quantisation.matrix else ()
        notices = _convert(folder, found, lossless, quantisation.file_type, lambda share: on_progress(share / 2))
        _quantize(lossless, part, quantisation)
        part.replace(target)
        on_progress(1.0)
        return notices + about_matrix
    except (Unconvertible, InvalidSafetensors) as exc:
        raise NotFound(f"`{folder}` cannot be converted: {exc}") from exc
    except OSError as exc:
        raise NotFound(f"`{folder}` cannot be converted: {exc.strerror or exc}") from exc
    finally:
        for path in (lossless, part):
            with contextlib.suppress(OSError):  # its folder may be none, or not ours
                path.unlink()


def _checked(matrix: Path, found: ConversionPlan) -> tuple[str, ...]:
    """What a person has to know of an importance matrix for this model, before anything is written; raises NotFound
    for one that cannot be used. Its numbers are looked at when they are used."""
    weights = {output.info.name: output.info.shape for output in found.recipe.outputs}
    try:
        return importance.check(importance.read(matrix), weights)
    except importance.InvalidMatrix as exc:
        raise NotFound(f"`{matrix}` cannot be used as an importance matrix: {exc}") from exc
    except OSError as exc:
        raise NotFound(f"`{matrix}` cannot be read: {exc.strerror or exc}") from exc


def _convert(
    folder: Path, found: ConversionPlan, target: Path, file_type: str, on_progress: Callable[[float], None]
) -> tuple[str, ...]:
    """Write the GGUF that the file of `file_type` is made from, or the file itself where that is ''."""
    if not found.is_quantised:
        return conversion.convert(folder, target, on_progress).notices
    # Quantised weights are computed with numpy, in a process of its own: this one has no more than the server.
    command = [*own_program(), "unpack", str(folder), str(target), file_type]
    with subprocess.Popen(
        command, executable=executable(), env=environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stderr is not None
        for line in child.stdout:
            on_progress(float(line))
        reason = child.stderr.read().strip()
    if child.returncode:
        raise Unconvertible(reason or f"the process that unpacks its weights ended with {child.returncode}")
    return found.notices


def _quantize(source: Path, target: Path, quantisation: _Quantisation) -> None:
    """In a process of its own, which has the engine."""
    command = [
        *own_program(),
        "quantize",
        str(source),
        str(target),
        quantisation.file_type,
        str(quantisation.n_threads),
    ]
    if quantisation.matrix is not None:
        command.append(str(quantisation.matrix))
    done = subprocess.run(
        command, executable=executable(), env=environment(),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        reason = done.stderr.strip() or f"the engine ended with {done.returncode}"
        raise NotFound(f"`{target.name}` could not be made: {reason}")
