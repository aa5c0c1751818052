"""Small quantised matrices as files, found and read as a conversion does it."""

import base64
import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shimmy.engine.layouts import unpack
from shimmy.formats.convert.transforms import TensorOutput, Transform
from shimmy.formats.gguf.writer import GGML_CODES, TensorInfo
from shimmy.formats.quantised.schemes import scheme_of
from shimmy.formats.quantised.stored import StoredMatrix, StoredRows, Tensors
from shimmy.formats.safetensors.checkpoint import TensorReader, read_file
from tests.golden import layouts_file
from tests.tiny_checkpoints import Weights, encode_safetensors

MODULE = "model.layers.0.mlp.up_proj"


def cases() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lzma.decompress(layouts_file.PATH.read_bytes()))["cases"]
    return found


def tensors_of(case: Mapping[str, Any], module: str = MODULE) -> dict[str, Weights]:
    return {
        f"{module}.{name}": Weights(tuple(entry["shape"]), base64.b64decode(entry["data"]), entry["dtype"])
        for name, entry in case["tensors"].items()
    }


def config_of(case: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of the quantisation."""
    settings = dict(case["config"])
    if settings.pop("mlx", False):
        return {"quantization": settings, "quantization_config": settings}
    return {"quantization_config": settings}


def matrix_of(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, Weights], shape: tuple[int, int], module: str = MODULE
) -> StoredMatrix | None:
    """The matrix as `recipe` finds it. Raises Unconvertible."""
    path.write_bytes(encode_safetensors(tensors))
    checkpoint = read_file(path)
    scheme = scheme_of(config, checkpoint)
    assert scheme is not None
    found = Tensors(checkpoint.tensors, {name: name for name in checkpoint.tensors})
    return scheme.find(module, shape, found)


def output_of(
    matrix: StoredMatrix, kind: str = "F32", *, n_heads: int = 0, rows: StoredRows | None = None
) -> TensorOutput:
    rows = rows or StoredRows(matrix, 0, matrix.shape[0])
    info = TensorInfo("blk.0.ffn_up.weight", (matrix.shape[1], rows.n_rows), GGML_CODES[kind])
    transform = Transform.PERMUTE if n_heads else Transform.COPY
    return TensorOutput(info, transform=transform, n_heads=n_heads or 1, stored=(rows,))


def converted(output: TensorOutput) -> bytes:
    with TensorReader() as reader:
        return b"".join(bytes(chunk) for chunk in unpack.chunks(output, reader))


def weights(output: TensorOutput) -> NDArray[np.float32]:
    """What the tensor's bytes are in F32, by the formats' definitions (ggml-common.h)."""
    row_length, n_rows = output.info.shape
    return decoded(converted(output), output.info.kind).reshape(n_rows, row_length)


def decoded(data: bytes, kind: str) -> NDArray[np.float32]:
    if kind == "F32":
        return np.frombuffer(data, np.float32)
    if kind == "F16":
        return np.frombuffer(data, np.float16).astype(np.float32)
    if kind == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    n_bytes = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q8_0": 34, "MXFP4": 17, "NVFP4": 36}[kind]
    return np.concatenate([_block(data[start : start + n_bytes], kind) for start in range(0, len(data), n_bytes)])


def _block(block: bytes, kind: str) -> Any:
    if kind == "MXFP4":
        table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
        return table[_halves(block[1:])] * np.float32(2.0 ** (block[0] - 127))
    if kind == "NVFP4":
        table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
        found = []
        for group in range(4):
            exponent, mantissa = block[group] >> 3, block[group] & 7
            small = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
            found.append(table[_halves(block[4 + 8 * group : 12 + 8 * group])] * np.float32(small))
        return np.concatenate(found)
    scale = np.frombuffer(block[:2], np.float16).astype(np.float32)
    if kind == "Q8_0":
        return np.frombuffer(block[2:], np.int8).astype(np.float32) * scale
    if kind == "Q4_0":
        return (_halves(block[2:]) - 8).astype(np.float32) * scale
    if kind == "Q4_1":
        return _halves(block[4:]).astype(np.float32) * scale + np.frombuffer(block[2:4], np.float16).astype(np.float32)
    bits = int.from_bytes(block[2:6], "little")
    fifth = np.array([bits >> index & 1 for index in range(32)])
    return (_halves(block[6:]) + 16 * fifth - 16).astype(np.float32) * scale


def _halves(data: bytes) -> NDArray[np.int64]:
    return np.array([byte & 15 for byte in data] + [byte >> 4 for byte in data])
