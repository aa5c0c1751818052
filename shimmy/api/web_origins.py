"""Keeps out web pages that a person only looks at, by host names and origins; API keys are checked in `middleware`.

A page can point a name of its own at this machine (DNS rebinding), and is then same-origin with a server that answers
to any name: so the `Host` of a request is checked. Any page may also send simple requests, without asking first and
without seeing the reply: so the `Origin` is checked before the request is acted on. Browsers send both headers, and no
page can forge them. (RFC 9110, 7.2; https://fetch.spec.whatwg.org/#http-cors-protocol)
"""

import re
from collections.abc import Awaitable, Sequence
from functools import cached_property

from shimmy.api.http_exchange import ASGIApp, ASGIMessage, Headers, Receive, Scope, Send, header
from shimmy.errors import Forbidden
from shimmy.option_kinds import Bind

ANY = "*"
NONE = "none"  # an item of `--cors-origins` that matches no page
# Pages that this machine serves: a program that can serve them could use this server without a browser anyway.
OWN_PAGES = tuple(
    f"{scheme}://{host}{port}"
    for scheme in ("http", "https")
    for host in ("localhost", "*.localhost", "127.0.0.1", "[::1]")
    for port in ("", ":*")
)
_LOOPBACK_ADDRESS = re.compile(r"127(\.\d{1,3}){1,3}|::1|::ffff:127(\.\d{1,3}){3}")
_METHODS = b"GET, HEAD, POST, DELETE"
_PREFLIGHT_AGE_S = b"600"
_HEADER_NAMES = re.compile(rb"[\w\-, ]{0,4000}")
_NO_CONTENT = 204
_LONGEST_ORIGIN = 300  # a name has 253 bytes at most (RFC 1035)


def is_loopback(host: str) -> bool:
    """Whether `host`, an address or a name, never leads off this machine."""
    return host == "localhost" or host.endswith(".localhost") or _LOOPBACK_ADDRESS.fullmatch(host) is not None


class Hosts:
    """Lets a request pass whose `Host` is a name of this server.

    Those are the names of the loopback device, the address that was bound, the address that the client reached, and the
    patterns in `allowed`. Without `allowed`, a server that is not bound to the loopback device answers to any name: it
    cannot know what its clients call it. A request without a `Host` does not come from a browser.
    """

    def __init__(self, app: ASGIApp, bind: Bind, allowed: Sequence[str]) -> None:
        self._app = app
        self._bound = bind.host.lower()
        self._is_everywhere = bind.is_everywhere
        self._allowed = _patterns(allowed) if allowed else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = header(scope, b"host").decode("latin-1").lower()
            if host and not self._is_known(name_of(host), scope):
                raise Forbidden(
                    f"this server is not called `{host[:200]}`: use the address it listens on, or start it with "
                    f"`--allowed-hosts {name_of(host)[:200]}` if that is its name behind a proxy"
                )
        await self._app(scope, receive, send)

    def _is_known(self, name: str, scope: Scope) -> bool:
        if is_loopback(name) or name == self._bound:
            return True
        reached = str((scope.get("server") or (self._bound,))[0])
        if self._allowed is None:
            return self._is_everywhere or not is_loopback(reached)
        return name == reached or self._allowed.fullmatch(name) is not None


class Policy:
    """Which origins may use this server from a web page: those in `allowed`, or without it those of this machine."""

    def __init__(self, allowed: Sequence[str], *, has_keys: bool) -> None:
        self._items = [item for item in (allowed or OWN_PAGES) if item not in (ANY, NONE)]
        self.is_any = ANY in allowed
        self._has_keys = has_keys

    @cached_property
    def _named(self) -> re.Pattern[str]:
        return _patterns(self._items)  # compiled late: at the start it would take longer than the rest of this module

    @cached_property
    def _with_host(self) -> re.Pattern[str]:
        """Without `null`, which any page can have as its origin in a frame, and without `https://*`."""
        hosts = ((item, name_of(item.partition("://")[2])) for item in self._items)
        return _patterns([item for item, host in hosts if host.strip("*.")])

    def headers_for(self, scope: Scope) -> Headers | None:
        """Headers that let the page see the reply; None where it must not, or where the request is same-origin."""
        origin = header(scope, b"origin")
        if not origin or is_same_origin(origin, scope):
            return None
        if _is_one_of(origin, self._named):
            return (*_allow(origin), (b"access-control-allow-credentials", b"true"))
        if not self.is_any:
            return None
        return _allow(origin if self._has_keys else ANY.encode())

    def refuses(self, scope: Scope) -> bool:
        """Whether the request comes from a page that must not use this server."""
        origin = header(scope, b"origin")
        if origin:
            return not is_same_origin(origin, scope) and self.headers_for(scope) is None
        # An image or a script of a foreign page has no origin; a link that a person followed to here does no harm.
        is_link = header(scope, b"sec-fetch-dest") == b"document" and header(scope, b"sec-fetch-mode") == b"navigate"
        return header(scope, b"sec-fetch-site") == b"cross-site" and not is_link and not self.is_any

    def refuses_unnamed(self, scope: Scope) -> bool:
        """The same for what no page may do whose host is not named: `*` is not enough."""
        origin = header(scope, b"origin")
        if origin:
            return not is_same_origin(origin, scope) and not _is_one_of(origin, self._with_host)
        return header(scope, b"sec-fetch-site") == b"cross-site"


