"""Asks other machines what they offer, all at once, and writes it as JSON; a hidden sub-command, so that a server needs
neither TLS nor the time.

Its input is one line of JSON: addresses, the file of the key, and the limit of silence in seconds.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from shimmy.rpc import offer
from shimmy.rpc.address import Address
from shimmy.rpc.channel import Channel, ChannelError, connect
from shimmy.rpc.framing import PROTOCOL
from shimmy.rpc.key import read_key
from shimmy.rpc.session import first_to_end

COMMAND = "rpc-look"


def main() -> int:
    asked = json.loads(sys.stdin.readline())
    addresses = [Address.parse(text) for text in asked["addresses"]]
    try:
        key = read_key(None if asked["key_file"] is None else Path(asked["key_file"]))
    except ValueError as exc:
        told: list[dict[str, Any]] = [{"reason": str(exc)} for _ in addresses]
    else:
        told = asyncio.run(_look_at_all(addresses, key, asked["limit_s"]))
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


async def _look_at_all(addresses: list[Address], key: bytes, limit_s: float) -> list[dict[str, Any]]:
    return list(await asyncio.gather(*(_look(address, key, limit_s) for address in addresses)))


async def _look(address: Address, key: bytes, limit_s: float) -> dict[str, Any]:
    """What the machine offers, or {"reason": "..."}."""
    found: dict[str, Any] = {}

    async def ask(channel: Channel) -> None:
        await channel.say({"protocol": PROTOCOL, "want": "look"})
        found.update(await channel.hear())

    channel = None
    try:
        async with asyncio.timeout(2 * limit_s):
            channel = await connect(address.host, address.port, key, limit_s)
            await first_to_end(channel.beat(), ask(channel))
        return {"reason": str(found["refused"])} if "refused" in found else offer.to_wire(offer.read(found))
    except TimeoutError:
        return {"reason": f"it did not answer within {2 * limit_s:g} s"}
    except ChannelError as exc:
        return {"reason": str(exc)}
    except (KeyError, TypeError, ValueError):
        return {"reason": "it answers with nonsense"}
    finally:
        if channel is not None:
            channel.abort()
