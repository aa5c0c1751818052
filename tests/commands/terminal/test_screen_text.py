"""What a terminal is given: nothing that it would obey."""

import unicodedata

import pytest

from shimmy.commands.terminal.screen_text import cut, safe, safe_line, width

CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]


def test_no_control_character_is_left_but_tabs_and_newlines() -> None:
    assert safe("".join(CONTROLS)).count("\n") == 1
    left = {character for character in safe("".join(CONTROLS)) if unicodedata.category(character) == "Cc"}
    assert left == {"\t", "\n"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode 日本 👩‍🔬\n\tx", "plain ünïcode 日本 👩‍🔬\n\tx"),
        ("\x1b[31mred\x1b[0m", "\u241b[31mred\u241b[0m"),
        ("\x9b31m\x9d0;title\x9c", "\ufffd31m\ufffd0;title\ufffd"),
        ("a\r\nb\rc", "a\nbc"),
        ("\x7f\x08\x07", "\u2421\u2408\u2407"),
        ("safe\u202egpj.exe\u2066", "safe\ufffdgpj.exe\ufffd"),
        ("half \ud83d", "half \ufffd"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert safe(text) == shown
    safe(text).encode()


def test_a_line_stays_one() -> None:
    assert safe_line("a\nb\tc\x1b") == "a b c\u241b"


@pytest.mark.parametrize(
    ("text", "columns"), [("", 0), ("abc", 3), ("ä", 1), ("a\u0308", 1), ("日本", 4), ("\u200d", 0), ("😀", 2)]
)
def test_columns(text: str, columns: int) -> None:
    assert width(text) == columns


@pytest.mark.parametrize(
    ("text", "n_columns", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("日本語", 6, "日本語"),
        ("日本語", 5, "日本…"),
        ("日本語", 4, "日…"),
        ("ab", 1, "…"),
    ],
)
def test_what_is_too_wide_is_cut(text: str, n_columns: int, shown: str) -> None:
    assert cut(text, n_columns) == shown
    assert width(shown) <= n_columns
