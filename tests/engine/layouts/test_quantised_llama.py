"""Llamas with quantised weights: what becomes of them, what they compute, and what is refused."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shimmy.engine.convert_checkpoint import unpacker
from shimmy.engine.cpu_variants import variants
from shimmy.engine.layouts import unpack
from shimmy.engine.llama import binding
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.formats.convert.convert import cached, convert, plan, prepared
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf import reader
from tests import quantised_families, tiny_families
from tests.converted_files import tensors_of, weights_of
from tests.quantised_llama import LAYOUTS, quantised, write_both
from tests.tiny_checkpoints import LLAMA_CONFIG, Weights, write_checkpoint, write_tokenizer

TOKENS = [1, 7, 40, 99, 12, 300, 5, 77]
# The type of most weights, and the largest error of a weight that the model's page names, in per cent.
BECOMES = {
    "fp8-tensor": ("F16", None), "fp8-block": ("F16", "0.049"), "gptq": ("Q4_0", None),
    "gptq-desc-act": ("F16", "0.049"), "awq": ("Q5_0", None), "pack-quantized": ("Q4_0", None),
    "int-quantized": ("Q8_0", "0.049"),
    "mxfp4": ("MXFP4", None), "nvfp4": ("NVFP4", None), "nf4": ("F16", "0.049"), "mlx": ("Q4_1", None),
    "mlx-mxfp8": ("F16", None), "mlx-nvfp4": ("NVFP4", None), "mxfp8": ("F16", None),
}  # fmt: skip


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


def made(folder: Path, target_type: str = "") -> Path:
    target = folder.with_suffix(f".{target_type or 'own'}.gguf")
    convert(folder, target, lambda _: None, target_type=target_type, unpacker=unpacker)
    return target


def log_probabilities(path: Path, cpu: CpuBackend) -> np.ndarray[Any, Any]:
    model = LlamaModel(path, cpu)
    model.open_context(n_ctx=64, n_batch=16, n_sequences=1, n_outputs=16, n_threads=1, kv_type="f32")
    model.backend.batch.clear()
    model.backend.batch.add(TOKENS, 0, 0, n_outputs=len(TOKENS))
    assert model.backend.decode() == 0
    logits = np.array([
        binding.llama.llama_get_logits_ith(model.backend._context, position)[: model.vocab.n_vocab]
        for position in range(len(TOKENS))
    ])  # fmt: skip
    largest = logits.max(axis=1, keepdims=True)
    found: np.ndarray[Any, Any] = logits - largest - np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_quantised_llama_computes_what_its_weights_say(layout: str, tmp_path: Path, cpu: CpuBackend) -> None:
    """The engine rounds the other side of each product to 8 bits, or to 11."""
    stored, plain = write_both(tmp_path, layout)
    found = plan(stored)
    kind, error = BECOMES[layout]
    assert found.quantization == kind
    assert found.is_quantised
    assert [notice for notice in found.notices if "off by" in notice] == [
        f"its weights in {rows.matrix.label} are converted to {kind}: each is off by {error} % at most"
        for rows in [next(output for output in found.recipe.outputs if output.stored).stored[0]]
        if error
    ]
    assert not [notice for notice in found.notices_for("f32") if "off by" in notice], "another type is made of them"
    path = made(stored)
    assert reader.read_header(path).quantization == kind
    away = np.abs(log_probabilities(path, cpu) - log_probabilities(made(plain), cpu))
    assert away.max() < 2e-2


def test_the_engine_multiplies_with_the_numbers_beside_the_weights_of_ministral_3(
    tmp_path: Path, cpu: CpuBackend
) -> None:
    """As Mistral publishes it: in FP8, with a number for each weight, and one for what it is multiplied with."""
    more = {"model.layers.0.self_attn.q_proj.activation_scale": ("F32", (1,), bytes(4))}
    stored, plain = quantised_families.write_both("ministral3", "fp8-tensor", tmp_path, more)
    assert "blk.0.attn_q.scale" in plan(stored).shapes
    path = made(stored)
    assert np.abs(log_probabilities(path, cpu) - log_probabilities(made(plain), cpu)).max() < 2e-2


@pytest.mark.parametrize("layout", ["mxfp8", "mlx-mxfp8"])
def test_weights_that_are_too_small_for_f16_have_a_power_of_two_beside_them(
    layout: str, tmp_path: Path, cpu: CpuBackend
) -> None:
    stored, plain = write_both(tmp_path, layout, gain=2**12)
    path = made(stored)
    found, exact = tensors_of(path), tensors_of(made(plain))
    assert {tensor.kind for name, tensor in found.items() if name.endswith("_q.weight")} == {"F16"}
    divided = {name.removesuffix(".scale") for name in found if name.endswith(".scale")}
    assert {name.split(".")[-1] for name in divided} == {"attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"}
    for name in exact:
        assert np.array_equal(weights_of(found, name), exact[name].numbers()), name
    assert np.abs(log_probabilities(path, cpu) - log_probabilities(made(plain), cpu)).max() < 5e-3
    as_asked = tensors_of(made(stored, "f32"))
    assert as_asked.keys() == exact.keys()
    assert all(np.array_equal(as_asked[name].numbers(), exact[name].numbers()) for name in exact)


@pytest.mark.parametrize("layout", ["fp8-tensor", "gptq", "nvfp4"])
def test_another_type_can_be_asked_for(layout: str, tmp_path: Path, cpu: CpuBackend) -> None:
    stored, plain = write_both(tmp_path, layout)
    exact = log_probabilities(made(plain), cpu)
    assert np.abs(log_probabilities(made(stored, "f32"), cpu) - exact).max() < 1e-5
    assert np.abs(log_probabilities(made(stored, "q8_0"), cpu) - exact).max() < 2e-2  # in F16, for the quantiser


def test_a_type_is_made_of_them_in_the_cache(tmp_path: Path) -> None:
    stored, _ = write_both(tmp_path, "gptq")
    asked = []

    def finish(source: Path, target: Path) -> None:
        asked.append(reader.read_header(source).quantization)
        target.write_bytes(source.read_bytes())

    cached(stored, tmp_path / "cache", lambda _: None, target_type="q8_0", finish=finish, unpacker=unpacker)
    assert len(asked) == 1


def test_without_an_unpacker_nothing_is_written(tmp_path: Path) -> None:
    stored, _ = write_both(tmp_path, "gptq")
    with pytest.raises(Unconvertible, match="quantised"):
        convert(stored, tmp_path / "never.gguf", lambda _: None)
    assert not [*tmp_path.glob("never*")]


@pytest.mark.parametrize(
    ("config", "is_doubtful"),
    [
        ({"sym": False}, True), ({"sym": True}, False), ({}, False),
        ({"sym": False, "checkpoint_format": "gptq"}, True),
        ({"sym": False, "checkpoint_format": "gptq_v2"}, False),
        ({"sym": False, "meta": {"quantizer": ["gptqmodel:5.0"]}}, False),
        ({"dynamic": {".*up_proj": {"sym": False}}}, True),
    ],
)  # fmt: skip
def test_zero_points_that_may_have_been_lost_are_told(
    config: dict[str, Any], is_doubtful: bool, tmp_path: Path
) -> None:
    base, tensors, _ = quantised("gptq")
    base["quantization_config"] = base["quantization_config"] | config
    folder = write_checkpoint(tmp_path, base, tensors)
    write_tokenizer(folder)
    notices = [notice for notice in plan(folder).notices if "zero points" in notice]
    assert len(notices) == int(is_doubtful)


# -- what is refused --------------------------------------------------------------------------------------------------

UP = "model.layers.0.mlp.up_proj."
SORTED = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "group_size": 32, "actorder": "group"}}


def reason(path: Path, layout: str, config: Mapping[str, Any], changes: Mapping[str, Weights | None]) -> str:
    """Why the folder with these changes of config and tensors is refused, before anything is written."""
    base, tensors, _ = quantised(layout)
    settings = {**base["quantization_config"], **config}
    settings = {key: value for key, value in settings.items() if value is not ...}
    tensors = {name: tensor for name, tensor in {**tensors, **changes}.items() if tensor is not None}
    base = base | dict.fromkeys([key for key in ("quantization", "quantization_config") if key in base], settings)
    folder = write_checkpoint(path / "model", base, tensors)
    write_tokenizer(folder)
    with pytest.raises(Unconvertible) as caught:
        convert(folder, path / "never.gguf", lambda _: None, unpacker=unpacker)
    assert not [*path.glob("never*")]
    return str(caught.value)


@pytest.mark.parametrize(
    ("layout", "config", "word"),
    [
        ("gptq", {"quant_method": "hqq"}, "hqq"),
        ("gptq", {"quant_method": ["gptq"]}, "gptq"),
        ("gptq", {"quant_method": ...}, "quantised"),
        ("gptq", {"bits": 5}, "gptq_p"),
        ("gptq", {"bits": 9}, "bits"),
        ("gptq", {"dynamic": {"+:.*up_proj": {"bits": 6}}}, "gptq_p"),
        ("gptq", {"bits": 5, "checkpoint_format": "gptq_p"}, "qweight"),
        ("gptq", {"bits": 8}, "qweight"),
        ("gptq", {"bits": "4"}, "bits"),
        ("gptq", {"group_size": 16}, "qzeros"),
        ("gptq", {"group_size": 0}, "groups of 0"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format"),
        ("gptq", {"checkpoint_format": "gptq_v2"}, "sym"),
        ("gptq", {"format": "gptq_v2"}, "two versions"),
        ("gptq", {"pack_dtype": "int64"}, "pack_dtype"),
        ("gptq", {"dynamic": {"-:.*up_proj": {}}}, "leaves that one out"),
        ("gptq", {"dynamic": {"+:.*up_proj": {"bits": 8}}}, "qweight"),
        ("gptq", {"dynamic": {"(a+)+b": {}}}, "too complex"),
        ("gptq", {"dynamic": {r"-:(\w|.|\w)" + r"(\w|.|\w)" * 27 + "X": {}}}, "too complex"),
        ("awq", {"version": "gemv"}, "version"),
        ("awq", {"zero_point": False}, "zero_point"),
        ("awq", {"bits": 8}, "bits"),
        ("awq", {"group_size": 32}, "qzeros"),
        ("fp8-block", {"weight_block_size": [128]}, "weight_block_size"),
        ("fp8-block", {"weight_block_size": [32, 32]}, "weight_scale_inv"),
        ("fp8-block", {"weight_block_size": ...}, "weight_scale_inv"),
        ("fp8-block", {"fmt": "e5m2"}, "fmt"),
        ("pack-quantized", {"format": "marlin-24"}, "marlin-24"),
        ("pack-quantized", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
        ("pack-quantized", {"transform_config": {"config_groups": {"u": {}}}}, "rotated"),
        ("pack-quantized", {"quantization_status": "initialized"}, "quantization_status"),
        ("pack-quantized", {"config_groups": {}}, "config_groups"),
        ("pack-quantized", {"config_groups": {"a": SORTED}}, "no `weight_g_idx` says how"),
        ("nf4", {"load_in_8bit": True}, "neither 4 nor 8"),
        ("nf4", {"load_in_4bit": False, "load_in_8bit": True}, "up_proj|q_proj"),
        ("mlx", {"bits": 7}, "bits"),
        ("mlx", {"bits": 8}, "shape"),
        ("mlx", {"mode": "nvfp5"}, "mode"),
        ("mlx", {"mode": "nvfp4"}, "group_size"),
        ("mlx", {"mode": "mxfp8"}, "bits"),
        ("mlx", {"mode": "mxfp4"}, "scales"),
        ("mlx", {"model.layers.0.mlp.up_proj": {"bits": 4}}, "scales"),
        ("mlx", {"model.layers.0.mlp.up_proj": {"mode": "nvfp4"}}, "scales"),
        ("mlx-mxfp8", {"mode": ...}, "biases|scales"),
        ("mlx-nvfp4", {"mode": "mxfp4"}, "group_size"),
        ("mlx-nvfp4", {"group_size": 32, "mode": "mxfp4"}, "scales"),
        ("mlx", {"model.layers.0.mlp.up_proj": False}, "says that it is not"),
    ],
)  # fmt: skip
def test_a_configuration_that_is_not_understood_is_refused(
    layout: str, config: dict[str, Any], word: str, tmp_path: Path
) -> None:
    said = reason(tmp_path, layout, config, {})
    assert any(part in said for part in word.split("|")), said


def numbers(shape: tuple[int, ...], value: float, dtype: str, form: str) -> Weights:
    return Weights(shape, np.full(shape, value, form).tobytes(), dtype)


@pytest.mark.parametrize(
    ("layout", "changes", "words"),
    [
        ("gptq", {"scales": numbers((2, 128), math.nan, "F16", "<f2")}, "no finite number"),
        ("gptq", {"g_idx": numbers((64,), 2, "I32", "<i4")}, "out of range"),
        ("gptq", {"g_idx": numbers((64,), -1, "I32", "<i4")}, "out of range"),
        ("gptq", {"g_idx": numbers((32,), 0, "I32", "<i4")}, "has the shape [32]"),
        ("gptq", {"qzeros": None}, "qzeros` is missing"),
        ("gptq-desc-act", {"g_idx": None}, "no `g_idx` says how"),
        ("gptq", {"weight_scale": numbers((1,), 1, "F32", "<f4")}, "is not one that the architecture"),
        ("awq", {"scales": numbers((1, 128), math.inf, "F16", "<f2")}, "no finite number"),
        ("fp8-tensor", {"weight": numbers((128, 64), 0x7F, "F8_E4M3", "u1")}, "no number"),
        ("fp8-tensor", {"weight": numbers((128, 64), 0, "F8_E5M2", "u1")}, "F8_E5M2"),
        ("fp8-tensor", {"weight_scale": None}, "is missing"),
        ("fp8-tensor", {"weight_scale": numbers((1,), math.nan, "F32", "<f4")}, "no finite number"),
        ("fp8-tensor", {"weight_scale_inv": numbers((1,), 1, "F32", "<f4")}, "contradict"),
        ("fp8-tensor", {"weight": numbers((128, 64), 1, "BF16", "<u2")}, "is not one that the architecture"),
        ("pack-quantized", {"weight_shape": numbers((2,), 64, "I64", "<i8")}, "weight_shape"),
        ("mxfp4", {"weight_scale": numbers((128, 2), 255, "U8", "u1")}, "no number"),
        ("nvfp4", {"weight_scale": numbers((128, 4), 0x7F, "F8_E4M3", "u1")}, "no number"),
        ("nvfp4", {"weight_global_scale": numbers((1,), 0, "F32", "<f4")}, "is 0"),
        ("nvfp4", {"weight_global_scale": numbers((1,), math.nan, "F32", "<f4")}, "no finite number"),
        ("nf4", {"weight.quant_state.bitsandbytes__nf4": numbers((9,), 0x7B, "U8", "u1")}, "no JSON"),
        ("nf4", {"weight.quant_state.bitsandbytes__nf4": None}, "bitsandbytes"),
        ("nf4", {"weight.absmax": numbers((7,), 1, "F32", "<f4")}, "no block size"),
        ("mlx", {"biases": None}, "is missing"),
        ("mlx", {"scales": numbers((128, 2), math.nan, "F16", "<f2")}, "one of its scales is no finite number"),
        ("mlx", {"biases": numbers((128, 2), math.nan, "F16", "<f2")}, "one of its biases is no finite number"),
        ("nf4", {"weight.quant_map": numbers((16,), math.nan, "F32", "<f4")}, "one of its table's numbers is no"),
        ("mlx-mxfp8", {"scales": numbers((128, 2), 255, "U8", "u1")}, "no number"),
        ("mlx-mxfp8", {"weight": numbers((128, 16), 0x7F000000, "U32", "<u4")}, "no number"),
        ("mlx-mxfp8", {"biases": numbers((128, 2), 0, "F16", "<f2")}, "is not one that the architecture"),
        ("mlx-nvfp4", {"scales": numbers((128, 4), 0x7F, "U8", "u1")}, "no number"),
        ("mlx-nvfp4", {"global_scale": numbers((1,), 1, "F32", "<f4")}, "is not one that the architecture"),
    ],
)  # fmt: skip
def test_tensors_that_cannot_be_are_refused(
    layout: str, changes: dict[str, Weights | None], words: str, tmp_path: Path
) -> None:
    said = reason(tmp_path, layout, {}, {UP + name: tensor for name, tensor in changes.items()})
    assert words in said, said


HUGE: Mapping[str, Mapping[str, float]] = {
    "fp8-block": {"weight_scale_inv": 3e38}, "fp8-tensor": {"weight_scale": 3e38},
    "int-quantized": {"weight_scale": 65504.0}, "nvfp4": {"weight_global_scale": 1e-42}, "nf4": {"weight.absmax": 3e38},
    "mxfp8": {"weight_scale_inv": 254}, "mxfp4": {"weight_scale": 254}, "mlx-mxfp8": {"scales": 254},
}  # fmt: skip


@pytest.mark.parametrize("layout", HUGE)
def test_scales_that_make_weights_infinite_are_no_warnings_of_numpy(layout: str, tmp_path: Path) -> None:
    """The log had lines with a place in our source; the engine says what is wrong with such a model."""
    config, tensors, _ = quantised(layout)
    for name, tensor in tensors.items():
        part = next((part for part in HUGE[layout] if name.endswith(f"_proj.{part}")), None)
        if part is not None:
            form = {"F32": "<f4", "F16": "<f2", "U8": "u1", "F8_E8M0": "u1", "BF16": "<u2"}[tensor.dtype]
            value = 0x7F7F if tensor.dtype == "BF16" else HUGE[layout][part]
            tensors[name] = numbers(tensor.shape, value, tensor.dtype, form)
    folder = write_checkpoint(tmp_path / "model", config, tensors)
    write_tokenizer(folder)
    for target_type in ("", "f32"):
        assert reader.validate(made(folder, target_type)).n_params


@pytest.mark.parametrize("name", ["compression_config", "quantization_config"])
def test_both_names_of_the_configuration_are_read(name: str, tmp_path: Path) -> None:
    config, tensors, _ = quantised("pack-quantized")
    settings = config.pop("quantization_config")
    folder = write_checkpoint(tmp_path / "model", config | {name: settings}, tensors)
    assert plan(folder).quantization == "Q4_0"


def test_what_stands_beside_it_is_read(tmp_path: Path) -> None:
    """Old GPTQ and AWQ files, and ModelOpt, have a file of their own for it."""
    config, tensors, _ = quantised("gptq")
    settings = config.pop("quantization_config")
    folder = write_checkpoint(tmp_path / "model", config, tensors)
    with pytest.raises(Unconvertible, match="does not say how"):
        plan(folder)
    del settings["quant_method"]
    (folder / "quantize_config.json").write_text(json.dumps(settings))
    assert plan(folder).quantization == "Q4_0"


# -- experts ----------------------------------------------------------------------------------------------------------


def mixture(layout: str, *, stacked: bool = False) -> tuple[dict[str, Any], dict[str, Weights], dict[str, Weights]]:
    """config.json of a Qwen3-MoE whose experts are quantised, its tensors, and the plain ones."""
    write, settings = LAYOUTS[layout]
    config = tiny_families.config("qwen3_moe")
    plain = tiny_families.tensors("qwen3_moe")
    stored = {name: tensor for name, tensor in plain.items() if ".experts." not in name}
    random = np.random.default_rng(5)
    for layer in range(tiny_families.LAYERS):
        for kind in ("gate_proj", "up_proj", "down_proj"):
            parts = []
            for expert in range(tiny_families.EXPERTS):
                name = f"model.layers.{layer}.mlp.experts.{expert}.{kind}"
                found, read = write(random, *plain[f"{name}.weight"].shape)
                plain[f"{name}.weight"] = Weights(read.shape, read.astype(np.float32).tobytes())
                parts.append(found)
                if not stacked:
                    stored |= {f"{name}.{part}": tensor for part, tensor in found.items()}
            for part in parts[0] if stacked else ():
                shape = (len(parts), *parts[0][part].shape)
                data = b"".join(found[part].data for found in parts)
                stored[f"model.layers.{layer}.mlp.switch_mlp.{kind}.{part}"] = Weights(
                    shape, data, parts[0][part].dtype
                )
    keys = ("quantization", "quantization_config") if layout.startswith("mlx") else ("quantization_config",)
    return {**config, **dict.fromkeys(keys, settings)}, stored, plain


@pytest.mark.parametrize("layout", ["fp8-tensor", "gptq", "nf4", "pack-quantized"])
def test_stacked_experts_are_refused_where_the_quantisation_has_none(layout: str, tmp_path: Path) -> None:
    config, stored, _ = mixture(layout, stacked=True)
    folder = write_checkpoint(tmp_path / "stored", config, stored)
    write_tokenizer(folder)
    with pytest.raises(Unconvertible, match="are stacked"):
        plan(folder)


@pytest.mark.parametrize("layout", ["fp8-tensor", "mlx", "gptq"])
def test_experts_of_a_mixture(layout: str, tmp_path: Path, cpu: CpuBackend) -> None:
    """With the number of each expert beside its weights, or all experts in one tensor."""
    config, stored, plain = mixture(layout, stacked=layout == "mlx")
    folders = [
        write_checkpoint(tmp_path / "stored", config, stored),
        write_checkpoint(tmp_path / "plain", tiny_families.config("qwen3_moe"), plain),
    ]
    for folder in folders:
        write_tokenizer(folder)
    quantised_path, plain_path = made(folders[0], "f32"), made(folders[1])
    assert np.abs(log_probabilities(quantised_path, cpu) - log_probabilities(plain_path, cpu)).max() < 1e-4
    away = np.abs(log_probabilities(made(folders[0]), cpu) - log_probabilities(plain_path, cpu))
    assert np.median(away) < 2e-3


@pytest.mark.parametrize(
    ("layout", "packing"), [("gptq", "auto_round:auto_gptq"), ("awq", "auto_round:auto_awq"), ("gptq", "auto_round")]
)
def test_auto_round_names_the_layout_that_it_writes(layout: str, packing: str, tmp_path: Path) -> None:
    config, tensors, _ = quantised(layout)
    settings = {**config["quantization_config"], "quant_method": "auto-round", "packing_format": packing}
    folder = write_checkpoint(tmp_path / "model", config | {"quantization_config": settings}, tensors)
    if packing == "auto_round":
        with pytest.raises(Unconvertible, match="auto-round"):
            plan(folder)
    else:
        assert plan(folder).is_quantised


def test_rows_that_can_only_be_read_all_at_once_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile file could ask for any amount of memory."""
    monkeypatch.setattr(unpack, "MAX_CHUNK_ELEMENTS", 1024)
    assert "at once" in reason(tmp_path, "fp8-block", {}, {})


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_zero_biases_that_the_architecture_has_not_are_left_out(value: float, tmp_path: Path) -> None:
    """AutoGPTQ writes them, in Qwen's own checkpoints too."""
    config, tensors, _ = quantised("gptq")
    biases = {
        f"model.layers.{layer}.mlp.{name}_proj.bias": numbers((n,), value if layer else 0.0, "F16", "<f2")
        for layer in range(2)
        for name, n in (("gate", 128), ("up", 128), ("down", 64))
    }
    folder = write_checkpoint(tmp_path / "model", config, {**tensors, **biases})
    write_tokenizer(folder)
    if value:
        with pytest.raises(
            Unconvertible, match=r"layers\.1\.mlp\.\w+_proj\.bias` is not one that the architecture has"
        ):
            made(folder)
    else:
        assert reader.read_header(made(folder)).quantization == "Q4_0"


