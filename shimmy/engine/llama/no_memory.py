"""Whose memory was too little, that of the system or that of a device, where the engine returned nothing.

Knows the words of llama.cpp, ggml and drivers, which is all that tells the two apart; nothing of models.
"""

from collections.abc import Sequence

from shimmy.errors import ModelUnavailable, OutOfDeviceMemory, OutOfMemory

# `llama_model::load_tensors`, and `alloc_tensor_range` and `ggml_gallocr_reserve_n_impl` in ggml-alloc.c, which ask for
# weights, for the KV cache, and for what is computed; the name is that of a type of buffers.
_ALLOCATE = "allocate {} buffer"
_OF_THE_SYSTEM = ("bad_alloc", "failed to allocate", "unable to allocate", "Cannot allocate memory")
# `ggml_cuda_error` in ggml-cuda.cu, before it aborts. What Vulkan throws is not caught: see `workers.worker_end`.
_OF_DRIVERS = "CUDA error: out of memory"


def failure(message: str, reason: str, buffers: Sequence[str] = ()) -> ModelUnavailable:
    """The error for what the engine could not do for this `reason`. `buffers` are the names of the types of buffers
    that lie on devices, where the model has any."""
    text = f"{message}: {reason}"
    if any(_ALLOCATE.format(name) in reason for name in buffers):
        return OutOfDeviceMemory(text)
    return (OutOfMemory if any(words in reason for words in _OF_THE_SYSTEM) else ModelUnavailable)(text)


def of_context(message: str, reason: str, buffers: Sequence[str] = ()) -> OutOfMemory | OutOfDeviceMemory:
    """The same for a context, which is hardly ever refused for anything else."""
    error = failure(message, reason, buffers)
    return error if isinstance(error, OutOfMemory | OutOfDeviceMemory) else OutOfMemory(error.message)


def of_decode(status: int, reason: str, buffers: Sequence[str]) -> ModelUnavailable:
    """The same for a decode on devices, which ended with this `status` of the engine."""
    return failure(f"the engine failed to decode (status {status})", reason, buffers)


def made_abort(said: str) -> bool:
    """Whether the engine aborts for want of a device's memory; `said` has the last errors in its log."""
    return _OF_DRIVERS in said
