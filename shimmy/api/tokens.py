"""Routes to a model's own tokenizer and chat template, in llama-server's shapes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shimmy.api.fields import Duration, Fields, NotServed, Record, TokenIds, boolean, read_model, refuse, text
from shimmy.api.openai_messages import PROMPT_FIELDS, PROMPT_REQUIRED, chat_prompt

if TYPE_CHECKING:
    from shimmy.api.exchange import Exchange
    from shimmy.engine.client import WorkerClient
    from shimmy.registry import Model

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
    worker = await _worker(exchange, given)
    tokens = await worker.tokenize(
        given["content"], add_special=given.get("add_special", False), parse_special=given.get("parse_special", True)
    )
    await exchange.reply({"tokens": tokens})


async def detokenize(exchange: "Exchange") -> None:
    given = await exchange.read(DETOKENIZE.read)
    worker = await _worker(exchange, given)
    await exchange.reply({"content": await worker.detokenize(given["tokens"])})


async def apply_template(exchange: "Exchange") -> None:
    given = await exchange.read(TEMPLATE.read)
    prompt = chat_prompt(given).with_system(_model(exchange, given).defaults.system)
    worker = await _worker(exchange, given)
    await exchange.reply({"prompt": await worker.apply_template(prompt)})


def _model(exchange: "Exchange", given: Mapping[str, Any]) -> "Model":
    """The model that a body names; it need not name the only one there is."""
    registry, default = exchange.services.registry, exchange.services.config.default_model
    models = registry.catalog.models
    if "model" not in given and default is None and len(models) == 1:
        return models[0]
    if "model" not in given and default is None:
        refuse("model", f"the name of one of the {len(models)} models", "nothing")
    return registry.resolve(read_model(given, default))


async def _worker(exchange: "Exchange", given: Mapping[str, Any]) -> "WorkerClient":
    return await exchange.services.pool.ensure_ready(_model(exchange, given), given.get("keep_alive"))
