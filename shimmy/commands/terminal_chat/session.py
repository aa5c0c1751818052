"""A chat: lines of a person, replies of the model, and commands that begin with a slash."""

from contextlib import suppress
from pathlib import Path

from shimmy.commands.console import CommandFailed
from shimmy.commands.server_client import NoServer
from shimmy.commands.terminal.line_editor import LineInput
from shimmy.commands.terminal_chat.chat_server import ChatServer
from shimmy.commands.terminal_chat.conversation import ASSISTANT, USER, Conversation
from shimmy.commands.terminal_chat.printer import Printer, statistics
from shimmy.commands.terminal_chat.reply_stream import ReplyEnd, Wait
from shimmy.errors import ContextExceeded, ShimmyError
from shimmy.system.files import read_start

PROMPT, _MORE = ">>> ", "... "
_QUOTES = '"""'
MOST_BYTES = 1 << 26  # of a file or of standard input


class Session:
    """One conversation with one model."""

    def __init__(self, server: ChatServer, conversation: Conversation, printer: Printer, lines: LineInput) -> None:
        self.server = server
        self.conversation = conversation
        self.printer = printer
        self.last = ReplyEnd()
        self.shows_statistics = False
        self.was_stopped = False  # the last reply, by Ctrl-C
        self.attached: list[str] = []  # texts that go out with the next message
        self._knows_model = False  # a person is told once what is odd about it
        self._lines = lines

    def run(self) -> None:
        """Until the person leaves."""
        from shimmy.commands.terminal_chat.chat_commands import run_command

        self.printer.note(f"{self.server.model}, {self.server.place}. /help lists the commands, /bye ends the chat.")
        while True:
            try:
                text, is_quoted = self._read()
                if text is None:
                    return
                if text.startswith("/") and not is_quoted:
                    if run_command(self, text):
                        return
                elif text.strip():
                    self.say(text)
            except KeyboardInterrupt:
                return
            except (CommandFailed, ShimmyError, NoServer) as error:
                self.printer.error(error)

    def say(self, text: str) -> None:
        """Send a message and print the reply. Ctrl-C stops the reply.

        The conversation keeps what was said; where that is nothing, it is as it was. Raises the error that ends the
        reply.
        """
        self.server.see_to_it_that_it_runs()
        try:
            self._exchange(text)
        except NoServer:
            if self.server.own is None or self.last.first_s is not None:
                raise
            self.server.restart(self.server.own)  # it was just ending
            self._exchange(text)
        if self.was_stopped:
            self.printer.remark("(stopped)")
        self.attached = []
        for warning in self.last.warnings:
            self.printer.remark(warning)
        if self.last.finish_reason == "length":
            self.printer.remark("(the limit of tokens, or of the context, is reached)")
        self._tell_of_model()
        if self.shows_statistics:
            self.printer.remark(statistics(self.last))

    def _tell_of_model(self) -> None:
        """Say once that the replies of a model that was not made for chats may be odd, and why devices or machines that
        the person has named do not compute it."""
        if self._knows_model:
            return
        self._knows_model = True
        name, own = self.server.model, self.server.own
        with suppress(NoServer, ShimmyError):
            status = self.server.status()
            if status.get("has_chat_template") is False:
                self.printer.remark(
                    f"({name} has no chat template: a generic one is used, and replies may be odd; "
                    "`--chat-template-file` names another)"
                )
            if own is not None and own.wants_devices and (note := status.get("device_note")):
                self.printer.remark(f"({name} is not computed as was asked: {note})")

    def _exchange(self, text: str) -> None:
        """A message and its reply, as `say` has it."""
        self.conversation.add(USER, joined(text, self.attached))
        reply = self.server.reply(self.conversation.body(self.server.model))
        self.last, self.was_stopped = reply.end, False
        said: list[str] = []
        try:
            with self._lines.quiet():
                for piece in reply:
                    if isinstance(piece, Wait):
                        self.printer.wait(piece)
                        continue
                    if not piece.is_reasoning:
                        said.append(piece.text)
                    self.printer.piece(piece)
        except KeyboardInterrupt:
            self.was_stopped = True
        except ContextExceeded as error:
            raise CommandFailed(f"{error}. /clear begins a new conversation") from error
        finally:
            self.printer.waited()
            if said:
                self.conversation.add(ASSISTANT, "".join(said))
            else:
                self.conversation.messages.pop()
            if reply.end.first_s is not None:
                self.printer.end()

    def _read(self) -> tuple[str | None, bool]:
        """A message: one line, or several between triple quotes or with a backslash at the end of each but the last.
        And whether it was in quotes: then it is no command, whatever it begins with.

        None at the end of the input. Ctrl-C drops lines that were given; where there are none it is raised.
        """
        text = self._lines.read(PROMPT)
        if text is None:
            return None, False
        try:
            if text.startswith(_QUOTES):
                return self._quoted(text.removeprefix(_QUOTES)), True
            while text.endswith("\\"):
                more = self._lines.read(_MORE)
                text = f"{text[:-1]}\n{more or ''}"
        except KeyboardInterrupt:
            return "", False
        return text, False

    def _quoted(self, text: str) -> str:
        while not text.rstrip().endswith(_QUOTES):
            more = self._lines.read(_MORE)
            if more is None:
                return text
            text += f"\n{more}"
        return text.rstrip().removesuffix(_QUOTES).removeprefix("\n")


def joined(text: str, attached: list[str]) -> str:
    """A message and the texts that belong to it."""
    return "\n\n".join(part for part in (text, *attached) if part)


def read_text(path: Path) -> str:
    """A file as a part of a message; raises CommandFailed for one that is no text."""
    try:
        data = read_start(path.expanduser(), MOST_BYTES + 1)
    except (OSError, RuntimeError) as exc:
        raise CommandFailed(f"`{path}` cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    return text_of(data, f"`{path}`")


def text_of(data: bytes, what: str) -> str:
    """UTF-8 as text; raises CommandFailed for anything that cannot be a message."""
    if len(data) > MOST_BYTES:
        raise CommandFailed(f"{what} is longer than {MOST_BYTES >> 20} MiB")
    if b"\0" in data[: 1 << 12]:
        raise CommandFailed(f"{what} is no text")
    return data.decode("utf-8", "replace").rstrip("\n")
