"""`convert`: what it was given stays, whatever it is called, and what cannot be written is said first."""

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shimmy import cli
from shimmy.commands import conversion
from shimmy.formats.convert import convert as formats_convert
from shimmy.formats.format_errors import Unconvertible
from tests.importance_files import write_gguf_matrix
from tests.tiny_checkpoints import write_tiny_llama
from tests.tiny_models import N_EMBD
from tools.steps import ROOT

RUN = conversion._run
MATRIX = {"blk.0.attn_q.weight": ([1.0] * N_EMBD, [1.0])}


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A model `m` in the working directory; what the engine does is copied, the calibration writes MATRIX."""
    for name in list(os.environ):
        if name.startswith("SHIMMY_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    write_tiny_llama(tmp_path / "m")

    def run(command: str, *arguments: object, on_progress: Callable[[float], None]) -> None:
        source, target = (Path(str(arguments[index])) for index in ((0, 2) if command == "calibrate" else (0, 1)))
        assert source.exists()
        if command == "calibrate":
            write_gguf_matrix(target, MATRIX)
            Path("calibrated").touch()
        else:
            shutil.copyfile(source, target)
        on_progress(1.0)

    monkeypatch.setattr(conversion, "_run", run)


def convert(*options: str) -> int:
    return cli.main(["convert", "m", "-o", "model.gguf", *options])


def entries() -> set[str]:
    return {path.name for path in Path().iterdir()}


@pytest.mark.parametrize("options", [(), ("--type", "q8_0"), ("--type", "q4_0", "--calibrate", "text")])
@pytest.mark.parametrize("is_broken", [False, True])
def test_no_file_beside_the_output_is_touched(
    options: tuple[str, ...], is_broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {f"model.gguf.{end}" for end in ("imatrix", "lossless", "quantized", "part", "lossless.part")} | {"text"}
    for name in names:
        Path(name).write_text("mine")
    if is_broken:
        monkeypatch.setattr(conversion, "_convert", fail)
    assert convert(*options) == (1 if is_broken else 0)
    assert {name for name in names if Path(name).read_text() == "mine"} == names
    assert entries() - names - {"calibrated"} == ({"m"} if is_broken else {"m", "model.gguf"})


def fail(*_: object) -> tuple[str, ...]:
    raise Unconvertible("broken")


def test_a_given_matrix_stays(tmp_path: Path) -> None:
    matrix = write_gguf_matrix(tmp_path / "model.gguf.imatrix", MATRIX)
    content = matrix.read_bytes()
    assert convert("--type", "q4_0", "--imatrix", matrix.name) == 0
    assert matrix.read_bytes() == content


@pytest.mark.parametrize("name", ["model.gguf.imatrix", "link"])
def test_a_computed_matrix_is_kept_where_it_was_asked_for(name: str, tmp_path: Path) -> None:
    Path("text").write_text("hello")
    Path("model.gguf.imatrix").write_text("an old one")
    Path("link").symlink_to("model.gguf.imatrix")
    assert convert("--type", "q4_0", "--calibrate", "text", "--save-imatrix", name, "--force") == 0
    assert Path("model.gguf.imatrix").read_bytes() == write_gguf_matrix(tmp_path / "same", MATRIX).read_bytes()
    assert Path("link").is_symlink()
    assert entries() == {"m", "text", "model.gguf", "model.gguf.imatrix", "link", "calibrated", "same"}


@pytest.mark.parametrize(
    ("place", "code"), [("folder", 1), ("fifo", 1), ("none/file", 1), ("text", 2), ("./link", 2), ("model.gguf", 2)]
)
def test_a_matrix_that_cannot_be_kept_is_said_before_anything_is_computed(
    place: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text").write_text("hello")
    Path("link").symlink_to("text")
    Path("folder").mkdir()
    os.mkfifo("fifo")
    before = entries()
    assert convert("--type", "q4_0", "--calibrate", "text", "--save-imatrix", place) == code
    assert entries() == before
    assert Path("text").read_text() == "hello"
    assert Path(os.path.realpath(place)).name in capsys.readouterr().err


def test_a_kept_file_that_may_not_be_written_is_said_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text").write_text("hello")
    Path("kept").touch()
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path).name != "kept")  # root may write all files
    assert convert("--type", "q4_0", "--calibrate", "text", "--save-imatrix", "kept") == 1
    assert "kept` cannot be written: Permission denied" in capsys.readouterr().err
    assert "calibrated" not in entries()
    assert convert("--type", "q4_0", "--calibrate", "text", "--save-imatrix", "kept", "--force") == 0
    assert Path("kept").stat().st_size > 0


@pytest.mark.parametrize("name", ["", "-"])
def test_a_name_that_means_no_file_is_wrong_usage(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = entries()
    assert convert("-o", name) == 2
    assert f"--output: give the name of a file (got {name!r})" in capsys.readouterr().err
    assert convert("--type", "q4_0", "--calibrate", "text", "--save-imatrix", name) == 2
    assert "--save-imatrix: give the name" in capsys.readouterr().err
    assert entries() == before


def test_an_output_that_is_a_folder_is_said_first(capsys: pytest.CaptureFixture[str]) -> None:
    Path("model.gguf").mkdir()
    assert convert() == 1
    assert "`model.gguf` cannot be written: it is not a regular file" in capsys.readouterr().err


def test_a_matrix_that_cannot_be_kept_after_all_costs_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text").write_text("hello")
    before = conversion._run

    def run(command: str, *arguments: object, on_progress: Callable[[float], None]) -> None:
        before(command, *arguments, on_progress=on_progress)
        if command == "calibrate":
            Path("kept").mkdir()

    monkeypatch.setattr(conversion, "_run", run)
    assert convert("--type", "q4_0", "--calibrate", "text", "--save-imatrix", "kept") == 0
    captured = capsys.readouterr()
    assert captured.out == "model.gguf\n"
    assert "kept`: File exists" in captured.err
    assert entries() == {"m", "text", "model.gguf", "kept", "calibrated"}


def test_the_variable_of_a_server_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf_matrix(tmp_path / "matrix.gguf", MATRIX)
    Path("text").write_text("hello")
    for options in ((), ("--type", "q8_0"), ("--type", "q4_0", "--calibrate", "text"), ("--type", "q4_0")):
        monkeypatch.setenv("SHIMMY_IMATRIX", str(path))
        assert convert(*options, "--force") == 0, options
        monkeypatch.delenv("SHIMMY_IMATRIX")
        assert convert(*options, "--force", "--imatrix", str(path)) == (0 if options == ("--type", "q4_0") else 2), (
            options
        )


@pytest.fixture
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_when_a_conversion_is_ended(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(*_: object) -> None:
        assert len(entries()) == 2
        signal.raise_signal(number)

    monkeypatch.setattr(conversion, "_convert", end)
    with pytest.raises(SystemExit, match=str(128 + number)):
        convert("--type", "q8_0")
    assert entries() == {"m"}


@pytest.mark.usefixtures("_signals")
def test_a_conversion_goes_on_below_nohup(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    before = conversion._convert

    def hang_up(*arguments: Any) -> tuple[str, ...]:
        signal.raise_signal(signal.SIGHUP)
        return before(*arguments)

    monkeypatch.setattr(conversion, "_convert", hang_up)
    assert convert("--type", "q8_0") == 0


def test_a_process_is_ended_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(20)"
    monkeypatch.setattr(conversion, "own_program", lambda: [sys.executable, "-c", program])
    seen: list[int] = []

    def end(share: float) -> None:
        seen.append(int(share))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RUN("quantize", on_progress=end)
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)


# -- where it is written, and from what ------------------------------------------------------------------------------


def test_what_is_there_is_replaced_only_if_that_was_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("model.gguf").write_text("mine")
    assert convert() == 1
    assert "there is no terminal to ask: add --force" in capsys.readouterr().err
    for stream in ("stdin", "stderr"):
        monkeypatch.setattr(f"sys.{stream}.isatty", lambda: True)
    monkeypatch.setattr("sys.stdin.readline", lambda: "\n")
    assert convert() == 1
    captured = capsys.readouterr()
    assert captured.err == "`model.gguf` is there already. Replace it? [y/N] shimmy: nothing was written\n"
    assert Path("model.gguf").read_text() == "mine"
    monkeypatch.setattr("sys.stdin.readline", lambda: "y\n")
    assert convert() == 0
    made = Path("model.gguf").read_bytes()
    assert made.startswith(b"GGUF")
    Path("model.gguf").write_text("mine")
    monkeypatch.setattr("sys.stdin.readline", lambda: "never asked")
    capsys.readouterr()
    assert convert("--force") == 0
    assert "[y/N]" not in capsys.readouterr().err
    assert Path("model.gguf").read_bytes() == made


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "linked/config.json", "./m/../m/config.json"])
def test_nothing_is_written_over_the_model_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("linked").symlink_to("m")
    target = Path(name) if "/" in name else Path("m", name)
    before = {path: path.read_bytes() for path in Path("m").iterdir()}
    Path("text").write_text("hello")
    for options in (
        ("--output", str(target)),
        ("--type", "q4_0", "--calibrate", "text", "--save-imatrix", str(target)),
    ):
        assert convert(*options, "--force") == 1
        assert "it is a part of the model" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("m").iterdir()} == before


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_comes_meanwhile_is_not_replaced_unasked(
    has_links: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = conversion._convert

    def convert_and_write(*arguments: Any) -> tuple[str, ...]:
        notices = before(*arguments)
        Path("model.gguf").write_text("another's")
        return notices

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(conversion, "_convert", convert_and_write)
    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    assert convert() == 1
    assert "`model.gguf` is there already, and there is no terminal to ask" in capsys.readouterr().err
    assert Path("model.gguf").read_text() == "another's"
    Path("model.gguf").unlink()
    monkeypatch.setattr(conversion, "_convert", before)
    assert convert() == 0
    assert entries() == {"m", "model.gguf"}
    assert Path("model.gguf").stat().st_nlink == 1


def test_a_matrix_that_is_there_is_asked_for_before_anything_is_computed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("text").write_text("hello")
    Path("kept").write_text("mine")
    assert convert("--type", "q4_0", "--calibrate", "text", "--save-imatrix", "kept") == 1
    assert "kept` is there already, and there is no terminal" in capsys.readouterr().err
    assert Path("kept").read_text() == "mine"
    assert entries() == {"m", "text", "kept"}


def test_the_place_is_blamed_for_what_is_wrong_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["convert", "m", "-o", "none/model.gguf"]) == 1
    told = capsys.readouterr().err
    assert told == f"shimmy: `none/model.gguf` cannot be written: there is no folder `{Path('none').absolute()}`\n"
    Path("file").touch()
    assert cli.main(["convert", "m", "-o", "file/model.gguf"]) == 1
    assert capsys.readouterr().err == "shimmy: `file/model.gguf` cannot be written: Not a directory\n"


def test_the_place_is_blamed_when_the_file_cannot_go_there_after_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = conversion._convert

    def convert_and_block(*arguments: Any) -> tuple[str, ...]:
        Path("model.gguf").mkdir()
        return before(*arguments)

    monkeypatch.setattr(conversion, "_convert", convert_and_block)
    assert convert() == 1
    assert capsys.readouterr().err.startswith("shimmy: `model.gguf` cannot be written: ")


def test_a_folder_that_is_none_of_a_model_says_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    Path("file.gguf").write_bytes(b"GGUF")
    for name, told in (
        ("empty", "it has no `config.json`"), ("none", "there is no such folder"), ("file.gguf", "it is a file"),
    ):  # fmt: skip
        assert cli.main(["convert", name, "-o", "made.gguf"]) == 1
        assert f"`{name}` cannot be converted: {told}" in capsys.readouterr().err


@pytest.mark.parametrize("options", [(), ("--type", "q8_0")])
def test_a_folder_is_planned_once(options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Path] = []
    plan = formats_convert.plan

    def counted(folder: Path) -> formats_convert.ConversionPlan:
        planned.append(folder)
        return plan(folder)

    monkeypatch.setattr(formats_convert, "plan", counted)
    assert convert(*options) == 0
    assert planned == [Path("m")]


def test_weights_that_are_of_another_type_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(conversion, "_run", RUN)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert convert("--type", "q4_k_m") == 0
    assert re.search(
        r"shimmy: (\d+) of \1 weights are not Q4_K_M, whose blocks of 256 numbers do not fit their rows, but ",
        capsys.readouterr().err,
    )
