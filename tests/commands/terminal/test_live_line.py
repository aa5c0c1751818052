"""A line that is rewritten: where there is one, and how long it may be. And what pulls and bars write into it."""

import io
import os
import re
import sys

import pytest

from shimmy.commands.console import ProgressBar
from shimmy.commands.model_files.pull_display import PullDisplay
from shimmy.commands.terminal.live_line import LiveLine
from shimmy.commands.terminal.screen_text import width
from shimmy.hub.transfer.events import PullEvent

ERASE = "\r\x1b[K"
PROGRESS = {
    "file": "Owner/some-model-Q4_K_M.gguf", "completed_bytes": 500_000_000, "total_bytes": 999_000_000,
    "bytes_per_s": 99_000_000, "eta_s": 3725,
}  # fmt: skip


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def lines(self) -> list[str]:
        """What was shown one after the other, without colours."""
        return [re.sub(r"\x1b\[[0-9;]*m", "", text) for text in self.getvalue().split(ERASE)[1:]]


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of the terminal; a test may change them."""
    size = [30]
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda _descriptor: os.terminal_size((size[0], 24)))
    return size


def test_it_is_cut_to_the_width_there_is_now_and_can_go(columns: list[int]) -> None:
    screen = Screen()
    line = LiveLine(screen)
    for columns[0] in (30, 10, 1, 0):
        line.show("a line of 24 characters\n")
    line.clear()
    line.clear()
    text = "a line of 24 characters "
    assert screen.lines() == [text, "a line o…", "…", text, ""]


def test_where_no_line_can_be_rewritten_there_is_none(columns: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    for stream in (Screen(), io.StringIO()):
        line = LiveLine(stream)
        line.show("text")
        line.keep()
        assert not line.is_on
        assert stream.getvalue() == ""
    assert columns


def test_a_pull_leaves_out_what_has_no_room(columns: list[int]) -> None:
    screen = Screen()
    with PullDisplay(screen) as display:
        for columns[0] in (120, 95, 80, 60, 50, 20):
            display.report(PullEvent("progress", PROGRESS))
    figures = " 50 %  500 MB of 999 MB  99 MB/s  1:02:05 left"
    bar = f"[{'#' * 12}{' ' * 12}]"
    shown = screen.lines()
    assert shown[0] == f"some-model-Q4_K_M.gguf  {bar}  {figures}"
    assert shown[1] == f"…odel-Q4_K_M.gguf  {bar}  {figures}"
    assert shown[2] == f"{bar}  {figures}"
    assert shown[3] == f"…_K_M.gguf  {figures}"
    assert shown[4] == figures
    assert shown[5] == f"{figures[:18]}…\n"
    assert "\x1b[32m############\x1b[0m" in screen.getvalue()


def test_a_progress_bar_is_as_wide_as_there_is_room(columns: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    bar = ProgressBar("measuring")
    for columns[0], share in ((80, 0.5), (30, 0.75), (20, 1)):
        bar.show(share)
        bar.show(share)
    bar.end()
    shown = screen.lines()
    assert shown == [f"measuring [{'#' * 20:<40}]  50 %", f"measuring [{'#' * 8:<11}]  75 %", "measuring [#######…\n"]
    assert all(width(line.rstrip("\n")) < 80 for line in shown)


def test_a_label_takes_the_columns_that_it_has_on_a_terminal(
    columns: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    columns[0] = 40
    for label in ("模型文件", "e\u0301tape\n"):
        ProgressBar(label).show(1)
    first, second = screen.lines()
    assert first == f"模型文件 [{'#' * 22}] 100 %"
    assert width(first) == width(second) == 39
