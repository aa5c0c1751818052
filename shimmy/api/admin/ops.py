"""Routes for operators: is the server alive, ready, which version, and its metrics."""

from contextlib import suppress
from typing import TYPE_CHECKING

from shimmy import __version__, log
from shimmy.errors import ModelNotFound, NotFound

if TYPE_CHECKING:
    from shimmy.api.http_exchange import Exchange
    from shimmy.generation import Services

METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


async def about(exchange: "Exchange") -> None:
    n_models = len(exchange.services.registry.catalog.models)
    await exchange.reply({"name": "shimmy", "version": __version__, "models": n_models, "openai_base_path": "/v1"})


async def health(exchange: "Exchange") -> None:
    """Alive: the event loop answers."""
    await exchange.reply({"status": "ok"})


async def ready(exchange: "Exchange") -> None:
    """Ready: the catalog is known, the models of `--preload` have been loaded, and no shutdown has begun."""
    services = exchange.services
    _forget_loaded(services)
    if not services.ready:
        await exchange.reply({"status": "not ready"}, 503)
    elif services.preloads:  # without their names, as this asks for no key
        reason = f"{len(services.preloads)} model(s) of `--preload` are not loaded: the server's log says why"
        await exchange.reply({"status": "not ready", "reason": reason}, 503)
    else:
        await exchange.reply({"status": "ready"})


def _forget_loaded(services: "Services") -> None:
    """A model that the server itself could not load may have been loaded for a request since then."""
    if services.preloads:
        loaded = {client.name for client in services.pool.ready()}
        for name in [*services.preloads]:
            with suppress(ModelNotFound):
                if services.registry.resolve(name).name in loaded:
                    services.preloads.discard(name)


async def version(exchange: "Exchange") -> None:
    await exchange.reply({"version": __version__})


async def metrics(exchange: "Exchange") -> None:
    if not exchange.services.config.metrics:
        raise NotFound("metrics are switched off; start the server with `--metrics`")
    exchange.services.pool.update_gauges()
    exchange.services.metrics.log_lines_dropped.follow(log.n_dropped())
    await exchange.reply_text(exchange.services.metrics.render(), METRICS_TYPE)
