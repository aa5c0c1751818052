"""Draws horizontal bars on a logarithmic axis as SVG: how many times better, with the range and the goal. Nothing else.

One is the middle: what is better goes to the right of it, what is worse to the left.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LABEL_WIDTH, VALUE_WIDTH = 900, 390, 60
ROW, HEAD, MARGIN = 20, 44, 12
BETTER, WORSE, INK, PALE = "#2a7f62", "#c0504d", "#222222", "#d0d0d0"


@dataclass(frozen=True, slots=True)
class Bar:
    """A value with its range; `goal` is a mark, where there is one."""

    label: str
    value: float
    lowest: float
    highest: float
    goal: float | None = None


def plot(title: str, groups: Mapping[str, Sequence[Bar]]) -> str:
    """The whole file: a group of bars for each heading. All values are above 0."""
    bars = [bar for group in groups.values() for bar in group]
    marks = [value for bar in bars for value in (bar.lowest, bar.highest, bar.goal or 1.0)]
    axis = _Axis(min(marks), max(marks))
    lines = [_text(MARGIN, MARGIN + 14, title, 'font-size="15" font-weight="bold"')]
    top = MARGIN + 24
    for heading, group in groups.items():
        lines += [_text(MARGIN, top + 18, heading, 'font-weight="bold"'), *_grid(axis, top, len(group))]
        for number, bar in enumerate(group):
            lines += _drawn(bar, axis, top + HEAD + number * ROW)
        top += HEAD + len(group) * ROW + MARGIN
    lines.append(
        _text(MARGIN, top + 12, "Bar: median of the rounds; line: their range; blue mark: the goal.", f'fill="{INK}"')
    )
    size = f'width="{WIDTH}" height="{top + 24}" viewBox="0 0 {WIDTH} {top + 24}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', *lines, "</svg>"]) + "\n"


class _Axis:
    """Where a value lies; the ends are powers of two."""

    def __init__(self, lowest: float, highest: float) -> None:
        self.low = min(-1, math.floor(math.log2(lowest)))
        self.high = max(1, math.ceil(math.log2(highest)))

    def x(self, value: float) -> float:
        width = WIDTH - LABEL_WIDTH - VALUE_WIDTH
        return LABEL_WIDTH + width * (math.log2(value) - self.low) / (self.high - self.low)


def _grid(axis: _Axis, top: float, n_rows: int) -> list[str]:
    lines = []
    for power in range(axis.low, axis.high + 1):
        x, bottom = axis.x(2**power), top + HEAD + n_rows * ROW
        lines.append(_stroke(x, top + HEAD - 4, x, bottom, INK if power == 0 else PALE))
        lines.append(
            _text(x, top + HEAD - 10, f"{2**power}x" if power >= 0 else f"1/{2**-power}x", 'text-anchor="middle"')
        )
    return lines


def _drawn(bar: Bar, axis: _Axis, top: float) -> list[str]:
    left, right = sorted((axis.x(1), axis.x(bar.value)))
    middle, color = top + ROW / 2, BETTER if bar.value >= 1 else WORSE
    lines = [
        _text(LABEL_WIDTH - 20, middle + 4, bar.label, 'text-anchor="end"'),
        f'<rect x="{left:.1f}" y="{top + 4}" width="{right - left:.1f}" height="{ROW - 8}" fill="{color}"/>',
        _stroke(axis.x(bar.lowest), middle, axis.x(bar.highest), middle, INK),
        _text(WIDTH - MARGIN, middle + 4, f"{bar.value:.2f}x", 'text-anchor="end"'),
    ]
    if bar.goal is not None:
        lines.append(_stroke(axis.x(bar.goal), top + 1, axis.x(bar.goal), top + ROW - 1, "#1f4e9e", 3))
    return lines


def _stroke(x1: float, y1: float, x2: float, y2: float, color: str, width: int = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
