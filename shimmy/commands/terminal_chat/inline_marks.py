"""Marks within a line of Markdown, as attributes of a terminal: emphasis, code, links.

Knows when what has come of a line is enough to know what a mark means; nothing of where lines begin, or come from. Any
mark is looked at together with the next LONGEST characters, so that the work grows as the text does, whatever it is.
"""

import re
from collections.abc import Callable

from shimmy.commands.terminal.style import Style

LONGEST = 80  # characters from a mark to the one that ends it: what is longer is shown as it was written
_DEEPEST = 3  # marks within marks
_PLAIN = re.compile(r"[^*`\[\\]+")
_STARS, _TICKS = re.compile(r"\*+"), re.compile("`+")
# What ends emphasis that began with so many stars. Three may be the end of one within another.
_STARS_END = {n: re.compile(rf"(?<=[^\s*])(?:\*{{{n}}}|\*{{3}})(?![*0-9A-Za-z])") for n in (1, 2, 3)}
_TICKS_END = {n: re.compile(rf"(?<!`)`{{{n}}}(?!`)") for n in (1, 2, 3)}
_LINK = re.compile(r"\[([^\[\]]+)\]\((?=\S)")
_OPEN_LINK = re.compile(r"\[[^\[\]]*(?:\]\(?)?\Z")
_WORD = re.compile("[0-9A-Za-z]")
Paint = Callable[[str], str]


class InlineMarks:
    """Emphasis and code lose their marks; `[text](target)` becomes `text (target)`. Unlike in Markdown's definition,
    underscores are no marks, nor are stars within words (`2*3*4`): more would be lost than won."""

    def __init__(self, style: Style) -> None:
        self._style = style
        self._attributes = {1: (style.italic,), 2: (style.bold,), 3: (style.bold, style.italic)}  # by number of stars

    def show(self, text: str, before: str, paint: Paint, *, is_all: bool, depth: int = 0) -> tuple[str, int]:
        """What to write for `text`, and how many of its characters that are: all, unless the last ones may mean
        something else with what is still to come. `before` is the character before it, if there is one; `is_all` says
        that the line ends here."""
        shown = []
        at = 0
        while at < len(text):
            if plain := _PLAIN.match(text, at):
                shown.append(paint(plain[0]))
                at = plain.end()
                continue
            rest = text[at : at + LONGEST + 1]
            is_known = is_all or len(rest) > LONGEST
            found = self._mark(rest, text[at - 1] if at else before, paint, is_known=is_known, depth=depth)
            if found is None:
                break
            shown.append(found[0])
            at += found[1]
        return "".join(shown), at

    def _mark(self, rest: str, before: str, paint: Paint, *, is_known: bool, depth: int) -> tuple[str, int] | None:
        """The same for the mark at the beginning of `rest`, and what it holds; None if more has to come first."""
        if rest[0] == "*":
            return self._emphasis(rest, before, paint, is_known=is_known, depth=depth)
        if rest[0] == "`":
            return self._code(rest, paint, is_known=is_known)
        if rest[0] == "[":
            return self._link(rest, before, paint, is_known=is_known, depth=depth)
        if len(rest) == 1 and not is_known:
            return None
        return (paint(rest[1]), 2) if rest[1:2] in ("*", "`") else (paint(rest[0]), 1)

    def _emphasis(self, rest: str, before: str, paint: Paint, *, is_known: bool, depth: int) -> tuple[str, int] | None:
        mark = _leading(_STARS, rest)
        n = len(mark)
        if n == len(rest) and not is_known:
            return None
        can_begin = n <= 3 and n < len(rest) and not rest[n].isspace() and before != "*" and not _WORD.match(before)
        if not can_begin or depth >= _DEEPEST:
            return paint(mark), n
        end = _STARS_END[n].search(rest, n + 1)
        if not is_known and (end is None or end.end() == len(rest)):
            return None
        if end is None or end.end() > LONGEST:
            return paint(mark), n
        for attribute in self._attributes[n]:
            paint = _both(paint, attribute)
        shown, _ = self.show(rest[n : end.end() - n], "", paint, is_all=True, depth=depth + 1)
        return shown, end.end()

    def _code(self, rest: str, paint: Paint, *, is_known: bool) -> tuple[str, int] | None:
        mark = _leading(_TICKS, rest)
        n = len(mark)
        if n == len(rest) and not is_known:
            return None
        end = _TICKS_END[n].search(rest, n) if n in _TICKS_END else None
        if not is_known and n in _TICKS_END and (end is None or end.end() == len(rest)):
            return None
        if end is None or end.end() > LONGEST:
            return paint(mark), n
        code = rest[n : end.start()]
        if code.startswith(" ") and code.endswith(" ") and code.strip():  # as around a backtick
            code = code[1:-1]
        return paint(self._style.code(code)), end.end()

    def _link(self, rest: str, before: str, paint: Paint, *, is_known: bool, depth: int) -> tuple[str, int] | None:
        """The text, and the bracket before the target: that goes on as any text does."""
        link = None if _WORD.match(before) or depth >= _DEEPEST else _LINK.match(rest)
        if link is not None and link.end() <= LONGEST:
            shown, _ = self.show(link[1], "[", paint, is_all=True, depth=depth + 1)
            return shown + paint(" ("), link.end()
        if not is_known and not _WORD.match(before) and _OPEN_LINK.match(rest):
            return None
        return paint("["), 1


def _leading(run: re.Pattern[str], text: str) -> str:
    found = run.match(text)
    return found[0] if found else ""


def _both(outer: Paint, inner: Paint) -> Paint:
    return lambda text: outer(inner(text))
