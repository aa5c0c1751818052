"""A SafeTensors folder as a GGUF: what is in the cache was made by what its name says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from shimmy.engine.convert_checkpoint import gguf_of
from shimmy.errors import ModelUnavailable
from shimmy.formats.convert import convert
from tests.importance_files import write_gguf_matrix
from tests.tiny_checkpoints import LLAMA_CONFIG, Weights, llama_tensors, write_checkpoint, write_tiny_llama
from tests.tiny_models import N_EMBD


def test_a_matrix_that_is_replaced_meanwhile_makes_no_file(tmp_path: Path) -> None:
    folder, cache = tmp_path / "tiny", tmp_path / "cache"
    write_tiny_llama(folder)

    def matrix(name: str, last: float) -> Path:
        return write_gguf_matrix(tmp_path / name, {"blk.0.attn_q.weight": ([1.0] * (N_EMBD - 1) + [last], [1])})

    path = matrix("matrix.gguf", 9.0)
    assert gguf_of(folder, cache, "q4_0", path, 1, lambda _: None).exists()
    matrix("matrix.gguf", 5.0)

    def replace(share: float) -> None:
        if share > 0:
            matrix("other.gguf", 7.0).replace(path)

    (before,) = (cache / "converted").iterdir()
    with pytest.raises(ModelUnavailable, match="has changed"):
        gguf_of(folder, cache, "q4_0", path, 1, replace)
    assert list((cache / "converted").iterdir()) == [before]


def test_what_unpacks_imports_nothing_of_llama_cpp() -> None:
    """A process of its own, for which that would be a tenth of its start."""
    modules = "shimmy.engine.convert_checkpoint, shimmy.formats.convert.convert, shimmy.engine.layouts.unpack"
    code = f"import sys, {modules}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = result.stdout.split()
    assert "numpy" in loaded
    assert "llama_cpp" not in loaded


def test_a_matrix_of_another_model_is_told_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, cache = tmp_path / "tiny", tmp_path / "cache"
    write_tiny_llama(folder)
    without = gguf_of(folder, cache, "q4_0", None, 1, lambda _: None).read_bytes()
    path = write_gguf_matrix(tmp_path / "other.gguf", {"blk.9.attn_q.weight": ([1.0] * N_EMBD, [1])})
    assert gguf_of(folder, tmp_path / "new", "q4_0", path, 1, lambda _: None).read_bytes() == without
    assert "`tiny` is quantised without it: the importance matrix `other.gguf` cannot be used" in caplog.text
    for file_type in (None, "q8_0"):
        assert gguf_of(folder, cache, file_type, path, 1, lambda _: None).exists()
    with pytest.raises(ModelUnavailable, match=r"`tiny` cannot be converted: the importance matrix `other.gguf`"):
        gguf_of(folder, cache, "iq2_m", path, 1, lambda _: None)


@pytest.mark.parametrize("has_matrix", [True, False])
def test_a_folder_is_planned_once(has_matrix: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, planned = tmp_path / "tiny", []
    write_tiny_llama(folder)
    plan = convert.plan

    def counted(folder: Path) -> convert.ConversionPlan:
        planned.append(folder)
        return plan(folder)

    monkeypatch.setattr(convert, "plan", counted)
    path = write_gguf_matrix(tmp_path / "matrix.gguf", {"blk.0.attn_q.weight": ([1.0] * N_EMBD, [1])})
    assert gguf_of(folder, tmp_path / "cache", "q4_0", path if has_matrix else None, 1, lambda _: None).exists()
    assert planned == [folder]


def test_the_log_says_which_types_weights_have_that_do_not_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "tiny"
    write_tiny_llama(folder)
    caplog.set_level("INFO")
    gguf_of(folder, tmp_path / "cache", "q4_k_m", None, 1, lambda _: None)
    assert re.search(r"`tiny`: (\d+) of \1 weights are not Q4_K_M, .* but Q", caplog.text)


def test_weights_that_cannot_be_quantised_are_told_of_the_model_and_not_of_a_file_in_the_making(tmp_path: Path) -> None:
    folder, tensors = write_tiny_llama(tmp_path / "tiny"), llama_tensors()
    name = "model.layers.0.self_attn.q_proj.weight"
    shape = tensors[name].shape
    write_checkpoint(folder, LLAMA_CONFIG, tensors | {name: Weights(shape, b"\xff" * (4 * shape[0] * shape[1]))})
    with pytest.raises(
        ModelUnavailable, match=r"`tiny` cannot be converted: the engine could not quantise its weights"
    ):
        gguf_of(folder, tmp_path / "cache", "q4_0", None, 1, lambda _: None)


def test_a_file_that_goes_meanwhile_is_named(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "tiny", n_shards=2)

    def remove(_: float) -> None:
        for path in folder.glob("*.safetensors"):
            path.unlink(missing_ok=True)

    with pytest.raises(
        ModelUnavailable, match=r"`tiny` cannot be converted: `model-0000\d-of-00002.safetensors`: No such"
    ):
        gguf_of(folder, tmp_path / "cache", None, None, 1, remove)
