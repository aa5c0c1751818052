"""Quantised layouts against what their own libraries read (golden/layouts.py), and the GGUF types that hold them."""

import hashlib
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shimmy.engine.layouts import unpack
from shimmy.formats.convert.settle_types import settled
from shimmy.formats.convert.transforms import TensorOutput
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.quantised.stored import Holding, StoredMatrix, StoredRows
from shimmy.formats.safetensors.checkpoint import TensorReader
from tests.engine.layouts.stored import MODULE, cases, config_of, converted, matrix_of, output_of, tensors_of, weights
from tests.quantised_llama import LAYOUTS, awq, mlx, mlx_nvfp4
from tests.tiny_checkpoints import Weights

CASES = cases()
POWERS = Holding("F16", spare="BF16")  # codes of FP8 times powers of two
HELD = {
    "fp8-tensor": Holding("F16", 2.0**-11), "fp8-row": Holding("F16", 2.0**-11), "fp8-block": Holding("F16", 2.0**-11),
    "fp8-block-bf16": Holding("F16", 2.0**-11), "fp8-block-e8m0": POWERS,
    "ct-w4a16": Holding("Q4_0"), "ct-w4a16-asymmetric": Holding("Q5_0"), "ct-w4a16-bf16": Holding("Q4_0"),
    "ct-w8a16": Holding("Q8_0"), "ct-w3a16": Holding("Q4_0"), "ct-w2a16": Holding("Q4_0"),
    "ct-w8a8": Holding("Q8_0"), "ct-w6a16": Holding("Q8_0"),
    "ct-fp8": Holding("F16", 2.0**-11), "ct-mxfp4": Holding("MXFP4"), "ct-nvfp4": Holding("NVFP4"),
    "bnb-nf4": Holding("F16", 2.0**-11), "bnb-fp4": Holding("F16", 2.0**-11),
    "bnb-nf4-nested": Holding("F16", 2.0**-11),
    "bnb-int8": Holding("Q8_0", 2.0**-11),
    "mlx-2": Holding("Q4_1"), "mlx-3": Holding("Q4_1"), "mlx-4": Holding("Q4_1"), "mlx-5": Holding("F16", 2.0**-11),
    "mlx-6": Holding("F16", 2.0**-11), "mlx-8": Holding("F16", 2.0**-11),
    "gptq-4": Holding("Q4_0"), "gptq-4-asymmetric": Holding("Q5_0"), "gptq-4-asymmetric-v1": Holding("Q5_0"),
    "gptq-4-desc-act": Holding("F16", 2.0**-11), "gptq-8": Holding("Q8_0"), "gptq-3": Holding("Q4_0"),
    "gptq-2": Holding("Q4_0"), "gptq-5": Holding("Q5_0"), "gptq-6": Holding("Q8_0"),
    "gptq-7-desc-act": Holding("F16", 2.0**-11), "gptq-3-planes": Holding("Q4_0"), "gptq-4-planes": Holding("Q5_0"),
    "ct-mxfp8": POWERS, "ct-fp8-group": Holding("F16", 2.0**-11), "modelopt-mxfp8": POWERS,
    "mlx-mxfp4": Holding("MXFP4"), "mlx-mxfp8": POWERS, "mlx-nvfp4": Holding("NVFP4"),
    "torchao-int8": Holding("Q8_0", 2.0**-11), "torchao-int4": Holding("Q8_0", 2.0**-11),
    "torchao-fp8": Holding("F16", 2.0**-11),
    "modelopt-nvfp4": Holding("NVFP4"), "awq": Holding("Q5_0"),
    # Zero points as far from the middle as this take nine bits.
    "ct-w8a8-asymmetric": Holding("F16", 2.0**-11),
}  # fmt: skip


def found(name: str, path: Path) -> StoredMatrix:
    case = CASES[name]
    matrix = matrix_of(path / "model.safetensors", config_of(case), tensors_of(case), tuple(case["shape"]))
    assert matrix is not None
    return matrix


def holding(matrix: StoredMatrix) -> Holding:
    with TensorReader() as reader:
        return unpack.holding(output_of(matrix), reader)


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("name", CASES)
def test_weights_are_what_the_layouts_own_library_reads(name: str, tmp_path: Path) -> None:
    """To the last bit of F32."""
    read = weights(output_of(found(name, tmp_path)))
    assert hashlib.sha256((read + np.float32(0)).tobytes()).hexdigest() == CASES[name]["sha256"]


