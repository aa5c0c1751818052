"""The decoder and the stop filter give the same output however their input is cut."""

import pytest

from shimmy.text.detokenizer import TextDecoder
from shimmy.text.string_matcher import StopFilter

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def decode(pieces: list[bytes]) -> str:
    decoder = TextDecoder()
    return "".join([*map(decoder.feed, pieces), decoder.flush()])


def filter_text(stop: tuple[str, ...], pieces: list[str]) -> tuple[str, str | None]:
    stop_filter = StopFilter(stop)
    text = "".join([*map(stop_filter.feed, pieces), stop_filter.flush()])
    return text, stop_filter.matched


@pytest.mark.parametrize(
    "data",
    [
        b"plain",
        "Grüße, 世界 🦀👩‍💻!".encode(),
        b"\xff\xfe ok \xc3",
        b"a\xe2\x82",
        b"a\xe2\x82b\xf0\x9f\xa6\x80",
        b"\xf0\x9f\xa6",
        b"\xed\xa0\x80 surrogate, \xc0\xaf overlong, \xf5\x80 too high",
        b"",
    ],
)
def test_bytes_cut_at_every_two_positions_decode_like_the_whole(data: bytes) -> None:
    whole = data.decode("utf-8", "replace")
    assert decode([data[i : i + 1] for i in range(len(data))]) == whole
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            assert decode([data[:first], data[first:second], data[second:]]) == whole


def test_a_character_appears_with_its_last_byte_and_not_before() -> None:
    decoder = TextDecoder()
    assert [decoder.feed(bytes([byte])) for byte in "🦀".encode()] == ["", "", "", "🦀"]
    assert decoder.flush() == ""


def test_a_character_that_cannot_be_finished_is_replaced_at_once() -> None:
    decoder = TextDecoder()
    assert decoder.feed(b"\xe2\x82") == ""
    assert decoder.feed(b"x") == REPLACEMENT + "x"


def test_decoder_flush_replaces_the_unfinished_character_once() -> None:
    decoder = TextDecoder()
    decoder.feed(b"\xf0\x9f")
    assert decoder.flush() == REPLACEMENT
    assert decoder.flush() == ""
    assert decoder.feed(b"next") == "next"


@pytest.mark.parametrize(
    ("stop", "text", "expected", "matched"),
    [
        ((), "anything at all", "anything at all", None),
        (("STOP",), "one STOP two", "one ", "STOP"),
        (("STOP",), "one STO two", "one STO two", None),
        (("STOP",), "ends with ST", "ends with ST", None),
        (("STOP",), "SSTOSTOP", "SSTO", "STOP"),
        (("aab",), "aaab", "a", "aab"),
        (("abab", "b!"), "abab!", "", "abab"),
        (("\n\n",), "a\n\n\nb", "a", "\n\n"),
        (("late", "early"), "early and late", "", "early"),
        (("cat", "concatenate"), "concatenate", "con", "cat"),  # complete first, although it began later
        (("ab", "b"), "ab", "", "ab"),  # complete at once: the one that began first
        (("b", "ab"), "ab", "", "ab"),
        (("a", "ab"), "ab", "", "a"),
        (("abcd", "bcx"), "abcx", "a", "bcx"),  # a false start holds the true one
        (("<|im_end|>", "<|im_start|>"), "x<|im_<|im_end|>y", "x<|im_", "<|im_end|>"),
        (("🦀🦀", "é"), "caf🦀é🦀🦀", "caf🦀", "é"),
        (("", "x"), "axb", "a", "x"),
        (("x",), "", "", None),
    ],
)
def test_text_cut_at_every_two_positions_stops_at_the_same_place(
    stop: tuple[str, ...], text: str, expected: str, matched: str | None
) -> None:
    assert filter_text(stop, list(text)) == (expected, matched)
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            assert filter_text(stop, [text[:first], text[first:second], text[second:]]) == (expected, matched)


def test_only_the_longest_possible_beginning_is_held_back() -> None:
    stop_filter = StopFilter(("abcd", "cdef"))
    assert stop_filter.feed("xxabc") == "xx"
    assert stop_filter.feed("x") == "abcx"
    assert stop_filter.feed("cd") == ""
    assert stop_filter.flush() == "cd"


def test_what_follows_a_stop_string_is_dropped() -> None:
    stop_filter = StopFilter(("END",))
    assert stop_filter.feed("a END b EN") == "a "
    assert stop_filter.matched == "END"
    assert stop_filter.feed("more") == ""
    assert stop_filter.flush() == ""


def test_nothing_is_matched_before_the_stop_string_is_complete() -> None:
    stop_filter = StopFilter(("END",))
    assert stop_filter.feed("EN") == ""
    assert stop_filter.matched is None
    assert stop_filter.feed("D") == ""
    assert stop_filter.matched == "END"
