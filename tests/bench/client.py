"""A light client for `/v1/completions` and `/v1/chat/completions`: it must not take the processors from the servers it
measures.

While a reply streams it only notes when how many bytes were there; everything is read from them afterwards.
"""

import asyncio
import json
import re
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

EVENT = re.compile(rb"^data: \{", re.MULTILINE)
REQUEST_TIMEOUT_S = 300.0

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """One streamed completion, its times on `time.perf_counter`'s clock."""

    asked_s: float
    accepted_s: float  # the first byte of the reply
    first_text_s: float  # since it was asked
    ended_s: float
    n_prompt: int
    n_tokens: int
    text: str
    text_at_s: tuple[float, ...]  # when each piece of text was there

    @property
    def tokens_per_s(self) -> float:
        """From the request to the last byte, the prompt included."""
        return self.n_tokens / (self.ended_s - self.asked_s)

    @property
    def decode_tokens_per_s(self) -> float:
        """From the first text on, which is taken for that of one token."""
        return (self.n_tokens - 1) / (self.ended_s - self.asked_s - self.first_text_s)

    def gaps_s(self, since_s: float, until_s: float) -> list[float]:
        """The times between one piece of text and the next, of those that were under way between two moments."""
        pairs = zip(self.text_at_s, self.text_at_s[1:], strict=False)
        return [after - before for before, after in pairs if after > since_s and before < until_s]


class ReplyFailed(Exception):
    """The server refused, broke off or never ended a completion; `status` and `headers` are those of a refusal."""

    def __init__(self, reason: str, status: int = 0, headers: bytes = b"") -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers


async def stream(port: int, model: str, prompt: str, n_tokens: int, **fields: object) -> Reply:
    """One completion of at most `n_tokens`; raises ReplyFailed."""
    return await _stream(port, "/v1/completions", model, n_tokens, {"prompt": prompt, **fields})


async def stream_chat(port: int, model: str, messages: Sequence[Message], n_tokens: int, **fields: object) -> Reply:
    """One answer in a conversation, of at most `n_tokens`; raises ReplyFailed."""
    return await _stream(port, "/v1/chat/completions", model, n_tokens, {"messages": messages, **fields})


async def _stream(port: int, path: str, model: str, n_tokens: int, fields: dict[str, object]) -> Reply:
    body = json.dumps(
        {
            "model": model,
            "max_tokens": n_tokens,
            "temperature": 0.0,
            "seed": 1,
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
    ).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    asked_s = time.perf_counter()
    writer.write(head.encode() + body)
    received = bytearray()
    read_at_s: list[float] = []  # and how many bytes were there then:
    n_received: list[int] = []
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            while data := await reader.read(65536):
                read_at_s.append(time.perf_counter())
                received += data
                n_received.append(len(received))
    except (ConnectionError, TimeoutError) as exc:
        raise ReplyFailed(f"the connection broke: {exc!r}") from exc
    finally:
        writer.close()
    ended_s = time.perf_counter()
    events = _events(bytes(received))
    texts = [_text(event) for _, event in events]
    text_at_s = tuple(
        read_at_s[bisect_left(n_received, start)] for (start, _), text in zip(events, texts, strict=True) if text
    )
    n_prompt, n_generated = _counts([event for _, event in events])
    first_text_s = text_at_s[0] - asked_s if text_at_s else 0.0
    text = "".join(texts)
    return Reply(asked_s, read_at_s[0], first_text_s, ended_s, n_prompt, n_generated, text, text_at_s)


def _events(received: bytes) -> list[tuple[int, dict[str, Any]]]:
    """The events of a whole reply, each with how many bytes were there when it began to be; raises ReplyFailed."""
    head, _, body = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        status = int(head[9:12]) if head[9:12].isdigit() else 0
        raise ReplyFailed(f"the answer was not 200: {received[:500].decode(errors='replace')}", status, head.lower())
    # Chunks of the transfer begin where a server writes, which is before an event.
    starts = [found.end() for found in EVENT.finditer(received)]
    if b"transfer-encoding: chunked" in head.lower():
        body = _without_chunks(body)
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    if not any(choice.get("finish_reason") for event in events for choice in event.get("choices", ())):
        raise ReplyFailed(f"the stream broke off after {len(events)} events: {received[-300:]!r}")
    return list(zip(starts, events, strict=True))


def _text(event: dict[str, Any]) -> str:
    """What an event of either route adds to the reply."""
    choices = event.get("choices", ())
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in choices)


def _counts(events: list[dict[str, Any]]) -> tuple[int, int]:
    """Prompt tokens and generated tokens as the server counts them; where it does not say, a piece of text is one."""
    for event in reversed(events):
        usage, timings = event.get("usage") or {}, event.get("timings") or {}
        if n_tokens := usage.get("completion_tokens") or timings.get("predicted_n"):
            return int(usage.get("prompt_tokens") or 0), int(n_tokens)
    return 0, sum(bool(_text(event)) for event in events)


def _without_chunks(body: bytes) -> bytes:
    whole, position = bytearray(), 0
    while (line_end := body.find(b"\r\n", position)) > 0:
        size = int(body[position:line_end].partition(b";")[0], 16)
        whole += body[line_end + 2 : line_end + 2 + size]
        position = line_end + 2 + size + 2
    return bytes(whole)
