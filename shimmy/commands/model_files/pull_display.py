"""What a pull says, for people: one line that is rewritten on a terminal, else a line now and then."""

from time import monotonic
from typing import Any, Self, TextIO

from shimmy.commands.terminal import amounts
from shimmy.commands.terminal.live_line import LiveLine
from shimmy.commands.terminal.screen_text import safe_line, width
from shimmy.commands.terminal.style import Style
from shimmy.hub.transfer.events import PullEvent
from shimmy.text.plural import plural

_BAR_WIDTH = 24
_GAP = "  "
_LONGEST_FIGURES = len("100 %  999 MB of 999 MB  999 MB/s  0:00:00 left")
_LINE_EVERY_S = 15.0  # where there is no terminal


class PullDisplay:
    """Give `report` to a pull within a `with` block. Whoever interrupts it is told how it goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._style = Style(stream)
        self._live = LiveLine(stream)
        self._said_s = 0.0
        self._is_whole_said = False
        self._has_begun = False  # some bytes are there

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._live.keep()
        if kind is KeyboardInterrupt and self._has_begun:
            self._line("what was fetched is kept: the same command goes on from there")

    def report(self, event: PullEvent) -> None:
        details: dict[str, Any] = dict(event.details)
        if event.kind == "resolving":
            self._line(f"looking up {details['reference']}")
        elif event.kind == "files":
            self._line(_files(details))
        elif event.kind == "waiting":
            seconds = details["seconds"]
            self._line(f"{details['reason']}; {'waiting' if seconds is None else f'again in {seconds:g} s'}")
        elif event.kind == "progress":
            self._progress(details)

    def _line(self, text: str) -> None:
        self._live.clear()
        print(safe_line(text), file=self._stream, flush=True)

    def _progress(self, details: dict[str, Any]) -> None:
        self._has_begun = details["completed_bytes"] > 0
        if self._live.is_on:
            self._show(details)
            return
        now_s, is_whole = monotonic(), details["completed_bytes"] == details["total_bytes"]
        if now_s - self._said_s >= _LINE_EVERY_S or (is_whole and not self._is_whole_said):
            self._said_s, self._is_whole_said = now_s, is_whole
            self._line(_GAP.join(filter(None, _figures(details))))

    def _show(self, details: dict[str, Any]) -> None:
        """In a narrow terminal without the bar, and then without the last figures. The name gets what room is left."""
        total, completed = details["total_bytes"], details["completed_bytes"]
        n_left = self._live.n_columns - _LONGEST_FIGURES
        done = "#" * int(_BAR_WIDTH * min(completed / total, 1)) if total else ""
        bar = f"[{done:<{_BAR_WIDTH}}]" if total and n_left >= _BAR_WIDTH + len("[]") + len(_GAP) else ""
        n_left -= len(bar) + len(_GAP) if bar else 0
        name = _shortened(safe_line(str(details["file"])).rpartition("/")[2], n_left - len(_GAP))
        text = _GAP.join(filter(None, (name, bar, *_figures(details))))
        self._live.show(text, lambda line: line.replace(f"[{done}", f"[{self._style.good(done)}", 1))


def _files(details: dict[str, Any]) -> str:
    files, total = details["files"], details["total_bytes"]
    names = files[0]["name"] if len(files) == 1 else plural(len(files), "file")
    return f"pulling {names}" + (f", {amounts.size(total)}" if total is not None else "")


def _figures(details: dict[str, Any]) -> tuple[str, ...]:
    total, completed, eta_s = details["total_bytes"], details["completed_bytes"], details["eta_s"]
    share = f"{100 * completed // total:3} %" if total else ""
    amount = amounts.size(completed) + (f" of {amounts.size(total)}" if total else "")
    speed = f"{amounts.size(details['bytes_per_s'])}/s" if details["bytes_per_s"] else ""
    left = f"{clock(eta_s)} left" if eta_s is not None and completed != total else ""
    return share, amount, speed, left


def clock(duration_s: float) -> str:
    """`0:07`, `12:30`, `1:02:30`."""
    minutes, seconds = divmod(round(duration_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _shortened(name: str, columns: int) -> str:
    """The end of a name, where quantisations stand."""
    if width(name) <= max(columns, 0):
        return name
    return f"…{name[-(columns - 1) :]}" if columns > 8 else ""
