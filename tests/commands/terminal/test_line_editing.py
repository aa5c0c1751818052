"""A text under the hands of a person, and how it is drawn."""

import io
import os
import random
from pathlib import Path

import pytest

from shimmy.commands.terminal.edited_line import EditedLine
from shimmy.commands.terminal.history import MOST_ENTRIES, InputHistory
from shimmy.commands.terminal.line_screen import LineScreen, lay_out
from shimmy.commands.terminal.screen_text import width


class Screen:
    """A terminal that knows what LineScreen writes: it shows `rows`, and its cursor stands at `row` and `column`."""

    def __init__(self, n_columns: int, n_rows: int) -> None:
        self.n_columns, self.n_rows = n_columns, n_rows
        self.rows = [""] * n_rows
        self.row = self.column = 0

    def feed(self, text: str) -> None:
        while text:
            if text.startswith("\x1b["):
                end = next(index for index in range(2, len(text)) if text[index].isalpha())
                self._obey(text[end], int(text[2:end] or 1))
                text = text[end + 1 :]
                continue
            self._put(text[0])
            text = text[1:]

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            if self.row == self.n_rows - 1:
                self.rows = [*self.rows[1:], ""]
            else:
                self.row += 1
        else:
            assert self.column + width(character) <= self.n_columns, "a row is longer than the screen"
            row = self.rows[self.row]
            assert len(row) == len(row[: self.column]) or width(row) == self.column
            self.rows[self.row] = row + character
            self.column += width(character)

    def _obey(self, final: str, number: int) -> None:
        if final == "A":
            self.row = max(0, self.row - number)
        elif final == "B":
            self.row = min(self.n_rows - 1, self.row + number)
        elif final == "C":
            self.column += number
        else:
            assert final == "J"
            assert self.column == 0
            self.rows[self.row :] = [""] * (self.n_rows - self.row)


@pytest.mark.parametrize(
    ("keys", "text", "cursor"),
    [
        (["left", "left", "backspace"], "one wo", 4), (["home", "delete"], "ne two", 0), (["word left"], "one two", 4),
        (["word left", "word left", "word right"], "one two", 3), (["cut word", "yank", "yank"], "one twotwo", 10),
        (["cut to start", "cut to start", "yank"], "one two", 7), (["home", "cut to end", "yank"], "one two", 7),
        (["home", "cut next word"], " two", 0), (["left", "newline"], "one tw\no", 7),
        (["right", "delete"], "one two", 7), (["home", "left", "backspace"], "one two", 0),
    ],
)  # fmt: skip
def test_keys_change_the_text(keys: list[str], text: str, cursor: int) -> None:
    line = EditedLine("one two")
    assert all(line.press(key) for key in keys)
    assert (line.text, line.cursor) == (text, cursor)
    assert not line.press("no such key")


def test_lines_above_and_below() -> None:
    line = EditedLine("long first\nmid\nlast one")
    assert line.move_line(-1)
    assert line.cursor == len("long first\nmid")
    assert line.move_line(-1)
    assert line.text[: line.cursor] == "lon"
    assert not line.move_line(-1)
    line.press("end")
    assert line.text[: line.cursor] == "long first"


@pytest.mark.parametrize(
    ("text", "cursor", "n_columns", "rows", "place"),
    [
        ("", 0, 10, ("> ",), (0, 2)),
        ("12345678", 8, 10, ("> 12345678", ""), (1, 0)),
        ("12345678", 7, 10, ("> 12345678",), (0, 9)),
        ("123456789", 8, 10, ("> 12345678", "9"), (1, 0)),
        ("a\nb", 3, 10, ("> a", ". b"), (1, 3)),
        ("日本", 2, 5, ("> 日", "本"), (1, 2)),
        ("\t\x1b", 2, 10, (">     \u241b",), (0, 7)),
    ],
)
def test_rows_break_at_the_edge(
    text: str, cursor: int, n_columns: int, rows: tuple[str, ...], place: tuple[int, int]
) -> None:
    layout = lay_out("> ", ". ", text, cursor, n_columns)
    assert layout.rows == rows
    assert (layout.row, layout.column) == place


@pytest.mark.parametrize("n_columns", [4, 7, 20, 200])
def test_what_is_drawn_again_and_again_is_what_is_there(n_columns: int) -> None:
    """Random keys; the terminal must show the layout each time, and what stood above."""
    source = random.Random(n_columns)
    out, screen = io.StringIO(), Screen(n_columns, 60)
    drawn, line = LineScreen(out, lambda: os.terminal_size((n_columns, 60))), EditedLine()
    screen.feed("top\r\n")
    keys = ("left", "right", "home", "end", "backspace", "delete", "word left", "newline", "cut word")
    for _ in range(400):
        if source.random() < 0.6 and len(line.text) < 60:
            line.insert(source.choice("abc 日e\t"))
        else:
            line.press(source.choice(keys))
        drawn.draw("> ", ". ", line.text, line.cursor)
        screen.feed(out.getvalue())
        out.truncate(0)
        out.seek(0)
        layout = lay_out("> ", ". ", line.text, line.cursor, n_columns)
        assert screen.rows[1 : 1 + len(layout.rows)] == list(layout.rows)
        assert (screen.row, screen.column) == (1 + layout.row, layout.column)
        assert screen.rows[0] == "top"
    drawn.leave()
    screen.feed(out.getvalue())
    assert (screen.row, screen.column) == (1 + len(layout.rows), 0)


def test_of_a_text_that_is_higher_than_the_screen_the_cursor_is_seen() -> None:
    out, screen = io.StringIO(), Screen(10, 5)
    drawn = LineScreen(out, lambda: os.terminal_size((10, 5)))
    text = "\n".join(map(str, range(30)))
    for cursor in (len(text), 0, 20):
        drawn.draw("> ", ". ", text, cursor)
        screen.feed(out.getvalue())
        out.truncate(0)
        out.seek(0)
        layout = lay_out("> ", ". ", text, cursor, 10)
        assert screen.rows[screen.row] == layout.rows[layout.row]
        assert screen.column == layout.column


# -- what was typed before ---------------------------------------------------------------------------------------------


def test_texts_of_several_lines_outlive_the_program_and_are_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history"
    history = InputHistory(path)
    for text in ("one", "two\nlines", "two\nlines", "  ", "drei 日"):
        history.add(text)
    assert InputHistory(path).entries == history.entries == ["one", "two\nlines", "drei 日"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_history_that_is_damaged_or_too_long_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(b'"good"\n{"odd": 1}\n\xff\n[[[\n"last"\n')
    assert InputHistory(path).entries == ["good", "last"]
    path.write_bytes(b'"%s"\n' % (b"x" * 1000) * 3000)
    assert len(InputHistory(path).entries) == MOST_ENTRIES
    assert path.stat().st_size <= 1_010_000


def test_a_history_that_cannot_be_kept_is_one_for_this_time(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("not for us\n")
    (tmp_path / "history").symlink_to(elsewhere)
    for path in (tmp_path / "history", tmp_path, None):
        history = InputHistory(path)
        history.add("now")
        assert history.entries == ["now"]
    assert elsewhere.read_text() == "not for us\n"
