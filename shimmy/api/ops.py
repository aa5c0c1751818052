"""Routes for operators and tools: is the server alive, ready, which version; its metrics; and a model's own tokenizer
and chat template, in llama-server's shapes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shimmy import __version__
from shimmy.api.fields import Duration, Fields, NotServed, Record, TokenIds, boolean, read_model, refuse, text
from shimmy.api.openai_messages import PROMPT_FIELDS, PROMPT_REQUIRED, chat_prompt
from shimmy.errors import NotFound

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
METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


async def about(exchange: "Exchange") -> None:
    n_models = len(exchange.services.registry.catalog.models)
    await exchange.reply({"name": "shimmy", "version": __version__, "models": n_models, "openai_base_path": "/v1"})


async def health(exchange: "Exchange") -> None:
    """Alive: the event loop answers."""
    await exchange.reply({"status": "ok"})


async def ready(exchange: "Exchange") -> None:
    """Ready: the catalog is known and no shutdown has begun."""
    if exchange.services.ready:
        await exchange.reply({"status": "ready"})
    else:
        await exchange.reply({"status": "not ready"}, 503)


async def version(exchange: "Exchange") -> None:
    await exchange.reply({"version": __version__})


async def metrics(exchange: "Exchange") -> None:
    if not exchange.services.config.metrics:
        raise NotFound("metrics are switched off; start the server with `--metrics`")
    exchange.services.pool.update_gauges()
    await exchange.reply_text(exchange.services.metrics.render(), METRICS_TYPE)


async def tokenize(exchange: "Exchange") -> None:
    given = TOKENIZE.read(await exchange.json())
    worker = await _worker(exchange, given)
    tokens = await worker.tokenize(
        given["content"], add_special=given.get("add_special", False), parse_special=given.get("parse_special", True)
    )
    await exchange.reply({"tokens": tokens})


async def detokenize(exchange: "Exchange") -> None:
    given = DETOKENIZE.read(await exchange.json())
    worker = await _worker(exchange, given)
    await exchange.reply({"content": await worker.detokenize(given["tokens"])})


async def apply_template(exchange: "Exchange") -> None:
    given = TEMPLATE.read(await exchange.json())
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
