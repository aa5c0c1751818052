"""Routes for operators: is the server alive, ready, which version, and its metrics."""

from typing import TYPE_CHECKING

from shimmy import __version__, log
from shimmy.errors import NotFound

if TYPE_CHECKING:
    from shimmy.api.http_exchange import Exchange

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
    exchange.services.metrics.log_lines_dropped.follow(log.n_dropped())
    await exchange.reply_text(exchange.services.metrics.render(), METRICS_TYPE)
