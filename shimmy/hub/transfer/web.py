"""HTTP as a pull needs it: verified TLS, proxies, redirects within rules, and replies read piece by piece.

Knows which errors may pass (Trouble) and which do not (PullFailed), and nothing of what is fetched. The rules: a token
goes to its own origin alone; from HTTPS no redirect leads to HTTP, and to no other scheme; from a public address none
leads to one that is not.
"""

import base64
import http.client
import ipaddress
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from shimmy import __version__
from shimmy.errors import PullFailed
from shimmy.hub.transfer import certificates

if TYPE_CHECKING:
    from ssl import SSLContext

    from shimmy.hub.settings import HubSettings

MAX_REDIRECTS = 10
MAX_URL_CHARACTERS = 16_384
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 15.0, 30.0
# What a resolver says of a name that does not exist, or has no address; not every C library has the second.
_NO_SUCH_NAME = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
LOOKUP_TIMEOUT_S = 2.0  # of a name that the proxy is to look up
_UNICAST = ipaddress.IPv6Network("2000::/3")  # the only part of IPv6 that the internet uses (RFC 4291, 2.4)
# IPv4 addresses in the last 32 bits: mapped (RFC 4291), translated (RFC 2765), NAT64 (RFC 6052).
_IPV4_INSIDE = tuple(map(ipaddress.IPv6Network, ("::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")))
_REDIRECTS = {301, 302, 303, 307, 308}


