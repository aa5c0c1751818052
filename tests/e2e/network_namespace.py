"""A second network on this machine, behind a link that is slow and can be cut. Needs root, `ip` and `tc`.

Its link is a pair of TUN devices, between which a thread passes packets on after a while: not every kernel has a queue
that delays them (netem). The rate is limited by one that each has (tbf).
"""

import fcntl
import os
import select
import shutil
import struct
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from time import monotonic

import pytest

ROUND_TRIP_MS, RATE_MBIT = 20, 100

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
_MAX_PACKET_BYTES = 1 << 16

_numbers = count()


class _Wire:
    """Passes packets between two TUN devices, each after half of a round trip."""

    def __init__(self, *names: str) -> None:
        self._devices = [_open_tun(name) for name in names]
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._pass, args=ends, daemon=True)
            for ends in (self._devices, self._devices[::-1])
        ]  # fmt: skip

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _pass(self, source: int, target: int) -> None:
        waiting: deque[tuple[float, bytes]] = deque()
        poll = select.poll()
        poll.register(source, select.POLLIN)
        while not self._end.is_set():
            wait_s = waiting[0][0] - monotonic() if waiting else 0.1
            if wait_s > 0 and poll.poll(1000 * wait_s):
                with suppress(OSError):  # a device that is down has none
                    packet = os.read(source, _MAX_PACKET_BYTES)
                    waiting.append((monotonic() + ROUND_TRIP_MS / 2000, packet))
            while waiting and waiting[0][0] <= monotonic():
                with suppress(OSError):  # it is lost there
                    os.write(target, waiting.popleft()[1])

    def close(self) -> None:
        self._end.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        for device in self._devices:
            os.close(device)


class Network:
    """A namespace whose end of the link has `address` and `address_v6`."""

    def __init__(self, number: int) -> None:
        self.name = f"shimmy-{os.getpid()}-{number}"
        self._ours, self._theirs = (f"sh{side}{os.getpid() % 100000}-{number}" for side in "ab")
        self.address, self._our_address = f"10.213.{number}.2", f"10.213.{number}.1"
        self.address_v6, self._our_address_v6 = f"fd00:213:{number}::2", f"fd00:213:{number}::1"
        self._wire: _Wire | None = None

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a program in it is started with."""
        return ("ip", "netns", "exec", self.name)

    def make(self) -> None:
        """Raises CalledProcessError or OSError where this system does not allow it."""
        _run("ip", "netns", "add", self.name)
        self._wire = _Wire(self._ours, self._theirs)
        _run("ip", "link", "set", self._theirs, "netns", self.name)
        for where, device, address, address_v6 in (
            ((), self._ours, self._our_address, self._our_address_v6),
            (("-n", self.name), self._theirs, self.address, self.address_v6),
        ):
            _run("ip", *where, "addr", "add", f"{address}/24", "dev", device)
            _run("ip", *where, "addr", "add", f"{address_v6}/64", "dev", device, "nodad")
            _run("ip", *where, "link", "set", device, "up")
            rate = ("rate", f"{RATE_MBIT}mbit", "burst", "32kbit", "latency", "50ms")
            _run("tc", *where, "qdisc", "add", "dev", device, "root", "tbf", *rate)
        _run("ip", "-n", self.name, "link", "set", "lo", "up")
        self._wire.start()

    def cut(self) -> None:
        """Nothing passes from now on, and nobody is told."""
        _run("ip", "-n", self.name, "link", "set", self._theirs, "down")

    def mend(self) -> None:
        _run("ip", "-n", self.name, "link", "set", self._theirs, "up")
        _run("ip", "-n", self.name, "addr", "replace", f"{self.address_v6}/64", "dev", self._theirs, "nodad")

    @property
    def n_bytes_sent(self) -> int:
        """From here to there, since it was made."""
        return int(Path(f"/sys/class/net/{self._ours}/statistics/tx_bytes").read_text())

    def remove(self) -> None:
        if self._wire is not None:
            self._wire.close()
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, check=False)


@contextmanager
def network() -> Iterator[Network]:
    """For the length of the block; skips the test where it may not be made."""
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("tc")):
        pytest.skip("makes a network namespace, which needs root, `ip` and `tc`")
    made = Network(next(_numbers))
    try:
        try:
            made.make()
        except (OSError, subprocess.CalledProcessError) as exc:
            reason = exc.stderr.strip() if isinstance(exc, subprocess.CalledProcessError) else exc
            pytest.skip(f"this system allows no slow link to a network namespace: {reason}")
        yield made
    finally:
        made.remove()


def _open_tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError:
        os.close(device)
        raise
    os.set_blocking(device, False)
    return device


def _run(*command: str) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)
