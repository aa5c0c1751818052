"""How long a running server keeps others waiting while it reads and answers the largest and oddest bodies.

python -m tests.bench.pauses URL MODEL [--only WORD] [--limit-ms 50]

A process beside this one asks for `/health` every 10 ms over one connection; the longest time that an answer took is
the pause. On a machine with other work the first line, of nothing at all, says what of it is not the server's.
"""

import argparse
import socket
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection
from multiprocessing import get_context
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

from tests.hostile_bodies import HOSTILE_BODIES, Body

TICK_S = 0.01
QUIET_S = 1.0  # for what a body still causes behind its reply
TIMEOUT_S = 300.0


def tick(host: str, port: int, orders: Connection) -> None:
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


def measure(
    url: str, model: str, bodies: dict[str, Body], quiet_s: float = QUIET_S, tell: Callable[[str], None] = print
) -> dict[str, float]:
    """The longest pause in milliseconds for each of `bodies`, by its name, and for nothing at all."""
    host, port = str(urlsplit(url).hostname), urlsplit(url).port or 80
    ours, theirs = get_context("spawn").Pipe()
    ticker = get_context("spawn").Process(target=tick, args=(host, port, theirs), daemon=True)
    ticker.start()
    pauses: dict[str, float] = {}
    try:
        for name in ["nothing", *bodies]:
            ours.send("longest")  # what was before does not count
            ours.recv()
            began_s = time.perf_counter()
            said = ask(host, port, bodies[name], model) if name in bodies else ""
            took_s = time.perf_counter() - began_s
            time.sleep(quiet_s)
            ours.send("longest")
            pauses[name] = 1000 * ours.recv()
            tell(f"{name:26} {pauses[name]:7.1f} ms   reply after {took_s:6.2f} s   {said}")
    finally:
        ours.send(None)
        ticker.join(5)
    return pauses


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pauses", description=str(__doc__).splitlines()[0])
    parser.add_argument("url", help="of a running server, such as http://127.0.0.1:11435")
    parser.add_argument("model")
    parser.add_argument("--only", default="", help="bodies with this word in their names")
    parser.add_argument("--limit-ms", type=float, default=50.0)
    options = parser.parse_args()
    bodies = {name: body for name, body in HOSTILE_BODIES.items() if options.only in name}
    pauses = measure(options.url, options.model, bodies)
    worst = max(pauses, key=lambda name: pauses[name])
    print(f"worst: {pauses[worst]:.1f} ms ({worst})")
    return int(pauses[worst] > options.limit_ms)


if __name__ == "__main__":
    sys.exit(main())
