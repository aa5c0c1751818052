"""A model that is not on this machine: it is fetched, if the person at the terminal says so."""

import os
import sys
from pathlib import Path, PurePosixPath

from shimmy.commands.console import CommandCall
from shimmy.commands.terminal.screen_text import safe_line
from shimmy.commands.terminal.style import is_terminal
from shimmy.errors import BadRequest, ModelNotFound, NotFound


def name_here(name: str) -> str:
    """The name that a model has on this machine which may be named as elsewhere: `hf.co/OWNER/NAME` is `OWNER/NAME`."""
    if not ("/" in name or name.startswith("ollama:")):
        return name
    from shimmy.hub.references import HubReference, OllamaReference, parse

    try:
        found = parse(name)
    except BadRequest:
        return name
    if isinstance(found, OllamaReference):
        return f"{found.name}:{found.tag}"
    if isinstance(found, HubReference):
        return PurePosixPath(found.file).name or ":".join(filter(None, (found.repository, found.tag)))
    return found.file_name


def fetched(call: CommandCall, missing: ModelNotFound) -> Path:
    """Where the model is now that `call` names. Raises `missing` where its name is none elsewhere either; NotFound with
    what to do, where nobody can be asked or the answer is no; PullFailed."""
    from shimmy.hub.references import is_ollama_name, parse

    name = call.options.name
    try:
        parse(name)
    except BadRequest:
        if "/" not in name and is_ollama_name(name):
            elsewhere = f"if Ollama has one, `shimmy run ollama:{name}` fetches it"
            raise NotFound(f"{missing.message}; {elsewhere}") from None
        raise missing from None
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise NotFound(f"`{name}` is not on this machine: `shimmy pull {name}` fetches it")
    print(f"`{safe_line(name)}` is not on this machine. Fetch it? [Y/n] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("", "y", "yes"):
        raise NotFound(f"`{name}` is not on this machine")
    return _pull(call, name)


def _pull(call: CommandCall, name: str) -> Path:
    from shimmy.commands.model_files.pull_display import PullDisplay
    from shimmy.hub.pull import pull
    from shimmy.hub.settings import hub_settings

    with PullDisplay(sys.stderr) as display:
        return pull(name, hub_settings(call.config, os.environ), display.report)
