"""`convert`: the GGUF file of a SafeTensors folder."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shimmy.commands.console import CommandCall, CommandFailed, ProgressBar, ended_by_signals, is_agreed
from shimmy.commands.terminal.screen_text import safe_line
from shimmy.errors import NotFound
from shimmy.formats.convert import cache
from shimmy.formats.convert import convert as conversion
from shimmy.formats.convert.convert import ConversionPlan
from shimmy.formats.convert.converted import SOURCE_SUFFIXES
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf import block_fit, importance, reader
from shimmy.formats.safetensors.checkpoint import InvalidSafetensors
from shimmy.option_kinds import ConfigError
from shimmy.system.cpu import n_physical_cores
from shimmy.system.files import open_regular
from shimmy.system.self_command import environment, executable, own_program
from shimmy.wire.worker_options import IGNORES_MATRIX, matrix_fault


@dataclass(slots=True)
class _Output:
    """A file that is to be written, and whether it may take the place of one that is there."""

    path: Path
    may_replace: bool

    def check(self) -> None:
        """Raise NotFound where no file can be written there."""
        path = self.path
        with _blamed(path):
            if path.exists() and not path.is_file():
                raise NotFound(f"`{path}` cannot be written: it is not a regular file")
            if path.exists() and not self.may_replace and not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            if not (parent := path.absolute().parent).exists():
                raise NotFound(f"`{path}` cannot be written: there is no folder `{parent}`")
            with _folder_beside(path):
                pass

    def check_apart(self, folder: Path) -> None:
        """Raise NotFound where a file of the model in `folder` would be lost, in spite of what a person agrees to."""
        path = self.path
        is_inside = Path(os.path.realpath(path.absolute().parent)).is_relative_to(os.path.realpath(folder))
        if is_inside and path.exists() and path.name.endswith(SOURCE_SUFFIXES):
            raise NotFound(f"`{path}` cannot be written: it is a part of the model that is converted")

    def ask(self) -> None:
        """Have the person agree to what is lost. Raises CommandFailed where that is not agreed to."""
        if self.may_replace or not os.path.lexists(self.path):
            return
        is_there = f"`{self.path}` is there already"
        if not is_agreed(
            f"{is_there}. Replace it?", f"{is_there}, and there is no terminal to ask: add --force to replace it"
        ):
            raise CommandFailed("nothing was written")
        self.may_replace = True

    def put(self, made: Path) -> None:
        """Move what is finished there, from a folder beside it. Raises FileExistsError where another file has come
        there that may not be replaced, and OSError."""
        if not self.may_replace:
            try:
                os.link(made, self.path)  # a rename would replace what has just come
                return  # the folder is removed, and with it the other name
            except FileExistsError:
                raise
            except OSError:  # not every file system has links
                if os.path.lexists(self.path):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        made.replace(self.path)


@dataclass(frozen=True, slots=True)
class _Quantisation:
    """How the weights are made smaller."""

    file_type: str
    n_threads: int
    matrix: Path | None  # an importance matrix
    text: Path | None  # that one is computed over
    kept: _Output | None  # where the computed one stays


def convert(call: CommandCall) -> int:
    folder = Path(call.options.folder)
    for option, name in (("--output", call.options.output), ("--save-imatrix", call.options.save_imatrix)):
        if name in {"", "-"}:  # nobody means a file of that name
            raise ConfigError(
                f"{option}: give the name of a file (got {name!r}); nothing is written to standard output"
            )
    target = Path(call.options.output or f"{folder.absolute().name}.gguf")
    quantisation = _quantisation(call, target)
    bar = ProgressBar(f"{folder.absolute().name} -> {target.name}")
    try:
        with ended_by_signals():
            notices = _write_gguf(folder, _Output(target, call.options.force), quantisation, bar.show)
    finally:
        bar.end()
    for notice in notices:
        print(f"shimmy: {safe_line(notice)}", file=sys.stderr)
    print(target)
    return 0


def _quantisation(call: CommandCall, target: Path) -> _Quantisation | None:
    """What was asked for; raises ConfigError for options that do not go together."""
    options, file_type, matrix = call.options, call.config.safetensors_type, call.config.imatrix
    if options.imatrix is None and (options.calibrate or file_type is None or file_type in IGNORES_MATRIX):
        matrix = None  # the variable is a server's as well, and says nothing of this model
    if matrix and options.calibrate:
        raise ConfigError(
            "--imatrix takes an importance matrix from a file, and --calibrate computes one: give one of them"
        )
    if options.save_imatrix and not options.calibrate:
        raise ConfigError("--save-imatrix is for --calibrate")
    if fault := matrix_fault(file_type, has_matrix=bool(matrix or options.calibrate)):
        raise ConfigError(fault)
    if file_type is None:
        return None
    text = Path(options.calibrate) if options.calibrate else None
    kept = Path(os.path.realpath(options.save_imatrix)) if options.save_imatrix else None  # a link stays one
    named: dict[str, str] = {}
    for name, path in (("the output", target), ("--calibrate", text), ("--save-imatrix", kept), ("--imatrix", matrix)):
        if path is not None and (other := named.setdefault(os.path.realpath(path), name)) != name:
            raise ConfigError(f"`{path}` cannot be both for {other} and for {name}")
    output = _Output(kept, options.force) if kept else None
    return _Quantisation(file_type, call.config.n_threads or n_physical_cores(), matrix, text, output)


def _write_gguf(
    folder: Path, output: _Output, quantisation: _Quantisation | None, on_progress: Callable[[float], None]
) -> tuple[str, ...]:
    """Write the GGUF of a SafeTensors folder, and the output once it is whole; returns what a person has to know.

    Raises NotFound with what stands against it, and CommandFailed where the person does not want it.
    """
    try:
        found = _plan(folder)
        outputs = [output, quantisation.kept] if quantisation is not None and quantisation.kept else [output]
        for each in outputs:
            each.check_apart(folder)
        output.check()
        about_matrix = () if quantisation is None else _check_given(quantisation, found)
        for each in outputs:
            each.ask()
        with _folder_beside(output.path) as place:
            if quantisation is None:
                made = place / "lossless.gguf"
                notices = _convert(folder, found, made, "", on_progress)
            else:
                made = place / "quantized.gguf"
                notices = _write_quantised(folder, found, made, quantisation, on_progress)
            notices += _about_words(made)
            with _blamed(output.path):
                try:
                    output.put(made)
                except FileExistsError:  # it has come since that was asked
                    output.check()
                    output.ask()
                    output.put(made)
        on_progress(1.0)
        return about_matrix + notices
    except (Unconvertible, InvalidSafetensors) as exc:
        raise NotFound(f"`{folder}` cannot be converted: {exc}") from exc
    except OSError as exc:
        file = f"`{exc.filename}`: " if exc.filename else ""
        raise NotFound(f"`{folder}` cannot be converted: {file}{exc.strerror or exc}") from exc


def _about_words(made: Path) -> tuple[str, ...]:
    """What a person has to know who takes the file to another program."""
    if not reader.contents(made).words:
        return ()
    return ("llama.cpp cuts some text otherwise than this tokenizer: Shimmy does not, other programs with it do",)


def _plan(folder: Path) -> ConversionPlan:
    """What the folder becomes. Raises Unconvertible where there is no folder, and what `conversion.plan` raises."""
    if not folder.exists():
        raise Unconvertible("there is no such folder")
    if not folder.is_dir():
        raise Unconvertible("it is a file: give the folder in which a model's `config.json` and its weights are")
    return conversion.plan(folder)


@contextlib.contextmanager
def _blamed(path: Path) -> Iterator[None]:
    """An OSError in the block is one of writing to `path`: NotFound is raised, which says so."""
    try:
        yield
    except OSError as exc:
        raise NotFound(f"`{path}` cannot be written: {exc.strerror or exc}") from exc


@contextlib.contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A new folder on the disk of `path`, for what is not finished. All that is in it is removed at the end."""
    with tempfile.TemporaryDirectory(
        prefix=cache.UNFINISHED, dir=path.absolute().parent, ignore_cleanup_errors=True
    ) as name:
        yield Path(name)


