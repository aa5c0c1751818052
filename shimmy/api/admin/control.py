"""Routes that show and steer which models are loaded. Asking twice is as good as asking once."""

import asyncio
import math
from collections.abc import AsyncIterator
from dataclasses import asdict
from time import monotonic
from typing import TYPE_CHECKING

from shimmy.api import client_gone, event_stream
from shimmy.api.http_exchange import encode
from shimmy.api.request_fields.field_kinds import Duration, Record
from shimmy.background import in_thread
from shimmy.catalog.catalog import Entry, Model, Rejected, shown
from shimmy.errors import ModelNotFound

if TYPE_CHECKING:
    from shimmy.api.http_exchange import Exchange
    from shimmy.api.request_fields.field_kinds import Json
    from shimmy.config import Config
    from shimmy.generation import Services
    from shimmy.model_events import Listener
    from shimmy.workers.worker_client import WorkerClient

UNLOADED = "unloaded"
UNAVAILABLE = "unavailable"
_AT_ONCE = 100  # models, of a list
SHOWN_DEFAULTS = (
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip
LOAD = Record({"keep_alive": Duration()})


async def models(exchange: "Exchange") -> None:
    await exchange.reply_json(b'{"models":%b}' % await _entries(exchange.services))


async def status(exchange: "Exchange") -> None:
    model = exchange.services.registry.entry(exchange.rest)
    entry = _entry(exchange.services, model)
    if not isinstance(model, Rejected):
        entry["defaults"] = _defaults(exchange.services.config, model)
    await exchange.reply(entry)


async def load(exchange: "Exchange") -> None:
    """Returns when the model can take jobs; `keep_alive` may say how long it stays. One that is not loaded any more, as
    its workers ended again and again, is given another chance."""
    given = await exchange.read_or_nothing(LOAD.read)
    model = exchange.services.registry.resolve(exchange.rest)
    exchange.services.pool.forgive(model.name)
    await exchange.services.pool.ensure_ready(model, given.get("keep_alive"))
    await exchange.reply(_entry(exchange.services, model))


async def unload(exchange: "Exchange") -> None:
    """Running jobs finish; the next request loads the model again."""
    model = exchange.services.registry.resolve(exchange.rest)
    exchange.services.pool.unload(model.name)
    await exchange.reply(_entry(exchange.services, model))


async def delete(exchange: "Exchange") -> None:
    """Deletes the model's files, and nothing that another model needs. Only its own names mean it here."""
    from shimmy.catalog.removal import removal

    services = exchange.services
    model = services.registry.catalog.find(exchange.rest)
    if not isinstance(model, Model):
        raise ModelNotFound(f"no model is called `{exchange.rest[:100]}`", param="model")
    what = await in_thread(removal, model, services.config.roots, services.registry.catalog.models)
    n_bytes = await in_thread(lambda: what.size_bytes)
    try:
        await in_thread(what.carry_out)
    finally:
        await services.discover()
    await exchange.reply({"name": model.name, "files": list(map(shown, what.files)), "size_bytes": n_bytes})


async def discover(exchange: "Exchange") -> None:
    """Looks at the disk now, and returns what is there when everything has settled or kept changing for a while."""
    await client_gone.unless_gone(exchange, exchange.services.discover())
    await models(exchange)


async def events(exchange: "Exchange") -> None:
    """Server-sent events of what happens to models; the first one, `models`, tells how it stands."""
    listener = exchange.services.events.listen()
    try:
        await event_stream.broadcast(exchange, _frames(exchange.services, listener))
    finally:
        exchange.services.events.leave(listener)


async def _frames(services: "Services", listener: "Listener") -> AsyncIterator[bytes]:
    yield _frame("models", b'{"models":%b}' % await _entries(services))
    async for event in listener:
        yield _frame(event.kind, encode({"model": event.model, "time": event.time_s, **event.details}))


def _frame(kind: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


async def _entries(services: "Services") -> bytes:
    """All models as a JSON list."""
    catalog = services.registry.catalog
    entries: list[Entry] = [*catalog.models, *catalog.unavailable]
    objects = []
    for index, entry in enumerate(entries):
        if index % _AT_ONCE == _AT_ONCE - 1:
            await asyncio.sleep(0)  # many models take a while, and the streams of others go on
        objects.append(encode(_entry(services, entry)))
    return b"[%b]" % b",".join(objects)


def _defaults(config: "Config", model: Model) -> "Json":
    """What a request to `model` gets where it says nothing, by the names of its fields."""
    sampling, own = config.sampling_of(model.defaults), model.defaults
    values = {name: getattr(sampling, name) for name in SHOWN_DEFAULTS}
    return {**values, "max_tokens": config.n_predict or own.n_predict, "stop": list(own.stop), "system": own.system}


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
    pool = services.pool
    runtime, failure, estimate = pool.runtime(model.name), pool.failure(model.name), pool.estimate(model)
    entry: Json = {
        "name": model.name,
        "state": UNLOADED,
        "path": shown(model.path),
        "size_bytes": model.size_bytes,
        "memory": {
            "weights_bytes": estimate.weights,
            "kv_bytes": estimate.kv,
            "compute_bytes": estimate.compute,
            "total_bytes": estimate.total,
            "device_bytes": sum(n_bytes for _, n_bytes in estimate.on_devices),
        },
        "architecture": model.architecture,
        "quantization": model.quantization,
        "n_params": model.n_params,
        "n_ctx_train": model.n_ctx_train,
        "has_chat_template": model.has_chat_template,
        "embedding": model.is_embedding,
        "adapters": [{"path": shown(path), "scale": float(model.needs_adapters)} for path in model.adapters],
        "projector": shown(model.projector) if model.projector else None,
        "notices": list(model.notices),
        "last_used": pool.last_used_s(model.name),
        "error": services.registry.catalog.rejected_reason(model.name) or (failure.reason if failure else None),
    }
    if runtime is None:
        return entry
    entry["state"] = runtime.state
    if runtime.progress is not None:
        name = "converted_percent" if runtime.progress.is_conversion else "read_percent"
        entry[name] = runtime.progress.percent
    if position := pool.load_position(model.name):
        entry["load_position"] = position
    entry["keep_alive_s"] = None if math.isinf(runtime.keep_alive_s) else runtime.keep_alive_s
    entry["pinned"] = runtime.is_pinned
    entry["jobs"] = runtime.n_jobs
    if runtime.worker is not None:
        entry |= _as_loaded(runtime.worker)
    return entry


def _as_loaded(worker: "WorkerClient") -> "Json":
    facts = worker.facts
    return {
        "has_chat_template": facts.has_chat_template,  # it may be one of the options
        "n_ctx": facts.n_ctx,
        "n_ctx_used": worker.load.n_kv_used,
        "cpu_variant": facts.cpu_variant,
        "cpu_variant_note": facts.cpu_variant_note,
        "device": facts.device or None,
        "device_note": facts.device_note,
        "n_layers": facts.n_layers,
        "n_device_layers": facts.n_device_layers,
        # As it has loaded them, with those of `--lora`.
        "adapters": [asdict(adapter) for adapter in facts.adapters],
        "pid": worker.pid,
        "idle_s": round(monotonic() - worker.idle_since_s, 3) if worker.is_idle else 0.0,
    }
