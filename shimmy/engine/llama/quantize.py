"""Makes the weights of a GGUF file smaller with llama.cpp; also a hidden sub-command, for processes without one."""

import ctypes
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shimmy.engine.llama.binding import llama, log
from shimmy.errors import ModelUnavailable
from shimmy.formats.gguf import importance, reader
from shimmy.formats.gguf.importance import ImportanceMatrix

if TYPE_CHECKING:
    from array import array

# llama_ftype in include/llama.h.
FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12,
    "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "iq2_xxs": 19, "iq2_xs": 20,
    "q2_k_s": 21, "iq3_xs": 22, "iq3_xxs": 23, "iq1_s": 24, "iq4_nl": 25, "iq3_s": 26, "iq3_m": 27, "iq2_s": 28,
    "iq2_m": 29, "iq4_xs": 30, "iq1_m": 31, "bf16": 32, "tq1_0": 36, "tq2_0": 37, "mxfp4_moe": 38, "q1_0": 40,
    "q2_0": 41,
}  # fmt: skip

_TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\]")  # the engine's log says so of each tensor that it begins


def quantize(
    source: Path,
    target: Path,
    *,
    file_type: str,
    n_threads: int,
    matrix: ImportanceMatrix | None = None,
    on_progress: Callable[[float], None] = lambda _share: None,
) -> None:
    """Write the model of the GGUF file `source` to `target` with weights of `file_type`, one of FILE_TYPES.

    `matrix` fits the model (`importance.check`). `on_progress` is called with the share of tensors that are done.
    Raises ModelUnavailable, InvalidMatrix for numbers of the matrix that cannot be, and OSError when it cannot be read.
    """
    params = llama.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[file_type]
    params.nthread = n_threads
    columns = [] if matrix is None else list(matrix.values(_names(source)))  # the engine is given their addresses
    if columns:
        params.imatrix = _as_given(columns)

    def tell(line: str) -> None:
        if found := _TENSOR.match(line):
            on_progress((int(found[1]) - 1) / int(found[2]))

    log.listener = tell
    try:
        status = llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    finally:
        log.listener = None
    if status != 0:
        reason = log.reason().rpartition("failed to quantize: ")[2]  # behind what is said of it on several lines
        raise ModelUnavailable(f"the engine could not quantise its weights: {reason}")


def _names(source: Path) -> set[str]:
    """Of the weights of a GGUF file. Raises ModelUnavailable where it is none."""
    try:
        return {name.decode("utf-8", "backslashreplace") for name in reader.contents(source).tensors}
    except reader.InvalidGguf as exc:
        raise ModelUnavailable(f"`{source.name}` cannot be quantised: {exc}") from exc


def _as_given(columns: "Sequence[tuple[str, array[float]]]") -> Any:
    """An array of llama_model_imatrix_data, which ends with an entry without a name."""
    rows = (llama.llama_model_imatrix_data * (len(columns) + 1))()
    for row, (name, means) in zip(rows, columns, strict=False):
        address, row.size = means.buffer_info()
        row.name, row.data = name.encode(), ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
    return rows


def main(arguments: Sequence[str]) -> int:
    """`quantize SOURCE TARGET TYPE THREADS [MATRIX]`; returns the exit code.

    Writes the share that is done to stdout, a line each time, and the reason of a failure to stderr.
    """
    source, target, file_type, n_threads, *matrix = arguments

    def show(share: float) -> None:
        sys.stdout.write(f"{share:.3f}\n")
        sys.stdout.flush()

    try:
        found = importance.read(Path(matrix[0])) if matrix else None
        quantize(
            Path(source), Path(target), file_type=file_type, n_threads=int(n_threads), matrix=found, on_progress=show
        )  # fmt: skip
    except ModelUnavailable as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    except (importance.InvalidMatrix, OSError) as exc:
        sys.stderr.write(f"the importance matrix cannot be used: {exc}\n")
        return 1
    return 0
