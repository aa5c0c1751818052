"""Puts the server together: state, address, Hypercorn, signals, and the order of the shutdown.

The only importer of hypercorn. Start: bind, scan, publish, serve. End (SIGTERM, SIGINT, or the death of the one-file
program's outer process): refuse new requests, let running jobs finish for a while, end the workers, which ends every
stream, and only then let Hypercorn close the connections. A second signal skips the waiting.
"""

import asyncio
import gc
import logging
import signal
import socket
from typing import TYPE_CHECKING, Any, cast

import h11
import hypercorn.asyncio.run
import hypercorn.protocol
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol

from shimmy import __version__, log
from shimmy.api.app import create_app
from shimmy.background import in_thread, keep_running
from shimmy.config import DEFAULT_PORT, LAST_AUTO_PORT, Bind, Config
from shimmy.discovery import Watched
from shimmy.errors import ModelNotFound, ShimmyError
from shimmy.events import Events
from shimmy.frozen import Home
from shimmy.generate import Services
from shimmy.headers import Headers
from shimmy.librarian import Librarian
from shimmy.metrics import Metrics
from shimmy.naming import Names
from shimmy.pool import Pool
from shimmy.registry import CatalogDiff, Registry
from shimmy.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from hypercorn.typing import Framework

logger = logging.getLogger(__name__)

_DRAIN_S = 5.0
_KEEP_ALIVE_S = 75.0
_BACKLOG = 1024
# A signal to the whole process group reaches the frozen server twice: its outer process passes it on.
_ONE_SIGNAL_S = 0.5


class _Connection(TCPServer):
    """Hypercorn's connection, but for two things.

    It ends when its client has left; Hypercorn's own would stay, with its socket, for the whole keep-alive time. And
    it waits for the client only when the socket is full, which is not so for nearly every token of a stream.
    """

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData) and not self.writer.is_closing():
            self.writer.write(event.data)
            if not self.writer.transport.get_write_buffer_size():
                return
            event = RawData(b"")  # nothing more to write, and all of it to wait for
        if not (isinstance(event, Updated) and self.reader.at_eof()):  # it would start the idle task again
            await super().protocol_send(event)


class _Http1(H11Protocol):
    """HTTP/1.1 and nothing else: an offer to change to HTTP/2 or to a websocket is passed over (RFC 9110, 7.8)."""

    async def _check_protocol(self, event: h11.Request) -> None:
        pass

    async def _create_stream(self, request: h11.Request) -> None:
        headers = [(name, value) for name, value in request.headers if name != b"upgrade"]
        plain = h11.Request(
            method=request.method, target=request.target, headers=headers, http_version=request.http_version
        )
        await super()._create_stream(plain)


# The only seams there are.
hypercorn.asyncio.run.TCPServer = _Connection  # type: ignore[attr-defined]
hypercorn.protocol.H11Protocol = _Http1  # type: ignore[attr-defined]


class BindError(Exception):
    """Nothing can listen on the address; the message says which one and why."""


def listen(bind: Bind) -> socket.socket:
    """A listening socket on `bind`; raises BindError."""
    ports = range(DEFAULT_PORT, LAST_AUTO_PORT + 1) if bind.port is None else (bind.port,)
    family = socket.AF_INET6 if ":" in bind.host else socket.AF_INET
    reason: OSError | None = None
    for port in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((bind.host, port))
            listener.listen(_BACKLOG)
            return listener
        except OSError as exc:
            reason = exc
            listener.close()
    tried = f"port {ports[0]}" if len(ports) == 1 else f"a port from {ports[0]} to {ports[-1]}"
    raise BindError(f"cannot listen on {bind.host}, {tried}: {reason}") from reason


