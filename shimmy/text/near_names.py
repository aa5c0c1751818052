"""Names near the one that was meant: for those who have mistyped one."""

from collections.abc import Iterable

_MOST = 3
_SHORTEST_PART = 3  # characters of a part that says anything about a name


def near(wanted: str, names: Iterable[str]) -> list[str]:
    """The names most like `wanted`, the most likely first; then those that begin with it, and those that have it."""
    from difflib import get_close_matches  # only mistakes pay for it

    names = [*names]
    longer = [name for name in names if wanted in name] if len(wanted) >= _SHORTEST_PART else []
    longer.sort(key=lambda name: not name.startswith(wanted))
    return [*dict.fromkeys((*get_close_matches(wanted, names, _MOST), *longer))][:_MOST]


def did_you_mean(wanted: str, names: Iterable[str]) -> str:
    """A question for the person; '' where no name is near."""
    close = near(wanted, names)
    return f"did you mean {enumerated(close, 'or')}?" if close else ""


def enumerated(names: Iterable[str], conjunction: str) -> str:
    """At least one name, as a sentence has them."""
    *first, last = [f"`{name}`" for name in names]
    return f"{', '.join(first)} {conjunction} {last}" if first else last
