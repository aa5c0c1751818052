"""One HTTP exchange over plain ASGI: the body as JSON within the size limit, the reply or error, and the moment the
client leaves. Knows no route and no model.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl

from shimmy.errors import Internal, MethodNotAllowed, PayloadTooLarge, ShimmyError
from shimmy.text.json_writer import is_small, pieces
from shimmy.text.printable import shortened

if TYPE_CHECKING:
    from shimmy.api.request_fields.field_kinds import Json
    from shimmy.generation import Services

Scope = MutableMapping[str, Any]
ASGIMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]
Result = TypeVar("Result")

JSON_TYPE = b"application/json"
_PART_BYTES = 1 << 18
_MAX_MESSAGE, _MAX_PARAM = 2000, 500  # characters of an error
RETRY_AFTER_S = b"2"
CROWDED = "shimmy.crowded"  # an extension in the scope: the connection is one more than there should be
ACCEPTED_ENCODINGS = b"gzip, deflate"  # content_encoding.py reads them
_WHITE_SPACE = b" \t\r\n"  # of JSON (RFC 8259, 2)

logger = logging.getLogger(__name__)


class ClientGone(Exception):  # not an error: no one is left to read it
    """The client closed the connection before the reply was complete."""


class Exchange:
    """A request and the way to answer it."""

    __slots__ = ("_receive", "_send", "scope", "services")

    def __init__(self, scope: Scope, receive: Receive, send: Send, services: "Services") -> None:
        self.scope = scope
        self.services = services
        self._receive = receive
        self._send = send

    @property
    def rest(self) -> str:
        """What the route's `{rest}` stands for, percent-decoded."""
        return str(self.scope["path_params"]["rest"])

    @property
    def query(self) -> dict[str, str]:
        """The query, undecoded beyond its texts."""
        return dict(parse_qsl(self.scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True))

    async def read(
        self, meaning: Callable[["Json"], Result], is_work: "Callable[[Json], bool] | None" = None
    ) -> Result:
        """What `meaning` makes of the body, which must be a JSON object. A large one is read beside the event loop, and
        so is one of which `is_work` says that a lot may come of it."""
        return await _read(await self._body(self.services.config.max_body_bytes), meaning, is_work)

    async def read_or_nothing(self, meaning: Callable[["Json"], Result]) -> Result:
        """The same, with an empty object where there is no body."""
        body = await self._body(self.services.config.max_body_bytes)
        return await _read(body if body.strip(_WHITE_SPACE) else b"{}", meaning, None)

    async def _body(self, limit_bytes: int) -> bytearray:
        """The body as its client meant it: inflated where it came compressed."""
        encoding = b", ".join(value for name, value in self.scope["headers"] if name == b"content-encoding")
        if not encoding:
            return await self._received(limit_bytes)
        from shimmy.api.content_encoding import container_of, inflate  # few clients compress what they send

        container = container_of(encoding)
        body = await self._received(limit_bytes)
        return body if container is None else await inflate(body, container, limit_bytes)

    async def _received(self, limit_bytes: int) -> bytearray:
        declared = header(self.scope, b"content-length")
        if declared.isdigit() and int(declared) > limit_bytes:
            raise PayloadTooLarge(_too_large(limit_bytes))
        body = bytearray()
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            if len(body) > limit_bytes:
                raise PayloadTooLarge(_too_large(limit_bytes))
            if not message.get("more_body", False):
                return body

    async def gone(self) -> None:
        """Return when the client has left. Only after the body has been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def reply(self, value: object, status: int = 200) -> None:
        await send_reply(self._send, status, encode(value))

    async def reply_large(self, value: object) -> None:
        """A reply that may be of any size."""
        if is_small(value):
            await self.reply(value)
        else:
            from shimmy.api.aside import aside  # a start needs nothing of it

            await self.reply_json(await aside(lambda: encode_large(value)))

    async def reply_json(self, body: bytes) -> None:
        """A reply that is encoded already."""
        await send_reply(self._send, 200, body)

    async def reply_parts(self, parts: Sequence[bytes]) -> None:
        """The same in parts, none of which is large."""
        length = str(sum(map(len, parts))).encode()
        await self._send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", JSON_TYPE), (b"content-length", length)],
            }
        )
        for index, part in enumerate(parts, 1):
            await self._send({"type": "http.response.body", "body": part, "more_body": index < len(parts)})

    async def reply_text(self, text: str, content_type: bytes, headers: Headers = ()) -> None:
        await send_reply(self._send, 200, text.encode(), content_type, headers)

    async def reply_bytes(self, body: bytes, content_type: bytes, headers: Headers) -> None:
        await send_reply(self._send, 200, body, content_type, headers)

    async def not_modified(self, headers: Headers) -> None:
        await self._send({"type": "http.response.start", "status": 304, "headers": [*headers]})
        await self.end(b"")

    async def start(self, headers: Headers) -> None:
        """Begin a reply of unknown length; `write` and `end` follow."""
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


async def _read(
    body: bytes | bytearray, meaning: Callable[["Json"], Result], is_work: "Callable[[Json], bool] | None"
) -> Result:
    from shimmy.api.aside import aside  # a start needs nothing of them
    from shimmy.api.body import SMALL_BODY_BYTES, decode_object

    if len(body) > SMALL_BODY_BYTES:
        return await aside(lambda: meaning(decode_object(body)))
    decoded = decode_object(body)
    if is_work is not None and is_work(decoded):
        return await aside(lambda: meaning(decoded))
    return meaning(decoded)


def header(scope: Scope, name: bytes) -> bytes:
    """The first header called `name` (lower case), or nothing."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def is_browser(scope: Scope) -> bool:
    """Whether the request comes from the address bar of a browser: programs do not ask for HTML."""
    accepted = header(scope, b"accept")
    return b"text/html" in accepted and JSON_TYPE not in accepted


