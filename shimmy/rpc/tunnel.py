"""The client's end: a channel to another machine, and a pair of sockets of which the engine has one.

Runs on a thread of its own, and is up before the engine hears of the machine: what fails until then is an error, and
what fails later ends this process, as an engine that waits for an answer cannot be told. Knows nothing of the engine.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from shimmy.errors import NO_MORE_THREADS, ModelUnavailable
from shimmy.rpc.address import Address
from shimmy.rpc.channel import MAX_RECORD_BYTES, Channel, ChannelError, connect
from shimmy.rpc.framing import PROTOCOL
from shimmy.rpc.session import first_to_end


def open_tunnel(
    address: Address, devices: Sequence[str], key: bytes, limit_s: float, on_lost: Callable[[str], None]
) -> int:
    """A descriptor by which an engine reaches its other half on the machine at `address`, with these of its devices.

    Raises ModelUnavailable. `on_lost` is called on the tunnel's thread with the reason when the machine is gone, before
    the engine notices.
    """
    ours, theirs = socket.socketpair()
    opened: Future[None] = Future()
    stays = ours.dup()  # open until the reason is told: the engine aborts when the connection closes

    def run() -> None:
        try:
            asyncio.run(_tunnel(address, devices, key, limit_s, ours, opened))
        except Exception as exc:  # noqa: BLE001 - whoever waits has to know
            if not opened.done():
                opened.set_exception(exc)
            else:
                on_lost(f"{address}: {exc if isinstance(exc, ChannelError) else type(exc).__name__}")
        finally:
            ours.close()
            stays.close()

    try:
        threading.Thread(target=run, name=f"tunnel {address}", daemon=True).start()
        opened.result()
    except RuntimeError as exc:
        theirs.close()
        raise ModelUnavailable(NO_MORE_THREADS) from exc
    except (ChannelError, OSError) as exc:
        theirs.close()
        raise ModelUnavailable(f"{address} cannot be used: {exc}") from exc
    return theirs.detach()


async def _tunnel(
    address: Address, devices: Sequence[str], key: bytes, limit_s: float, ours: socket.socket, opened: "Future[None]"
) -> None:
    """Returns when the engine has closed its end; raises ChannelError."""
    channel = await connect(address.host, address.port, key, limit_s)
    try:
        await first_to_end(channel.beat(), _pass(channel, devices, ours, opened))
    finally:
        channel.abort()


async def _pass(channel: Channel, devices: Sequence[str], ours: socket.socket, opened: "Future[None]") -> None:
    await channel.say({"protocol": PROTOCOL, "want": "compute", "devices": [*devices]})
    answer = await channel.hear()
    if "granted" not in answer:
        raise ChannelError(_reason(answer.get("refused")))
    reader, writer = await asyncio.open_unix_connection(sock=ours, limit=2 * MAX_RECORD_BYTES)
    opened.set_result(None)

    async def from_engine() -> None:
        while data := await reader.read(MAX_RECORD_BYTES):
            await channel.send(data)

    async def to_engine() -> None:
        while True:
            heard = await channel.receive()
            if not isinstance(heard, bytes):
                raise ChannelError(_reason(heard.get("ended")))
            writer.write(heard)
            with contextlib.suppress(OSError):
                await writer.drain()

    try:
        await first_to_end(from_engine(), to_engine())
    finally:
        writer.transport.abort()


def _reason(told: object) -> str:
    """What the other machine says, which may be anything, for a person."""
    from shimmy.text.printable import shortened

    return shortened(told, 500) if isinstance(told, str) and told else "it gives no reason"