class Trouble(Exception):
    """It did not work, and may another time: `retry_after_s` is how long the server wants to be left alone. A stranger
    is one that this pull has never reached: more likely a wrong address than a fault that passes."""

    def __init__(self, message: str, retry_after_s: float = 0.0, *, is_stranger: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.is_stranger = is_stranger


@dataclass(frozen=True, slots=True)
class Target:
    """A URL, and whether only a public address may answer for it."""

    url: str
    is_public_only: bool = False


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port. ValueError for what is no URL."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


class Web:
    """What all connections of a pull share. Used from any thread."""

    def __init__(self, settings: "HubSettings") -> None:
        self.settings = settings
        self._context: SSLContext | None = None
        self._proxies = getproxies_environment()
        self._addresses: dict[str, list[str]] = {}
        self._found_hosts: set[str] = set()
        self._reached: set[tuple[str, int]] = set()
        self._lock = Lock()

    def client(self) -> "Client":
        return Client(self)

    def tls(self) -> "SSLContext":
        if self._context is None:
            self._context = certificates.context(self.settings.ca_file, self.settings.ca_folder)
        return self._context

    def proxy_for(self, scheme: str, host: str, port: int) -> SplitResult | None:
        """The proxy that the environment names for a host; None for none."""
        if proxy_bypass_environment(f"{host}:{port}", self._proxies):
            return None
        text = self._proxies.get(scheme) or self._proxies.get("all")
        if not text:
            return None
        parts = urlsplit(text if "://" in text else f"http://{text}")
        if parts.scheme != "http" or not parts.hostname:
            raise PullFailed(f"the proxy for {scheme} cannot be used: only HTTP proxies can, such as http://host:3128")
        return parts

    def look_up(self, host: str, port: int) -> list[Any]:
        """What `getaddrinfo` says of a host. Raises PullFailed for a name that does not exist and never did, Trouble
        where the lookup fails otherwise, as it does without a network: a name that was found before will be again."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            message = f"`{host}` cannot be found ({_reason(exc)})"
            is_no_name = isinstance(exc, UnicodeError) or exc.errno in _NO_SUCH_NAME
            if host in self._found_hosts or not is_no_name:
                raise Trouble(message, is_stranger=host not in self._found_hosts) from exc
            raise PullFailed(f"{message}: is its name right, and this machine connected?") from exc
        self._found_hosts.add(host)
        return found

    def open_socket(self, host: str, port: int, *, is_public_only: bool) -> socket.socket:
        """Connected to the first address of the host that answers. Raises PullFailed, Trouble."""
        reason: OSError | None = None
        for family, kind, protocol, _, address in self.look_up(host, port):
            if is_public_only and not is_public(str(address[0])):
                raise _not_public(host, str(address[0]))
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(CONNECT_TIMEOUT_S)
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as exc:
                sock.close()
                reason = reason or exc
            else:
                self._reached.add((host, port))
                return sock
        said = _reason(reason or OSError("it has no address"))
        raise Trouble(
            f"`{host}` cannot be reached on port {port} ({said})", is_stranger=(host, port) not in self._reached
        )

    def private_address(self, host: str) -> str:
        """An address of `host` that is not public, as this machine looks the name up; '' where it finds none, or no
        address at all."""
        with self._lock:
            if host not in self._addresses:
                self._addresses[host] = _looked_up(host)
            return next((address for address in self._addresses[host] if not is_public(address)), "")


class HttpReply:
    """A reply whose body is still to be read."""

    def __init__(self, response: http.client.HTTPResponse, target: Target) -> None:
        self._response = response
        self.target = target  # where it came from in the end
        self.status = response.status
        self.reason = response.reason

    def header(self, name: str) -> str:
        return self._response.headers.get(name) or ""

    @property
    def length(self) -> int | None:
        """Of the body, as the head says."""
        return self._response.length

    def readinto(self, buffer: memoryview) -> int:
        """At least one byte, or 0 at the end. Raises Trouble."""
        try:
            return self._response.readinto(buffer)
        except (OSError, http.client.HTTPException) as exc:
            raise Trouble(f"the connection broke off ({_reason(exc)})") from exc

    def text(self, max_bytes: int) -> bytes:
        """The whole body. Raises Trouble, and PullFailed for more than `max_bytes`."""
        try:
            content = self._response.read(max_bytes + 1)
        except (OSError, http.client.HTTPException) as exc:
            raise Trouble(f"the connection broke off ({_reason(exc)})") from exc
        if len(content) > max_bytes:
            raise PullFailed(f"`{host_of(self.target.url)}` answers with more than {max_bytes} bytes")
        if self._response.length:
            raise Trouble("the connection broke off")
        return content

    def close(self) -> None:
        self._response.close()

    @property
    def is_read(self) -> bool:
        return self._response.isclosed()


class Client:
    """One connection after the other, kept while the same server is asked again. Used by one thread."""

    def __init__(self, web: Web) -> None:
        self._web = web
        self._connection: http.client.HTTPConnection | None = None
        self._key: tuple[object, ...] = ()
        self._peer = ""  # the address that the connection leads to; '' for a proxy's
        self._plain_proxy: SplitResult | None = None  # that is sent whole URLs
        self._reply: HttpReply | None = None

    def close(self) -> None:
        if self._reply is not None:
            self._reply.close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def abort(self) -> None:
        """From another thread: what is being waited for ends."""
        connection = self._connection
        if connection is not None and (sock := connection.sock) is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def get(self, target: Target, headers: Mapping[str, str], token: tuple[str, str] = ("", "")) -> HttpReply:
        """The first reply that is no redirect, of any status. `token` is an origin's URL and what it is sent.

        Raises Trouble where the connection fails, PullFailed for what the rules forbid.
        """
        url, is_public_only = target.url, target.is_public_only
        for _ in range(MAX_REDIRECTS + 1):
            scheme, host, port = _checked(url)
            sent = dict(headers)
            if token[1] and origin(token[0]) == (scheme, host, port):
                sent["Authorization"] = f"Bearer {token[1]}"
            response = self._ask(url, sent, is_public_only)
            here = Target(url, is_public_only)
            self._reply = reply = HttpReply(response, here)
            if reply.status not in _REDIRECTS or not reply.header("Location"):
                return reply
            url = _next(url, reply.header("Location"))
            is_public_only = is_public_only or self._is_public(host)
            with suppress(Trouble, PullFailed):
                reply.text(1 << 16)  # the connection may serve once more
        raise PullFailed(f"`{host_of(target.url)}` redirects without an end")

    def _is_public(self, host: str) -> bool:
        """Whether the connection leads to a public address, as far as can be known."""
        return is_public(self._peer) if self._peer else not self._web.private_address(host)

    def _ask(self, url: str, headers: Mapping[str, str], is_public_only: bool) -> http.client.HTTPResponse:
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        all_headers = {"User-Agent": f"shimmy/{__version__}", "Accept-Encoding": "identity", **headers}
        for is_last in (False, True):
            connection, is_fresh = self._connect(url, is_public_only)
            proxy = self._plain_proxy
            request = url.partition("#")[0] if proxy else path
            if proxy and (authorization := _proxy_authorization(proxy)):
                all_headers["Proxy-Authorization"] = authorization
            try:
                connection.request("GET", request, headers=all_headers)
                return connection.getresponse()
            except (OSError, http.client.HTTPException, ValueError) as exc:
                self.close()
                if is_fresh or is_last:
                    raise Trouble(f"`{host_of(url)}` does not answer ({_reason(exc)})") from exc
        raise AssertionError

    def _connect(self, url: str, is_public_only: bool) -> tuple[http.client.HTTPConnection, bool]:
        """A connection to a URL's server, and whether it is a new one."""
        scheme, host, port = origin(url)
        proxy = self._web.proxy_for(scheme, host, port)
        key = (scheme, host, port, is_public_only)
        is_idle = self._reply is None or self._reply.is_read
        if self._connection is not None and key == self._key and is_idle and self._connection.sock is not None:
            return self._connection, False
        self.close()
        if is_public_only and proxy and (private := self._web.private_address(host)):
            raise _not_public(host, private)
        place = (proxy.hostname or "", proxy.port or 80) if proxy else (host, port)
        sock = self._web.open_socket(*place, is_public_only=is_public_only and not proxy)
        try:
            self._peer = "" if proxy else str(sock.getpeername()[0])
            if proxy and scheme == "https":
                _tunnel(sock, host, port, proxy)
            if scheme == "https":
                sock = self._wrap(sock, host)
        except BaseException:
            sock.close()
            raise
        connection = http.client.HTTPConnection(host, port)
        connection.default_port = 443 if scheme == "https" else 80  # left out of the Host header
        connection.auto_open = 0  # a lost connection is made here again
        connection.sock = sock
        sock.settimeout(READ_TIMEOUT_S)
        self._connection, self._key = connection, key
        self._plain_proxy = proxy if scheme == "http" else None
        return connection, True

    def _wrap(self, sock: socket.socket, host: str) -> socket.socket:
        context = self._web.tls()
        import ssl

        try:
            return context.wrap_socket(sock, server_hostname=host)
        except ssl.SSLCertVerificationError as exc:
            raise PullFailed(
                f"the certificate of `{host}` is refused: {exc.verify_message}; if a proxy or a company's own "
                "authority stands in between, name its certificates with SSL_CERT_FILE"
            ) from exc
        except OSError as exc:
            raise Trouble(f"no TLS connection to `{host}` ({_reason(exc)})") from exc


def _checked(url: str) -> tuple[str, str, int]:
    try:
        scheme, host, port = origin(url)
        is_plain = url.isascii() and url.isprintable() and " " not in url and urlsplit(url).username is None
    except ValueError:
        scheme, host, port, is_plain = "", "", 0, False
    if scheme not in {"http", "https"} or not host or not is_plain or len(url) > MAX_URL_CHARACTERS:
        raise PullFailed(f"a redirect leads to `{url[:100]!a}`, which is not followed")
    return scheme, host, port


def _next(url: str, location: str) -> str:
    try:
        following = urljoin(url, location)
    except ValueError:
        following = location
    if url.startswith("https:") and not following.startswith("https:"):
        raise PullFailed(f"`{host_of(url)}` redirects from HTTPS to `{following[:100]!a}`, which is not followed")
    return following


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.sixtofour
        if any(found in network for network in _IPV4_INSIDE):
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is None and found not in _UNICAST:
            return False
        found = inner or found
    return found.is_global and not found.is_multicast


def _not_public(host: str, address: str) -> PullFailed:
    return PullFailed(f"`{host}` leads to {address}, an address that is not public: it is not asked")


def _looked_up(host: str) -> list[str]:
    """The addresses of `host` in any spelling; none where the lookup fails, or takes long: behind a proxy there may be
    nobody to ask."""
    name = host.removesuffix(".")
    with suppress(OSError, UnicodeError):
        return [str(row[4][0]) for row in socket.getaddrinfo(name, None, flags=socket.AI_NUMERICHOST)]
    found: SimpleQueue[list[str]] = SimpleQueue()

    def look_up() -> None:
        with suppress(OSError, UnicodeError):
            found.put([str(row[4][0]) for row in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)])
            return
        found.put([])

    Thread(target=look_up, daemon=True).start()
    try:
        return found.get(timeout=LOOKUP_TIMEOUT_S)
    except Empty:
        return []


def _tunnel(sock: socket.socket, host: str, port: int, proxy: SplitResult) -> None:
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    head = f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n"
    if authorization := _proxy_authorization(proxy):
        head += f"Proxy-Authorization: {authorization}\r\n"
    try:
        sock.sendall(f"{head}\r\n".encode())
        response = http.client.HTTPResponse(sock, method="CONNECT")
        response.begin()
        response.close()
    except (OSError, http.client.HTTPException) as exc:
        raise Trouble(f"the proxy `{proxy.hostname}` does not answer ({_reason(exc)})") from exc
    if response.status != 200:
        raise Trouble(f"the proxy `{proxy.hostname}` refuses ({response.status} {response.reason[:100]!a})")


def _proxy_authorization(proxy: SplitResult) -> str:
    if proxy.username is None:
        return ""
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def host_of(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2]
    except ValueError:
        return url[:50]


def _reason(exc: BaseException) -> str:
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    return str(getattr(exc, "strerror", None) or str(exc) or type(exc).__name__)[:200]
