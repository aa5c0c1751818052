"""Markdown as it comes, readable in a terminal.

Knows the marks at the beginning of lines, and when what has come is enough to know what they mean; those within a line
are known to `inline_marks`. Takes text that is safe for a terminal, wherever it comes from.
"""

import re

from shimmy.commands.terminal.style import Style
from shimmy.commands.terminal_chat.inline_marks import LONGEST, InlineMarks, Paint

_HEADING = re.compile(r" {0,3}#{1,6}[ \t]{1,8}(?=\S)")
_FENCE = re.compile(r"( *)(?:(`{3,})(?=[^`]*\Z)|(~{3,}))(.*)")
_LANGUAGE = re.compile(r"[\w+#-]*\Z")  # behind a fence: a person sees what it is by the code
_FENCE_END = re.compile(r" *(`{3,}|~{3,}) *\Z")
_ROW = re.compile(r" *\|")  # of a table: its columns are aligned as it is
# What may still become a heading, a fence or a row, and the end of a block of code.
_OPEN = re.compile(r" *(?:#{1,6}[ \t]*|`{1,2}|`{3,}[^`]*|~{1,2}|~{3,}.*)?\Z")
_OPEN_IN_CODE = re.compile(r" *(?:`+ *|~+ *)?\Z")


class MarkdownStream:
    """Give one text in pieces to `feed`, and call `end` behind it: both return what to write.

    Headings are bold. Blocks of code stand between blank lines, not indented, to be copied; of their fences stays what
    is said beside the language. Lists, quotes and tables stay as they are. What is shown does not depend on how the
    text is cut into pieces.
    """

    def __init__(self, style: Style) -> None:
        self._style = style
        self._marks = InlineMarks(style)
        self._held = ""
        self._fence: str | None = None  # of the block of code that is open
        self._indent = 0  # of that fence
        self._is_blank_above = True
        self._owes_blank = False  # below a block of code
        self._begin_line()

    def _begin_line(self) -> None:
        self._is_at_start = True
        self._has_text = False
        self._is_fence = False  # the line: it is not shown
        self._is_raw = False  # nothing in the line is a mark
        self._paint: Paint = _as_it_is
        self._before = ""  # the last character of the line that was shown

    def feed(self, text: str) -> str:
        return self._go_on(self._held + text, is_all=False)

    def end(self) -> str:
        return self._go_on(self._held, is_all=True)

    def _go_on(self, text: str, *, is_all: bool) -> str:
        """Show `text` as far as its meaning is known, which is all of it where nothing follows."""
        shown: list[str] = []
        at = 0
        while at < len(text):
            newline = text.find("\n", at)
            has_ended = newline >= 0
            line = text[at:newline] if has_ended else text[at:]
            n_shown = self._line(line, shown, is_whole=has_ended or is_all)
            at += n_shown
            if n_shown < len(line) or not has_ended:
                break
            at += 1
            if not self._is_fence:
                shown.append("\n")
                self._is_blank_above = not self._has_text
            self._begin_line()
        self._held = text[at:]
        return "".join(shown)

    def _line(self, line: str, shown: list[str], *, is_whole: bool) -> int:
        """Show what has come of a line and was not shown; returns how many of its characters are done with."""
        n_begun = self._begin(line, shown, is_whole=is_whole) if self._is_at_start else 0
        if n_begun is None:
            return 0
        self._has_text = self._has_text or bool(line.strip())
        rest = line[n_begun:]
        if self._is_raw:
            text, n = self._paint(rest), len(rest)
        else:
            text, n = self._marks.show(rest, self._before, self._paint, is_all=is_whole)
        shown.append(text)
        n_done = n_begun + n
        self._before = line[n_done - 1] if n_done else self._before
        return n_done

    def _begin(self, line: str, shown: list[str], *, is_whole: bool) -> int | None:
        """What kind of line this is. Returns how many of its characters are not shown; None if that is not known."""
        is_short = len(line) <= LONGEST
        may_go_on = _OPEN.match(line) if self._fence is None else _OPEN_IN_CODE.match(line)
        if may_go_on and is_short and not is_whole:
            return None
        self._is_at_start = False
        if self._fence is not None:
            return self._begin_in_code(line, self._fence, may_end=is_whole and is_short)
        fence = _FENCE.match(line) if is_whole and is_short else None
        is_text = bool(line.strip()) or not is_short
        if (is_text and self._owes_blank) or (fence and not self._is_blank_above):
            shown.append("\n")
        self._owes_blank = False
        if fence:
            self._is_fence, self._fence, self._indent = True, fence[2] or fence[3], len(fence[1])
            about = fence[4].strip()  # it may name a file
            shown.append("" if _LANGUAGE.match(about) else self._style.dim(about) + "\n")
            return len(line)
        if heading := _HEADING.match(line):
            self._paint = self._style.bold
            return heading.end()
        self._is_raw = bool(_ROW.match(line[:LONGEST]))
        return 0

    def _begin_in_code(self, line: str, fence: str, *, may_end: bool) -> int:
        end = _FENCE_END.match(line) if may_end else None
        if end and end[1].startswith(fence):
            self._is_fence, self._fence, self._owes_blank = True, None, True
            return len(line)
        self._is_raw, self._paint = True, self._style.code
        return min(self._indent, len(line) - len(line.lstrip(" ")))


def _as_it_is(text: str) -> str:
    return text
