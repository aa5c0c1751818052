"""Puts the server together: state, address, connections, signals, and the order of the shutdown.

Start: bind, scan, publish, serve. End (SIGTERM, SIGINT, or the death of the one-file program's outer process): refuse
new requests, let running jobs finish for a while, end the workers, which ends every stream, and only then close the
connections. A second signal skips the waiting.
"""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from shimmy import __version__, log
from shimmy.api.app import create_app
from shimmy.api.web_origins import is_loopback
from shimmy.background import in_thread, keep_running
from shimmy.catalog.alias_file import AliasFile
from shimmy.catalog.assign_names import Names
from shimmy.catalog.catalog import CatalogDiff, Registry
from shimmy.catalog.header_cache import Headers
from shimmy.catalog.publisher import CatalogPublisher
from shimmy.catalog.scan import Watched, is_wanted
from shimmy.catalog.watcher import Watcher
from shimmy.config import Config
from shimmy.errors import ModelNotFound, ShimmyError
from shimmy.generation import Services
from shimmy.http.connections import N_SPARE, Connections
from shimmy.http.listening import BindError, listen, raise_descriptor_limit
from shimmy.http.service_manager import inherited_listeners, notify
from shimmy.metrics import Metrics
from shimmy.model_events import ModelEvents
from shimmy.option_kinds import Bind
from shimmy.pool.pool import Pool
from shimmy.system.frozen_program import UnpackedFolder
from shimmy.system.signals import ignore
from shimmy.text.plural import plural

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Show = Callable[[ModelEvents], Coroutine[Any, Any, None]]

__all__ = ["BindError", "Server", "serve"]

logger = logging.getLogger(__name__)

_DRAIN_S = 5.0
# Descriptors that are not for connections: workers, models, the watch of folders.
_N_OTHER_FILES = 40
_FEWEST_CONNECTIONS = 4
# A large body makes up to a quarter of a million objects that refer to others. By the defaults they would be looked at
# again and again, all of them at once, and everybody waits meanwhile. So each is a few times, as one of twenty thousand
# at most, which takes 5 ms.
COLLECTIONS = 2_000, 10, 500
# A signal to the whole process group reaches the frozen server twice: its outer process passes it on.
_ONE_SIGNAL_S = 0.5
_TO_END = (signal.SIGINT, signal.SIGTERM)


