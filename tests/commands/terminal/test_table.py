"""Tables in lines that are too short for them: what makes way, and what stays."""

import os
import sys

import pytest

from shimmy.commands.console import print_table
from shimmy.commands.terminal.screen_text import width
from shimmy.commands.terminal.table import Table, drawn
from tests.commands.terminal.test_live_line import Screen

HEAD = ("NAME", "STATE", "MEMORY", "IDLE", "JOBS", "NOTE")
ROWS = [
    ("tiny", "ready", "12 MB", "3 minutes", "", "its layers are on the processor: no device was found, 模型"),
    ("a-longer-name", "unloaded", "", "", "", ""),
]
TABLE = Table(HEAD, ROWS, numbers=("MEMORY",), spare=("JOBS", "IDLE", "MEMORY"), remark="NOTE")


def lines(n_columns: int | None, table: Table = TABLE) -> list[str]:
    return drawn(table, n_columns, lambda _column, text: text, lambda _column, text: text)[0]


def left_out(n_columns: int | None) -> list[str]:
    return drawn(TABLE, n_columns, lambda _column, text: text, lambda _column, text: text)[1]


def test_what_has_room_stands_in_one_line() -> None:
    whole = lines(None)
    assert whole == lines(200) == lines(max(map(width, whole)))
    assert whole[0].split() == ["NAME", "STATE", "MEMORY", "IDLE", "NOTE"]  # nobody has jobs
    assert whole[1].endswith("found, 模型")
    assert len(whole) == 3
    assert left_out(None) == left_out(200) == []


def test_remarks_stand_below_before_anything_is_left_out() -> None:
    narrow = max(map(width, lines(None))) - 1
    assert left_out(narrow) == []
    assert lines(narrow) == [
        "NAME           STATE     MEMORY  IDLE",
        "tiny           ready      12 MB  3 minutes",
        "  its layers are on the processor: no device was found, 模型",
        "a-longer-name  unloaded",
    ]


def test_columns_make_way_in_their_order_and_nothing_of_a_remark_is_lost() -> None:
    assert left_out(42) == []
    assert left_out(41) == ["IDLE"]
    assert left_out(31) == ["IDLE"]
    assert left_out(30) == left_out(2) == ["IDLE", "MEMORY"]
    for n_columns in range(1, 60):
        shown = lines(n_columns)
        assert [line.split()[0] for line in shown if not line.startswith(" ")] == ["NAME", "tiny", "a-longer-name"]
        assert "".join(ROWS[0][-1].split()) in "".join("".join(shown).split())
        if n_columns >= 23:  # what the columns take that stay
            assert max(len(line) for line in shown) <= n_columns


def test_what_comes_from_outside_stays_in_its_line() -> None:
    assert lines(None, Table(("NAME",), [("a\nb\x1b[31m",)])) == ["NAME", "a b␛[31m"]


@pytest.mark.parametrize(("n_columns", "is_said"), [(90, False), (35, True)])
def test_a_terminal_is_told_what_had_no_room(n_columns: int, is_said: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Screen(), Screen()
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(os, "get_terminal_size", lambda _descriptor: os.terminal_size((n_columns, 24)))
    print_table(HEAD, ROWS, numbers=("MEMORY",), spare=("JOBS", "IDLE", "MEMORY"), remark="NOTE")
    assert max(map(width, out.getvalue().splitlines())) < n_columns
    assert ("no room for IDLE:" in err.getvalue()) == is_said


def test_a_pipe_gets_all_whatever_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda _descriptor: os.terminal_size((20, 24)))
    print_table(HEAD, ROWS, numbers=("MEMORY",), spare=("JOBS", "IDLE", "MEMORY"), remark="NOTE")
    assert capsys.readouterr() == ("".join(f"{line}\n" for line in lines(None)), "")
