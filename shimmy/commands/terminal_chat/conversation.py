"""A conversation: what was said, the system prompt and the settings; as the body of a request, and as a file."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shimmy.commands.console import CommandFailed
from shimmy.system.files import read_start, write_atomically

_FORMAT = "shimmy_conversation"  # key of a file that marks it as one of ours; its value is the version
_VERSION = 1
_MOST_BYTES = 1 << 26
USER, ASSISTANT, SYSTEM = "user", "assistant", "system"


@dataclass(slots=True)
class Conversation:
    """`messages` are those of the person and the model in turn, without the system prompt."""

    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)  # fields of the request

    def add(self, role: str, text: str) -> None:
        self.messages.append({"role": role, "content": text})

    def body(self, model: str) -> dict[str, Any]:
        """Of a request for the next reply."""
        opening = [{"role": SYSTEM, "content": self.system}] if self.system else []
        return {**self.settings, "model": model, "messages": [*opening, *self.messages]}

    def save(self, path: Path, model: str) -> None:
        """Write it where nothing else stands; raises CommandFailed."""
        if path.exists() and not _is_ours(path):
            raise CommandFailed(f"`{path}` is another file: choose a name that is free")
        if not path.absolute().parent.is_dir():
            raise CommandFailed(f"there is no folder `{path.absolute().parent}`: make it, or choose another one")
        fields = {
            _FORMAT: _VERSION, "model": model, "system": self.system, "settings": self.settings,
            "messages": self.messages,
        }  # fmt: skip
        try:
            write_atomically(path, json.dumps(fields, indent=2, ensure_ascii=False).encode())
        except (OSError, UnicodeEncodeError) as exc:
            raise CommandFailed(f"`{path}` cannot be written: {exc}") from exc

    def load(self, path: Path) -> None:
        """Become the one in a file; raises CommandFailed, and then nothing has changed."""
        fields = _fields(path)
        try:
            system, settings, messages = fields["system"], fields["settings"], fields["messages"]
            if not isinstance(system, str) or not isinstance(settings, dict):
                raise TypeError
            loaded = [{"role": _role(message["role"]), "content": _text(message["content"])} for message in messages]
        except (KeyError, TypeError, ValueError) as exc:
            raise CommandFailed(f"`{path}` is no conversation that /save has written") from exc
        self.system, self.settings, self.messages = system, settings, loaded


def _fields(path: Path) -> dict[str, Any]:
    try:
        data = read_start(path, _MOST_BYTES)
    except OSError as exc:
        raise CommandFailed(f"`{path}` cannot be read: {exc.strerror or exc}") from exc
    try:
        fields = json.loads(data)
        if isinstance(fields, dict) and fields.get(_FORMAT) == _VERSION:
            return fields
    except (ValueError, RecursionError):
        pass
    raise CommandFailed(f"`{path}` is no conversation that /save has written")


def _is_ours(path: Path) -> bool:
    try:
        _fields(path)
    except CommandFailed:
        return False
    return True


def _role(value: object) -> str:
    if value not in (USER, ASSISTANT):
        raise ValueError(value)
    return str(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value
