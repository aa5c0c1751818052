"""Makes the weights of a GGUF file smaller with llama.cpp; also a hidden sub-command, for processes without one."""

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from shimmy.engine.llama.binding import llama, log
from shimmy.errors import ModelUnavailable

# llama_ftype in include/llama.h. Those that llama.cpp makes only with an importance matrix are left out.
FILE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k_s": 11, "q3_k_m": 12,
    "q3_k_l": 13, "q4_k_s": 14, "q4_k_m": 15, "q5_k_s": 16, "q5_k_m": 17, "q6_k": 18, "iq4_nl": 25, "iq3_s": 26,
    "iq3_m": 27, "iq4_xs": 30, "bf16": 32,
}  # fmt: skip


def quantize(source: Path, target: Path, *, file_type: str, n_threads: int) -> None:
    """Write the model of the GGUF file `source` to `target` with weights of `file_type`, one of FILE_TYPES.

    Its progress is not reported. Raises ModelUnavailable.
    """
    params = llama.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[file_type]
    params.nthread = n_threads
    if llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params)) != 0:
        raise ModelUnavailable(f"the engine could not quantise `{source.name}`: {log.reason()}")


def main(arguments: Sequence[str]) -> int:
    """`quantize SOURCE TARGET TYPE THREADS`; returns the exit code, with the reason on stderr."""
    source, target, file_type, n_threads = arguments
    try:
        quantize(Path(source), Path(target), file_type=file_type, n_threads=int(n_threads))
    except ModelUnavailable as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    return 0
