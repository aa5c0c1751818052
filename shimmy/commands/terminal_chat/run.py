"""`run`: one answer for a text, a pipe or a file, or a chat with the person at the terminal.

Ctrl-C stops a reply: in a chat the program goes on, otherwise it ends as any command does that is interrupted.
"""

import io
import sys
from pathlib import Path

from shimmy.commands.console import EXIT_INTERRUPTED, CommandCall, CommandFailed, ended_by_signals
from shimmy.commands.server_client import NoServer
from shimmy.commands.terminal.history import InputHistory, history_file
from shimmy.commands.terminal.line_editor import LineInput, PlainLines, line_input
from shimmy.commands.terminal.style import is_terminal
from shimmy.commands.terminal_chat.chat_commands import complete
from shimmy.commands.terminal_chat.chat_server import find_server
from shimmy.commands.terminal_chat.conversation import Conversation
from shimmy.commands.terminal_chat.printer import Printer
from shimmy.commands.terminal_chat.session import MOST_BYTES, Session, joined, read_text, text_of
from shimmy.option_kinds import ConfigError


def run(call: CommandCall) -> int:
    """Raises the ShimmyError that stands against it."""
    question = _question(call)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # whatever a model says, in whatever the terminal has
    printer = Printer()
    lines: LineInput = PlainLines()
    if question is None:
        lines = line_input(InputHistory(None if call.options.no_history else history_file()), complete)
    try:
        server = find_server(call)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    with ended_by_signals(), lines.used():
        try:
            with lines.quiet():
                printer.waiting("starting")
                server.see_to_it_that_it_runs()
                if printer.is_screen or printer.shows_waiting:
                    server.load(printer.waiting)
                printer.waited()
            session = Session(server, _conversation(call), printer, lines)
            session.shows_statistics = call.options.stats
            if question is None:
                session.run()
            else:
                session.say(question)
            return EXIT_INTERRUPTED if question is not None and session.was_stopped else 0
        except NoServer as error:
            raise CommandFailed(str(error)) from error
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        finally:
            printer.waited()
            server.close()


def _conversation(call: CommandCall) -> Conversation:
    """An empty one, with what the options say of it."""
    options = call.options
    limit = {"max_tokens": options.max_tokens} if options.max_tokens else {}
    given = {"temperature": call.config.sampling.temperature, "seed": call.config.sampling.seed}
    settings = limit | {name: value for name, value in given.items() if name in call.config.sampling_given}
    return Conversation(options.system or "", settings=settings)


def _question(call: CommandCall) -> str | None:
    """What is to be answered: the text of the command line, of its files, and of standard input where that is no
    terminal. None where a person is to be asked."""
    options = call.options
    parts = [read_text(Path(name)) for name in options.file or ()]
    if not is_terminal(sys.stdin):
        piped = text_of(sys.stdin.buffer.read(MOST_BYTES + 1), "standard input")
        parts += [piped] if piped.strip() else []
    if not options.text and not parts:
        if is_terminal(sys.stdin):
            return None
        raise ConfigError("there is nothing to answer: give a TEXT, or pipe one in")
    return joined(" ".join(options.text), parts)
