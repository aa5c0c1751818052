"""Marks within a line of Markdown, as attributes of a terminal: emphasis, code, links.

Knows when what has come of a line is enough to know what a mark means; nothing of where lines begin, or come from. Any
mark is looked at together with the next LONGEST characters, so that the work grows as the text does, whatever it is.
"""

import re
from collections.abc import Callable

from shimmy.commands.terminal.style import Style

LONGEST = 80  # characters from a mark to the one that ends it: what is longer is shown as it was written
_DEEPEST = 3  # marks within marks
_PLAIN = re.compile(r"[^*_`\[\\]+")
_TICKS = re.compile("`+")
_RUNS = {"*": re.compile(r"\*+"), "_": re.compile("_+")}
_TICKS_END = {n: re.compile(rf"(?<!`)`{{{n}}}(?!`)") for n in (1, 2, 3)}
_LINK = re.compile(r"\[([^\[\]]+)\]\((?=\S)")
_OPEN_LINK = re.compile(r"\[[^\[\]]*(?:\]\(?)?\Z")
_WORD = re.compile("[0-9A-Za-z]")
_FORMULA = re.compile(r"[0-9A-Za-z)\]}]")  # what may stand before a star that multiplies
Paint = Callable[[str], str]


class InlineMarks:
    """Emphasis and code lose their marks; `[text](target)` becomes `text (target)`.

    What begins and what ends emphasis is as CommonMark has it (6.2), but for stars of formulas (`2*3*4`, `x**2`): none
    begins emphasis behind what may be multiplied, nor ends it before a digit. More would be lost than won.
    """

    def __init__(self, style: Style) -> None:
        self._style = style
        self._attributes = {1: (style.italic,), 2: (style.bold,), 3: (style.bold, style.italic)}  # by length of a run

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
        if rest[0] in _RUNS:
            return self._emphasis(rest, before, paint, is_known=is_known, depth=depth)
        if rest[0] == "`":
            return self._code(rest, paint, is_known=is_known)
        if rest[0] == "[":
            return self._link(rest, before, paint, is_known=is_known, depth=depth)
        if len(rest) == 1 and not is_known:
            return None
        return (paint(rest[1]), 2) if rest[1:2] in ("*", "_", "`") else (paint(rest[0]), 1)

    def _emphasis(self, rest: str, before: str, paint: Paint, *, is_known: bool, depth: int) -> tuple[str, int] | None:
        mark = _leading(_RUNS[rest[0]], rest)
        n = len(mark)
        if n == len(rest) and not is_known:
            return None
        can_begin = n <= 3 and before != rest[0] and _begins(rest[0], before, rest[n : n + 1])
        if not can_begin or depth >= _DEEPEST:
            return paint(mark), n
        end = _end(rest, n)
        if not is_known and end in (None, len(rest)):
            return None
        if end is None or end > LONGEST:
            return paint(mark), n
        for attribute in self._attributes[n]:
            paint = _both(paint, attribute)
        shown, _ = self.show(rest[n : end - n], "", paint, is_all=True, depth=depth + 1)
        return shown, end

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


def _end(rest: str, n: int) -> int | None:
    """Where the emphasis ends that `n` marks begin, behind its marks. Three may be the end of one within another."""
    for run in _RUNS[rest[0]].finditer(rest, n + 1):
        length = run.end() - run.start()
        if length in (n, 3) and _ends(rest[0], rest[run.start() - 1], rest[run.end() : run.end() + 1]):
            return run.end()
    return None


def _begins(mark: str, before: str, after: str) -> bool:
    """Whether a run of marks between these characters begins emphasis; the ends of a line are ''."""
    if not _leans(after, before):
        return False
    if mark == "*":
        return not _FORMULA.match(before)
    return not _leans(before, after) or _is_punctuation(before)


def _ends(mark: str, before: str, after: str) -> bool:
    if not _leans(before, after):
        return False
    if mark == "*":
        return not after.isdigit()
    return not _leans(after, before) or _is_punctuation(after)


def _leans(side: str, other: str) -> bool:
    """Whether a run of marks belongs to the character on one `side` of it: where that comes after the run, it is
    left-flanking in CommonMark's terms, else right-flanking."""
    if not side or side.isspace():
        return False
    return not _is_punctuation(side) or not other or other.isspace() or _is_punctuation(other)


def _is_punctuation(character: str) -> bool:
    """Of Unicode's categories P and S; '' is none."""
    if not character or character.isalnum() or character.isspace():
        return False
    from unicodedata import category

    return category(character)[0] in "PS"


def _leading(run: re.Pattern[str], text: str) -> str:
    found = run.match(text)
    return found[0] if found else ""


def _both(outer: Paint, inner: Paint) -> Paint:
    return lambda text: outer(inner(text))
