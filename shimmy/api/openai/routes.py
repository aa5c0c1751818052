"""OpenAI's dialect: chat completions, completions and models."""

import asyncio
from typing import TYPE_CHECKING

from shimmy.api.aside import aside, is_large
from shimmy.api.client_gone import unless_gone
from shimmy.api.event_stream import EventStream
from shimmy.api.http_exchange import encode, encode_large
from shimmy.api.openai.parse import JobsOfBody, chat_call, completion_call
from shimmy.api.openai.reply import CHAT, TEXT, chat_choice, envelope, kept, text_choice, timings, usage, warned
from shimmy.api.openai.stream_chunks import ChatChoice, Chunks, TextChoice
from shimmy.api.request_fields.job import model_defaults
from shimmy.generation import CompletedJob, close, collect, generate_all, together

if TYPE_CHECKING:
    from shimmy.api.http_exchange import Exchange
    from shimmy.api.request_fields.field_kinds import Json
    from shimmy.catalog.catalog import Model

_AT_ONCE = 200  # models, of a list


async def chat_completions(exchange: "Exchange") -> None:
    config = exchange.services.config
    call = await exchange.read(lambda body: chat_call(body, config, model_defaults(body, exchange.services)))
    await _answer(exchange, call, is_chat=True)


async def completions(exchange: "Exchange") -> None:
    config = exchange.services.config
    call = await exchange.read(lambda body: completion_call(body, config, model_defaults(body, exchange.services)))
    await _answer(exchange, call, is_chat=False)


async def models(exchange: "Exchange") -> None:
    objects = []
    for index, (name, model) in enumerate(exchange.services.registry.listed()):
        if index % _AT_ONCE == _AT_ONCE - 1:
            await asyncio.sleep(0)  # many models take a while, and the streams of others go on
        objects.append(encode(_model_object(model, name)))
    await exchange.reply_json(b'{"object":"list","data":[%b]}' % b",".join(objects))


async def model(exchange: "Exchange") -> None:
    model = exchange.services.registry.resolve(exchange.rest)
    await exchange.reply(_model_object(model, model.name))


async def _answer(exchange: "Exchange", call: JobsOfBody, *, is_chat: bool) -> None:
    generations = generate_all(exchange.services, call.jobs)
    head = envelope(CHAT if is_chat else TEXT, generations[0].model.name, is_chunk=call.options.stream)
    try:
        if call.options.stream:
            chunks = Chunks(head, call.options, ChatChoice if is_chat else TextChoice)
            await EventStream(exchange, generations, chunks).run()
        else:
            wholes = await unless_gone(exchange, together([collect(generation) for generation in generations]))
            if _is_large(wholes):
                reply = await aside(lambda: _reply(head, wholes, call, is_chat=is_chat))
            else:
                reply = _reply(head, wholes, call, is_chat=is_chat)
            await exchange.reply_json(reply)
    finally:
        await close(generations)


def _is_large(wholes: list[CompletedJob]) -> bool:
    n_characters = sum(len(each.echo.text) + len(each.said.text) for each in wholes)
    n_logprobs = sum(len(each.echo.logprobs) + len(each.said.logprobs) for each in wholes)
    return is_large(n_characters, n_logprobs)


def _reply(head: "Json", wholes: list[CompletedJob], call: JobsOfBody, *, is_chat: bool) -> bytes:
    make = chat_choice if is_chat else text_choice
    ended = [each.finished for each in wholes]
    choices, n_reasoned = [], 0
    for index, each in enumerate(kept(wholes, call.options)):
        choice, n_tokens = make(index, each, call.options)
        choices.append(encode_large(choice))
        n_reasoned += n_tokens
    tail: Json = {"usage": usage(ended, call.options, n_reasoned)}
    if len(ended) == 1:
        tail["timings"] = timings(ended[0])
    if warnings := warned(wholes[0].accepted, call.options):
        tail["warnings"] = warnings
    return b'%b,"choices":[%b],%b' % (encode(head)[:-1], b",".join(choices), encode(tail)[1:])


def _model_object(model: "Model", name: str) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": model.mtime_ns // 10**9,
        "owned_by": "shimmy",
        "meta": {
            "architecture": model.architecture,
            "quantization": model.quantization,
            "n_params": model.n_params,
            "n_ctx_train": model.n_ctx_train,
            "size": model.size_bytes,
        },
    }
