"""How a reply looks: as it comes, harmless to a terminal, with reasoning in the background; for a program, its text."""

import os
import stat
import sys
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, TextIO

from shimmy.commands.terminal.live_line import LiveLine
from shimmy.commands.terminal.screen_text import safe, safe_line
from shimmy.commands.terminal.style import Style, is_terminal
from shimmy.commands.terminal_chat.reply_stream import ReplyEnd, Said, Wait
from shimmy.text.plural import plural

if TYPE_CHECKING:
    from shimmy.commands.terminal_chat.markdown_stream import MarkdownStream

# A prompt of fewer new tokens is read before anybody wonders.
_LONG_PROMPT = 100
_PROGRESS_EVERY_S = 0.2


class Printer:
    """Writes to stdout what is said, and to stderr what there is to say about it."""

    def __init__(self) -> None:
        self.is_screen = is_terminal(sys.stdout)
        self._style = Style(sys.stdout)
        self._errors = Style(sys.stderr)
        self._line = LiveLine(sys.stderr)
        self.shows_waiting = self._line.is_on
        # Behind a pipe may be what writes to the same terminal, and a line of ours would be in its way.
        self._fills_file = not self.is_screen and _is_file(sys.stdout)
        self._n_said, self._told_s = 0, 0.0  # characters of this reply, and when a person was told of them
        self._was_reasoning = False
        self._at_line_start = True
        self._markdown: MarkdownStream | None = None  # of the answer that is being written

    def wait(self, wait: Wait) -> None:
        """A reply has not begun."""
        if wait.place:
            self.waiting(
                f"waiting for its turn: {f'number {wait.place} in the queue' if wait.place > 1 else 'the next'}"
            )
        elif wait.n_all >= _LONG_PROMPT:
            self.waiting(f"reading the prompt: {100 * wait.n_read // wait.n_all} % of {plural(wait.n_all, 'token')}")
        else:
            self.waited()

    def piece(self, said: Said) -> None:
        """Programs get the answer alone, as the model wrote it; a person sees the reasoning before it, too."""
        if not self.is_screen:
            self._tell_progress(said)
            if not said.is_reasoning:
                self._write(said.text)
            return
        self.waited()
        if self._was_reasoning and not said.is_reasoning:
            self._write("\n" if self._at_line_start else "\n\n")
        self._was_reasoning = said.is_reasoning
        text = safe(said.text)
        if said.is_reasoning:
            self._show(self._rest_of_markdown())
            self._show(text, self._style.dim)
        elif self._style.is_on:
            from shimmy.commands.terminal_chat.markdown_stream import MarkdownStream

            self._markdown = self._markdown or MarkdownStream(self._style)
            self._show(self._markdown.feed(text))
        else:
            self._show(text)

    def end(self) -> None:
        """The reply is over, or goes no further."""
        self.waited()
        self._n_said = 0
        self._show(self._rest_of_markdown())
        if not (self.is_screen and self._at_line_start):
            self._write("\n")
        self._at_line_start, self._was_reasoning = True, False

    def _tell_progress(self, said: Said) -> None:
        """To the person who does not see the answer, as it goes into a file."""
        if not (self._fills_file or said.is_reasoning):
            self.waited()
            return
        self._n_said += len(said.text)
        if (now_s := monotonic()) - self._told_s >= _PROGRESS_EVERY_S:
            self._told_s = now_s
            self.waiting(f"{'thinking' if said.is_reasoning else 'answering'}: {plural(self._n_said, 'character')}")

    def waiting(self, text: str) -> None:
        """Tell a person what takes so long, in one line that is overwritten."""
        self._line.show(f"{text} ...", self._errors.dim)

    def waited(self) -> None:
        self._line.clear()

    def note(self, text: str) -> None:
        """For the person in a chat."""
        print(self._style.dim(safe(text)), flush=True)

    def error(self, error: Exception | str) -> None:
        self.waited()
        print(self._errors.bad(f"shimmy: {safe_line(str(error))}"), file=sys.stderr, flush=True)

    def remark(self, text: str) -> None:
        """About the reply, for whoever looks at stderr."""
        print(self._errors.dim(safe_line(text)), file=sys.stderr, flush=True)

    def _rest_of_markdown(self) -> str:
        """What was held back of an answer that goes no further."""
        markdown, self._markdown = self._markdown, None
        return markdown.end() if markdown else ""

    def _show(self, text: str, paint: Callable[[str], str] = str) -> None:
        if text:
            self._write(paint(text))
            self._at_line_start = text.endswith("\n")

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _is_file(stream: TextIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # in memory, closed
        return False


def statistics(end: ReplyEnd) -> str:
    """What a reply took, in one line."""
    parts = []
    if end.n_written:
        parts.append(("" if end.is_counted else "about ") + plural(end.n_written, "token"))
        speed = end.timings.get("predicted_per_second")
        parts += [f"{speed:.1f} tokens/s"] if speed else []
    if end.first_s is not None:
        parts.append(f"the first after {end.first_s:.2f} s")
    if end.n_prompt:
        cached = f", {end.n_cached:,} of them computed before" if end.n_cached else ""
        parts.append(f"prompt of {plural(end.n_prompt, 'token')}{cached}")
    return "; ".join(parts) or "nothing is known of the last reply"
