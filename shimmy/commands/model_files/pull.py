"""`pull`: fetches a model, and shows how far it is. A server runs it, too, for `POST /api/models/pull`."""

import json
import os
import sys

from shimmy.commands.console import CommandCall, hint
from shimmy.commands.model_files.pull_display import PullDisplay
from shimmy.commands.terminal.screen_text import safe_line
from shimmy.errors import ShimmyError
from shimmy.hub.pull import pull as fetch
from shimmy.hub.settings import hub_settings
from shimmy.hub.transfer.events import PullEvent


def pull(call: CommandCall) -> int:
    """The path of what was fetched goes to stdout, or with --json each event."""
    options = call.options
    try:
        settings = hub_settings(call.config, os.environ, is_public_only=options.public_only)
        if options.json:
            fetch(options.reference, settings, _print_event)
            return 0
        with PullDisplay(sys.stderr) as display:
            path = fetch(options.reference, settings, display.report)
    except ShimmyError as error:
        if not options.json:
            raise
        _print_event(PullEvent("error", {"message": error.message, "code": error.code}))
        return 1
    print(path)
    hint(f"`shimmy run {safe_line(options.reference)}` talks to it, `shimmy list` shows it with its name.")
    return 0


def _print_event(event: PullEvent) -> None:
    print(json.dumps({"event": event.kind, **event.details}), flush=True)
