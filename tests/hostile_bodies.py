"""The largest and oddest request bodies within the limit on their size, each hard for a server in a way of its own."""

import json
from collections.abc import Callable
from dataclasses import dataclass

SIZE = 16 * 2**20 - 4096
HI = [{"role": "user", "content": "hi"}]
CHAT, COMPLETION, RESPONSE = "/v1/chat/completions", "/v1/completions", "/v1/responses"


@dataclass(frozen=True)
class Body:
    """A request; `make` gets the name of a model."""

    path: str
    make: Callable[[str], bytes]
    method: str = "POST"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _fields(**fields: object) -> Callable[[str], bytes]:
    return lambda model: _json({"model": model, **fields})


def _with(field: str, value: Callable[[], bytes], **others: object) -> Callable[[str], bytes]:
    """A body whose `field` is JSON text that is not worth decoding here."""
    return lambda model: b'%b,"%b":%b}' % (_fields(**others)(model)[:-1], field.encode(), value())


def _prompt(value: Callable[[], bytes]) -> Callable[[str], bytes]:
    return _with("prompt", value, max_tokens=1)


def _chat(**fields: object) -> Callable[[str], bytes]:
    return _fields(**{"messages": HI, "max_tokens": 1, **fields})


def _repeated(item: bytes, before: bytes = b"[", after: bytes = b"1]", size: int = SIZE) -> bytes:
    return before + item * ((size - len(before) - len(after)) // len(item)) + after


def _function(index: int) -> dict[str, object]:
    properties = {f"p{other}": {"type": "string", "description": "x" * 400} for other in range(60)}
    function = {"name": f"f{index}", "parameters": {"type": "object", "properties": properties}}
    return {"type": "function", "function": function}


def _record(index: int) -> dict[str, object]:
    return {"type": "object", "properties": {f"p{index}": {"type": "array", "items": {"enum": [index, "x"]}}}}


def _schema(schema: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}


HOSTILE_BODIES = {
    # Prompts.
    "200,000 token ids": Body(COMPLETION, _prompt(lambda: _repeated(b"1,", size=400_000))),
    "1,000,000 token ids": Body(COMPLETION, _prompt(lambda: _repeated(b"1,", size=2_000_000))),
    "token ids": Body(COMPLETION, _prompt(lambda: _repeated(b"12345,"))),
    "arrays of token ids": Body(
        COMPLETION, _prompt(lambda: _repeated(_repeated(b"12,", size=70_000) + b",", after=b"[1]]"))
    ),
    "one text": Body(COMPLETION, _prompt(lambda: _repeated(b"word ", b'"', b'"'))),
    "one text, 128 choices": Body(COMPLETION, _with("prompt", lambda: _repeated(b"word ", b'"', b'"', 10**6), n=128)),
    "unicode escapes": Body(COMPLETION, _prompt(lambda: _repeated(b"\\u4e2d", b'"', b'"'))),
    "surrogates": Body(COMPLETION, _prompt(lambda: _repeated(b"\\ud83d\\ude00", b'"', b'"'))),
    "emoji": Body(COMPLETION, _prompt(lambda: _repeated("😀".encode(), b'"', b'"'))),
    "text with one emoji": Body(COMPLETION, _prompt(lambda: _repeated(b"x", '"😀'.encode(), b'"'))),
    "quotes": Body(COMPLETION, _prompt(lambda: _repeated(b'\\"', b'"', b'"'))),
    "zeros": Body(COMPLETION, _prompt(lambda: _repeated(b"\\u0000", b'"', b'"'))),
    "256 prompts": Body(COMPLETION, _fields(prompt=["word " * 12_000] * 256, max_tokens=1)),
    "embeddings of texts": Body("/v1/embeddings", _fields(input=["word " * 60_000] * 50)),
    "embeddings of token ids": Body("/v1/embeddings", _fields(input=[[1] * 3_900] * 2_048)),
    # Conversations.
    "5,000 messages": Body(CHAT, _chat(messages=HI * 5_000)),
    "16,384 messages": Body(CHAT, _chat(messages=HI * 16_384)),
    "450,000 messages": Body(CHAT, _chat(messages=HI * 450_000)),
    "messages of parts": Body(
        CHAT, _chat(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}] * 4_000}] * 25)
    ),
    "one large message": Body(CHAT, _chat(messages=[{"role": "user", "content": "word " * 3_000_000}])),
    "512 tools": Body(
        CHAT, _with("tools", lambda: _json([_function(index) for index in range(512)]), messages=HI, max_tokens=1)
    ),
    "response of items": Body(
        RESPONSE, _fields(input=HI * 16_000, max_output_tokens=1)
    ),
    "large instructions": Body(RESPONSE, _fields(input="hi", instructions="word " * 3_000_000, max_output_tokens=1)),
    # Fields.
    "1,200,000 biases": Body(
        CHAT,
        _with("logit_bias", lambda: b"{%b}" % b",".join(b'"%d":1' % token for token in range(1_200_000)), messages=HI),
    ),
    "65,000 biases": Body(
        CHAT, _with("logit_bias", lambda: _json(dict.fromkeys(range(65000), 1)), messages=HI, max_tokens=1)
    ),
    "bias pairs": Body(CHAT, _with("logit_bias", lambda: _repeated(b"[1,1],", after=b"[1,1]]"), messages=HI)),
    "stop strings": Body(CHAT, _chat(stop=["x" * 250_000] * 64)),
    "a large name": Body(CHAT, lambda _: b'{"model":"%b","messages":[]}' % (b"x" * (SIZE - 100))),
    "a large schema": Body(
        CHAT, _with("json_schema", lambda: _json({"enum": [f"value {n}" for n in range(400_000)]}), messages=HI)
    ),
    "alternatives": Body(CHAT, _chat(response_format=_schema({"anyOf": [_record(index) for index in range(500)]}))),
    "nested repetitions": Body(
        CHAT, _chat(response_format=_schema({"type": "string", "pattern": "^(([a-z]{1,50}-){1,50}/){1,50}$"}))
    ),
    "a grammar of many rules": Body(
        CHAT,
        _chat(grammar="".join(f'r{index} ::= "{index}" r{index + 1} | r{index + 1}\n' for index in range(5_000))
              .replace("r0 ::=", "root ::=") + 'r5000 ::= "x"'),
    ),
    "template arguments": Body(CHAT, _chat(chat_template_kwargs={"x": ["y" * 20] * 500_000})),
    "a value of a wrong kind": Body(CHAT, _chat(stream="x" * 15_000_000)),
    "a wrong duration": Body(CHAT, _chat(keep_alive="1" * 15_000_000)),
    # JSON.
    "empty objects": Body(CHAT, _with("x", lambda: _repeated(b"{},"))),
    "240,000 objects": Body(CHAT, _with("x", lambda: _repeated(b'{"a":1},', size=1_900_000))),
    "equal names": Body(CHAT, lambda _: _repeated(b'"a":1,', b"{", b'"a":1}')),
    "500,000 names": Body(CHAT, lambda _: _json({f"n{number}": 1 for number in range(500_000)})),
    "a long name": Body(CHAT, lambda _: _repeated(b"\\n", b'{"', b'":1}')),
    "short texts": Body(CHAT, _with("x", lambda: _repeated(b'"ab",'))),
    "long numbers": Body(CHAT, _with("x", lambda: _repeated(b"9" * 390 + b","))),
    "too long numbers": Body(CHAT, _with("x", lambda: _repeated(b"9" * 4_300 + b","))),
    "one number": Body(CHAT, _with("x", lambda: b"1." + b"1" * (SIZE - 200))),
    "space": Body(CHAT, _with("x", lambda: _repeated(b"\n", after=b"1"))),
    "wrong at the end": Body(CHAT, _with("x", lambda: _repeated(b"x", b'"', b'\xff"'))),
    "deep arrays": Body(CHAT, _with("x", lambda: _repeated(b"[", after=b""))),
    "deep objects": Body(CHAT, _with("x", lambda: _repeated(b'{"a":', b"", b""))),
    "100 levels": Body(CHAT, _with("x", lambda: _repeated(b"[" * 100 + b"]" * 100 + b",", size=900_000))),
    # Other routes, and what is large on the way out.
    "tokenize": Body("/tokenize", _with("content", lambda: _repeated(b"word ", b'"', b'"', 4_000_000))),
    "detokenize": Body("/detokenize", _with("tokens", lambda: _repeated(b"1,", size=2_000_000))),
    "apply-template": Body("/apply-template", _chat(messages=[{"role": "user", "content": "word " * 200_000}] * 4)),
    "candidates": Body(CHAT, _chat(n=16, logprobs=True, top_logprobs=20, max_tokens=200)),
    "streamed candidates": Body(CHAT, _chat(n=16, logprobs=True, top_logprobs=20, max_tokens=200, stream=True)),
    "echoed candidates": Body(COMPLETION, _fields(prompt="word " * 1_500, echo=True, logprobs=20, max_tokens=1)),
    "response with candidates": Body(RESPONSE, _fields(input="hi", top_logprobs=20, max_output_tokens=1_500)),
    "description": Body("/openapi.json", lambda _: b"", "GET"),
    "models": Body("/api/models", lambda _: b"", "GET"),
}  # fmt: skip