def _write_quantised(
    folder: Path, found: ConversionPlan, target: Path, how: _Quantisation, on_progress: Callable[[float], None]
) -> tuple[str, ...]:
    """The same, by way of files beside `target`, which the caller removes; the steps count alike."""
    lossless, matrix = target.with_name("lossless.gguf"), how.matrix
    n_steps = 2 if how.text is None else 3

    def step(index: int) -> Callable[[float], None]:
        return lambda share: on_progress((index + share) / n_steps)

    notices = _convert(folder, found, lossless, how.file_type, step(0))
    if how.text is not None:
        matrix = target.with_name("imatrix.gguf")
        _run("calibrate", lossless, how.text, matrix, how.n_threads, on_progress=step(1))
        notices += _checked(matrix, found)
        if how.kept is not None:
            notices += _keep(matrix, how.kept)
    given = [matrix] if matrix else []
    _run("quantize", lossless, target, how.file_type, how.n_threads, *given, on_progress=step(n_steps - 1))
    return notices + block_fit.written(how.file_type, reader.contents(target).tensors.values())


def _checked(matrix: Path, found: ConversionPlan) -> tuple[str, ...]:
    """What a person has to know of an importance matrix for this model; raises NotFound for one that cannot be used.
    Its numbers are looked at when they are used."""
    try:
        return importance.check(importance.read(matrix), found.shapes)
    except importance.InvalidMatrix as exc:
        raise NotFound(f"`{matrix}` cannot be used as an importance matrix: {exc}") from exc
    except OSError as exc:
        raise NotFound(f"`{matrix}` cannot be read: {exc.strerror or exc}") from exc


