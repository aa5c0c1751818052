"""Whose memory was too little, by what the engine says."""

import pytest

from shimmy.engine.llama import no_memory
from shimmy.errors import ModelUnavailable, OutOfDeviceMemory, OutOfMemory

DEVICES = ("Vulkan0", "RPC0[127.0.0.1:50052]")


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("llama_model_load: error loading model: unable to allocate Vulkan0 buffer", OutOfDeviceMemory),
        ("alloc_tensor_range: failed to allocate Vulkan0 buffer of size 9", OutOfDeviceMemory),
        ("ggml_gallocr_reserve_n_impl: failed to allocate RPC0[127.0.0.1:50052] buffer of size 9", OutOfDeviceMemory),
        ("llama_model_load: error loading model: unable to allocate CPU buffer", OutOfMemory),
        ("failed to allocate Vulkan_Host buffer of size 9", OutOfMemory),
        ("std::bad_alloc", OutOfMemory),
        ("unknown model architecture", ModelUnavailable),
    ],
)
def test_the_engines_words_tell_whose_memory_was_too_little(reason: str, kind: type[ModelUnavailable]) -> None:
    error = no_memory.failure("could not load", reason, DEVICES)
    assert type(error) is kind
    assert error.message == f"could not load: {reason}"


def test_a_model_without_devices_lacks_no_memory_of_them() -> None:
    assert type(no_memory.failure("x", "unable to allocate Vulkan0 buffer")) is OutOfMemory


def test_a_context_is_only_refused_for_want_of_memory() -> None:
    assert type(no_memory.of_context("no context", "the engine gave no reason", DEVICES)) is OutOfMemory
    assert type(no_memory.of_context("no context", "allocate Vulkan0 buffer", DEVICES)) is OutOfDeviceMemory


def test_a_decode_that_fails_on_devices_tells_the_engines_reason() -> None:
    error = no_memory.of_decode(-3, "compute status: -1", DEVICES)
    assert type(error) is ModelUnavailable
    assert error.message == "the engine failed to decode (status -3): compute status: -1"
    assert type(no_memory.of_decode(-2, "failed to allocate Vulkan0 buffer", DEVICES)) is OutOfDeviceMemory


def test_an_abort_for_want_of_memory_has_it_in_the_log() -> None:
    assert no_memory.made_abort("CUDA error: out of memory; current device: 0, in function alloc")
    assert not no_memory.made_abort("CUDA error: an illegal memory access was encountered")
