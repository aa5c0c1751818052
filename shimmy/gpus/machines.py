"""What other machines offer now: asked in a child process, so that the server has neither TLS nor a key in its memory.

Knows processes and what an answer looks like; what is asked is in `shimmy.rpc.look`.
"""

import json
import logging
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shimmy.rpc import offer
from shimmy.rpc.address import Address
from shimmy.rpc.offer import OfferedDevice
from shimmy.system import unpacked_folder
from shimmy.system.self_command import environment, executable, own_program
from shimmy.text.printable import shortened
from shimmy.wire import values

COMMAND = "rpc-look"
_START_S = 20.0  # of a child, on a machine that is busy
_MAX_REASON = 500

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Machine:
    """`reason` says why none of its devices can be used now; empty where they can."""

    address: Address
    devices: tuple[OfferedDevice, ...] = ()
    reason: str = ""


def find_machines(addresses: Sequence[Address], key_file: Path | None, limit_s: float) -> list[Machine]:
    """Each of them, in their order. Takes up to a few times `limit_s` where one is silent: call it on a thread."""
    asked = {
        "addresses": [str(address) for address in addresses],
        "key_file": None if key_file is None else str(key_file),
        "limit_s": limit_s,
    }
    try:
        unpacked_folder.restore()
        child = subprocess.run(
            [*own_program(), COMMAND],
            executable=executable(),
            input=json.dumps(asked).encode() + b"\n",
            capture_output=True,
            env=environment(),
            timeout=2 * limit_s + _START_S,
            check=False,
        )
        told = values.items(json.loads(child.stdout))
        return [_read(address, members) for address, members in zip(addresses, told, strict=True)]
    except subprocess.TimeoutExpired:
        reason = "the process that asks for it does not end"
    except OSError as exc:
        reason = f"no process could be started to ask for it: {exc.strerror}"
    except (TypeError, ValueError, KeyError):
        reason = "the process that asks for it failed"
        logger.debug("%s", child.stderr.decode("utf-8", "replace"))
    return [Machine(address, reason=reason) for address in addresses]


def _read(address: Address, told: object) -> Machine:
    members = values.members(told)
    if "reason" in members:
        return Machine(address, reason=shortened(values.text(members["reason"]), _MAX_REASON))
    offered = offer.read(members)
    if offered.busy or not offered.devices:
        return Machine(address, reason=offered.busy or "it has no devices")
    return Machine(address, offered.devices)
