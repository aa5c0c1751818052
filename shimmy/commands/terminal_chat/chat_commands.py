"""The commands of a chat: what stands behind a slash, and what it does."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shimmy.commands.console import CommandFailed
from shimmy.commands.terminal_chat.conversation import Conversation
from shimmy.commands.terminal_chat.printer import statistics
from shimmy.commands.terminal_chat.reply_stream import ReplyEnd
from shimmy.errors import BadRequest
from shimmy.text.near_names import did_you_mean
from shimmy.text.plural import plural

if TYPE_CHECKING:
    from collections.abc import Callable

    from shimmy.api.request_fields.field_kinds import Kind
    from shimmy.commands.terminal_chat.session import Session

# Fields of a request that would change what a chat is.
_FIXED = {"messages", "model", "stream", "stream_options", "n", "logprobs", "top_logprobs", "n_probs", "keep_alive"}
_KEYS = (
    ("Ctrl-C", "stop the reply; drop the line; where there is none, end the chat"),
    ("Ctrl-D", "end the chat"),
    ("Alt-Enter", 'a new line in the message; so do a backslash at its end, and """ around it'),
    ("Up, Down", "what was typed before"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChatCommand:
    """`run` gets what stands behind the name; True ends the chat."""

    name: str
    argument: str
    text: str
    run: "Callable[[Session, str], bool | None]"
    takes_file: bool = False


def run_command(session: "Session", line: str) -> bool:
    """Run the command of a line; returns whether the chat ends. Raises CommandFailed."""
    name, _, argument = line.partition(" ")
    command = BY_NAME.get(_OTHER_NAMES.get(name, name))
    if command is None:
        guess = did_you_mean(name, BY_NAME) or "/help lists them."
        raise CommandFailed(f"there is no command `{name}`: {guess} (A message may begin with a blank.)")
    return bool(command.run(session, argument.strip()))


def complete(text: str) -> list[str]:
    """What a line that begins with `text` may become: a command, or the file that it takes."""
    if not text.startswith("/"):
        return []
    name, blank, argument = text.partition(" ")
    if not blank:
        return [
            f"{command.name} " if command.argument else command.name
            for command in COMMANDS
            if command.name.startswith(text)
        ]
    command = BY_NAME.get(name)
    if command is None or not command.takes_file:
        return []
    folder, slash, start = argument.rpartition("/")
    try:
        found = [path for path in Path(folder + slash or ".").expanduser().iterdir() if path.name.startswith(start)]
    except (OSError, RuntimeError):
        return []
    return [f"{name} {folder}{slash}{path.name}{'/' if path.is_dir() else ''}" for path in found]


def _help(session: "Session", _: str) -> None:
    names = [(f"{command.name} {command.argument}".strip(), command.text) for command in COMMANDS]
    rows = [*names, *_KEYS]
    column = max(len(name) for name, _ in rows) + 2
    session.printer.note("\n".join(f"{name.ljust(column)}{text}" for name, text in rows))


def _set(session: "Session", argument: str) -> None:
    settings = session.conversation.settings
    name, _, text = argument.partition(" ")
    if not name:
        shown = [f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in sorted(settings.items())]
        session.printer.note("\n".join(shown) or "nothing is set: the model's own values count")
    elif text:
        settings[name] = _setting(name, text)
    elif settings.pop(name, None) is None:
        _kind(name)
        session.printer.note(f"{name} is not set: the model's own value counts")


def _kind(name: str) -> "Kind[Any]":
    """What a field of requests may be; raises CommandFailed where it is none of a chat's."""
    from shimmy.api.openai.parse import CHAT

    kind = None if name in _FIXED else CHAT.fields.get(name)
    if kind is None:
        guess = did_you_mean(name, sorted(CHAT.fields.keys() - _FIXED))
        raise CommandFailed(f"there is no setting `{name}`: {guess or 'such are temperature, top_p, max_tokens, seed'}")
    return kind


def _setting(name: str, text: str) -> Any:
    """The value of a field of requests; raises CommandFailed for one that it cannot have."""
    kind = _kind(name)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    refusals = []
    for candidate in (value, text):  # a text may look like a number
        try:
            kind.read(candidate, name)
        except BadRequest as error:
            refusals.append(error)
        else:
            return candidate
    raise CommandFailed(str(refusals[0]))


def _system(session: "Session", argument: str) -> None:
    if not argument:
        session.printer.note(session.conversation.system or "there is no system prompt; `/system TEXT` sets one")
    else:
        session.conversation.system = "" if argument == "none" else argument


def _load(session: "Session", argument: str) -> None:
    session.conversation.load(_path(argument))
    session.last = ReplyEnd()
    session.printer.note(f"a conversation of {plural(len(session.conversation.messages), 'message')}")


def _save(session: "Session", argument: str) -> None:
    path = _path(argument)
    session.conversation.save(path, session.server.model)
    session.printer.note(f"written to {path}")


def _file(session: "Session", argument: str) -> None:
    from shimmy.commands.terminal_chat.session import read_text

    session.attached.append(read_text(_path(argument)))
    session.printer.note(f"{plural(len(session.attached[-1]), 'character')} go out with the next message")


def _stats(session: "Session", _: str) -> None:
    n_messages = len(session.conversation.messages)
    last = "there is none yet" if session.last == ReplyEnd() else statistics(session.last)
    lines = [f"Last reply    {last}", f"Conversation  {plural(n_messages, 'message')}"]
    used = session.last.n_prompt + session.last.n_written
    n_ctx = session.server.status().get("n_ctx")
    if isinstance(n_ctx, int):
        about = "about " if session.last.n_written and not session.last.is_counted else ""
        lines.append(f"Context       {about}{used:,} of {plural(n_ctx, 'token')}")
    session.printer.note("\n".join(lines))


def _clear(session: "Session", _: str) -> None:
    old = session.conversation
    session.conversation = Conversation(old.system, [], old.settings)
    session.attached, session.last = [], ReplyEnd()
    session.printer.note("a new conversation")


def _bye(_session: "Session", _: str) -> bool:
    return True


def _path(argument: str) -> Path:
    if not argument:
        raise CommandFailed("give the name of a file")
    try:
        return Path(argument).expanduser()
    except RuntimeError as exc:
        raise CommandFailed(str(exc)) from exc


COMMANDS = (
    ChatCommand("/set", "NAME VALUE", "set a field of the requests, such as temperature 0.2; no value: unset it", _set),
    ChatCommand("/system", "TEXT", "set the system prompt; `none` removes it", _system),
    ChatCommand("/file", "FILE", "send the text of a file with the next message", _file, takes_file=True),
    ChatCommand("/save", "FILE", "write the conversation to a file", _save, takes_file=True),
    ChatCommand("/load", "FILE", "go on with a conversation from a file", _load, takes_file=True),
    ChatCommand("/stats", "", "what the last reply took, and how full the context is", _stats),
    ChatCommand("/clear", "", "begin a new conversation; system prompt and settings stay", _clear),
    ChatCommand("/help", "", "list the commands", _help),
    ChatCommand("/bye", "", "end the chat", _bye),
)  # fmt: skip
BY_NAME = {command.name: command for command in COMMANDS}
_OTHER_NAMES = {"/?": "/help", "/exit": "/bye", "/quit": "/bye"}
