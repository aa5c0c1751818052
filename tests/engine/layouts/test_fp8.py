"""FP8 in large blocks, where products are looked up or computed in C, against one product in numpy for each weight."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shimmy.engine.layouts.arrays import BadValuesError
from shimmy.engine.layouts.fp8 import E4M3, check, number_beside, rows
from shimmy.engine.layouts.gguf_blocks import encode
from shimmy.formats.quantised.stored import Holding
from tests.engine.layouts.stored import decoded


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


BLOCK = {"block_rows": 1, "block_columns": 32, "exponents": 1}
CODES = np.array([code for code in range(256) if code & 127 != 127], np.uint8)  # all that are numbers


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("scale", [1.3e-38, 2.0**-16, 2.0**-15, 0.0013, -0.0013, 1, 1.999, 2.0**7, 300.0, 3e38, 0])
def test_weights_without_their_scale_are_as_large_as_with_it(scale: float) -> None:
    """Where F16 holds them; else they are as close as it lets them."""
    codes, options = CODES.reshape(2, -1), {"block_rows": 2, "block_columns": 127, "exponents": 0, "apart": 1}
    arrays: dict[str, NDArray[Any]] = {"codes": codes, "scale": np.array([scale], np.float32)}
    assert check(arrays, options) == Holding("F16")
    number = number_beside(arrays, options)
    with np.errstate(over="ignore"):
        assert (decoded(encode(rows(arrays, options), "F16").tobytes(), "F16").reshape(codes.shape) * number
                == E4M3[codes] * np.float32(scale)).all()  # fmt: skip
    assert 1 <= abs(number) < 2 or not 2.0**-15 <= abs(scale) < 2.0**8


def products(codes: NDArray[Any], exponents: NDArray[Any], options: dict[str, int]) -> NDArray[np.float64]:
    wide = np.repeat(np.repeat(exponents, options["block_rows"], 0), options["block_columns"], 1)
    found: NDArray[np.float64] = E4M3[codes] * 2.0 ** (
        wide[: codes.shape[0], : codes.shape[1]].astype(np.float64) - 127
    )
    return found


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((6, 256), BLOCK),
        ((6, 200), BLOCK | {"block_rows": 4, "block_columns": 128}),  # the last blocks are cut off
        ((6, 256), BLOCK | {"block_columns": 256}),
        ((6, 256), BLOCK | {"block_rows": 6, "block_columns": 256}),
    ],
)
@pytest.mark.parametrize("power", [-118, -30, -20, -17, -16, -15, 0, 7, 8, 10, 100])
def test_products_with_powers_of_two_become_halves_where_these_hold_all_of_them(
    shape: tuple[int, int], options: dict[str, int], power: int
) -> None:
    random = np.random.default_rng(power + 200)
    grid = -(-shape[0] // options["block_rows"]), -(-shape[1] // options["block_columns"])
    exponents = np.full(grid, 127, np.uint8)
    exponents[-1, -1] = power + 127
    for code in (None, *CODES):
        codes = random.choice(CODES, shape)
        last = products(codes, exponents, options) != products(codes, np.full_like(exponents, 127), options)
        if code is not None:
            codes[last] = code
        wanted = products(codes, exponents, options)
        with np.errstate(over="ignore"):
            is_held = (wanted.astype(np.float16) == wanted).all()
        held = check({"scale": exponents, "codes": codes}, options)
        assert (held.kind == "F16") == (is_held and power <= 7), (code, held)
        assert held.kind != "F16" or held.spare == "BF16"
        for kind in (held.kind, "BF16") if power > -118 else (held.kind,):
            assert (decoded(encode(rows({"scale": exponents, "codes": codes}, options), kind).tobytes(), kind)
                    == wanted.reshape(-1)).all()  # fmt: skip


def test_codes_are_only_asked_for_where_scales_do_not_say_enough() -> None:
    exponents = np.array([[127 - 15, 127], [127, 127 + 7]], np.uint8)
    assert check({"scale": exponents}, BLOCK).kind == "F16"
    exponents[0, 0] -= 1
    with pytest.raises(KeyError):
        check({"scale": exponents}, BLOCK)
    exponents[1, 1] += 1
    assert check({"scale": exponents}, BLOCK).kind == "BF16"


def test_scales_of_zeros_say_nothing_and_one_that_is_no_number_is_refused() -> None:
    """Tools give a group of zeros the smallest scale there is."""
    codes = np.full((4, 64), 0x40, np.uint8)
    codes[1, 32:] = 0x80  # -0
    exponents = np.full((4, 2), 120, np.uint8)
    exponents[1, 1] = 0
    assert check({"scale": exponents, "codes": codes}, BLOCK) == Holding("F16", spare="BF16")
    exponents[1, 1] = 255
    with pytest.raises(BadValuesError, match="no number"):
        check({"scale": exponents, "codes": codes}, BLOCK)


def test_what_two_types_hold_is_held_along_with_either() -> None:
    both, halves, brain_floats = Holding("F16", spare="BF16"), Holding("F16", 2.0**-11), Holding("BF16")
    assert both.along_with(both) == both
    assert both.along_with(brain_floats) == brain_floats.along_with(both) == brain_floats
    assert both.along_with(halves) == halves.along_with(both) == halves
    assert halves.along_with(brain_floats) == both.along_with(Holding("F32")) == Holding("F32")
