"""2,000 mutated configurations of quantised weights: refused by name, or read as before; nothing else is raised."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from shimmy.engine.layouts import unpack
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.safetensors.checkpoint import TensorReader
from tests.engine.layouts.stored import matrix_of, output_of, weights
from tests.quantised_llama import LAYOUTS, quantised
from tests.tiny_checkpoints import Weights

N_EACH = 2000 // len(LAYOUTS) + 1
MODULES = {"model.layers.0.self_attn.q_proj": (64, 64), "model.layers.0.mlp.up_proj": (128, 64)}
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 128, -1, 10**30, 10**400, 1e308, 0.5, 4.0, 32.0, "4",
    "32",
    math.nan, math.inf, "", "gptq", "gptq_v2", "gptq_p",
    "affine", "mxfp4", "mxfp8", "nvfp4", "modelopt", "FP8", "MXFP8", "NVFP4", "mxfp8-quantized",
    "awq", "fp8", "nf4", "fp4", "int", "float", "group", "channel", "tensor", "block", "tensor_group", "e4m3", "e5m2",
    "pack-quantized", "int-quantized", "float-quantized", "mxfp4-pack-quantized", "nvfp4-pack-quantized", "marlin",
    "dense", "gemm", "GEMM", "gemv", "\ud800", "x" * 10_000, [], {}, [128, 128], [0, 0], ["Linear"], ["re:.*"],
    ["re:(a*)*b"], [[]], {"bits": 8}, {"": {}}, {"-:.*": {}}, {"+:.*": {"bits": 2}}, {"weights": {}},
)  # fmt: skip
KEYS = (
    "bits", "group_size", "sym", "desc_act", "dynamic", "checkpoint_format", "format", "version", "zero_point", "w_bit",
    "weight_block_size", "scale_fmt", "config_groups", "sparsity_config", "transform_config", "targets", "weights",
    "num_bits", "strategy", "actorder", "block_structure", "load_in_8bit", "load_in_4bit", "mode", "quant_method",
    "model.layers.0.mlp.up_proj", "unknown", "lm_head", "pack_dtype", "meta", "kv_cache_scheme", "quant_algo",
)  # fmt: skip


def places(value: Any) -> Iterator[Any]:
    """Every object and list of a configuration."""
    if isinstance(value, dict | list):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from places(item)


def mutated(config: dict[str, Any], random: Random) -> dict[str, Any]:
    config = copy.deepcopy(config)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        place = random.choice([*places(config)])
        value = copy.deepcopy(random.choice(VALUES))
        if isinstance(place, list):
            if place and random.random() < 0.5:
                place[random.randrange(len(place))] = value
            else:
                place.append(value)
        elif place and random.random() < 0.3:
            del place[random.choice([*place])]
        else:
            place[random.choice(KEYS) if not place or random.random() < 0.5 else random.choice([*place])] = value
    return config


def is_another_model(settings: Any) -> bool:
    """Whether the configuration describes other weights in full: zero points by the other version of GPTQ."""
    return isinstance(settings, dict) and settings.get("sym") is False and bool(
        {"gptq_v2", "gptq_p"} & {str(settings.get(key)) for key in ("checkpoint_format", "format")}
    )  # fmt: skip


def read_of(path: Path, config: dict[str, Any], tensors: dict[str, Weights], module: str) -> bytes:
    """The module's weights in F32, after the checks that a conversion does first. Raises Unconvertible."""
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{module}.")}
    matrix = matrix_of(path, config, own, MODULES[module], module)
    assert matrix is not None
    with TensorReader() as reader:
        unpack.holding(output_of(matrix), reader)
    found: bytes = weights(output_of(matrix)).tobytes()
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mutated_configurations_are_refused_or_read_as_before(layout: str, tmp_path: Path) -> None:
    random = Random(layout)
    config, tensors, plain = quantised(layout)
    config = {key: value for key, value in config.items() if key in {"quantization", "quantization_config"}}
    path = tmp_path / "model.safetensors"
    n_read = n_refused = 0
    for _ in range(N_EACH):
        changed = mutated(config, random)
        try:
            read = {module: read_of(path, changed, tensors, module) for module in MODULES}
        except Unconvertible:
            n_refused += 1
            continue
        n_read += 1
        if not is_another_model(changed.get("quantization_config")):
            assert read == {module: plain[f"{module}.weight"].data for module in MODULES}, changed
    assert n_read > N_EACH // 20
    assert n_refused > N_EACH // 20
