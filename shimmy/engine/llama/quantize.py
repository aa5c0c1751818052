"""Makes the weights of a GGUF file smaller with llama.cpp; also a hidden sub-command, for processes without one."""

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from shimmy.engine.llama.binding import llama, log
from shimmy.errors import ModelUnavailable
from shimmy.wire.worker_options import SAFETENSORS_TYPES

# llama_ftype in include/llama.h.
FILE_TYPES = dict(zip(SAFETENSORS_TYPES, (0, 32, 1, 7, 18, 17, 15, 2), strict=True))


def quantize(source: Path, target: Path, *, file_type: str, n_threads: int) -> None:
    """Write the model of the GGUF file `source` to `target` with weights of `file_type`, one of SAFETENSORS_TYPES.

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
