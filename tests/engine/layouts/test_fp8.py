"""FP8 in large blocks, where products are looked up or computed in C, against one product in numpy for each weight."""

import numpy as np
import pytest

from shimmy.engine.layouts.arrays import BadValuesError
from shimmy.engine.layouts.fp8 import E4M3, rows
from shimmy.engine.layouts.gguf_blocks import encode


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((128, 8192), (128, 128)),
        ((512, 2048), (128, 128)),
        ((200, 2048), (128, 128)),  # the last block of rows is cut off
        ((96, 4096), (1, 4096)),  # a scale for each row
        ((300, 2048), (1, 2048)),  # so many that 16 bits do not count them
        ((64, 1024), (1 << 20, 1024)),  # one scale for all
    ],
)
def test_large_blocks_have_the_same_result(shape: tuple[int, int], block: tuple[int, int]) -> None:
    random = np.random.default_rng(len(shape) + shape[0])
    codes = random.integers(0, 127, shape, np.uint8) | random.integers(0, 2, shape, np.uint8) << np.uint8(7)
    n_blocks = -(-shape[0] // block[0]), shape[1] // block[1]
    scales = random.uniform(0.001, 0.02, n_blocks).astype(np.float32)
    options = {"block_rows": block[0], "block_columns": block[1], "exponents": 0}
    found = rows({"codes": codes, "scale": scales}, options)
    wide = np.repeat(np.repeat(scales, min(block[0], shape[0]), 0)[: shape[0]], block[1], 1)
    expected = E4M3[codes] * wide
    assert np.array_equal(found.values(), expected)
    assert encode(found, "F32").tobytes() == expected.tobytes()
    assert encode(found, "F16").tobytes() == expected.astype(np.float16).tobytes()
    codes[-1, -1] = 255
    for kind in ("F16", "BF16", "F32"):
        with pytest.raises(BadValuesError, match="no number"):
            encode(rows({"codes": codes, "scale": scales}, options), kind)


@pytest.mark.usefixtures("loaded")
def test_a_block_whose_products_do_not_fit_is_refused() -> None:
    options = {"block_rows": 128, "block_columns": 128, "exponents": 0}
    scales = np.full((1, 16), 1000, np.float32)
    found = rows({"codes": np.full((128, 2048), 0x7E, np.uint8), "scale": scales}, options)
    with pytest.raises(BadValuesError, match="too large"):
        encode(found, "F16")
    assert encode(found, "F32").view(np.float32).max() == 1000 * E4M3[0x7E]