def _too_large(limit_bytes: int) -> str:
    return f"the body is larger than {limit_bytes} bytes, the limit of this server"


_encoder = json.JSONEncoder(separators=(",", ":"))


def encode(value: object) -> bytes:
    """JSON of something small: it is made in one call of C's."""
    return _encoder.encode(value).encode()


def encode_large(value: object) -> bytes:
    """JSON of something that may be large, for a thread beside the event loop."""
    return "".join(pieces(value)).encode("ascii")


async def send_reply(
    send: Send, status: int, body: bytes, content_type: bytes = JSON_TYPE, headers: Headers = ()
) -> None:
    length = str(len(body)).encode()
    all_headers = [(b"content-type", content_type), (b"content-length", length), *headers]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    # A large one goes out in parts, each once the client has taken the one before.
    for start in range(0, len(body) - _PART_BYTES, _PART_BYTES):
        await send({"type": "http.response.body", "body": body[start : start + _PART_BYTES], "more_body": True})
        await asyncio.sleep(0)
    n_last = (len(body) - 1) % _PART_BYTES + 1 if body else 0
    await send({"type": "http.response.body", "body": body[len(body) - n_last :], "more_body": False})


def error_of(exc: Exception) -> ShimmyError:
    """`exc` as an error that a caller may see; what is not of the tree is a bug, and its traceback goes to the log."""
    if isinstance(exc, ShimmyError):
        return exc
    logger.error("a request failed with an unexpected error", exc_info=exc)
    return Internal("the server failed on this request; its log has the details")


def error_body(error: ShimmyError) -> bytes:
    """OpenAI's error object, the same in a reply and in a stream."""
    return encode({"error": error_fields(error)})


def error_fields(error: ShimmyError) -> dict[str, object]:
    """What a caller is told of an error: clients print it, so that nothing is in it that a terminal obeys."""
    param = error.param and shortened(error.param, _MAX_PARAM)
    return {"message": error_message(error), "type": error.type, "param": param, "code": error.code}


def error_message(error: ShimmyError) -> str:
    return shortened(error.message, _MAX_MESSAGE)


async def send_error(send: Send, error: ShimmyError) -> None:
    """The only place that turns an error into a reply."""
    extra: list[tuple[bytes, bytes]] = []
    if isinstance(error, MethodNotAllowed):
        extra.append((b"allow", error.allowed.encode()))
    if error.status == 503:
        extra.append((b"retry-after", RETRY_AFTER_S))
    if error.status == 415:
        extra.append((b"accept-encoding", ACCEPTED_ENCODINGS))
    if error.status == 401:
        extra.append((b"www-authenticate", b"Bearer"))
    await send_reply(send, error.status, error_body(error), headers=extra)
