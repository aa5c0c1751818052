"""Numbers as people say them: sizes, counts, times."""

from shimmy.text.plural import plural

_DAY_S = 86_400
_SPANS = (
    (365.25 * _DAY_S, "year"), (30.44 * _DAY_S, "month"), (7 * _DAY_S, "week"), (_DAY_S, "day"),
    (3600, "hour"), (60, "minute"), (1, "second"),
)  # fmt: skip


def size(n_bytes: float) -> str:
    """`638 KB`, `98 MB`, `1.2 GB`: powers of 1000, as disks and downloads are sold."""
    for factor, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        # What would be rounded up to the next unit is told in it.
        if n_bytes >= 0.9995 * factor:
            number = n_bytes / factor
            return f"{number:.1f} {unit}" if number < 9.95 else f"{number:.0f} {unit}"
    return f"{n_bytes:.0f} bytes"


def count(number: int) -> str:
    """`134.5M`."""
    for factor, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= factor:
            return f"{number / factor:.1f}{unit}"
    return str(number)


def span(duration_s: float) -> str:
    """`3 minutes`, in the largest unit that fits."""
    for unit_s, unit in _SPANS:
        if duration_s >= unit_s:
            return plural(int(duration_s / unit_s), unit)
    return "0 seconds"


def ago(duration_s: float) -> str:
    """`3 minutes ago`; what was just now, or by its clock will only be, is `just now`."""
    return "just now" if duration_s < 1 else f"{span(duration_s)} ago"