class Server:
    """One running server. Made and run on the event loop's thread."""

    def __init__(self, config: Config, home: Home) -> None:
        metrics, events, registry = Metrics(), Events(), Registry(config.aliases, config.default_model)
        pool = Pool(config, metrics, events)
        self._config = config
        self._home = home
        headers, names = Headers(config.cache_dir), Names(config.cache_dir, config.roots)
        self._librarian = Librarian(config, registry, headers, self._follow, names=names, watch=self._watch)
        self._watcher = Watcher(config.roots, self._librarian.look_again)
        self._services = Services(config, registry, pool, metrics, events, self._librarian.discover)
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stopped_s = 0.0

    async def run(self, listener: socket.socket) -> None:
        """Serve on `listener` until told to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        self._librarian.publish_first()
        self._services.ready = True
        pool = self._services.pool
        chores: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "looking after the program's folder": self._keep_house,
            "looking for models": self._librarian.run,
            "watching the model folders": self._watcher.run,
            "unloading idle models": pool.unload_idle,
            "preloading models": self._preload,
        }
        housekeeping = [asyncio.create_task(keep_running(what, chore)) for what, chore in chores.items()]
        self._greet(listener)
        gc.freeze()  # what is here now stays for good, and need not be looked at again
        gc.enable()
        try:
            # Both speak ASGI; Hypercorn spells its types out where Starlette has plain mappings.
            app = cast("Framework", create_app(self._services))
            await hypercorn_serve(app, self._hypercorn_config(listener), shutdown_trigger=self._wind_down)
        finally:
            for chore in housekeeping:
                chore.cancel()
            await asyncio.gather(*housekeeping, return_exceptions=True)
            await self._services.pool.close()

    def _watch(self, folders: Watched) -> None:
        """Called when models may lie in other folders than before."""
        self._watcher.follow(folders)

    def _follow(self, change: CatalogDiff) -> None:
        """Called when another catalog has been published."""
        for kind, models in (("added", change.added), ("changed", change.changed), ("removed", change.removed)):
            for model in models:
                self._services.events.tell(kind, model.name)
        self._services.pool.follow(change)

    async def _preload(self) -> None:
        """Load the models that the person wants from the start; what cannot be is logged, and no reason to end."""
        for name in self._config.preload:
            try:
                await self._services.pool.ensure_ready(self._services.registry.resolve(name))
            except ModelNotFound as error:
                logger.error("cannot preload `%s`: %s", name, error.message)
            except ShimmyError:
                pass  # the pool has logged it

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
        """Wait for the order to stop, then bring every stream to its end: Hypercorn must not find one open."""
        await self._stop.wait()
        self._services.ready = False
        pool = self._services.pool
        logger.info("shutting down%s", f", {pool.n_jobs} job(s) have {_DRAIN_S:g} s to finish" if pool.n_jobs else "")
        waits = [asyncio.create_task(pool.drain()), asyncio.create_task(self._hurry.wait())]
        await asyncio.wait(waits, timeout=_DRAIN_S, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await pool.close()
        self._services.events.close()

    def _hypercorn_config(self, listener: socket.socket) -> HypercornConfig:
        config = HypercornConfig()
        config.bind = [f"fd://{listener.fileno()}"]
        config.errorlog = logging.getLogger("hypercorn")
        config.errorlog.setLevel(logging.WARNING)  # that it listens, we say ourselves
        config.include_server_header = False
        config.keep_alive_timeout = _KEEP_ALIVE_S
        config.keep_alive_max_requests = 2**31
        config.graceful_timeout = 1.0
        return config

    def _greet(self, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        n_models = len(self._services.registry.catalog.models)
        logger.info("Shimmy %s serves %d model(s) on http://%s:%d/v1", __version__, n_models, shown, port)
        if not n_models:
            logger.warning("no models found: name a GGUF file or a folder with `--model-path`")


def serve(config: Config, home: Home) -> None:
    """Run a server until it is told to stop; raises BindError before anything has been started."""
    log.take_stderr()
    listener = listen(config.bind)

    async def main() -> None:
        await Server(config, home).run(listener)

    asyncio.run(main())
    listener.detach()  # Hypercorn has closed the file descriptor under it