def test_a_plain_models_biases_are_not_left_out(tmp_path: Path) -> None:
    _, _, plain = quantised("gptq")
    bias = {"model.layers.0.mlp.up_proj.bias": numbers((128,), 0, "F32", "<f4")}
    with pytest.raises(Unconvertible, match="not one that the architecture"):
        plan(write_checkpoint(tmp_path / "model", LLAMA_CONFIG, {**plain, **bias}))


@pytest.mark.parametrize(("layout", "scales", "kind"), [("gptq", "scales", "Q4_0"), ("mlx", "scales", "Q4_1")])
def test_tiny_scales_do_not_make_weights_large(layout: str, scales: str, kind: str, tmp_path: Path) -> None:
    """A dead channel's scale is below what F16 holds exactly."""
    config, tensors, _ = quantised(layout)
    name = f"{UP}{scales}"
    old = tensors[name]
    values = np.frombuffer(old.data, np.float16).astype(np.float32).reshape(old.shape).copy()
    values[0, 0] = 3e-7
    upper = (values.view(np.uint32) >> 16).astype(np.uint16)
    tensors[name] = Weights(old.shape, upper.tobytes(), "BF16")
    folder = write_checkpoint(tmp_path / "model", config, tensors)
    write_tokenizer(folder)
    found, _ = prepared(plan(folder), "", unpacker)
    (output,) = [output for output in found.recipe.outputs if output.info.name == "blk.0.ffn_up.weight"]
    assert output.info.kind == kind