def _check_given(how: _Quantisation, found: ConversionPlan) -> tuple[str, ...]:
    """Look at all files that were named, before hours are spent; returns what a person has to know of the matrix.

    Raises NotFound where the matrix does not fit, the text cannot be read or a computed matrix cannot be kept.
    """
    try:
        if how.text is not None:
            open_regular(how.text).close()
    except OSError as exc:
        raise NotFound(f"`{how.text}` cannot be read: {exc.strerror or exc}") from exc
    if how.kept is not None:
        how.kept.check()
    return () if how.matrix is None else _checked(how.matrix, found)


def _keep(matrix: Path, kept: _Output) -> tuple[str, ...]:
    """Write the computed matrix to `kept`, which is the old file until it is whole; returns why that failed."""
    try:
        with _folder_beside(kept.path) as place:
            part = place / "imatrix.gguf"
            shutil.copyfile(matrix, part)
            kept.put(part)
    except OSError as exc:
        return (f"the importance matrix could not be written to `{kept.path}`: {exc.strerror or exc}",)
    return ()


def _convert(
    folder: Path, found: ConversionPlan, target: Path, file_type: str, on_progress: Callable[[float], None]
) -> tuple[str, ...]:
    """Write the GGUF that the file of `file_type` is made from, or the file itself where that is ''."""
    if not found.is_quantised:
        return conversion.convert(folder, target, on_progress, found=found).notices_for(file_type)
    # Quantised weights are computed with numpy, in a process of its own: this one has no more than the server.
    _run("unpack", folder, target, file_type, on_progress=on_progress)
    return found.notices_for(file_type)


def _run(command: str, *arguments: object, on_progress: Callable[[float], None]) -> None:
    """Run a hidden sub-command, which has the engine or numpy, and writes the share that is done, a line each time.

    Raises Unconvertible with its reason.
    """
    with subprocess.Popen(
        [*own_program(), command, *map(str, arguments)], executable=executable(), env=environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            for line in child.stdout:
                with contextlib.suppress(ValueError):  # the engine has a few lines of its own
                    on_progress(float(line))
            reason = child.stderr.read().strip()
        except BaseException:
            child.kill()
            child.wait()
            raise
    if child.returncode:
        raise Unconvertible(reason or f"`{command}` ended with {child.returncode}")
