"""Small JSON documents from a server, tried again where that may help. What they hold is untrusted."""

import json
from threading import Event
from typing import Any

from shimmy.errors import PullFailed
from shimmy.hub.transfer.file_source import Transfer
from shimmy.hub.transfer.patience import Patience
from shimmy.hub.transfer.web import HttpReply, Target, Trouble, host_of

MAX_BYTES = 8 << 20


def get(
    target: Target, transfer: Transfer, headers: dict[str, str] | None = None, token: tuple[str, str] = ("", "")
) -> tuple[HttpReply, bytes]:
    """The reply and its body, whatever its status is, but for those that may pass; these are waited out."""
    from shimmy.hub.transfer.patience import PASSING, check

    patience = Patience(transfer.meter, Event())
    while True:
        try:
            reply = transfer.client.get(target, headers or {}, token)
            if reply.status in PASSING:
                check(reply)
            return reply, reply.text(MAX_BYTES)
        except Trouble as trouble:
            transfer.client.close()
            patience.wait(trouble)


def decoded(reply: HttpReply, body: bytes) -> Any:
    """The body as JSON. Raises PullFailed."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise PullFailed(f"`{host_of(reply.target.url)}` answers with something that is not JSON") from None
