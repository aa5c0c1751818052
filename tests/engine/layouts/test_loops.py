"""The loops in C against the same ones in numpy, to the bit; and what they refuse before any of it runs."""

from pathlib import Path

import numpy as np
import pytest

from shimmy.engine.layouts import fp8, fused, gguf_blocks, loops
from shimmy.engine.layouts.loops import Library
from shimmy.engine.llama.unpack_libraries import LOOPS_ARCHIVE
from shimmy.errors import ModelUnavailable
from shimmy.system import unpacked_folder
from tests.loop_operations import results


@pytest.mark.parametrize("is_plain", [False, True])
def test_the_library_gives_what_numpy_gives(compiled: Path, is_plain: bool) -> None:
    found, expected = results(Library(compiled, is_plain=is_plain)), results(None)
    assert len(found) > 100
    assert {name: (found[name], expected[name]) for name in expected if found[name] != expected[name]} == {}
    assert "None" in found.values()


@pytest.mark.usefixtures("loaded")
def test_numbers_in_f16_are_the_nearest_ones() -> None:
    """Every number of F16, and what lies halfway between it and the next one."""
    exact = np.arange(0x7C00, dtype=np.uint16).view(np.float16)
    found = loops.halves(exact.astype(np.float32))
    assert found is not None
    assert (found.view(np.uint16) == exact.view(np.uint16)).all()
    wide = exact.astype(np.float32)
    between = (wide[:-1] + wide[1:]) / np.float32(2)
    found = loops.halves(-between)
    assert found is not None
    low = np.arange(0x7BFF, dtype=np.uint16)
    assert (found.view(np.uint16) == 0x8000 + low + (low & 1)).all()  # to the even one


@pytest.mark.parametrize("length", [256, 254, 300])
def test_fp8_in_bf16_is_what_f32_rounds_to(
    library: Library, plain_library: Library, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All codes under scales of each exponent and sign: powers of two, their neighbours, and subnormal ones."""
    powers = np.arange(512, dtype=np.uint32) << np.uint32(23)
    subnormal = np.uint32(1) << np.arange(23, dtype=np.uint32)
    bits = np.concatenate((powers, powers + np.uint32(1), powers + np.uint32(0x7FFFFF), subnormal))
    scales = bits.view(np.float32)[:, None]
    codes = np.arange(length, dtype=np.uint16).astype(np.uint8)
    codes[codes & 127 == 127] = 8
    with np.errstate(over="ignore", invalid="ignore"):
        products = fp8.E4M3[codes] * scales
    expected = gguf_blocks._brain_floats(products)
    assert length * 1000 < np.isfinite(products).sum()
    for one in (library, plain_library):
        monkeypatch.setattr(loops, "library", one)
        found, has_nan = fused.e4m3_brain_floats(np.tile(codes, (len(scales), 1)), scales)
        assert not has_nan
        assert (found == expected)[~np.isnan(products)].all()


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_a_code_of_fp8_that_is_no_number_is_found_wherever_it_is(
    code: int, library: Library, plain_library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = np.ones((1, 1), np.float32)
    for one in (library, plain_library):
        monkeypatch.setattr(loops, "library", one)
        for place in range(70):
            codes = np.full((1, 70), code - 1, np.uint8)
            assert not fused.e4m3_brain_floats(codes, scale)[1]
            codes[0, place] = code
            assert fused.e4m3_brain_floats(codes, scale)[1]


@pytest.mark.usefixtures("loaded")
def test_what_does_not_fit_together_is_refused() -> None:
    codes = np.zeros((4, 32), np.uint8)
    tables = np.zeros((2, 16), np.float32)
    for wrong in (-1, 2):
        with pytest.raises(IndexError):
            loops.looked_up(codes, tables, np.full((4, 1), wrong))
        with pytest.raises(IndexError):
            loops.subtract(codes.view(np.int8), np.zeros((4, 2), np.int8), np.full(32, wrong))
        with pytest.raises(IndexError):
            loops.scaled_halves(codes.view(np.int8), np.zeros((4, 2), np.float32), np.full(32, wrong))
    with pytest.raises(IndexError):
        loops.looked_up(codes + np.uint8(16), tables, np.zeros((4, 1), np.int64))
    for shape in ((4, 5), (5, 1)):
        with pytest.raises(ValueError, match="reshape"):
            loops.looked_up(codes, tables, np.zeros(shape, np.int64))
        with pytest.raises(ValueError, match="reshape"):
            loops.affine_halves(codes.view(np.int8), np.zeros(shape, np.float32))
        with pytest.raises(ValueError, match=r"reshape|not those of"):
            loops.subtract(codes.view(np.int8), np.zeros(shape, np.int8))
    with pytest.raises(ValueError, match="no blocks"):
        loops.blocks("Q4_0", np.zeros((5, 2), np.uint8), codes)
    with pytest.raises(ValueError, match="no blocks"):
        loops.blocks("NVFP4", np.zeros((2, 2), np.uint8), codes)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_0"])
def test_codes_that_lie_column_by_column_make_the_same_blocks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.arange(7 * 32, dtype=np.uint8).reshape(7, 32) & 15
    headers = np.zeros((7, 2), np.uint8)
    monkeypatch.setattr(loops, "library", None)
    expected = loops.blocks(kind, headers, codes)
    assert (loops.blocks(kind, headers, np.asfortranarray(codes)) == expected).all()


def test_without_the_library_numpy_does_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loops, "LOOPS_LIBRARY", str(tmp_path / "none.so"))
    assert loops._load() is None
    (tmp_path / "none.so").write_bytes(b"\x7fELF, but no library")
    assert loops._load() is None


def test_a_damaged_program_is_told_and_not_replaced_by_numpy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / LOOPS_ARCHIVE).write_bytes(b"no xz")
    monkeypatch.setattr(unpacked_folder, "folder", lambda: tmp_path)
    with pytest.raises(ModelUnavailable, match="the program's own file is damaged: fetch it again"):
        loops._load()
