"""OpenAI's embeddings: what a body may be, as a pure function, and the reply."""

import asyncio
import struct
from binascii import b2a_base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shimmy.api.client_gone import unless_gone
from shimmy.api.http_exchange import encode
from shimmy.api.request_fields.field_kinds import (
    Duration,
    Integer,
    Json,
    NotServed,
    OneOf,
    Record,
    Text,
    TokenIds,
    WithoutEffect,
    read_array,
    read_model,
    refuse,
    text,
)
from shimmy.generation import embed
from shimmy.messages.request import EmbeddingInput, EmbedRequest

if TYPE_CHECKING:
    from shimmy.api.http_exchange import Exchange
    from shimmy.config import Config

N_INPUTS_MAX = 2048

_INPUT = "a string, an array of strings, an array of token ids, or an array of such arrays"
_text = Text(may_be_empty=False)
_token_ids = TokenIds()


@dataclass(frozen=True, slots=True)
class Inputs:
    """One text or array of token ids, or an array of either."""

    def read(self, value: object, path: str) -> tuple[EmbeddingInput, ...]:
        if isinstance(value, str):
            return (_text.read(value, path),)
        items = read_array(value, path, _INPUT)
        if not items:
            refuse(path, _INPUT, "an empty array")
        if not isinstance(items[0], str | list):
            return (_tokens(items, path),)
        if len(items) > N_INPUTS_MAX:
            refuse(path, f"at most {N_INPUTS_MAX} inputs", str(len(items)))
        read = _text.read if isinstance(items[0], str) else _tokens
        return tuple(read(item, f"{path}[{index}]") for index, item in enumerate(items))

    def schema(self) -> Json:
        one = (_text.schema(), _token_ids.schema() | {"minItems": 1})
        several = ({"type": "array", "items": kind, "minItems": 1, "maxItems": N_INPUTS_MAX} for kind in one)
        return {"anyOf": [*one, *several]}


BODY = Record(
    {
        "model": text,
        "input": Inputs(),
        "encoding_format": OneOf(("float", "base64")),
        "dimensions": Integer(at_least=1),
        "keep_alive": Duration(),
        "user": WithoutEffect(),
        # llama-server's own
        "embd_normalize": NotServed((2,)),
        "lora": NotServed(([],)),
    },
    {"input": _INPUT},
)


async def embeddings(exchange: "Exchange") -> None:
    given = await exchange.read(BODY.read)
    request = embed_request(given, exchange.services.config)
    is_base64 = given.get("encoding_format") == "base64"
    await exchange.reply_parts(await unless_gone(exchange, _reply(exchange, request, is_base64=is_base64)))


def embed_request(given: Mapping[str, Any], config: "Config") -> EmbedRequest:
    """What the fields of BODY ask for."""
    return EmbedRequest(
        model=read_model(given, config.default_model),
        inputs=given["input"],
        n_dimensions=given.get("dimensions"),
        keep_alive_s=given.get("keep_alive"),
    )


def _tokens(value: object, path: str) -> tuple[int, ...]:
    return _token_ids.read(value, path) or refuse(path, "an array of token ids", "an empty one")


async def _reply(exchange: "Exchange", request: EmbedRequest, *, is_base64: bool) -> list[bytes]:
    """The parts of the reply: together they may have a hundred megabytes."""
    model, result = await embed(exchange.services, request)
    parts = [b'{"object":"list","data":[']
    for index, vector in enumerate(result.vectors):
        numbers = b'"%b"' % b2a_base64(vector, newline=False) if is_base64 else _floats(vector)
        parts.append(b'%b{"object":"embedding","index":%d,"embedding":%b}' % (b"," if index else b"", index, numbers))
        await asyncio.sleep(0)  # a large reply takes seconds in all, and the streams of others go on
    n_tokens = result.finished.usage.n_prompt
    rest = encode({"model": model.name, "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens}})
    return [*parts, b"],%b" % rest[1:]]


def _floats(vector: bytes) -> bytes:
    """A JSON array of 32-bit floats; nine digits are as many as they have."""
    numbers = struct.unpack(f"<{len(vector) // 4}f", vector)
    return b"[%b]" % (b",".join([b"%.9g"] * len(numbers)) % numbers)
