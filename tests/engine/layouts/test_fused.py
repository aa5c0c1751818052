"""What packed codes become in one pass: wrong sizes and indices are refused before any of it runs.

That the library gives what numpy gives is in test_loops.
"""

import numpy as np
import pytest

from shimmy.engine.layouts import fused

WORDS = np.zeros((8, 24), np.uint32)  # GPTQ: 24 rows of 64 columns
SCALES = np.ones((2, 24), np.float16)
ZEROS = np.full((2, 24), 8, np.int8)
GROUPS = np.array([0, 1])


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("groups", [[0, 2], [-1, 0], [1 << 40, 0]])
def test_a_group_that_is_not_there_is_refused(groups: list[int]) -> None:
    wrong = np.array(groups)
    with pytest.raises(IndexError):
        fused.gptq_blocks("Q5_0", WORDS, SCALES, ZEROS, wrong)
    with pytest.raises(IndexError):
        fused.gptq_halves(WORDS, SCALES.astype(np.float32), ZEROS, np.repeat(wrong, 32))
    with pytest.raises(IndexError):
        fused.awq_blocks(np.zeros((64, 3), np.uint32), SCALES, np.zeros((2, 3), np.uint32), wrong)


@pytest.mark.usefixtures("loaded")
def test_what_does_not_fit_together_is_refused() -> None:
    floats, words, zeros = SCALES.astype(np.float32), np.zeros((64, 3), np.uint32), np.zeros((2, 3), np.uint32)
    for fewer in (GROUPS[:1], np.zeros(3, np.int64)):
        with pytest.raises(ValueError, match="do not belong"):
            fused.gptq_blocks("Q4_0", WORDS, SCALES, ZEROS, fewer)
        with pytest.raises(ValueError, match="do not belong"):
            fused.gptq_halves(WORDS, floats, ZEROS, fewer)
        with pytest.raises(ValueError, match="do not belong"):
            fused.awq_blocks(words, SCALES, zeros, fewer)
    for shape in ((2, 23), (3, 24)):
        with pytest.raises(ValueError, match="do not belong"):
            fused.gptq_blocks("Q4_0", WORDS, SCALES, np.full(shape, 8, np.int8), GROUPS)
        with pytest.raises(ValueError, match="do not belong"):
            fused.gptq_halves(WORDS, floats, np.zeros(shape, np.int8), np.repeat(GROUPS, 32))
        with pytest.raises(ValueError, match="do not belong"):
            fused.awq_blocks(words, np.ones(shape, np.float16), zeros, GROUPS)
    with pytest.raises(ValueError, match="no zero points"):
        fused.gptq_blocks("Q4_0", WORDS, SCALES, ZEROS - np.int8(1), GROUPS)
    for kind, headers, n_bytes in (
        ("Q4_0", (2, 2), 33),
        ("Q4_1", (2, 2), 32),
        ("NVFP4", (1, 4), 16),
        ("Q4_0", (0, 2), 16),
    ):
        with pytest.raises(ValueError, match="no blocks"):
            fused.repacked(kind, np.zeros(headers, np.uint8), np.zeros(n_bytes, np.uint8))
    for n_table, n_sizes in ((15, 2), (16, 1), (16, 3)):
        table, sizes = np.ones(n_table, np.float32), np.ones(n_sizes, np.float32)
        with pytest.raises(ValueError, match="do not belong"):
            fused.table_halves(np.zeros(33, np.uint8), table, sizes, 64)
