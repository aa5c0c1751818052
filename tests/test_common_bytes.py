"""Deflate's dictionary of what many small pieces of data have in common."""

import random

from tools.common_bytes import MAX_BYTES, common_bytes

SHARED = bytes(range(100, 200))


def test_what_several_samples_have_is_found_and_what_one_has_is_not() -> None:
    samples = [SHARED + random.Random(n).randbytes(28 + 640) for n in range(5)]
    common = common_bytes(samples)
    assert SHARED[:64] in common
    assert SHARED[64:] in common
    assert len(common) == 128


def test_the_most_common_comes_last() -> None:
    rarer = bytes(range(64))
    commoner = bytes(range(100, 164))
    common = common_bytes([rarer, rarer, commoner, commoner, commoner])
    assert common == rarer + commoner


def test_there_may_be_none() -> None:
    assert common_bytes([]) == b""
    assert common_bytes([b"short", b"short"]) == b""
    assert common_bytes([random.Random(n).randbytes(500) for n in range(3)]) == b""


def test_no_more_bytes_than_deflate_looks_back() -> None:
    shared = [random.Random(n).randbytes(1000) for n in range(100)]
    common = common_bytes([*shared, *shared])
    assert MAX_BYTES * 0.9 < len(common) <= MAX_BYTES
