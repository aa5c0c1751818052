"""One streamed chat completion, as a client of the server: its body goes out, and what is said comes in.

Knows the events of the stream. Knows nothing of terminals, nor where the server comes from.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from time import monotonic
from typing import Any

from shimmy.commands.server_client import NoServer, ServerAddress, connected
from shimmy.errors import ShimmyError, from_code

_PATH = "/v1/chat/completions"
_CONNECT_TIMEOUT_S = 5.0
_MOST_LINE_BYTES = 1 << 24  # of one event
_MOST_HEAD_LINES = 100


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of a reply."""

    text: str
    is_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """What a reply waits for before its first piece: its turn, or the reading of its prompt."""

    place: int = 0  # in the queue, 1 for the next; 0: it has its turn
    n_read: int = 0  # tokens of its prompt, of the `n_all` that were not there already
    n_all: int = 0


@dataclass(slots=True)
class ReplyEnd:
    """What is known of a reply once it has ended."""

    finish_reason: str = ""
    first_s: float | None = None  # from the request to the first piece
    n_prompt: int = 0
    n_cached: int = 0
    n_written: int = 0  # unless it `is_counted`: pieces, each of which is a token or a few
    is_counted: bool = False  # the server has counted, which it does at the end of a whole reply
    timings: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class ReplyStream:
    """Iterate over it once; afterwards, also after an error in the middle, `end` has what is known."""

    def __init__(self, address: ServerAddress, key: str | None, body: Mapping[str, Any]) -> None:
        self.end = ReplyEnd()
        self._address = address
        streamed = {"stream": True, "stream_options": {"include_usage": True}, "return_progress": True}
        self._request = _request(address, key, {**body, **streamed})

    def __iter__(self) -> Iterator[Said | Wait]:
        """Raises the error that the server answers with, and NoServer where it is not there or goes away. Leaving the
        loop ends the job."""
        started_s = monotonic()
        try:
            with connected(self._address, _CONNECT_TIMEOUT_S) as connection:
                connection.settimeout(None)  # a load may take minutes
                connection.sendall(self._request)
                with connection.makefile("rb") as reply:
                    for event in self._events(reply):
                        for said in self._take(event):
                            if self.end.first_s is None and isinstance(said, Said):
                                self.end.first_s = monotonic() - started_s
                            yield said
        except OSError as exc:
            how = "is gone" if self.end.first_s is not None else "does not answer"
            raise NoServer(f"the server on {self._address.url} {how} ({exc.strerror or exc})") from exc
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as exc:
            raise NoServer(f"what answers on {self._address.url} is no Shimmy server") from exc

    def _events(self, reply: BufferedReader) -> Iterator[Any]:
        """The JSON of each event up to [DONE]."""
        if not (first_line := reply.readline(_MOST_LINE_BYTES)):
            raise NoServer(f"the server on {self._address.url} has ended without a reply")
        status = int(first_line.split(maxsplit=2)[1])
        for _ in range(_MOST_HEAD_LINES):
            if reply.readline(_MOST_LINE_BYTES) in (b"\r\n", b"\n", b""):
                break
        if status != 200:
            raise _error(json.loads(reply.read(_MOST_LINE_BYTES)))
        while line := reply.readline(_MOST_LINE_BYTES):
            if not line.startswith(b"data: "):
                continue
            data = line.removeprefix(b"data: ").strip()
            if data == b"[DONE]":
                return
            event = json.loads(data)
            if "error" in event:
                raise _error(event)
            yield event
        raise NoServer(f"the server on {self._address.url} has ended in the middle of the reply")

    def _take(self, event: Any) -> list[Said | Wait]:
        """What an event says, in the order in which the model said it."""
        usage = event.get("usage")
        if usage:
            self.end.n_prompt, self.end.n_written = usage["prompt_tokens"], usage["completion_tokens"]
            self.end.n_cached = usage["prompt_tokens_details"]["cached_tokens"]
            self.end.is_counted = True
        self.end.timings = event.get("timings") or self.end.timings
        self.end.warnings += tuple(map(str, event.get("warnings", ())))
        said: list[Said | Wait] = []
        if "queue_position" in event:
            said.append(Wait(place=int(event["queue_position"])))
        if read := event.get("prompt_progress"):
            self.end.n_prompt, self.end.n_cached = int(read["total"]), int(read["cache"])
            said.append(Wait(n_read=read["processed"] - read["cache"], n_all=read["total"] - read["cache"]))
        for choice in event["choices"]:
            self.end.finish_reason = choice["finish_reason"] or self.end.finish_reason
            delta = choice["delta"]
            if delta.get("reasoning_content"):
                said.append(Said(str(delta["reasoning_content"]), is_reasoning=True))
            if delta.get("content"):
                said.append(Said(str(delta["content"])))
        if not self.end.is_counted:
            self.end.n_written += sum(isinstance(each, Said) for each in said)
        return said


def _request(address: ServerAddress, key: str | None, body: Mapping[str, Any]) -> bytes:
    """With HTTP/1.0 the reply ends with the connection, and comes without chunks."""
    content = json.dumps(body).encode()
    lines = [
        f"POST {address.prefix}{_PATH} HTTP/1.0",
        f"Host: {address.authority}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *([f"Authorization: Bearer {key}"] if key is not None else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + content


def _error(body: Any) -> ShimmyError:
    error = body["error"]
    return from_code(str(error["code"]), str(error["message"]))