def compressed(strategy: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": strategy, **weights}}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}}


def modelopt_mixed(algorithm: str) -> dict[str, Any]:
    layers = {"lm_head": {"quant_algo": "W4A16_AWQ"}, MODULE: {"quant_algo": algorithm, "group_size": 16}}
    return {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}


GPTQ_4 = {key: value for key, value in CASES["gptq-4"]["config"].items() if key not in {"bits", "group_size"}}


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("name", "settings", "renamed"),
    [
        ("fp8-tensor", {"quant_method": "modelopt", "quant_algo": "FP8"}, {}),
        ("fp8-tensor", {"quant_method": "modelopt", "quantization": {"quant_algo": "FP8"}}, {}),
        ("fp8-row", {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, {}),
        ("modelopt-nvfp4", {"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4"}, {}),
        ("ct-mxfp8", {"quant_method": "modelopt", "quant_algo": "MXFP8"}, {}),
        ("fp8-tensor", modelopt_mixed("FP8"), {}),
        ("modelopt-mxfp8", modelopt_mixed("MXFP8"), {}),
        ("modelopt-nvfp4", modelopt_mixed("NVFP4"), {}),
        ("fp8-tensor", compressed("tensor"), {}),
        ("fp8-row", compressed("channel"), {}),
        ("fp8-row", {"quant_method": "fp8"}, {}),
        ("fp8-block", compressed("block", block_structure=[128, 128]), {"weight_scale_inv": "weight_scale"}),
        ("fp8-block-e8m0", {**CASES["fp8-block-e8m0"]["config"], "scale_fmt": "ue8m0"}, {}),
        ("gptq-4", {**GPTQ_4, "bits": 8, "group_size": -1, "dynamic": {"+:.*up": {"bits": 4, "group_size": 32}}}, {}),
        ("gptq-4", {**GPTQ_4, "bits": 4, "group_size": 32, "dynamic": {"-:.*lm_head": {}, ".*down": {"bits": 8}}}, {}),
        ("ct-mxfp4", {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized", "config_groups": {
            "a": {"targets": ["re:.*down_proj"], "weights": {"num_bits": 8, "type": "int"}, "format": "int-quantized"},
            "b": {"targets": ["re:.*up_proj"], "weights": {"num_bits": 4, "type": "float", "group_size": 32}},
        }}, {}),
    ],
    ids=str,
)  # fmt: skip
def test_another_tool_writes_the_same_under_other_names(
    name: str, settings: dict[str, Any], renamed: dict[str, str], tmp_path: Path
) -> None:
    case = CASES[name]
    tensors = {
        f"{MODULE}.{renamed.get(part.removeprefix(f'{MODULE}.'), part.removeprefix(f'{MODULE}.'))}": tensor
        for part, tensor in tensors_of(case).items()
    }
    config = {"quantization_config": settings}
    matrix = matrix_of(tmp_path / "model.safetensors", config, tensors, tuple(case["shape"]))
    assert matrix is not None
    assert hashlib.sha256((weights(output_of(matrix)) + np.float32(0)).tobytes()).hexdigest() == case["sha256"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mlx-8", {"bits": 8}),
        ("mlx-8", {"bits": 8, "group_size": 64, "mode": "affine"}),
        ("mlx-mxfp4", {"mode": "mxfp4"}),
        ("mlx-mxfp4", True),
        ("mlx-mxfp8", {"mode": "mxfp8", "quantize_input": False}),
        ("mlx-nvfp4", {"mode": "nvfp4", "bits": 4}),
    ],
    ids=str,
)
def test_settings_of_a_module_of_mlx_stand_for_those_of_all(name: str, settings: Any, tmp_path: Path) -> None:
    """As MLX has it: what is not among them is the mode's, and the mode is `affine`. So are gpt-oss's conversions."""
    case = CASES[name]
    shared = {"group_size": 32, "bits": 4, "mode": "mxfp4", "quant_method": "mxfp4", MODULE: settings}
    config = {"quantization": shared, "quantization_config": shared}
    matrix = matrix_of(tmp_path / "model.safetensors", config, tensors_of(case), tuple(case["shape"]))
    assert matrix is not None
    assert hashlib.sha256((weights(output_of(matrix)) + np.float32(0)).tobytes()).hexdigest() == case["sha256"]


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("name", CASES)
def test_the_type_of_the_gguf_holds_the_weights(name: str, tmp_path: Path) -> None:
    matrix = found(name, tmp_path)
    if matrix.apart and matrix.layout == "fp4":
        matrix = matrix.divided()  # as NVFP4 needs it
    held = holding(matrix)
    assert held == HELD[name]
    exact, read = (weights(output_of(matrix, kind)) for kind in ("F32", held.kind))
    if held.error:
        assert (read != exact).any()
        assert (np.abs(read - exact) <= held.error * np.abs(exact) + 2.0**-25).all()
    else:
        assert (read == exact).all()


