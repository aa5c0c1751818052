"""Importance matrices: read in both forms, and refused where they cannot be, or are of another model."""

import hashlib
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from shimmy.formats.gguf import importance
from shimmy.formats.gguf.importance import InvalidMatrix
from tests.importance_files import (
    METADATA,
    Sums,
    encode_legacy,
    matrix_tensors,
    write_gguf_matrix,
    write_legacy_matrix,
)
from tests.tiny_models import Tensor, encode_gguf, write_tiny_model

UP, DOWN, EXPERTS = "blk.0.ffn_up.weight", "blk.0.ffn_down.weight", "blk.0.ffn_up_exps.weight"
WEIGHTS = {UP: (4, 8), DOWN: (2, 4), EXPERTS: (2, 4, 3)}
Write = Callable[[Path, Sums], Path]
SUMS: Sums = {UP: ([2, 4, 6, 0.5], [4]), DOWN: ([8, 16], [2])}


def values(path: Path) -> dict[str, list[float]]:
    matrix = importance.read(path)
    return {name: list(means) for name, means in matrix.values(matrix.entries)}


@pytest.mark.parametrize("write", [write_gguf_matrix, write_legacy_matrix])
def test_both_forms_say_the_mean_square_of_each_column(write: Write, tmp_path: Path) -> None:
    path = write(tmp_path / "matrix", SUMS)
    assert values(path) == {UP: [0.5, 1, 1.5, 0.125], DOWN: [4, 8]}
    assert importance.check(importance.read(path), WEIGHTS) == ()


@pytest.mark.parametrize("write", [write_gguf_matrix, write_legacy_matrix])
def test_only_the_weights_that_are_asked_for_are_read(write: Write, tmp_path: Path) -> None:
    matrix = importance.read(write(tmp_path / "matrix", {**SUMS, "of.another.model": ([math.nan], [1])}))
    assert [name for name, _ in matrix.values({DOWN, "no.such.weight"})] == [DOWN]
    assert [name for name, _ in matrix.values(WEIGHTS)] == [UP, DOWN]


@pytest.mark.parametrize("write", [write_gguf_matrix, write_legacy_matrix])
@pytest.mark.parametrize("is_replaced", [True, False])
def test_a_file_that_has_changed_is_refused(write: Write, is_replaced: bool, tmp_path: Path) -> None:
    matrix = importance.read(write(tmp_path / "matrix", SUMS))
    assert matrix.digest() == hashlib.sha256(matrix.path.read_bytes()).hexdigest()
    if is_replaced:
        write(tmp_path / "other", SUMS).replace(matrix.path)
    else:
        write(matrix.path, SUMS)
        os.utime(matrix.path, ns=(1, 1))
    with pytest.raises(InvalidMatrix, match="has changed"):
        matrix.digest()
    with pytest.raises(InvalidMatrix, match="has changed"):
        list(matrix.values(WEIGHTS))


def test_a_file_that_changes_while_its_sums_are_read_is_refused(tmp_path: Path) -> None:
    matrix = importance.read(write_gguf_matrix(tmp_path / "matrix", SUMS))
    found = matrix.values(WEIGHTS)
    next(found)
    os.utime(matrix.path, ns=(1, 1))
    with pytest.raises(InvalidMatrix, match="has changed"):
        list(found)


def test_experts_count_for_themselves(tmp_path: Path) -> None:
    path = write_gguf_matrix(tmp_path / "matrix.gguf", {EXPERTS: ([2, 4, 0, 0, 9, 3], [2, 0, 3])})
    assert values(path) == {EXPERTS: [1, 2, 1, 1, 3, 1]}
    (notice,) = importance.check(importance.read(path), WEIGHTS)
    assert "experts" in notice
    assert EXPERTS in notice


def test_a_legacy_weight_without_a_count_is_taken_as_it_is(tmp_path: Path) -> None:
    assert values(write_legacy_matrix(tmp_path / "matrix.dat", {DOWN: ([3, 5], [0])})) == {DOWN: [3, 5]}


def test_what_one_has_and_the_other_has_not_is_said(tmp_path: Path) -> None:
    path = write_gguf_matrix(tmp_path / "matrix.gguf", {**SUMS, "blk.7.strange.weight": ([1], [1])})
    weights = WEIGHTS | {"blk.1.ffn_up.weight": (4, 8), "output.weight": (4, 8)}
    missing, foreign = importance.check(importance.read(path), weights)
    assert "`blk.1.ffn_up.weight`" in missing
    assert "`blk.7.strange.weight`" in foreign


