"""`health`: whether a server answers, and has a model ready; once, or until it does.

For health checks of containers, and for scripts that wait for a server. Asks by HTTP; knows nothing of processes.
"""

import json
import math
import time
from typing import Any
from urllib.parse import quote

from shimmy.commands.console import CommandCall, CommandFailed
from shimmy.commands.server_client import NoServer, ServerAddress, ask, server_address
from shimmy.errors import ModelUnloaded, Overloaded, ShuttingDown

_ANSWER_S = 5.0  # a server that is well answers in milliseconds
_TRY_EVERY_S = 0.1
# What another try may end otherwise. A model that is not there, or that cannot be loaded, is told at once.
_PASSING = (NoServer, Overloaded, ShuttingDown, ModelUnloaded)


def health(call: CommandCall) -> int:
    """Raises the ShimmyError that says what is wrong."""
    address, model, wait_s = server_address(call), call.options.model, call.options.wait or 0.0
    end_s = time.monotonic() + wait_s
    while True:
        try:
            _check(call, address, model, None if not wait_s else end_s - time.monotonic())
            break
        except _PASSING as error:
            if end_s - time.monotonic() <= _TRY_EVERY_S:
                raise _told(error, wait_s) from error
        time.sleep(_TRY_EVERY_S)
    print(f"{address.url} answers" if model is None else f"{address.url} answers and has loaded `{model}`")
    return 0


def _check(call: CommandCall, address: ServerAddress, model: str | None, left_s: float | None) -> None:
    """One try. Its answer is awaited for `_ANSWER_S`, and a load for `left_s`, without an end if that is None."""
    keys = call.config.api_keys
    key = keys[0] if keys else None
    _require_ok(address, ask(address, key, "GET", "/health", timeout_s=min(_ANSWER_S, left_s or math.inf)))
    if model is not None:
        timeout_s = None if left_s is None or math.isinf(left_s) else left_s
        try:
            ask(address, key, "POST", f"/api/models/{quote(model)}/load", json.dumps({}).encode(), timeout_s=timeout_s)
        except NoServer as error:
            if isinstance(error.__cause__, TimeoutError):
                raise NoServer(f"{address.url} has not loaded `{model}` in time") from error
            raise


def _require_ok(address: ServerAddress, answer: Any) -> None:
    if not isinstance(answer, dict) or answer.get("status") != "ok":
        raise NoServer(f"what answers on {address.url} is no Shimmy server")


def _told(error: Exception, wait_s: float) -> CommandFailed:
    return CommandFailed(f"{error}, after {wait_s:g} s" if wait_s else str(error))
