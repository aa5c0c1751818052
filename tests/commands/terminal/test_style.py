"""When there are colours."""

import io

import pytest

from shimmy.commands.terminal.style import Style


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("term", "no_color", "is_on"),
    [("xterm", None, True), ("xterm", "", True), ("xterm", "1", False), ("dumb", None, False), (None, None, False)],
)
def test_a_terminal_has_colours_unless_the_person_says_otherwise(
    term: str | None, no_color: str | None, is_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("TERM", term), ("NO_COLOR", no_color)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    style = Style(Screen())
    assert style.is_on == is_on
    assert style.good("yes") == ("\x1b[32myes\x1b[0m" if is_on else "yes")
    assert style.bad("") == ""


def test_a_file_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    closed = io.StringIO()
    closed.close()
    assert [Style(stream).is_on for stream in (io.StringIO(), closed, None)] == [False] * 3
