"""What is said of weights that do not fit the blocks of a type."""

import pytest

from shimmy.formats.gguf import block_fit
from shimmy.formats.gguf.reader import StoredTensor
from shimmy.formats.gguf.writer import GGML_CODES
from shimmy.wire.worker_options import SAFETENSORS_TYPES


@pytest.mark.parametrize(
    ("file_type", "length"),
    [
        ("f16", 1), ("bf16", 1), ("q4_0", 32), ("q8_0", 32), ("iq4_nl", 32), ("mxfp4_moe", 32), ("q2_0", 64),
        ("q1_0", 128), ("q4_k_m", 256), ("q6_k", 256), ("iq3_m", 256), ("tq1_0", 256),
    ],
)  # fmt: skip
def test_lengths_of_blocks(file_type: str, length: int) -> None:
    assert file_type in SAFETENSORS_TYPES
    assert block_fit.block_length(file_type) == length


def test_rows_that_will_not_fit_are_told() -> None:
    shapes = [(576,), (576, 49152), (1536, 576), (4, 9), (576, 576), (192, 576)]
    (told,) = block_fit.foreseen("q4_k_m", shapes)
    assert "not all of its weights become Q4_K_M" in told
    assert "rows of 192, 576 numbers" in told
    for file_type in ("q4_0", "f16"):
        assert block_fit.foreseen(file_type, shapes) == ()
    assert block_fit.foreseen("q4_k_m", [(1536, 576), (4, 9)]) == ()


def test_what_was_written_is_told() -> None:
    def tensors(kind: str, *shapes: tuple[int, ...]) -> list[StoredTensor]:
        return [StoredTensor(shape, GGML_CODES[kind]) for shape in shapes]

    fitting = tensors("Q4_K", (256, 8), (512, 8)) + tensors("F32", (576,), (576, 2))
    assert block_fit.written("q4_k_m", fitting) == ()
    others = tensors("Q5_0", (576, 8), (192, 8)) + tensors("Q8_0", (576, 9))
    (told,) = block_fit.written("q4_k_m", fitting + others)
    assert told == (
        "3 of 5 weights are not Q4_K_M, whose blocks of 256 numbers do not fit their rows, but Q5_0 (2), Q8_0 (1)"
    )
