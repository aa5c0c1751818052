"""How long a running server keeps others waiting while it reads and answers the largest and oddest bodies.

python -m tests.bench.pauses URL MODEL [--only WORD] [--limit-ms 50] [--stream] [--stream-limit-ms 300]

A process beside this one asks for `/health` every 10 ms over one connection; the longest time that an answer took is
the pause. With `--stream` another one reads a stream of the model's tokens; the longest time between two of them is
the pause for other jobs of the worker. On a machine with other work the first line, of nothing at all, says what of it
is not the server's.
"""

import argparse
import json
import socket
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from tests.hostile_bodies import HOSTILE_BODIES, Body

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

TICK_S = 0.01
QUIET_S = 1.0  # for what a body still causes behind its reply
TIMEOUT_S = 300.0


def tick(host: str, port: int, orders: "Connection") -> None:
    """Answer each order with the longest time, in seconds, that `/health` took since the last one."""
    server = socket.create_connection((host, port), timeout=TIMEOUT_S)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    request = b"GET /health HTTP/1.1\r\nHost: %b\r\n\r\n" % host.encode()
    longest_s = 0.0
    while True:
        asked_s = time.perf_counter()
        server.sendall(request)
        while not server.recv(65536).endswith(b"}"):
            pass
        longest_s = max(longest_s, time.perf_counter() - asked_s)
        if orders.poll(TICK_S):
            if orders.recv() is None:
                return
            orders.send(longest_s)
            longest_s = 0.0


def stream(host: str, port: int, model: str, orders: "Connection") -> None:
    """Answer each order with the longest time, in seconds, between two tokens of one reply since the last order."""
    fields = {"model": model, "prompt": "Once", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    longest_s = 0.0
    while True:
        connection = HTTPConnection(host, port, timeout=TIMEOUT_S)
        connection.request("POST", "/v1/completions", json.dumps(fields), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(response.read().decode())
        last_s = 0.0
        while line := response.readline():
            now_s = time.perf_counter()
            if not line.startswith(b"data: {"):
                continue
            longest_s = max(longest_s, now_s - last_s if last_s else 0.0)
            last_s = now_s
            if orders.poll():
                if orders.recv() is None:
                    return
                orders.send(longest_s)
                longest_s = 0.0


def ask(host: str, port: int, body: Body, model: str) -> str:
    """Send `body`; returns what came back, in a few words."""
    connection = HTTPConnection(host, port, timeout=TIMEOUT_S)
    try:
        connection.request(body.method, body.path, body.make(model) or None, {"Content-Type": "application/json"})
        response = connection.getresponse()
        said = response.read()
    except OSError as exc:
        return f"{type(exc).__name__}: {exc}"
    finally:
        connection.close()
    if response.status == 200:
        return f"200, {len(said)} bytes"
    return f"{response.status} {said[:90].decode(errors='replace')!r}"


class Pauses(NamedTuple):
    """The longest ones, in milliseconds."""

    server: float
    stream: float | None  # None where no stream was watched


class Watcher:
    """A process that watches for pauses."""

    def __init__(self, watch: Callable[..., None], *args: object) -> None:
        from multiprocessing import get_context  # a stand-in has its place where no process is started

        self._orders, theirs = get_context("spawn").Pipe()
        self._process = get_context("spawn").Process(target=watch, args=(*args, theirs), daemon=True)
        self._process.start()

    def longest_ms(self) -> float:
        """Of the pauses since the last call."""
        self._orders.send("longest")
        return 1000 * float(self._orders.recv())

    def end(self) -> None:
        self._orders.send(None)
        self._process.join(5)


def measure(
    url: str,
    model: str,
    bodies: dict[str, Body],
    quiet_s: float = QUIET_S,
    tell: Callable[[str], None] = print,
    *,
    with_stream: bool = False,
) -> dict[str, Pauses]:
    """The pauses for each of `bodies`, by its name, and for nothing at all."""
    host, port = str(urlsplit(url).hostname), urlsplit(url).port or 80
    of_server = Watcher(tick, host, port)
    of_stream = Watcher(stream, host, port, model) if with_stream else None
    watchers = [of_server, of_stream] if of_stream else [of_server]
    pauses: dict[str, Pauses] = {}
    try:
        for name in ["nothing", *bodies]:
            for watcher in watchers:
                watcher.longest_ms()  # what was before does not count
            began_s = time.perf_counter()
            said = ask(host, port, bodies[name], model) if name in bodies else ""
            took_s = time.perf_counter() - began_s
            time.sleep(quiet_s)
            pauses[name] = Pauses(of_server.longest_ms(), of_stream.longest_ms() if of_stream else None)
            figures = "  ".join(f"{pause:7.1f} ms" for pause in pauses[name] if pause is not None)
            tell(f"{name:26} {figures}   reply after {took_s:6.2f} s   {said}")
    finally:
        for watcher in watchers:
            watcher.end()
    return pauses


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pauses", description=str(__doc__).splitlines()[0])
    parser.add_argument("url", help="of a running server, such as http://127.0.0.1:11435")
    parser.add_argument("model")
    parser.add_argument("--only", default="", help="bodies with this word in their names")
    parser.add_argument("--limit-ms", type=float, default=50.0)
    parser.add_argument("--stream", action="store_true", help="watch a stream of the same model, too")
    parser.add_argument("--stream-limit-ms", type=float, default=300.0)
    options = parser.parse_args()
    bodies = {name: body for name, body in HOSTILE_BODIES.items() if options.only in name}
    pauses = measure(options.url, options.model, bodies, with_stream=options.stream)
    found = [is_over({name: each.server for name, each in pauses.items()}, options.limit_ms)]
    if options.stream:
        of_stream = {name: each.stream for name, each in pauses.items() if each.stream is not None}
        found.append(is_over(of_stream, options.stream_limit_ms))
    return int(any(found))


def is_over(pauses: dict[str, float], limit_ms: float) -> bool:
    """Whether one of these pauses, in milliseconds, is longer; prints the longest."""
    worst = max(pauses, key=lambda name: pauses[name])
    print(f"worst: {pauses[worst]:.1f} ms ({worst}); limit {limit_ms:.0f} ms")
    return pauses[worst] > limit_ms


if __name__ == "__main__":
    sys.exit(main())
