"""A server for chats that says what a test wants."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}


def piece(text: str, field: str = "content") -> bytes:
    choice = {"index": 0, "delta": {field: text}, "finish_reason": None}
    return b"data: %b\n\n" % json.dumps({"choices": [choice], "usage": None}).encode()


END = (
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}\n\n'
    + b"data: %b\n\n" % json.dumps({"choices": [], "usage": USAGE, "timings": {"predicted_per_second": 12.34}}).encode()
    + b"data: [DONE]\n\n"
)


class Scripted:
    """A server that has `tiny` and answers each chat with `reply`, or not at all with a status of 0. A load ends once
    the state was asked for meanwhile."""

    def __init__(self) -> None:
        self.status, self.reply = 200, piece("Hello") + b": ping\n\n" + piece(" you") + END
        self.state: dict[str, Any] = {"state": "ready"}
        self.bodies: list[dict[str, Any]] = []
        self.key: str | None = None
        self.asked = threading.Semaphore(0)
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                scripted.asked.release()
                self._send(200, json.dumps(scripted.state).encode())

            def do_POST(self) -> None:
                if self.path.endswith("/load"):
                    while scripted.asked.acquire(blocking=False):
                        pass
                    scripted.asked.acquire(timeout=10)
                    self._send(200, b"{}")
                    return
                scripted.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                scripted.key = self.headers["Authorization"]
                self._send(scripted.status, scripted.reply)

            def _send(self, status: int, body: bytes) -> None:
                if not status:
                    return
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    @contextmanager
    def running(self) -> Iterator["Scripted"]:
        thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            thread.join()
            self.server.server_close()
