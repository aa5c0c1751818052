"""OpenAI's embeddings: what a body may be, as a pure function, and the reply.

Known and without effect by their nature: user.
"""

import asyncio
import struct
from binascii import b2a_base64
from typing import TYPE_CHECKING

from shimmy.api.exchange import encode
from shimmy.api.fields import Integer, Json, TokenIds, read_array, read_keep_alive, read_text, refuse, required
from shimmy.api.openai_parse import read_model, refuse_not_served
from shimmy.api.stream import unless_gone
from shimmy.generate import embed
from shimmy.messages import EmbeddingInput, EmbedRequest

if TYPE_CHECKING:
    from shimmy.api.exchange import Exchange
    from shimmy.config import Config

N_INPUTS_MAX = 2048
FORMATS = ("float", "base64")
# llama-server's own, each with the values that ask for nothing.
NOT_SERVED: dict[str, tuple[object, ...]] = {"embd_normalize": (2,), "lora": ([],)}

_INPUT = "a string, an array of strings, an array of token ids, or an array of such arrays"
_dimensions = Integer(at_least=1)
_token_ids = TokenIds()


async def embeddings(exchange: "Exchange") -> None:
    body = await exchange.json()
    request = embed_request(body, exchange.services.config)
    is_base64 = read_format(body) == "base64"
    await exchange.reply_json(await unless_gone(exchange, _reply(exchange, request, is_base64=is_base64)))


def embed_request(body: Json, config: "Config") -> EmbedRequest:
    refuse_not_served(body, NOT_SERVED)
    dimensions = body.get("dimensions")
    return EmbedRequest(
        model=read_model(body, config.default_model),
        inputs=_inputs(required(body, "input", _INPUT)),
        n_dimensions=None if dimensions is None else _dimensions.read(dimensions, "dimensions"),
        keep_alive_s=read_keep_alive(body),
    )


def read_format(body: Json) -> str:
    """How the numbers of the reply are written."""
    value = body.get("encoding_format")
    if value is None:
        return FORMATS[0]
    name = read_text(value, "encoding_format")
    if name not in FORMATS:
        refuse("encoding_format", f"one of {', '.join(FORMATS)}", repr(name)[:40])
    return name


def _inputs(value: object) -> tuple[EmbeddingInput, ...]:
    if isinstance(value, str):
        return (_text(value, "input"),)
    items = read_array(value, "input", _INPUT)
    if not items:
        refuse("input", _INPUT, "an empty array")
    if not isinstance(items[0], str | list):
        return (_tokens(items, "input"),)
    if len(items) > N_INPUTS_MAX:
        refuse("input", f"at most {N_INPUTS_MAX} inputs", str(len(items)))
    read = _text if isinstance(items[0], str) else _tokens
    return tuple(read(item, f"input[{index}]") for index, item in enumerate(items))


def _text(value: object, path: str) -> str:
    return read_text(value, path) or refuse(path, "a string that is not empty", "an empty one")


def _tokens(value: object, path: str) -> tuple[int, ...]:
    return _token_ids.read(value, path) or refuse(path, "an array of token ids", "an empty one")


async def _reply(exchange: "Exchange", request: EmbedRequest, *, is_base64: bool) -> bytes:
    model, result = await embed(exchange.services, request)
    parts = []
    for index, vector in enumerate(result.vectors):
        numbers = b'"%b"' % b2a_base64(vector, newline=False) if is_base64 else _floats(vector)
        parts.append(b'{"object":"embedding","index":%d,"embedding":%b}' % (index, numbers))
        await asyncio.sleep(0)  # a large reply takes seconds in all, and the streams of others go on
    n_tokens = result.finished.usage.n_prompt
    rest = encode({"model": model.name, "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens}})
    return b'{"object":"list","data":[%b],%b' % (b",".join(parts), rest[1:])


def _floats(vector: bytes) -> bytes:
    """A JSON array of 32-bit floats; nine digits are as many as they have."""
    numbers = struct.unpack(f"<{len(vector) // 4}f", vector)
    return b"[%b]" % (b",".join([b"%.9g"] * len(numbers)) % numbers)
