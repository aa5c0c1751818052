"""Folders that mlx-lm has written become what the folders become that these were made from."""

import re
from pathlib import Path

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.layouts import unpack
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend
from shimmy.formats.convert.convert import plan, prepared
from shimmy.formats.convert.transforms import chunks
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf.writer import TensorInfo
from shimmy.formats.safetensors.checkpoint import TensorReader
from tests.formats.convert.test_families import converted, worst
from tests.golden.tolerances import tolerance
from tests.golden.weights import checkpoint, write_folder, write_safetensors
from tests.mlx_folders import FAMILIES, write_plain, write_quantised

MULTIPLIED = tuple(family for family in FAMILIES if family.startswith("falcon-h1"))  # by MLX, which rounds
SAME = tuple(family for family in FAMILIES if family not in MULTIPLIED)


def contents(folder: Path, target_type: str = "") -> tuple[dict[TensorInfo, bytes], object]:
    """What the GGUF of `folder` is to have: its tensors, and its metadata."""
    settled, _ = prepared(plan(folder), target_type, lambda: unpack)
    with TensorReader() as reader:
        return {
            output.info: b"".join(map(bytes, (unpack.chunks if output.stored else chunks)(output, reader)))
            for output in settled.recipe.outputs
        }, settled.recipe.metadata


@pytest.mark.parametrize("family", SAME)
def test_plain_weights_become_what_those_of_transformers_become(family: str, tmp_path: Path) -> None:
    assert contents(write_plain(family, tmp_path / "mlx")) == contents(write_folder(family, tmp_path / "own", "5"))


@pytest.mark.parametrize("family", FAMILIES)
def test_quantised_weights_become_the_numbers_that_they_are(family: str, tmp_path: Path) -> None:
    stored, plain = write_quantised(family, tmp_path)
    assert any(output.stored for output in plan(stored).recipe.outputs)
    assert contents(stored, "f32") == contents(plain, "f32")


def test_a_tensor_that_mlx_leaves_out_is_told_as_that(tmp_path: Path) -> None:
    """It was told as a download that is not complete, and fetching it again does not help."""
    with pytest.raises(Unconvertible, match=r"e_score_correction_bias` is missing: mlx-lm .*converted from"):
        plan(write_plain("ernie-moe", tmp_path / "plain"))
    stored, _ = write_quantised("ernie-moe", tmp_path / "quantised")
    with pytest.raises(Unconvertible, match="mlx-lm leaves it out"):
        plan(stored)
    folder = write_folder("ernie-moe", tmp_path / "own", "5")
    _, tensors = checkpoint("ernie-moe", "5")
    write_safetensors(folder / "model.safetensors", {k: v for k, v in tensors.items() if "e_score" not in k})
    with pytest.raises(Unconvertible, match="is the download complete"):
        plan(folder)


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen25-vl", "qwen3-vl", "qwen35-multimodal", "glm4v", "glm4v-moe"])
def test_the_eyes_that_mlx_vlm_keeps_are_left_out(family: str, tmp_path: Path) -> None:
    _, tensors = checkpoint(family, "5")
    assert any("visual." in name for name in tensors)
    eyes = {re.sub(r"^(?:model\.)?visual\.", "vision_tower.", name): tensor for name, tensor in tensors.items()}
    folder = write_folder(family, tmp_path / "mlx", "5")
    write_safetensors(folder / "model.safetensors", eyes)
    assert contents(folder) == contents(write_folder(family, tmp_path / "own", "5"))


def test_kernels_of_which_some_alone_are_turned_are_not_taken_for_those_of_mlx(tmp_path: Path) -> None:
    """Its norms have 1 added; those of transformers have not."""
    own = write_folder("qwen3-next", tmp_path / "own", "5")
    _, tensors = checkpoint("qwen3-next", "5")
    name = next(name for name in tensors if name.endswith(".conv1d.weight"))
    dtype, (n_channels, _, n_numbers), data = tensors[name]
    folder = write_folder("qwen3-next", tmp_path / "mixed", "5")
    write_safetensors(folder / "model.safetensors", tensors | {name: (dtype, (n_channels, n_numbers, 1), data)})
    assert contents(folder) == contents(own)


@pytest.mark.parametrize("family", [*MULTIPLIED, "qwen3-next"])
def test_the_engine_computes_the_same_model(family: str, tmp_path: Path) -> None:
    cpu = CpuBackend(variants.libraries(LIBRARY_FOLDER, None))
    path = converted(write_plain(family, tmp_path / "mlx"), "f32")
    assert worst(path, family, cpu, exact=True) < tolerance(family, exact=True)
