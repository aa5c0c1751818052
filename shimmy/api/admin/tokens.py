"""Routes to a model's own tokenizer and chat template, in llama-server's shapes."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from shimmy.api.client_gone import unless_gone
from shimmy.api.openai.messages import PROMPT_FIELDS, PROMPT_REQUIRED, chat_prompt
from shimmy.api.request_fields.field_kinds import (
    Duration,
    Fields,
    NotServed,
    Record,
    TokenIds,
    boolean,
    read_model,
    refuse,
    text,
)

if TYPE_CHECKING:
    from shimmy.api.http_exchange import Exchange
    from shimmy.api.request_fields.field_kinds import Json
    from shimmy.catalog.catalog import Model
    from shimmy.messages.request import ChatPrompt
    from shimmy.workers.worker_client import WorkerClient

Result = TypeVar("Result")

_N_FEW_TOKENS = 4096

_FIELDS: Fields = {"model": text, "keep_alive": Duration()}
TOKENIZE = Record(
    {
        **_FIELDS,
        "content": text,
        "add_special": boolean,
        "parse_special": boolean,
        "with_pieces": NotServed((False,)),
    },
    {"content": "a string"},
)
DETOKENIZE = Record({**_FIELDS, "tokens": TokenIds()}, {"tokens": "an array of token ids"})
TEMPLATE = Record({**_FIELDS, **PROMPT_FIELDS}, PROMPT_REQUIRED)


async def tokenize(exchange: "Exchange") -> None:
    given = await exchange.read(TOKENIZE.read)
    add_special, parse_special = given.get("add_special", False), given.get("parse_special", True)

    async def ask(worker: "WorkerClient") -> Sequence[int]:
        return await worker.tokenize(given["content"], add_special=add_special, parse_special=parse_special)

    tokens = await _answer(exchange, given, ask)
    await exchange.reply_large({"tokens": list(tokens) if len(tokens) < _N_FEW_TOKENS else iter(tokens)})


async def detokenize(exchange: "Exchange") -> None:
    given = await exchange.read(DETOKENIZE.read)
    text = await _answer(exchange, given, lambda worker: worker.detokenize(given["tokens"]))
    await exchange.reply_large({"content": text})


async def apply_template(exchange: "Exchange") -> None:
    given, prompt = await exchange.read(_templated)
    prompt = prompt.with_system(_model(exchange, given).defaults.system)
    text = await _answer(exchange, given, lambda worker: worker.apply_template(prompt))
    await exchange.reply_large({"prompt": text})


def _templated(body: "Json") -> "tuple[dict[str, Any], ChatPrompt]":
    given = TEMPLATE.read(body)
    return given, chat_prompt(given)


async def _answer(
    exchange: "Exchange", given: Mapping[str, Any], ask: Callable[["WorkerClient"], Awaitable[Result]]
) -> Result:
    """What the worker of the model says to `ask`, which is called off when the client leaves."""

    async def asked() -> Result:
        return await ask(await exchange.services.pool.ensure_ready(_model(exchange, given), given.get("keep_alive")))

    return await unless_gone(exchange, asked())


def _model(exchange: "Exchange", given: Mapping[str, Any]) -> "Model":
    """The model that a body names; it need not name the only one there is."""
    registry, default = exchange.services.registry, exchange.services.config.default_model
    models = registry.catalog.models
    if "model" not in given and default is None and len(models) == 1:
        return models[0]
    if "model" not in given and default is None:
        refuse("model", f"the name of one of the {len(models)} models", "nothing")
    return registry.resolve(read_model(given, default))
