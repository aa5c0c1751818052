"""Quantised weights of families whose rows and columns come out of a checkpoint in another order."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shimmy.engine.layouts import unpack
from shimmy.formats.convert.convert import plan, prepared
from shimmy.formats.convert.transforms import TensorOutput, chunks
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.safetensors.checkpoint import TensorReader
from tests.golden.weights import Tensor, checkpoint, write_folder, write_json, write_safetensors
from tests.quantised_families import write_both
from tests.quantised_llama import LAYOUTS, fp8_block, mlx

KINDS = {0: "<f4", 1: "<f2"}  # by ggml_type
INDEXED = {"deepseek32", "glm-dsa"}
LATENT = {"deepseek2", "kimi-linear", "kimi-k3", "bailingmoe3", *INDEXED}


def numbers(output: TensorOutput, reader: TensorReader) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    found = unpack.chunks(output, reader) if output.stored else chunks(output, reader)
    data = b"".join(bytes(chunk) for chunk in found)
    return np.frombuffer(data, KINDS[output.info.code]).astype(np.float32)


@pytest.mark.parametrize("layout", ["fp8-tensor", "pack-quantized", "mxfp4"])
@pytest.mark.parametrize("family", [
    "qwen3-next", "qwen35", "ministral3", "glm4-moe", "gemma4", "deepseek2-lite", "deepseek3", "ling1",
    "deepseek32", "glm-dsa", "kimi-linear", "kimi-k3", "minimax-m3", "ling3-low-rank",
])  # fmt: skip
def test_each_weight_is_where_it_would_be_without(family: str, layout: str, tmp_path: Path) -> None:
    check_weights(*write_both(family, layout, tmp_path))


@pytest.mark.parametrize("family", ["deepseek3", "deepseek32", "glm-dsa"])
def test_each_weight_of_blocks_is_where_it_would_be_without(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As DeepSeek publishes them: with blocks that end where the parts of heads for keys and for values do."""
    settings = LAYOUTS["fp8-block"][1] | {"weight_block_size": [4, 32]}
    monkeypatch.setitem(LAYOUTS, "fp8-block", (partial(fp8_block, block=(4, 32)), settings))
    check_weights(*write_both(family, "fp8-block", tmp_path))


@pytest.mark.parametrize(("family", "layout"), [("kimi-k3", "mxfp4"), ("minimax-m3", "mxfp8")])
def test_experts_are_taken_as_their_publishers_have_them(family: str, layout: str, tmp_path: Path) -> None:
    check_weights(*write_both(family, layout, tmp_path, experts_alone=True), experts_alone=True)


def check_weights(stored_folder: Path, plain_folder: Path, *, experts_alone: bool = False) -> None:
    stored, plain = plan(stored_folder), plan(plain_folder)
    names = [output.info.name for output in stored.recipe.outputs if output.stored]
    if experts_alone:
        assert names
        assert all("_exps." in name for name in names)
    else:
        assert any(".attn_k_b." in name for name in names) == (stored.architecture in LATENT)
        assert any(".indexer.attn_k." in name for name in names) == (stored.architecture in INDEXED)
    settled, _ = prepared(stored, "f32", lambda: unpack)
    wanted = {output.info.name: output for output in plain.recipe.outputs}
    assert {output.info.name for output in settled.recipe.outputs} == wanted.keys()
    with TensorReader() as reader:
        for output in settled.recipe.outputs:
            assert np.array_equal(numbers(output, reader), numbers(wanted[output.info.name], reader)), output.info.name


def test_gpt_oss_as_mlx_converts_it_is_the_same_model(tmp_path: Path) -> None:
    """Gate and up apart, all experts in one tensor, and 8 bits for the router, in the mode that is not named."""
    config, tensors = checkpoint("gpt-oss", "5")
    shared: dict[str, Any] = {"group_size": 32, "bits": 4, "mode": "mxfp4", "quant_method": "mxfp4"}
    renamed: dict[str, Tensor] = {}
    plain = dict(tensors)
    for name, (dtype, shape, data) in tensors.items():
        array = np.frombuffer(data, "u1" if dtype == "U8" else "<f4").reshape(shape)
        if name.endswith("mlp.router.weight"):
            module = name.removesuffix(".weight")
            parts, read = mlx(np.random.default_rng(3), *shape, bits=8, group=64)
            renamed |= {f"{module}.{part}": (found.dtype, found.shape, found.data) for part, found in parts.items()}
            plain[name] = ("F32", shape, read.tobytes())
            shared[module] = {"group_size": 64, "bits": 8}
        elif ".experts." not in name:
            renamed[name] = (dtype, shape, data)
        else:
            source, _, kind = name.rpartition("_")
            array = array.reshape(*shape[:2], -1).view("<u4") if kind == "blocks" else array
            part = {"blocks": "weight", "scales": "scales", "bias": "bias"}[kind]
            for index, own in enumerate(("gate_proj", "up_proj") if "gate_up" in source else ("down_proj",)):
                found = array[:, index::2] if "gate_up" in source else array
                place = f"{source.rpartition('.')[0]}.{own}.{part}"
                renamed[place] = ("U32" if kind == "blocks" else dtype, found.shape, found.tobytes())
    made = []
    by_mlx = {"quantization": shared, "quantization_config": shared}
    for folder, stored, settings in ((tmp_path / "mlx", renamed, by_mlx), (tmp_path / "own", plain, {})):
        write_folder("gpt-oss", folder, "5")
        write_json(folder / "config.json", config | settings)
        write_safetensors(folder / "model.safetensors", stored)
        settled, _ = prepared(plan(folder), "", lambda: unpack)
        with TensorReader() as reader:
            made.append({
                output.info: b"".join(map(bytes, (unpack.chunks if output.stored else chunks)(output, reader)))
                for output in settled.recipe.outputs
            })  # fmt: skip
    assert made[0] == made[1]


def test_columns_in_another_order_need_numbers(tmp_path: Path) -> None:
    """Blocks of 32 columns with one scale are no such blocks when heads of 16 have changed places."""
    folder, _ = write_both("qwen35", "pack-quantized", tmp_path)
    settled, _ = prepared(plan(folder), "", lambda: unpack)
    kinds = {output.info.name: output.info.kind for output in settled.recipe.outputs}
    assert (kinds["blk.0.ssm_out.weight"], kinds["blk.0.attn_qkv.weight"]) == ("F16", "Q4_0")


def test_what_is_transposed_needs_numbers(tmp_path: Path) -> None:
    folder, _ = write_both("deepseek3", "pack-quantized", tmp_path)
    planned = plan(folder)
    for found in (planned, prepared(planned, "", lambda: unpack)[0]):
        kinds = {output.info.name: output.info.kind for output in found.recipe.outputs}
        assert (kinds["blk.0.attn_k_b.weight"], kinds["blk.0.attn_v_b.weight"]) == ("F16", "Q4_0")


@pytest.mark.parametrize("layout", ["fp8-block", "gptq"])
@pytest.mark.parametrize("family", ["qwen35", "deepseek3"])
def test_blocks_that_end_within_a_head_are_refused(family: str, layout: str, tmp_path: Path) -> None:
    folder, _ = write_both(family, layout, tmp_path)
    with pytest.raises(Unconvertible, match="heads"):
        plan(folder)
