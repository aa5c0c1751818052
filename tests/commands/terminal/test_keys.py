"""Bytes of a keyboard, as a pipe hands them over."""

import os

import pytest

from shimmy.commands.terminal.keys import END, PASTE, TEXT, Key, KeyReader


def keys(*pieces: bytes) -> list[Key]:
    """The keys of bytes that come in these pieces, up to the end."""
    reading, writing = os.pipe()
    for piece in pieces:
        os.write(writing, piece)
    os.close(writing)
    try:
        return list(KeyReader(reading))
    finally:
        os.close(reading)


def names(data: bytes) -> list[str]:
    return [key.name for key in keys(data)][:-1]


def test_characters_and_the_end() -> None:
    assert keys("aé日😀".encode()) == [*(Key(TEXT, character) for character in "aé日😀"), Key(END)]


def test_half_a_character_at_the_end_is_no_error() -> None:
    assert keys("é".encode()[:1]) == [Key(TEXT, "\ufffd"), Key(END)]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x7f", "backspace"), (b"\r", "enter"), (b"\n", "enter"), (b"\x03", "interrupt"),
        (b"\x04", "delete or leave"),
        (b"\x1b[A", "up"), (b"\x1bOB", "down"), (b"\x1b[C", "right"), (b"\x1bOD", "left"), (b"\x1b[H", "home"),
        (b"\x1b[4~", "end"), (b"\x1b[3~", "delete"), (b"\x1b[1;5C", "word right"), (b"\x1b[1;3D", "word left"),
        (b"\x1bb", "word left"), (b"\x1b\r", "newline"), (b"\x1b\x7f", "cut word"), (b"\x17", "cut word"),
    ],
)  # fmt: skip
def test_keys_with_names(data: bytes, name: str) -> None:
    assert names(data) == [name]
    assert names(data + b"x") == [name, TEXT]


@pytest.mark.parametrize(
    "data", [b"\x1b", b"\x1b[", b"\x1b[999z", b"\x1b[?1;2c", b"\x1b[" + b"1" * 100 + b"A", b"\x00", b"\x1bz"]
)
def test_what_has_no_meaning_is_dropped(data: bytes) -> None:
    assert [key for key in keys(data) if key.name not in (TEXT, END)] == []


def test_what_is_pasted_is_one_text_whatever_is_in_it() -> None:
    pasted = b"\x1b[200~one\rtwo\r\nthree\x03\x1b[A\x1b[201~\r"
    assert keys(pasted) == [Key(PASTE, "one\ntwo\nthree\x03\x1b[A"), Key("enter"), Key(END)]
    assert keys(b"\x1b[200~cut off") == [Key(PASTE, "cut off"), Key(END)]
