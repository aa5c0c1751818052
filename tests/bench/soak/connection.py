"""HTTP/1.1 for a client that can tell a whole reply from one that was cut off. Knows nothing of what is asked."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

HOST = "127.0.0.1"
LINE_LIMIT = 1 << 24


class Failed(Exception):
    """The server did something that it must not do."""


class Refused(Exception):
    """The server said no in a documented way that has to do with everybody else: no memory, or unloaded meanwhile."""


# What others bring about; 503 says when to come back.
REFUSALS = {"model_unloaded": 409, "overloaded": 503, "model_unavailable": 503, "out_of_memory": 503}


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole reply."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Json:
        value: Json = json.loads(self.body)
        return value

    def error(self) -> Json:
        """The error of a body in OpenAI's form; raises Failed where it has another."""
        error = self.json().get("error")
        if not isinstance(error, dict) or error.keys() != {"message", "type", "param", "code"}:
            raise Failed(f"{self.status} in another form: {self.body[:300]!r}")
        return error

    def good(self) -> "Answer":
        """Itself where it is 200; raises Refused or Failed."""
        if self.status == 200:
            return self
        error = self.error()
        if REFUSALS.get(error["code"]) == self.status and (self.status != 503 or "retry-after" in self.headers):
            raise Refused(error["code"])
        raise Failed(f"{self.status}: {self.body[:500]!r}")

    def events(self) -> list[Json]:
        """Those of a stream that went to its end; raises Refused or Failed where one of them is an error."""
        lines = [line[6:] for line in self.good().body.splitlines() if line.startswith(b"data: ")]
        events: list[Json] = [json.loads(line) for line in lines if line != b"[DONE]"]
        for event in events:
            error = event.get("error") or event.get("response", {}).get("error")
            if error:
                raise Refused(error["code"]) if error.get("code") in REFUSALS else Failed(f"in a stream: {error}")
        return events


class Connection:
    """Keeps its connection from one request to the next, until the server or the client closes it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None

    async def ask(self, method: str, path: str, body: object = None) -> Answer:
        """`body` is bytes as they are, or a value to be sent as JSON; raises Failed where the reply is not whole."""
        request = _request(method, path, body)
        was_open = self._streams is not None
        reader, writer = self._streams or await self._open()
        try:
            writer.write(request)
            return await self._read(reader, is_head=method == "HEAD")
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError, ValueError) as exc:
            self.close()
            is_unread = isinstance(exc, asyncio.IncompleteReadError) and not exc.partial
            if was_open and (is_unread or isinstance(exc, ConnectionError)):  # closed while nobody asked
                return await self.ask(method, path, body)
            raise Failed(f"{method} {path}: the reply was cut off: {exc!r}") from exc
        except BaseException:
            self.close()
            raise

    async def leave(self, path: str, body: object, wait_s: float, share: float = 1.0) -> None:
        """Send the first `share` of a request, and go away in the middle of whatever comes."""
        request = _request("POST", path, body)
        reader, writer = await self._open()
        try:
            writer.write(request[: int(share * len(request))])
            async with asyncio.timeout(wait_s):
                await reader.read(1 << 16)
        except (TimeoutError, ConnectionError):
            pass
        finally:
            self.close()

    async def send(self, data: bytes) -> bytes:
        """Whatever the server says to these bytes until it closes the connection."""
        reader, writer = await self._open()
        try:
            writer.write(data)
            writer.write_eof()
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            self.close()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.close()
        self._streams = await asyncio.open_connection(HOST, self._port, limit=LINE_LIMIT)
        return self._streams

    async def _read(self, reader: asyncio.StreamReader, *, is_head: bool) -> Answer:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
        status, body = int(head[0].split()[1]), b""
        if is_head:
            pass
        elif headers.get("transfer-encoding") == "chunked":
            body = b"".join([chunk async for chunk in _chunks(reader)])
        else:
            body = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return Answer(status, headers, body)


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        yield (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")


def _request(method: str, path: str, body: object) -> bytes:
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content