@pytest.mark.parametrize(
    ("sums", "complaint"),
    [
        ({"blk.0.other.weight": ([1], [1])}, "another model"),
        ({UP: ([1, 2], [1])}, "2 columns of `blk.0.ffn_up.weight`, not 4"),
        ({EXPERTS: ([1, 2], [1])}, "not 6"),
    ],
)
def test_a_matrix_of_another_model_is_refused(sums: Sums, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidMatrix, match=complaint):
        importance.check(importance.read(write_gguf_matrix(tmp_path / "matrix.gguf", sums)), WEIGHTS)


@pytest.mark.parametrize("number", [math.nan, math.inf, -1.0, 1e30])
@pytest.mark.parametrize("write", [write_gguf_matrix, write_legacy_matrix])
def test_numbers_that_are_no_sums_of_squares_are_refused(write: Write, number: float, tmp_path: Path) -> None:
    for column in range(3):
        numbers = [1.0, 2.0, 3.0]
        numbers[column] = number
        with pytest.raises(InvalidMatrix, match="none of squares"):
            values(write(tmp_path / "matrix", {DOWN: (numbers, [1])}))


@pytest.mark.parametrize("count", [math.nan, math.inf, -1.0])
def test_counts_that_are_none_are_refused(count: float, tmp_path: Path) -> None:
    with pytest.raises(InvalidMatrix, match="counts"):
        importance.read(write_gguf_matrix(tmp_path / "matrix.gguf", {EXPERTS: ([1, 2, 3, 4], [1, count])}))


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ([], "no importance matrix"),
        (matrix_tensors(SUMS)[:1], "no counts"),
        ([Tensor(f"{UP}.in_sum2", (2,), bytes(4), 1), Tensor(f"{UP}.counts", (1,), bytes(4))], "F32"),
        ([Tensor(f"{UP}.in_sum2", (3,), bytes(12)), Tensor(f"{UP}.counts", (2,), bytes(8))], "3 sums and 2 counts"),
        ([Tensor(f"{UP}.in_sum2", (0,)), Tensor(f"{UP}.counts", (1,), bytes(4))], "0 sums"),
        ([Tensor(f"{UP}.in_sum2", (2,), bytes(8)), Tensor(f"{UP}.counts", (0,))], "0 counts"),
        ([Tensor(f"{UP}.in_sum2", (2,), b"")], "cut off"),
    ],
)
def test_a_gguf_file_that_holds_none_is_refused(tensors: list[Tensor], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "matrix.gguf"
    path.write_bytes(encode_gguf(METADATA, tensors))
    with pytest.raises(InvalidMatrix, match=complaint):
        importance.read(path)


@pytest.mark.parametrize("write", [write_gguf_matrix, write_legacy_matrix])
def test_a_name_that_the_engine_would_read_as_another_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(InvalidMatrix, match="zero byte"):
        importance.read(write(tmp_path / "matrix", {f"{UP}\0x": ([1, 2], [1])}))


def test_a_model_is_no_matrix(tmp_path: Path) -> None:
    with pytest.raises(InvalidMatrix, match="no importance matrix"):
        importance.read(write_tiny_model(tmp_path))
    with pytest.raises(InvalidMatrix, match="regular file"):
        importance.read(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"GG", b"{}\n", b"\0" * 64, struct.pack("<i", -1), struct.pack("<i", 2**31 - 1),
        struct.pack("<ii", 1, 2**31 - 1), struct.pack("<ii", 1, -5), struct.pack("<ii", 1, 3) + b"abc",
        struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", -1, 1) + bytes(4),
        struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 2**31 - 1) + bytes(4),
        struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, -1) + bytes(4),
        struct.pack("<i", 2) + encode_legacy({UP: ([1], [1])})[4:] * 2,
    ],
)  # fmt: skip
def test_a_legacy_file_that_is_none_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "matrix.dat"
    path.write_bytes(data)
    with pytest.raises(InvalidMatrix):
        importance.read(path)


def test_a_file_that_is_cut_anywhere_is_refused_or_whole(tmp_path: Path) -> None:
    legacy, gguf = encode_legacy(SUMS), write_gguf_matrix(tmp_path / "whole.gguf", SUMS).read_bytes()
    last = matrix_tensors(SUMS)[-1]
    for whole, n_needed in ((legacy, len(legacy)), (gguf, len(gguf) - 32 + len(last.data))):
        for n_bytes in range(0, len(whole) + 1, 3):
            path = tmp_path / "cut"
            path.write_bytes(whole[:n_bytes])
            if n_bytes >= n_needed:
                assert set(values(path)) == {UP, DOWN}
            else:
                with pytest.raises(InvalidMatrix):
                    importance.read(path)
