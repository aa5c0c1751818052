"""Routes that show and steer which models are loaded. They take no body, and asking twice is as good as asking once."""

import math
from time import monotonic
from typing import TYPE_CHECKING

from shimmy.registry import Entry, Rejected, shown

if TYPE_CHECKING:
    from shimmy.api.exchange import Exchange
    from shimmy.api.fields import Json
    from shimmy.generate import Services

UNLOADED = "unloaded"
UNAVAILABLE = "unavailable"


async def models(exchange: "Exchange") -> None:
    services = exchange.services
    catalog = services.registry.catalog
    entries: list[Entry] = [*catalog.models, *catalog.unavailable]
    await exchange.reply({"models": [_entry(services, entry) for entry in entries]})


async def status(exchange: "Exchange") -> None:
    model = exchange.services.registry.catalog.find(exchange.rest)
    await exchange.reply(_entry(exchange.services, model))


async def load(exchange: "Exchange") -> None:
    """Returns when the model can take jobs."""
    model = exchange.services.registry.catalog.resolve(exchange.rest)
    await exchange.services.pool.ensure_ready(model)
    await exchange.reply(_entry(exchange.services, model))


async def unload(exchange: "Exchange") -> None:
    """Running jobs finish; the next request loads the model again."""
    model = exchange.services.registry.catalog.resolve(exchange.rest)
    exchange.services.pool.unload(model.name)
    await exchange.reply(_entry(exchange.services, model))


async def discover(exchange: "Exchange") -> None:
    """Looks at the disk now, and returns what is there when everything has settled or kept changing for a while."""
    await exchange.services.discover()
    await models(exchange)


def _entry(services: "Services", model: Entry) -> "Json":
    if isinstance(model, Rejected):
        return {
            "name": model.name,
            "state": UNAVAILABLE,
            "kind": model.kind,
            "path": shown(model.path),
            "architecture": model.architecture,
            "error": model.reason,
        }
    slot, failure = services.pool.slot(model.name), services.pool.failure(model.name)
    entry: Json = {
        "name": model.name,
        "state": UNLOADED,
        "path": shown(model.path),
        "size_bytes": model.size_bytes,
        "architecture": model.architecture,
        "quantization": model.quantization,
        "n_params": model.n_params,
        "n_ctx_train": model.n_ctx_train,
        "has_chat_template": model.has_chat_template,
        "embedding": model.is_embedding,
        "adapters": [shown(path) for path in model.adapters],
        "projector": shown(model.projector) if model.projector else None,
        "error": services.registry.catalog.rejected_reason(model.name) or (failure.reason if failure else None),
    }
    if slot is None:
        return entry
    entry["state"] = slot.state
    entry["keep_alive_s"] = None if math.isinf(slot.keep_alive_s) else slot.keep_alive_s
    worker = slot.worker
    if worker is not None:
        entry["n_ctx"] = worker.facts.n_ctx
        entry["pid"] = worker.pid
        entry["jobs"] = worker.n_jobs
        entry["idle_s"] = 0.0 if worker.n_jobs else round(monotonic() - worker.idle_since_s, 3)
    return entry