class Server:
    """One running server. Made and run on the event loop's thread."""

    def __init__(
        self,
        config: Config,
        home: UnpackedFolder,
        announce: "Callable[[int], None] | None" = None,
        show: "Show | None" = None,
    ) -> None:
        metrics, events = Metrics(), ModelEvents()
        registry = Registry(config.aliases, config.default_model, AliasFile(config.alias_file))
        pool = Pool(config, metrics, events)
        self._config = config
        self._home = home
        self._announce = announce
        self._show = show
        headers, names = Headers(config.cache_dir), Names(config.cache_dir, config.roots)
        self._librarian = CatalogPublisher(config, registry, headers, self._follow, names=names, watch=self._watch)
        self._watcher = Watcher(config.roots, self._librarian.look_again)
        self._services = Services(config, registry, pool, metrics, events, self._librarian.discover)
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stopped_s = 0.0

    async def run(self, listeners: Sequence[socket.socket], n_connections: int) -> None:
        """Serve on `listeners` until told to stop."""
        loop = asyncio.get_running_loop()
        for number in _TO_END:
            loop.add_signal_handler(number, self._on_signal)
        self._librarian.publish_first()
        self._services.preloads.update(self._config.preload)
        self._services.ready = True
        pool = self._services.pool
        chores: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "looking after the program's folder": self._keep_house,
            "looking for models": self._librarian.run,
            "watching the model folders": self._watcher.run,
            "unloading idle models": pool.unload_idle,
            "preloading models": self._preload,
        }
        if self._show is not None:
            chores["showing how far loads are"] = partial(self._show, self._services.events)
        housekeeping = [asyncio.create_task(keep_running(what, chore)) for what, chore in chores.items()]
        self._greet(listeners)
        if self._announce is not None:
            self._announce(listeners[0].getsockname()[1])
        notify("READY=1")
        gc.freeze()  # what is here now stays for good, and need not be looked at again
        gc.set_threshold(*COLLECTIONS)
        gc.enable()
        try:
            await Connections(create_app(self._services), n_connections).serve(listeners, self._wind_down)
        finally:
            for chore in housekeeping:
                chore.cancel()
            await asyncio.gather(*housekeeping, return_exceptions=True)
            await self._services.pool.close()
            # One more would meet the interpreter at its end, and be what the process died of.
            for number in _TO_END:
                loop.remove_signal_handler(number)
                ignore(number)

    def _watch(self, folders: Watched) -> None:
        """Called when models may lie in other folders than before."""
        self._watcher.follow(folders)

    def _follow(self, change: CatalogDiff) -> None:
        """Called when another catalog has been published."""
        services = self._services
        for kind, models in (("added", change.added), ("changed", change.changed), ("removed", change.removed)):
            for model in models:
                services.events.publish(kind, model.name)
        for entry in change.rejected:
            services.events.publish("rejected", entry.name, reason=entry.reason)
        for name in change.mended:
            services.events.publish("removed" if services.registry.catalog.model(name) is None else "changed", name)
        services.pool.follow(change)

    async def _preload(self) -> None:
        """Load the models of `--preload`. One that cannot be loaded is logged; the server answers for the others, and
        is not ready until a client has had that one loaded."""
        models = {}
        for name in self._config.preload:  # before the first load, which may take minutes
            try:
                models[name] = self._services.registry.resolve(name)
            except ModelNotFound as error:
                logger.error("cannot preload `%s`: %s", name, error.message)
        for name, model in models.items():
            with suppress(ShimmyError):  # the pool has logged it
                await self._services.pool.ensure_ready(model)
                self._services.preloads.discard(name)

    def _on_signal(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if not self._stop.is_set():
            self._stopped_s = now_s
            self._stop.set()
        elif now_s - self._stopped_s > _ONE_SIGNAL_S:
            self._hurry.set()

    async def _keep_house(self) -> None:
        await in_thread(self._home.sweep)
        await self._home.until_orphaned()
        logger.error("the program that started this server was killed; shutting down")
        self._hurry.set()
        self._stop.set()

    async def _wind_down(self) -> None:
        """Wait for the order to stop, then bring every stream to its end: the connections are closed next."""
        await self._stop.wait()
        self._services.ready = False
        notify("STOPPING=1")
        pool = self._services.pool
        running = f": {plural(pool.n_jobs, 'job')} may take {_DRAIN_S:g} s to finish" if pool.n_jobs else ""
        logger.info("shutting down%s", running)
        waits = [asyncio.create_task(pool.drain()), asyncio.create_task(self._hurry.wait())]
        await asyncio.wait(waits, timeout=_DRAIN_S, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await pool.close()
        self._services.events.close()

    def _greet(self, listeners: Sequence[socket.socket]) -> None:
        addresses = [listener.getsockname()[:2] for listener in listeners]
        urls = [f"http://{f'[{host}]' if ':' in host else host}:{port}/v1" for host, port in addresses]
        catalog = self._services.registry.catalog
        told = plural(len(catalog.models), "model")
        logger.info("Shimmy %s serves %s on %s", __version__, told, " and ".join(urls))
        if not self._config.api_keys and not all(is_loopback(host) for host, _ in addresses):
            logger.warning(
                "everyone who can reach this machine can use, load, unload, delete and fetch models, because no key is "
                "set: set one with `--api-key`, or listen on this machine alone with `--bind 127.0.0.1:%d`",
                addresses[0][1],
            )  # fmt: skip
        is_told = any(is_wanted(entry, self._config.model_paths) for entry in catalog.rejected)
        if is_told and not catalog.models:
            logger.warning("nothing that was found can be served: the reasons are above")
        elif not catalog.models:
            from shimmy.catalog.suggestions import advice  # nearly every server has models

            logger.warning(
                "no models found: name a GGUF file or a folder with `--model-path`, or fetch one:\n  %s",
                "\n  ".join(advice()),
            )


def serve(
    config: Config,
    home: UnpackedFolder,
    announce: "Callable[[int], None] | None" = None,
    show: "Show | None" = None,
) -> None:
    """Run a server until it is told to stop; raises BindError before anything has been started.

    `announce` is called with the port once the server listens and knows its models. `show` runs beside the server, and
    shows a person what happens to models.
    """
    log.take_stderr()
    n_free = raise_descriptor_limit() - _N_OTHER_FILES - N_SPARE
    n_connections = min(config.max_connections, max(n_free, _FEWEST_CONNECTIONS))
    listeners = inherited_listeners()
    if listeners:
        config = replace(config, bind=_reachable(listeners))
    else:
        listeners = listen(config.bind)

    async def main() -> None:
        await Server(config, home, announce, show).run(listeners, n_connections)

    asyncio.run(main())


def _reachable(listeners: Sequence[socket.socket]) -> Bind:
    """The address of listeners that leads the farthest: who may use the server as which host depends on it."""
    addresses = [Bind(*listener.getsockname()[:2]) for listener in listeners]
    return next((address for address in addresses if not is_loopback(address.host)), addresses[0])
