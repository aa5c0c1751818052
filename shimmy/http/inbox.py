"""What an application receives of one request: its body, and that the client has left.

Knows ASGI messages; nothing of sockets or HTTP.
"""

import asyncio
from collections import deque

from shimmy.api.http_exchange import ASGIMessage

_MOST_WAITING = 10  # parts of a body, each as long as what was read at once


class Inbox:
    """Messages for one run of the application. `put` of a body part waits while enough of them are unread. It does not
    wait once the application has ended; the message that the client has left never waits."""

    def __init__(self) -> None:
        self._messages: deque[ASGIMessage] = deque()
        self._has_some, self._has_room = asyncio.Event(), asyncio.Event()
        self._is_closed = False

    async def put(self, message: ASGIMessage) -> None:
        while len(self._messages) >= _MOST_WAITING and message["type"] == "http.request" and not self._is_closed:
            self._has_room.clear()
            await self._has_room.wait()
        if not self._is_closed:
            self._messages.append(message)
            self._has_some.set()

    async def get(self) -> ASGIMessage:
        while not self._messages:
            self._has_some.clear()
            await self._has_some.wait()
        self._has_room.set()
        return self._messages.popleft()

    def close(self) -> None:
        self._is_closed = True
        self._messages.clear()
        self._has_room.set()
