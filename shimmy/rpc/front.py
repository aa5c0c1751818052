"""The listening side of a machine that computes for others: who may come in, how many at once, and what is offered.

Knows connections and limits; what a client gets is in `session`. A connection that has not proved that it has the key
costs a few kilobytes for a few seconds, and of these there are a handful.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from shimmy.rpc import offer
from shimmy.rpc.channel import MAX_RECORD_BYTES, Channel, ChannelError, Streams, accept, tls_context
from shimmy.rpc.engine_process import EngineSettings
from shimmy.rpc.framing import PROTOCOL, Framing, Store
from shimmy.rpc.networks import Network, is_allowed
from shimmy.rpc.offer import MachineOffer, OfferedDevice
from shimmy.rpc.session import ClientSession, first_to_end
from shimmy.system import memory

MAX_STRANGERS = 16  # connections that have proved nothing yet
_ACCEPT_PAUSE_S = 0.1  # where the system has no descriptor for a connection

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FrontOptions:
    """What a person has set. `devices` tells what there is and is free now; it is called on a thread."""

    key: bytes
    limit_s: float
    max_clients: int
    max_bytes: int | None  # of all clients together; None: what the devices have
    networks: tuple[Network, ...]
    devices: Callable[[], tuple[OfferedDevice, ...]]
    engine: EngineSettings
    store: Store | None


class Front:
    """Runs on one event loop."""

    def __init__(self, options: FrontOptions) -> None:
        self._options = options
        self._context = tls_context(is_server=True)
        self._strangers: dict[asyncio.Task[None], None] = {}  # in the order in which they came
        self._tasks: set[asyncio.Task[None]] = set()
        self._sessions: set[ClientSession] = set()
        self._n_starting = 0
        self._complaints = Complaints()

    async def serve(self, listeners: Sequence[socket.socket]) -> None:
        """For ever, on these sockets; when it is cancelled, all clients are sent away and their engines end."""
        for listener in listeners:
            listener.setblocking(False)
        try:
            await asyncio.gather(*map(self._listen, listeners))
        finally:
            for task in [*self._tasks]:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as exc:
                self._complaints.tell("cannot accept a connection: %s", exc.strerror)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            if is_allowed(address[0], self._options.networks):
                self._begin(connection, address[0])
            else:
                self._complaints.tell("%s is not allowed to connect (`--allow`)", address[0])
                connection.close()
            await asyncio.sleep(0)  # accepting does not pause while others wait to come in

    def _begin(self, connection: socket.socket, host: str) -> None:
        if len(self._strangers) >= MAX_STRANGERS:  # a client with the key is through in a moment
            first = next(iter(self._strangers))
            del self._strangers[first]
            first.cancel()
        task = asyncio.create_task(self._welcome(connection, host))
        self._strangers[task] = None
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._strangers.pop(task, None)

    async def _welcome(self, connection: socket.socket, host: str) -> None:
        channel = None
        try:
            channel = await self._channel(connection)
            task = asyncio.current_task()
            assert task is not None
            self._strangers.pop(task, None)
            await self._answer(channel)
        except ChannelError as exc:
            self._complaints.tell("%s: %s", host, exc)
        except Exception:
            logger.exception("serving %s failed", host)
        finally:
            if channel is not None:
                channel.abort()
            else:
                connection.close()

    async def _channel(self, connection: socket.socket) -> Channel:
        """The channel over a new connection; raises ChannelError."""
        options, loop = self._options, asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=2 * MAX_RECORD_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=self._context, ssl_handshake_timeout=options.limit_s
            )
        except (OSError, TimeoutError) as exc:  # errors of TLS are among them
            raise ChannelError("it does not speak our protocol") from exc
        return await accept(
            Streams(reader, asyncio.StreamWriter(transport, protocol, reader, loop)), options.key, options.limit_s
        )

    async def _answer(self, channel: Channel) -> None:
        """Do what the client asks for first."""
        wish = await channel.hear()
        if wish.get("protocol") != list(PROTOCOL):
            await channel.say({"refused": "it runs another version of shimmy: both need the same"})
            await channel.close()
            return
        await first_to_end(channel.beat(), self._fulfil(channel, wish))

    async def _fulfil(self, channel: Channel, wish: dict[str, Any]) -> None:
        if wish.get("want") == "look":
            await channel.say(offer.to_wire(await self._offer()))
        elif wish.get("want") == "compute":
            await self._compute(channel, wish.get("devices"))
        else:
            await channel.say({"refused": "it does not know what is wanted"})
        await channel.close()

    async def _offer(self) -> MachineOffer:
        left = self._left_of_limit()
        devices = await asyncio.to_thread(self._options.devices)
        return MachineOffer(
            tuple([replace(each, free_bytes=min(left, each.free_bytes)) for each in devices]), self._busy()
        )

    def _busy(self, n_more: int = 1) -> str:
        """Why `n_more` clients are too many; empty where they are not."""
        most = self._options.max_clients
        is_full = len(self._sessions) + self._n_starting + n_more > most
        return f"it is busy: it has as many clients as it takes at once, {most} (`--max-clients`)" if is_full else ""

    def _left_of_limit(self) -> int:
        limit = self._options.max_bytes
        return 2**62 if limit is None else max(0, limit - sum(session.n_bytes for session in self._sessions))

    async def _compute(self, channel: Channel, asked: object) -> None:
        refusal = self._busy()
        self._n_starting += 1  # before the first pause, so that two cannot take the last place
        try:
            there = {each.name: each for each in await asyncio.to_thread(self._options.devices)}
            names = _names(asked)
            if not refusal and not (names and set(names) <= set(there)):
                refusal = f"it has no such devices; it has {', '.join(there) or 'none'}"
            if refusal:
                logger.info("%s was refused: %s", channel.peer, refusal)
                await channel.say({"refused": refusal})
                return
            framing = self._framing([there[name] for name in names])
            session = ClientSession(channel, framing, replace(self._options.engine, devices=names))
            self._sessions.add(session)
        finally:
            self._n_starting -= 1
        try:
            logger.info("%s computes on %s", channel.peer, ", ".join(names))
            reason = await session.run()
            logger.info("%s has left%s", channel.peer, f": {reason}" if reason else "")
        finally:
            self._sessions.discard(session)

    def _framing(self, devices: Sequence[OfferedDevice]) -> Framing:
        processor = [each for each in devices if each.is_processor]

        def left_bytes() -> int:
            free = memory.free_bytes() if processor else None
            return min(self._left_of_limit(), 2**62 if free is None else free)

        total = processor[0].total_bytes if len(devices) == len(processor) == 1 else None
        return Framing(left_bytes, total_bytes=total, store=self._options.store)


def _names(asked: object) -> tuple[str, ...]:
    """The devices that a client asks for; none where it does not ask as it should."""
    names = asked if isinstance(asked, list) and all(isinstance(each, str) for each in asked) else []
    return tuple(names) if len(set(names)) == len(names) <= offer.MAX_DEVICES else ()


class Complaints:
    """Warnings about strangers, who may cause any number of them: one a second, with the number of those left out."""

    def __init__(self) -> None:
        self._last_s = 0.0
        self._n_left_out = 0

    def tell(self, text: str, *arguments: object) -> None:
        now_s = monotonic()
        if now_s - self._last_s < 1:
            self._n_left_out += 1
            return
        more = f" (and {self._n_left_out} more)" if self._n_left_out else ""
        self._last_s, self._n_left_out = now_s, 0
        logger.warning("%s%s", text % arguments, more)
