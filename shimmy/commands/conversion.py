"""`convert`: the GGUF file of a SafeTensors folder."""

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from shimmy.commands.console import CommandCall, ProgressBar
from shimmy.commands.terminal.screen_text import safe_line
from shimmy.errors import NotFound
from shimmy.formats.convert import convert as conversion
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.safetensors.checkpoint import InvalidSafetensors
from shimmy.system.cpu import n_physical_cores
from shimmy.system.self_command import environment, executable, own_program


def convert(call: CommandCall) -> int:
    folder, file_type = Path(call.options.folder), call.config.safetensors_type
    target = Path(call.options.output or f"{folder.absolute().name}.gguf")
    bar = ProgressBar(f"{folder.absolute().name} -> {target.name}")
    try:
        notices = _write_gguf(folder, target, file_type, call.config.n_threads, bar.show)
    finally:
        bar.end()
    for notice in notices:
        print(f"shimmy: {safe_line(notice)}", file=sys.stderr)
    print(target)
    return 0


def _write_gguf(
    folder: Path, target: Path, file_type: str | None, n_threads: int | None, on_progress: Callable[[float], None]
) -> tuple[str, ...]:
    """Write the GGUF of a SafeTensors folder, replacing `target` once it is whole; returns what a person has to know.

    Raises NotFound with what stands against it.
    """
    lossless, part = (target.with_name(f"{target.name}.{suffix}") for suffix in ("lossless", "quantized"))
    try:
        if file_type is None:
            return _convert(folder, target, "", on_progress)
        notices = _convert(folder, lossless, file_type, lambda share: on_progress(share / 2))
        _quantize(lossless, part, file_type, n_threads or n_physical_cores())
        part.replace(target)
        on_progress(1.0)
        return notices
    except (Unconvertible, InvalidSafetensors) as exc:
        raise NotFound(f"`{folder}` cannot be converted: {exc}") from exc
    except OSError as exc:
        raise NotFound(f"`{folder}` cannot be converted: {exc.strerror or exc}") from exc
    finally:
        for path in (lossless, part):
            with contextlib.suppress(OSError):  # its folder may be none, or not ours
                path.unlink()


def _convert(folder: Path, target: Path, file_type: str, on_progress: Callable[[float], None]) -> tuple[str, ...]:
    """Write the GGUF that the file of `file_type` is made from, or the file itself where that is ''."""
    found = conversion.plan(folder)
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


def _quantize(source: Path, target: Path, file_type: str, n_threads: int) -> None:
    """In a process of its own, which has the engine."""
    command = [*own_program(), "quantize", str(source), str(target), file_type, str(n_threads)]
    done = subprocess.run(
        command, executable=executable(), env=environment(),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        reason = done.stderr.strip() or f"the engine ended with {done.returncode}"
        raise NotFound(f"`{target.name}` could not be made: {reason}")
