"""Text from outside as a log, an error or a terminal may show it: with nothing that a terminal obeys or turns around.

Names of files, of tools and of their arguments, templates and what libraries write are whatever somebody chose. Knows
strings alone.
"""


def printable(text: str) -> str:
    """`text` on one line: what cannot be printed is written as Python would, as in `\\n`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shortened(text: str, n_most: int) -> str:
    """The same, and no longer than `n_most` characters."""
    shown = printable(text[: n_most + 1])
    return shown if len(shown) <= n_most else f"{shown[: n_most - 1]}…"
