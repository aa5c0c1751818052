"""Requests that are wrong in many ways: each has to get a 4xx in OpenAI's form, and nothing else may come of it."""

from tests.bench.soak.client import Client, Json
from tests.bench.soak.mix import CHAT, COMPLETION, EMBEDDINGS, RESPONSES, Ask
from tests.bench.soak.replies import require

MESSAGES: list[Json] = [{"role": "user", "content": "hello"}]
DEEP = 50_000
# What goes into an otherwise good chat, and what goes into a completion.
CHAT_FIELDS: tuple[Json, ...] = (
    {"messages": []}, {"messages": "hello"}, {"messages": [{"role": "user"}]}, {"messages": [{"content": "x"}]},
    {"temperature": "hot"}, {"max_tokens": "many"}, {"max_tokens": -2}, {"n": 0}, {"n": 1000},
    {"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 21}, {"tools": "all"}, {"tool_choice": "required"},
    {"tools": [{"type": "function", "function": {}}]}, {"modalities": ["audio"]}, {"stream": "yes"}, {"lora": 1},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"pattern": "("}}}},
    {"response_format": {"type": "xml"}}, {"stop": 1}, {"seed": "one"}, {"logit_bias": {"99999999": 1}},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]},
)  # fmt: skip
COMPLETION_FIELDS: tuple[Json, ...] = (
    {"prompt": []}, {"prompt": [10**9]}, {"prompt": 1}, {"prompt": None}, {"grammar": "root ::= ("}, {"grammar": "x"},
    {"grammar": 'root ::= root "x"'}, {"json_schema": 1}, {"repeat_penalty": 0}, {"top_k": 2**40}, {"mirostat": 7},
    {"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}, {"logprobs": 21}, {"echo": "yes"}, {"tools": [{}]},
    {"prompt": ["x"] * 257}, {"samplers": ["top_k"]}, {"id_slot": 3}, {"keep_alive": "long"}, {"dry_multiplier": 1e300},
)  # fmt: skip
BODIES = (
    b"", b"null", b"[]", b"{", b'"x"', b"\xff\xfe", b"[" * DEEP, b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    b'{"model":"steady","temperature":NaN}', b'{"model":"steady","max_tokens":' + b"9" * DEEP + b"}",
)  # fmt: skip
UNKNOWN = ("/v1", "/v1/chat", "/%00", "/v1/models/no-such-model", "/v1/responses/resp_none", "/api/models/none/status")
# No HTTP at all, or not as it is written; what is said to it is no more than 4xx or 5xx of HTTP itself.
BYTES = (
    bytes(range(256)) * 16, b"GET\r\n\r\n", b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"\r\n" * 100,
    b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
)  # fmt: skip


async def bad_request(client: Client) -> None:
    model = client.models.steady
    if client.chance(0.5):
        body: Json = {"model": model, "messages": MESSAGES, **client.random.choice(CHAT_FIELDS)}
        await _refused(client, CHAT, body, 400)
    else:
        body = {"model": model, "prompt": "hello", **client.random.choice(COMPLETION_FIELDS)}
        await _refused(client, COMPLETION, body, 400)


async def bad_body(client: Client) -> None:
    path = client.random.choice((CHAT, COMPLETION, EMBEDDINGS, RESPONSES))
    await _refused(client, path, client.random.choice(BODIES), 400)


async def too_long(client: Client) -> None:
    prompt = "harbor " * client.models.n_too_many_words
    await _refused(client, COMPLETION, {"model": client.models.steady, "prompt": prompt}, 400)


async def wrong_model(client: Client) -> None:
    """A model that is not there, one for embeddings asked for text, and one for text asked for embeddings."""
    await _refused(client, CHAT, {"model": "no-such-model", "messages": MESSAGES}, 404)
    await _refused(client, CHAT, {"model": client.models.encoder, "messages": MESSAGES}, 400)
    await _refused(client, EMBEDDINGS, {"model": client.models.steady, "input": "hello"}, 400)


async def wrong_route(client: Client) -> None:
    await _refused(client, client.random.choice(UNKNOWN), None, 404, "GET")
    await _refused(client, CHAT, None, 405, "GET")


async def no_http(client: Client) -> None:
    said = await client.connection.send(client.random.choice(BYTES))
    require(not said or said.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), f"to no HTTP: {said[:100]!r}")
    client.connection.close()


async def _refused(client: Client, path: str, body: object, status: int, method: str = "POST") -> None:
    answer = await client.ask(path, body, method)
    shown = f"{method} {path} {str(body)[:200]}"
    require(answer.status == status, f"{answer.status}, not {status}, to {shown}: {answer.body[:200]!r}")
    require(answer.error()["type"] == "invalid_request_error", f"{answer.body[:200]!r} to {shown}")


BAD: dict[Ask, float] = {bad_request: 10, bad_body: 3, too_long: 1, wrong_model: 2, wrong_route: 2, no_http: 1}
