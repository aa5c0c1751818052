"""Quantised weights of families whose rows and columns come out of a checkpoint in another order."""

from pathlib import Path

import numpy as np
import pytest

from shimmy.engine.layouts import unpack
from shimmy.formats.convert.convert import plan, prepared
from shimmy.formats.convert.transforms import TensorOutput, chunks
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.safetensors.checkpoint import TensorReader
from tests.quantised_families import write_both

KINDS = {0: "<f4", 1: "<f2"}  # by ggml_type


def numbers(output: TensorOutput, reader: TensorReader) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    found = unpack.chunks(output, reader) if output.stored else chunks(output, reader)
    data = b"".join(bytes(chunk) for chunk in found)
    return np.frombuffer(data, KINDS[output.info.code]).astype(np.float32)


@pytest.mark.parametrize("layout", ["fp8-tensor", "pack-quantized", "mxfp4"])
@pytest.mark.parametrize("family", ["qwen3-next", "qwen35", "ministral3", "glm4-moe", "gemma4"])
def test_each_weight_is_where_it_would_be_without(family: str, layout: str, tmp_path: Path) -> None:
    stored, plain = (plan(folder) for folder in write_both(family, layout, tmp_path))
    settled, _ = prepared(stored, "f32", lambda: unpack)
    wanted = {output.info.name: output for output in plain.recipe.outputs}
    assert {output.info.name for output in settled.recipe.outputs} == wanted.keys()
    with TensorReader() as reader:
        for output in settled.recipe.outputs:
            assert np.array_equal(numbers(output, reader), numbers(wanted[output.info.name], reader)), output.info.name


def test_columns_in_another_order_need_numbers(tmp_path: Path) -> None:
    """Blocks of 32 columns with one scale are no such blocks when heads of 16 have changed places."""
    folder, _ = write_both("qwen35", "pack-quantized", tmp_path)
    settled, _ = prepared(plan(folder), "", lambda: unpack)
    kinds = {output.info.name: output.info.kind for output in settled.recipe.outputs}
    assert (kinds["blk.0.ssm_out.weight"], kinds["blk.0.attn_qkv.weight"]) == ("F16", "Q4_0")


@pytest.mark.parametrize("layout", ["fp8-block", "gptq"])
def test_blocks_that_end_within_a_head_are_refused(layout: str, tmp_path: Path) -> None:
    folder, _ = write_both("qwen35", layout, tmp_path)
    with pytest.raises(Unconvertible, match="heads"):
        plan(folder)
