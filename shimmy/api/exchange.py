"""One HTTP exchange over plain ASGI: its body as JSON within the size limit, its reply or its error, and the moment the
client leaves. It knows no route and no model.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from shimmy.errors import BadRequest, Internal, MethodNotAllowed, PayloadTooLarge, ShimmyError

if TYPE_CHECKING:
    from shimmy.api.fields import Json
    from shimmy.generate import Services

Scope = MutableMapping[str, Any]
ASGIMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

JSON_TYPE = b"application/json"
RETRY_AFTER_S = b"2"
ACCEPTED_ENCODINGS = b"gzip, deflate"  # content_encoding.py reads them
_WHITE_SPACE = b" \t\r\n"  # of JSON (RFC 8259, 2)

# Those of UTF-32 begin like those of UTF-16.
_UTF_8_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF_32_MARKS = (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")

logger = logging.getLogger(__name__)


class ClientGone(Exception):  # not an error: nobody is left to hear of it
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

    async def json(self) -> "Json":
        """The body, which must be a JSON object."""
        return decode_object(await self._body(self.services.config.max_body_bytes))

    async def json_or_nothing(self) -> "Json":
        """The body as a JSON object; an empty one where there is no body."""
        body = await self._body(self.services.config.max_body_bytes)
        return decode_object(body) if body.strip(_WHITE_SPACE) else {}

    async def _body(self, limit_bytes: int) -> bytes:
        """The body as its client meant it: inflated where it came compressed."""
        encoding = b", ".join(value for name, value in self.scope["headers"] if name == b"content-encoding")
        if not encoding:
            return await self._received(limit_bytes)
        from shimmy.api.content_encoding import container_of, inflate  # few clients compress what they send

        container = container_of(encoding)
        body = await self._received(limit_bytes)
        return body if container is None else await inflate(body, container, limit_bytes)

    async def _received(self, limit_bytes: int) -> bytes:
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
                return bytes(body)

    async def gone(self) -> None:
        """Return when the client has left. Only after the body has been read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def reply(self, value: object, status: int = 200) -> None:
        await send_reply(self._send, status, encode(value))

    async def reply_json(self, body: bytes) -> None:
        """A reply that is encoded already."""
        await send_reply(self._send, 200, body)

    async def reply_text(self, text: str, content_type: bytes, headers: Headers = ()) -> None:
        await send_reply(self._send, 200, text.encode(), content_type, headers)

    async def start(self, headers: Headers) -> None:
        """Begin a reply of unknown length; `write` and `end` follow."""
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


def header(scope: Scope, name: bytes) -> bytes:
    """The first header called `name` (lower case), or nothing."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def _too_large(limit_bytes: int) -> str:
    return f"the body is larger than {limit_bytes} bytes, the limit of this server"


def _refuse_constant(name: str) -> object:
    raise BadRequest(f"the body is not valid JSON: {name} is not a JSON number")


_decoder = json.JSONDecoder(parse_constant=_refuse_constant)
_encoder = json.JSONEncoder(separators=(",", ":"))


def text_of(body: bytes) -> str:
    """The text in `body`: UTF-8 (RFC 8259, 8.1), or what its byte order mark says; Windows' programs write one."""
    if body.startswith(_UTF_32_MARKS):
        return body.decode("utf-32")
    if body.startswith(_UTF_16_MARKS):
        return body.decode("utf-16")
    return body.removeprefix(_UTF_8_MARK).decode()


def decode_object(body: bytes) -> "Json":
    """The JSON object in `body`; raises BadRequest for anything else."""
    try:
        value = _decoder.decode(text_of(body))
    except RecursionError as exc:
        raise BadRequest("the body is not acceptable JSON: it is nested too deeply") from exc
    except json.JSONDecodeError as exc:
        raise BadRequest(f"the body is not valid JSON: {exc}") from exc
    except UnicodeDecodeError as exc:
        raise BadRequest(f"the body is not {exc.encoding.upper()} text: byte {exc.start} is wrong") from exc
    except ValueError as exc:  # Python refuses to convert integers of several thousand digits
        raise BadRequest("the body is not acceptable JSON: it has a number with too many digits") from exc
    if not isinstance(value, dict):
        from shimmy.api.fields import kind_of  # a start needs nothing of it

        raise BadRequest(f"the body: expected an object, got {kind_of(value)}")
    return value


def encode(value: object) -> bytes:
    return _encoder.encode(value).encode()


async def send_reply(
    send: Send, status: int, body: bytes, content_type: bytes = JSON_TYPE, headers: Headers = ()
) -> None:
    length = str(len(body)).encode()
    all_headers = [(b"content-type", content_type), (b"content-length", length), *headers]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def error_of(exc: Exception) -> ShimmyError:
    """`exc` as an error that a caller may see; what is not of the tree is a bug, and its traceback goes to the log."""
    if isinstance(exc, ShimmyError):
        return exc
    logger.error("a request failed with an unexpected error", exc_info=exc)
    return Internal("the server failed on this request; its log has the details")


def error_body(error: ShimmyError) -> bytes:
    """OpenAI's error object, the same in a reply and in a stream."""
    return encode({"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}})


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
