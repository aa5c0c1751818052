"""Figures as bars: beside a table in a terminal, and as an SVG file. Knows nothing of what the figures are."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_EIGHTHS = "▏▎▍▌▋▊▉█"
_ROW, _BAR, _TOP, _LABELS, _BARS, _VALUES = 34, 20, 76, 110, 420, 220  # pixels


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure with its deviation, neither below 0."""

    label: str
    value: float
    deviation: float = 0.0

    @property
    def text(self) -> str:
        return f"{self.value:.2f} ± {self.deviation:.2f}"


def text_bars(values: Sequence[float], n_columns: int) -> list[str]:
    """Bars of block characters; the longest has `n_columns`, and what is not 0 has an eighth at least."""
    longest = max(values, default=0.0)
    return [_blocks(round(8 * n_columns * value / longest) or 1) if value > 0 else "" for value in values]


def _blocks(n_eighths: int) -> str:
    whole, rest = divmod(n_eighths, 8)
    return _EIGHTHS[-1] * whole + (_EIGHTHS[rest - 1] if rest else "")


def svg(title: str, subtitle: str, unit: str, bars: Sequence[Bar]) -> str:
    """A picture that needs nothing else, in the colours of a light or dark page. Texts may hold anything."""
    longest = max((bar.value + bar.deviation for bar in bars), default=0.0) or 1.0
    width, height = _LABELS + _BARS + _VALUES, _TOP + _ROW * len(bars) + 16
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">'
    )
    style = (
        "<style>text{font:14px system-ui,sans-serif;fill:#222}.title{font-weight:600;font-size:16px}.soft{fill:#666}"
        "rect{fill:#3b76c4}line{stroke:#222}@media(prefers-color-scheme:dark){text{fill:#ddd}.soft{fill:#999}"
        "rect{fill:#6ba3ee}line{stroke:#ddd}}</style>"
    )
    lines = [
        head,
        style,
        f'<text class="title" x="16" y="28">{escape(title)}</text>',
        f'<text class="soft" x="16" y="50">{escape(subtitle)}</text>',
    ]
    for index, bar in enumerate(bars):
        top = _TOP + _ROW * index
        end = _LABELS + _BARS * bar.value / longest
        low, high = (_LABELS + _BARS * max(bar.value + side, 0) / longest for side in (-bar.deviation, bar.deviation))
        middle, baseline = top + _BAR / 2, top + 15
        lines += [
            f'<text x="{_LABELS - 10}" y="{baseline}" text-anchor="end">{escape(bar.label)}</text>',
            f'<rect x="{_LABELS}" y="{top}" width="{end - _LABELS:.1f}" height="{_BAR}" rx="2"/>',
            f'<line x1="{low:.1f}" y1="{middle}" x2="{high:.1f}" y2="{middle}"/>',
            f'<text class="soft" x="{high + 10:.1f}" y="{baseline}">{escape(f"{bar.text} {unit}")}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