@pytest.mark.parametrize("name", CASES)
def test_the_parent_expects_what_the_worker_finds(name: str, tmp_path: Path) -> None:
    """But for zero points and scales, which are not in the headers: there more room is expected."""
    matrix = found(name, tmp_path)
    held = holding(matrix.divided() if matrix.apart and matrix.layout == "fp4" else matrix.whole())
    expected = matrix if matrix.layout == "fp4" else matrix.whole()
    order = ("MXFP4", "NVFP4", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "BF16", "F16")
    assert order.index(held.kind) <= order.index(expected.expected)
    assert held.error <= expected.error


@pytest.mark.parametrize("name", CASES)
def test_rows_are_reordered_as_plain_ones_are(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`w.reshape(n_heads, 2, ...).swapaxes(1, 2)`, in one chunk or in many, which threads compute."""
    matrix = found(name, tmp_path)
    exact = weights(output_of(matrix))
    monkeypatch.setattr(unpack, "CHUNK_BYTES", 1)
    for slab_bytes in (unpack.SLAB_BYTES, 1):
        monkeypatch.setattr(unpack, "SLAB_BYTES", slab_bytes)
        assert (weights(output_of(matrix)) == exact).all()
    monkeypatch.setattr(unpack, "_READ_BYTES", 0)  # columns are read one by one
    assert (weights(output_of(matrix)) == exact).all()
    n_rows = matrix.shape[0]
    for kind in ("F32", holding(matrix).kind):
        held = weights(output_of(matrix, kind))
        wanted = held.reshape(4, 2, n_rows // 8, -1).swapaxes(1, 2).reshape(exact.shape)
        assert (weights(output_of(matrix, kind, n_heads=4)) == wanted).all()


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({}, "none of its `quantized_layers`"),
        ({MODULE: {"quant_algo": "NVFP4_AWQ"}}, "NVFP4_AWQ"),
        ({MODULE: {"quant_algo": "FP8"}}, "in U8, where F8_E4M3 belongs"),
        ({MODULE: None}, "none of its `quantized_layers`"),
        (None, "MIXED_PRECISION"),
    ],
)
def test_modules_of_modelopt_that_are_not_named_are_refused(layers: Any, words: str, tmp_path: Path) -> None:
    case = CASES["modelopt-nvfp4"]
    settings = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    with pytest.raises(Unconvertible, match=words):
        matrix_of(tmp_path / "m.safetensors", {"quantization_config": settings}, tensors_of(case), (64, 128))


@pytest.mark.parametrize(("group", "kind"), [(16, "F16"), (32, "Q5_0"), (-1, "Q5_0")])
def test_groups_of_awq_may_be_of_any_length(group: int, kind: str, tmp_path: Path) -> None:
    stored, exact = awq(np.random.default_rng(0), 64, 96, group=96 if group == -1 else group)
    config = {"quantization_config": {**LAYOUTS["awq"][1], "group_size": group}}
    tensors = {f"{MODULE}.{name}": part for name, part in stored.items()}
    matrix = matrix_of(tmp_path / "model.safetensors", config, tensors, (64, 96))
    assert matrix is not None
    assert holding(matrix).kind == kind
    assert (weights(output_of(matrix)) == exact).all()
    assert np.abs(weights(output_of(matrix, kind)) - exact).max() <= 2.0**-11 * np.abs(exact).max()


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("write", "settings", "kind"),
    [
        (partial(mlx, bits=1), {"bits": 1, "group_size": 32}, "Q4_1"),
        (mlx_nvfp4, {"bits": 4, "group_size": 16, "mode": "nvfp4"}, "F16"),  # whose blocks have 64 columns
    ],
    ids=["1 bit", "NVFP4"],
)
def test_mlx_has_rows_and_bits_that_its_own_library_seldom_writes(
    write: Any, settings: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    stored, exact = write(np.random.default_rng(0), 64, 96 if kind == "F16" else 128)
    config = {"quantization": settings, "quantization_config": settings}
    tensors = {f"{MODULE}.{name}": part for name, part in stored.items()}
    matrix = matrix_of(tmp_path / "model.safetensors", config, tensors, exact.shape)
    assert matrix is not None
    assert (matrix.expected, holding(matrix).kind) == (kind, kind)
    assert (weights(output_of(matrix)) == exact).all()
    assert np.abs(weights(output_of(matrix, kind)) - exact).max() <= 2.0**-11 * np.abs(exact).max()


@pytest.mark.parametrize("storage", ["BF16", "F16", "F32"])
def test_codes_of_bitsandbytes_may_be_stored_under_another_types_name(storage: str, tmp_path: Path) -> None:
    """`bnb_4bit_quant_storage`."""
    case = CASES["bnb-nf4"]
    tensors = tensors_of(case)
    name = f"{MODULE}.weight"
    data = tensors[name].data
    tensors[name] = Weights((len(data) // (4 if storage == "F32" else 2), 1), data, storage)
    matrix = matrix_of(tmp_path / "model.safetensors", config_of(case), tensors, tuple(case["shape"]))
    assert matrix is not None
    assert (weights(output_of(matrix)) == weights(output_of(found("bnb-nf4", tmp_path)))).all()


@pytest.mark.parametrize("name", CASES)
def test_rows_at_the_end_can_be_left_out(name: str, tmp_path: Path) -> None:
    """As those of a vocabulary that was filled up to a round number."""
    matrix = found(name, tmp_path)
    exact = weights(output_of(matrix))
    n_rows = matrix.shape[0] - 3
    for kind in ("F32", holding(matrix).kind):
        part = weights(output_of(matrix, kind, rows=StoredRows(matrix, 0, n_rows)))
        assert (part == weights(output_of(matrix, kind))[:n_rows]).all()
    assert part.shape == exact[:n_rows].shape


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("code", "exponent", "kind"),
    [
        (0x01, 127 - 15, "F16"),
        (0x01, 127 - 16, "BF16"),  # the smallest number of FP8 becomes one that F16 does not have
        (0x02, 127 - 16, "F16"),
        (0x7E, 127 - 20, "F16"),
        (0x00, 0, "F16"),
        (0x01, 0, "BF16"),  # and is off by 2^-136
    ],
)
@pytest.mark.parametrize("name", ["fp8-block-e8m0", "ct-mxfp8", "modelopt-mxfp8", "mlx-mxfp8"])
def test_powers_of_two_become_bf16_where_f16_does_not_hold_each_weight(
    name: str, code: int, exponent: int, kind: str, tmp_path: Path
) -> None:
    """The codes of the last block are `code`."""
    case = CASES[name]
    tensors = tensors_of(case)
    codes, scales = (
        next(key for key, one in tensors.items() if one.dtype in dtypes and ("scale" in key) == is_scale)
        for dtypes, is_scale in ((("F8_E4M3", "U32"), False), (("U8", "F8_E8M0"), True))
    )
    shape = tuple(case["shape"])
    grid = tensors[scales].shape
    block = [-(-size // n) for size, n in zip(shape, grid, strict=True)]
    numbers = np.frombuffer(tensors[codes].data, np.uint8).reshape(shape).copy()
    numbers[(grid[0] - 1) * block[0] :, (grid[1] - 1) * block[1] :] = code
    exponents = np.frombuffer(tensors[scales].data, np.uint8).copy()
    exponents[-1] = exponent
    tensors[codes] = Weights(tensors[codes].shape, numbers.tobytes(), tensors[codes].dtype)
    tensors[scales] = Weights(grid, exponents.tobytes(), tensors[scales].dtype)
    matrix = matrix_of(tmp_path / "model.safetensors", config_of(case), tensors, shape)
    assert matrix is not None
    assert holding(matrix).kind == kind
    assert (
        np.abs(weights(output_of(matrix, kind)) - weights(output_of(matrix))).max()
        <= (code and not exponent) * 2.0**-136
    )


def test_experts_of_which_f16_does_not_hold_one_become_bf16_together(tmp_path: Path) -> None:
    one = found("mlx-mxfp8", tmp_path)
    tensors = tensors_of(CASES["mlx-mxfp8"])
    scales = f"{MODULE}.scales"
    tensors[scales] = Weights(tensors[scales].shape, bytes([127 - 30]) * len(tensors[scales].data), "U8")
    other = matrix_of(tmp_path / "other.safetensors", config_of(CASES["mlx-mxfp8"]), tensors, one.shape)
    assert other is not None
    for experts in ((one, other), (other, one), (one, other, one)):
        output = replace(output_of(one), stored=tuple(StoredRows(matrix, 0, one.shape[0]) for matrix in experts))
        with TensorReader() as reader:
            assert unpack.holding(output, reader) == Holding("BF16")


@pytest.mark.parametrize("n_checked", [1, unpack.CHECKED_ELEMENTS])
def test_each_expert_has_its_own_power_of_two(n_checked: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the engine multiplies with such numbers, and the range of F16 is wide enough for each of them."""
    monkeypatch.setattr(unpack, "CHECKED_ELEMENTS", n_checked)
    one = found("mlx-mxfp8", tmp_path)

    def with_exponents(name: str, *powers: int) -> StoredMatrix:
        tensors = tensors_of(CASES["mlx-mxfp8"])
        scales = tensors[f"{MODULE}.scales"]
        data = bytes(127 + powers[place % len(powers)] for place in range(len(scales.data)))
        tensors[f"{MODULE}.scales"] = Weights(scales.shape, data, "U8")
        matrix = matrix_of(tmp_path / f"{name}.safetensors", config_of(CASES["mlx-mxfp8"]), tensors, one.shape)
        assert matrix is not None
        return matrix

    def made_of(*experts: StoredMatrix) -> list[TensorOutput]:
        weight, stored = output_of(one, "F16"), tuple(StoredRows(matrix, 0, one.shape[0]) for matrix in experts)
        info = replace(weight.info, shape=(one.shape[1], one.shape[0] * len(experts)))
        weight = replace(weight, info=info, stored=stored)
        return [*settled([weight, replaced(weight)], "", unpack)]

    small, large = with_exponents("small", -33, -33, -30, -31, -32), with_exponents("large", 20)
    weight, beside = made_of(one, small, small, large)
    assert (weight.info.kind, beside.info.kind) == ("F16", "F32")
    numbers = np.frombuffer(converted(beside), np.float32)
    assert [*numbers] == [1, 2.0**-22, 2.0**-22, 2.0**28]
    exact = np.concatenate([weights(output_of(matrix)) for matrix in (one, small, small, large)])
    assert np.array_equal(weights(weight) * np.repeat(numbers, one.shape[0])[:, None], exact)

    wide = with_exponents("wide", -8, -30)
    for experts, kind in (((one, one), "F16"), ((one, wide), "BF16"), ((small.whole(), small.whole()), "BF16")):
        (weight,) = made_of(*experts)  # and no number
        assert weight.info.kind == kind


def test_every_second_row_is_taken(tmp_path: Path) -> None:
    matrix = found("ct-mxfp4", tmp_path)
    exact = weights(output_of(matrix))
    n_half = matrix.shape[0] // 2
    for first in (0, 1):
        rows = StoredRows(matrix, first, n_half, stride=2)
        assert (weights(output_of(matrix, rows=rows)) == exact[first::2]).all()


@pytest.mark.parametrize("name", ["fp8-tensor", "ct-nvfp4", "modelopt-nvfp4"])
def test_a_number_for_all_weights_can_lie_beside_them(name: str, tmp_path: Path) -> None:
    """The codes alone are exact in F16 or NVFP4; with the number, they are the weights."""
    matrix = found(name, tmp_path)
    exact = weights(output_of(matrix))
    divided = matrix.divided()
    held = holding(divided)
    assert held == Holding("NVFP4" if "nvfp4" in name else "F16")
    output = output_of(divided, held.kind)
    beside = replaced(output)
    (number,) = np.frombuffer(converted(beside), np.float32)
    assert np.allclose(weights(output) * number, exact, rtol=3e-7, atol=0)


def replaced(output: Any) -> Any:
    """The tensor with the number beside the weights."""
    from shimmy.formats.gguf.writer import GGML_CODES, TensorInfo

    return replace(output, info=TensorInfo("blk.0.ffn_up.scale", (1,), GGML_CODES["F32"]))


@pytest.mark.parametrize("key", ["nested_offset", "nested_blocksize", "blocksize", "shape", "quant_type"])
@pytest.mark.parametrize(
    "value", [10**400, -(10**400), 10**39, math.nan, math.inf, True, "1", None, [], {}, [10**400], 0.5e400]
)
def test_an_odd_number_in_the_state_of_bitsandbytes_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    case = CASES["bnb-nf4-nested"]
    tensors = tensors_of(case)
    name = f"{MODULE}.weight.quant_state.bitsandbytes__nf4"
    state = json.dumps(json.loads(tensors[name].data) | {key: value}).encode()
    tensors[name] = Weights((len(state),), state, "U8")
    matrix = matrix_of(tmp_path / "model.safetensors", config_of(case), tensors, tuple(case["shape"]))
    assert matrix is not None
    with pytest.raises(Unconvertible):
        holding(matrix)
