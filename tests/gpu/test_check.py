"""What runs on a machine with a GPU, run here without one: the processor is compared with itself."""

import json
import sys
from pathlib import Path

import pytest

from tests.gpu import check
from tests.gpu.check import Choice, Failed
from tools.portable.contents import with_files

ONE = [Choice("a", "a", 2.0, -0.5), Choice("b", "c", 0.1, -1.5), Choice("d", "d", 1.0, -0.25)]


def test_other_choices_count_where_the_processor_is_sure() -> None:
    same = check.compare([(ONE, ONE), (ONE, ONE)])
    assert same == {"n_positions": 6, "n_clear": 4, "n_other_choices": 0, "largest_difference": 0.0}
    device = [ONE[0], ONE[1]._replace(first="b"), ONE[2]._replace(first="e", likely=-1.0)]
    told = check.compare([(device, ONE)])
    assert (told["n_other_choices"], told["largest_difference"]) == (1, 0.75)
    with pytest.raises(Failed, match="other tokens"):
        check.compare([(device[:2], ONE)])


def test_the_library_is_taken_out_of_the_file(tmp_path: Path) -> None:
    archive = b"MEI\014\013\012\013\016" + (88).to_bytes(4, "big") + bytes(8)
    plain = b"bootloader" + archive.ljust(88, b"\0")
    program = tmp_path / "program"
    program.write_bytes(with_files(plain, {"cuda.so": b"the library", "cuda.sha256": b"1 2\n"}))
    assert check.library_of(program, tmp_path).read_bytes() == b"the library"
    program.write_bytes(plain)
    with pytest.raises(Failed, match="no CUDA"):
        check.library_of(program, tmp_path)


@pytest.mark.thorough  # it starts four programs
def test_a_model_is_compared_and_measured(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m shimmy "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(check, "STREAMS", (2,))
    monkeypatch.setattr(check, "N_STREAMED", 4)
    monkeypatch.setattr(check, "LONG", "The river runs. ")
    monkeypatch.setattr(check, "PROMPTS", ("hello", "the"))
    monkeypatch.setattr(check, "has_cublas", lambda: False)
    out = tmp_path / "results"
    monkeypatch.setattr(sys, "argv", ["check.py", "--device", "none", "--out", str(out), str(program), str(tiny_model)])
    assert check.main() == 0, capsys.readouterr().out
    (told,) = json.loads((out / "results.json").read_text())["models"].values()
    assert told["own"]["n_other_choices"] == 0
    assert told["own"]["n_positions"] > 50
    assert told["own"]["tokens_per_s_2"] > 0
    assert told["own"]["first_token_ms"] >= 0


def test_a_device_that_cannot_be_used_is_a_fault(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho \'{"devices": [{"name": "CUDA0", "unusable": "it is old"}], "reason": ""}\'\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", ["check.py", "--out", str(tmp_path), str(program), str(tiny_model)])
    assert check.main() == 1
    assert "FAULT: CUDA0 cannot be used" in capsys.readouterr().out
