"""Routes for operators and tools: is the server alive, ready, which version; its metrics; and a model's own tokenizer
and chat template, in llama-server's shapes."""

from typing import TYPE_CHECKING

from shimmy import __version__
from shimmy.api.fields import (
    Json,
    Record,
    TokenIds,
    read_flag,
    read_keep_alive,
    read_model,
    read_text,
    refuse,
    required,
)
from shimmy.api.openai_messages import PROMPT_FIELDS, PROMPT_REQUIRED, chat_prompt
from shimmy.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from shimmy.api.exchange import Exchange
    from shimmy.engine.client import WorkerClient
    from shimmy.registry import Model

TEMPLATE = Record(PROMPT_FIELDS, PROMPT_REQUIRED)
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
    body = await exchange.json()
    content = read_text(required(body, "content", "a string"), "content")
    add_special = read_flag(body, "add_special", default=False)
    parse_special = read_flag(body, "parse_special", default=True)
    if read_flag(body, "with_pieces", default=False):
        raise BadRequest("with_pieces: not supported yet; leave the field out or send false", param="with_pieces")
    worker = await _worker(exchange, body)
    tokens = await worker.tokenize(content, add_special=add_special, parse_special=parse_special)
    await exchange.reply({"tokens": tokens})


async def detokenize(exchange: "Exchange") -> None:
    body = await exchange.json()
    tokens = TokenIds().read(required(body, "tokens", "an array of token ids"), "tokens")
    worker = await _worker(exchange, body)
    await exchange.reply({"content": await worker.detokenize(tokens)})


async def apply_template(exchange: "Exchange") -> None:
    body = await exchange.json()
    prompt = chat_prompt(TEMPLATE.read(body)).with_system(_model(exchange, body).defaults.system)
    worker = await _worker(exchange, body)
    await exchange.reply({"prompt": await worker.apply_template(prompt)})


def _model(exchange: "Exchange", body: Json) -> "Model":
    """The model that `body` names; it need not name the only one there is."""
    registry, default = exchange.services.registry, exchange.services.config.default_model
    models = registry.catalog.models
    if body.get("model") is None and default is None and len(models) == 1:
        return models[0]
    if body.get("model") is None and default is None:
        refuse("model", f"the name of one of the {len(models)} models", "nothing")
    return registry.resolve(read_model(body, default))


async def _worker(exchange: "Exchange", body: Json) -> "WorkerClient":
    return await exchange.services.pool.ensure_ready(_model(exchange, body), read_keep_alive(body))
