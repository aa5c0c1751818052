"""Routes for operators: is the server alive, ready, which version, and its metrics."""

from contextlib import suppress
from typing import TYPE_CHECKING

from shimmy import __version__, log
from shimmy.errors import ModelNotFound, NotFound
from shimmy.text.plural import plural
from shimmy.text.printable import printable, shortened

if TYPE_CHECKING:
    from shimmy.api.http_exchange import Exchange
    from shimmy.generation import Services

_MAX_REASON = 200  # characters
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
    elif services.preloads:
        await exchange.reply({"status": "not ready", "reason": _what_is_missing(services)}, 503)
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


def _what_is_missing(services: "Services") -> str:
    """What each model of `--preload` that is not loaded waits for, in their order. Nothing of models where a server has
    keys, as this route asks for none."""
    if services.config.api_keys:
        models = plural(len(services.preloads), "model")
        return f"{models} of `--preload` still loading, or not to be loaded: see the server's log"
    names = [name for name in dict.fromkeys(services.config.preload) if name in services.preloads]
    return "; ".join(f"`{printable(name)}` of `--preload` {_state(services, name)}" for name in names)


def _state(services: "Services", name: str) -> str:
    try:
        model = services.registry.resolve(name)
    except ModelNotFound:
        reason = services.registry.catalog.rejected_reason(name)
        return f"cannot be served: {shortened(reason, _MAX_REASON)}" if reason else "is not known here"
    runtime, failure = services.pool.runtime(model.name), services.pool.failure(model.name)
    if runtime is not None and runtime.loading is not None:
        return "is loading"
    if failure is not None:
        return f"could not be loaded: {shortened(failure.reason, _MAX_REASON)}"
    return "is not loaded yet"


async def version(exchange: "Exchange") -> None:
    await exchange.reply({"version": __version__})


async def metrics(exchange: "Exchange") -> None:
    if not exchange.services.config.metrics:
        raise NotFound("metrics are switched off; start the server with `--metrics`")
    exchange.services.pool.update_gauges()
    exchange.services.metrics.log_lines_dropped.follow(log.n_dropped())
    await exchange.reply_text(exchange.services.metrics.render(), METRICS_TYPE)
