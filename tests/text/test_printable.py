import pytest

from shimmy.text.printable import printable, shortened


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 字 🙂", "plain é 字 🙂"), ("a\r\n\tb", r"a\r\n\tb"), ("\x1b]0;x\x07", r"\x1b]0;x\x07"),
        ("\x7f\x9b", r"\x7f\x9b"), ("\u202egnp.exe", r"\u202egnp.exe"), ("\udcff", r"\udcff"), ("", ""),
    ],
)  # fmt: skip
def test_what_cannot_be_printed_is_written_as_python_would(text: str, shown: str) -> None:
    assert printable(text) == shortened(text, 80) == shown
    assert printable(shown) == shown


def test_what_is_long_is_cut_also_where_escapes_make_it_long() -> None:
    assert shortened("x" * 10, 10) == "x" * 10
    assert shortened("x" * 11, 10) == "x" * 9 + "…"
    assert shortened("\n" * 6, 10) == r"\n\n\n\n" + "\\…"
    assert shortened("x" * 10_000_000, 10) == "x" * 9 + "…"
