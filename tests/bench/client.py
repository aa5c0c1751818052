"""A light client for `/v1/completions`: it must not take the processors from the servers it measures.

While a reply streams it only looks for the first text; everything else is read from the collected bytes afterwards.
"""

import asyncio
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

FIRST_TEXT = re.compile(rb'"text":\s*"[^"]')
REQUEST_TIMEOUT_S = 300.0


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


class ReplyFailed(Exception):
    """The server refused, broke off or never ended a completion; `status` and `headers` are those of a refusal."""

    def __init__(self, reason: str, status: int = 0, headers: bytes = b"") -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers


def complete(port: int, model: str, prompts: Sequence[str], n_tokens: int, *, temperature: float = 0.0) -> list[Reply]:
    """All prompts at once, each over a connection of its own, and past the end of generation where possible."""

    async def all_at_once() -> list[Reply]:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            return await asyncio.gather(
                *(stream(port, model, prompt, n_tokens, temperature=temperature, ignore_eos=True) for prompt in prompts)
            )

    return asyncio.run(all_at_once())


async def stream(port: int, model: str, prompt: str, n_tokens: int, **fields: object) -> Reply:
    """One completion of at most `n_tokens`; raises ReplyFailed."""
    body = json.dumps(
        {
            "model": model,
            "prompt": prompt,
            "max_tokens": n_tokens,
            "temperature": 0.0,
            "seed": 1,
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
        }
    ).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    asked_s = time.perf_counter()
    writer.write(head.encode() + body)
    received = bytearray()
    accepted_s = first_text_s = 0.0
    try:
        while data := await reader.read(65536):
            accepted_s = accepted_s or time.perf_counter()
            received += data
            if not first_text_s and FIRST_TEXT.search(received):
                first_text_s = time.perf_counter() - asked_s
    except ConnectionError as exc:
        raise ReplyFailed(f"the connection broke: {exc}") from exc
    finally:
        writer.close()
    ended_s = time.perf_counter()
    n_prompt, n_generated, text = _read(bytes(received))
    return Reply(asked_s, accepted_s, first_text_s, ended_s, n_prompt, n_generated, text)


def _read(received: bytes) -> tuple[int, int, str]:
    """Prompt tokens, generated tokens and text. Tokens are as the server counts them; where it does not say, a piece is
    one."""
    head, _, body = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        status = int(head[9:12]) if head[9:12].isdigit() else 0
        raise ReplyFailed(f"the answer was not 200: {received[:500].decode(errors='replace')}", status, head.lower())
    if b"transfer-encoding: chunked" in head.lower():
        body = _without_chunks(body)
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    choices = [choice for event in events for choice in event.get("choices", ())]
    if not any(choice.get("finish_reason") for choice in choices):
        raise ReplyFailed(f"the stream broke off after {len(choices)} pieces")
    text = "".join(choice.get("text") or "" for choice in choices)
    for event in reversed(events):
        usage, timings = event.get("usage") or {}, event.get("timings") or {}
        if n_tokens := usage.get("completion_tokens") or timings.get("predicted_n"):
            return int(usage.get("prompt_tokens") or 0), int(n_tokens), text
    return 0, sum(bool(choice.get("text")) for choice in choices), text


def _without_chunks(body: bytes) -> bytes:
    whole, position = bytearray(), 0
    while (line_end := body.find(b"\r\n", position)) > 0:
        size = int(body[position:line_end].partition(b";")[0], 16)
        whole += body[line_end + 2 : line_end + 2 + size]
        position = line_end + 2 + size + 2
    return bytes(whole)