def _is_one_of(origin: bytes, patterns: re.Pattern[str]) -> bool:
    return len(origin) <= _LONGEST_ORIGIN and patterns.fullmatch(origin.decode("latin-1").lower()) is not None


def _allow(origin: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return (
        (b"access-control-allow-origin", origin),
        (b"access-control-expose-headers", b"*, Retry-After"),  # with credentials `*` is an ordinary name
        (b"vary", b"Origin"),
    )


class CorsHeaders:
    """Puts on every reply to a page of an allowed origin, errors and streams too, what lets the page read it."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        extra = self._policy.headers_for(scope) if scope["type"] == "http" else None
        if extra is None:
            await self._app(scope, receive, send)
            return

        def allowing_send(message: ASGIMessage) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *extra]}
            return send(message)

        await self._app(scope, receive, allowing_send)


class Origins:
    """Refuses what a page of a foreign origin asks for, and answers the question whether an allowed one may ask.

    Such a preflight carries no key, whatever the request after it will have, and is answered without one.
    """

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if self._policy.refuses(scope):
                raise Forbidden(_refusal(header(scope, b"origin").decode("latin-1")[:200]))
            if _is_preflight(scope):
                await _answer_preflight(scope, send)
                return
        await self._app(scope, receive, send)


class NamedOrigins:
    """Refuses, in front of one route, what a page asks for that `--cors-origins` lets in without naming its host."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._policy.refuses_unnamed(scope):
            origin = header(scope, b"origin").decode("latin-1")[:200]
            raise Forbidden(
                f"pages of `{origin or 'other sites'}` may not delete or pull models: `--cors-origins` has to name "
                "their host, and `*` does not"
            )
        await self._app(scope, receive, send)


def _refusal(origin: str) -> str:
    if not origin:
        return "pages of other sites may not use this server: `--cors-origins` names those that may"
    return f"pages of `{origin}` may not use this server: `--cors-origins {origin}` would let them"


def _is_preflight(scope: Scope) -> bool:
    return scope["method"] == "OPTIONS" and bool(
        header(scope, b"origin") and header(scope, b"access-control-request-method")
    )


async def _answer_preflight(scope: Scope, send: Send) -> None:
    wanted = header(scope, b"access-control-request-headers")
    headers = [
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", wanted if wanted and _HEADER_NAMES.fullmatch(wanted) else b"*"),
        (b"access-control-max-age", _PREFLIGHT_AGE_S),
        (b"vary", b"Access-Control-Request-Method, Access-Control-Request-Headers"),
    ]
    if header(scope, b"access-control-request-private-network") == b"true":
        headers.append((b"access-control-allow-private-network", b"true"))
    await send({"type": "http.response.start", "status": _NO_CONTENT, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def is_same_origin(origin: bytes, scope: Scope) -> bool:
    """Whether a page of `origin` came from the very name and port that this request goes to."""
    scheme, _, authority = origin.lower().partition(b"://")
    return scheme in (b"http", b"https") and authority == header(scope, b"host").lower()


def name_of(host: str) -> str:
    """The name or address in a `Host` header, without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")


def _patterns(items: Sequence[str]) -> re.Pattern[str]:
    """One expression for `items`, in which `*` stands for anything without a slash."""
    return re.compile("|".join(re.escape(item.lower()).replace(r"\*", "[^/]*") for item in items) or "(?!)")
