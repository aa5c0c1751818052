"""Which layers of a model go to which devices: what a person wishes, what is free there, and what the layers take.

Knows sizes and names; nothing of how devices are found, or how an engine uses them. llama.cpp puts the last layers of a
model on devices, and behind them the output, which counts as one more layer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import NamedTuple, Protocol

from shimmy.messages.device import Device, DeviceKind
from shimmy.option_kinds import MAX_DEVICES
from shimmy.system.memory import shown
from shimmy.text.plural import plural
from shimmy.wire.worker_options import Offload

_OR_TRIED = ", or where a trial finds that faster"
_KINDS = {
    DeviceKind.INTEGRATED: "an integrated GPU",
    DeviceKind.VIRTUAL: "a virtual GPU",
    DeviceKind.CPU: "the processor itself",
    DeviceKind.OTHER: "no GPU",
}


@dataclass(frozen=True, slots=True)
class DeviceWish:
    """What a person wishes."""

    names: tuple[str, ...] | None = None  # one at least; None: those that are used without being named
    n_layers: int | None = None  # one at least; None: as many as fit; more than there are: all
    split: tuple[float, ...] = ()  # a share for each device; (): by their free memory
    n_most: int | None = None  # no more layers than these, whoever wishes them: more have failed
    proven: tuple[str, ...] = ()  # without names: devices that a trial has found faster than the processor


@dataclass(frozen=True, slots=True)
class LayerSizes:
    """What a model takes of the memory of devices, in bytes. Meant to be a little too high."""

    n_layers: int  # without the output
    layer: int  # weights and KV cache of one
    output: int
    fixed: int  # to compute, on each device that has layers
    experts: int = 0  # of a layer's weights
    n_cpu_moe: int = 0  # so many of the first layers have their experts elsewhere

    def on_each(self, layers: Sequence[int]) -> list[int]:
        """What each device gives for so many layers; the last one with any has the output."""
        found = []
        start = self.n_layers + 1 - sum(layers)
        for n in layers:
            end = start + n
            n_bytes = (self.fixed if n else 0) + n * self.layer
            n_bytes -= self.experts * max(0, min(end, self.n_cpu_moe) - start)
            if n and end == self.n_layers + 1:
                n_bytes += self.output - self.layer
            found.append(n_bytes)
            start = end
        return found

    @property
    def total(self) -> int:
        return self.on_each([self.n_layers + 1])[0]


class _HasMemory(Protocol):
    @property
    def free_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class FreeDevice:
    """A device, and what of its memory a model may have."""

    device: Device
    free_bytes: int


def place(wish: DeviceWish, found: Sequence[FreeDevice], reason: str, sizes: LayerSizes) -> Offload:
    """Where the layers of a model go. `reason` says why no more devices were `found`."""
    if fault := _fault(wish, found, reason, sizes):
        return Offload(note=fault)
    wanted = devices = _wanted(wish, found)
    n_most = n_wished(wish, sizes)
    if wish.names is None and wish.n_layers is None and not wish.split:
        devices = _worthwhile(wanted, n_most, sizes)
        if not devices:
            return Offload(note=_too_few(wanted, n_most, sizes))
    enough = [each for each in devices if sizes.on_each([n_most])[0] <= each.free_bytes]
    if enough and not wish.split:
        devices = [max(enough, key=lambda each: each.free_bytes)]  # faster than two that wait for each other
    shares = wish.split or [each.free_bytes for each in devices]
    n_layers = n_most if wish.n_layers is not None else n_fitting(n_most, devices, shares, sizes)
    layers = divided(n_layers, shares)
    n_bytes = sizes.on_each(layers)
    used = [place for place, n in enumerate(layers) if n]
    return Offload(
        devices=tuple(devices[place].device.name for place in used),
        layers=tuple(layers[place] for place in used),
        n_bytes=tuple(n_bytes[place] for place in used),
        n_system_bytes=sum(n_bytes[place] for place in used if devices[place].device.has_system_memory),
        n_cpu_moe=sizes.n_cpu_moe if used else 0,
        note="; ".join(_notes(wish, n_layers, devices, wanted, sizes)),
    )


def n_with_room(wish: DeviceWish, found: Sequence[FreeDevice], sizes: LayerSizes) -> int:
    """How many of the layers that are wished there have room, also where a number of them is taken at its word."""
    return min(n_wished(wish, sizes), place(replace(wish, n_layers=None), found, "", sizes).n_layers)


def n_wished(wish: DeviceWish, sizes: LayerSizes) -> int:
    """No more layers than these, whatever is free."""
    return min(n for n in (sizes.n_layers + 1, wish.n_layers, wish.n_most) if n is not None)


def divided(n_layers: int, shares: Sequence[float]) -> list[int]:
    """`n_layers` in parts as large as the shares; those that add up to nothing are equal."""
    if not sum(shares):
        shares = [1] * len(shares)
    ends, before = [], 0.0
    for share in shares:
        before += share
        ends.append(round(n_layers * before / sum(shares)))
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def n_fitting(n_most: int, places: Sequence[_HasMemory], shares: Sequence[float], sizes: LayerSizes) -> int:
    """The most layers, up to `n_most`, that all places have the memory for when each has its share."""
    for n_layers in range(n_most, 0, -1):
        needed = sizes.on_each(divided(n_layers, shares))
        if all(n_bytes <= each.free_bytes for n_bytes, each in zip(needed, places, strict=True)):
            return n_layers
    return 0


def _worthwhile(devices: Sequence[FreeDevice], n_most: int, sizes: LayerSizes) -> list[FreeDevice]:
    """Those that have the most layers together, up to `n_most`, and the fewest devices for that; none where they have
    but a few.

    Each has to have a quarter of an even part at least: passing activations on costs more than a few layers gain.
    """
    n_all = sizes.n_layers + 1
    freest = sorted(devices, key=lambda each: -each.free_bytes)
    best, n_best = list[FreeDevice](), 0
    for n_devices in range(1, len(devices) + 1):
        chosen = [each for each in devices if each in freest[:n_devices]]
        shares = [each.free_bytes for each in chosen]
        layers = divided(n_fitting(n_most, chosen, shares, sizes), shares)
        if sum(layers) > n_best and 4 * n_devices * min(layers) >= n_all:
            best, n_best = chosen, sum(layers)
    return best


def _wanted(wish: DeviceWish, found: Sequence[FreeDevice]) -> list[FreeDevice]:
    if wish.names is None:
        used = (each for each in found if each.device.is_automatic or each.device.name in wish.proven)
        return list(used)[:MAX_DEVICES]
    by_name = {each.device.name: each for each in found}
    return [by_name[name] for name in wish.names]


def _fault(wish: DeviceWish, found: Sequence[FreeDevice], reason: str, sizes: LayerSizes) -> str:
    """Why the processor has to compute the model; '' where devices can."""
    by_name = {each.device.name: each.device for each in found}
    if not sizes.n_layers:
        return "the file does not say how many layers the model has"
    if not found:
        return reason or "no device was found"
    if wish.names is None:
        if not _wanted(wish, found):
            return "; ".join(map(unused_reason, by_name.values()))
        n_devices = len(_wanted(wish, found))
    else:
        for name in wish.names:
            if name not in by_name:
                return f"there is no device `{name}`; there are: {', '.join(by_name)}"
            if by_name[name].unusable:
                return f"{name} cannot be used: {by_name[name].unusable}"
        n_devices = len(wish.names)
    if wish.split and len(wish.split) != n_devices:
        return f"`--tensor-split` has {plural(len(wish.split), 'number')} for {plural(n_devices, 'device')}"
    return ""


def unused_reason(device: Device, hindrance: str = "") -> str:
    """Why `--device auto` does not take a device, of which no trial has found anything; '' where it does. `hindrance`
    says why there will be no trial."""
    if device.unusable:
        return f"{device.name} cannot be used: {device.unusable}"
    if device.is_automatic:
        return ""
    return (
        f"{device.name} ({device.description}) is {_KINDS[device.kind]}, which is used when it is named: "
        f"`--device {device.name}`{or_tried(device, hindrance)}"
    )


def or_tried(device: Device, hindrance: str) -> str:
    """How a device is used that nobody names, as the rest of a sentence on one that is named."""
    if not device.needs_trial:
        return ""
    return f" (no trial finds out whether that is faster: {hindrance})" if hindrance else _OR_TRIED


class Named(NamedTuple):
    """The devices that are used where a person names some, and what is to be said of that."""

    names: tuple[str, ...]
    split: tuple[float, ...]
    notes: tuple[str, ...]


def named(names: Sequence[str], split: tuple[float, ...], devices: Sequence[Device]) -> Named:
    """A GPU that two backends could use is used by one of them, whichever is named; where both are, it has the shares
    of both."""
    shares, notes = dict[str, float](), list[str]()
    has_shares = len(split) == len(names)
    for name, share in zip(names, split if has_shares else repeat(0.0), strict=False):
        device = next((each for each in devices if each.name == name), None)
        same = None if device is None else _same_gpu(device, devices)
        if same is not None:
            notes.append(f"{name} is used as {same.name}")
        used = name if same is None else same.name
        shares[used] = shares.get(used, 0.0) + share
    return Named(tuple(shares), tuple(shares.values()) if has_shares else split, tuple(notes))


def _same_gpu(device: Device, devices: Sequence[Device]) -> Device | None:
    """The device by which another backend uses this one's GPU."""
    if not device.unusable or not device.gpu:
        return None
    return next(
        (each for each in devices if each.gpu == device.gpu and each.backend != device.backend and not each.unusable),
        None,
    )


def _notes(
    wish: DeviceWish, n_layers: int, devices: Sequence[FreeDevice], wanted: Sequence[FreeDevice], sizes: LayerSizes
) -> Iterator[str]:
    """Why the processor still has a part of the model, where `devices` of those `wanted` have some of it."""
    if n_layers == wish.n_most:
        pass  # who has set that limit says why
    elif wish.n_layers is not None and n_layers <= sizes.n_layers:
        yield f"`--gpu-layers {wish.n_layers}`"
    elif n_layers <= sizes.n_layers:
        yield _what_fits(n_layers, devices, sizes)
        if left_out := [each.device.name for each in wanted if each not in devices]:
            yield f"{' and '.join(left_out)} would have too few to be worth it, unless named with `--device`"
    if n_layers and sizes.n_cpu_moe:
        yield f"`--n-cpu-moe {sizes.n_cpu_moe}`: experts of so many layers on the processor"


def _too_few(devices: Sequence[FreeDevice], n_most: int, sizes: LayerSizes) -> str:
    """Why none of the devices is used without being named."""
    n_layers = n_fitting(n_most, devices, [each.free_bytes for each in devices], sizes)
    fit = _what_fits(n_layers, devices, sizes)
    return f"{fit}; so few are put on a device that is named with `--device`" if n_layers else fit


def _what_fits(n_layers: int, devices: Sequence[FreeDevice], sizes: LayerSizes) -> str:
    free = " and ".join(f"{each.device.name} has {shown(each.free_bytes)}" for each in devices)
    return f"{n_layers} of {sizes.n_layers + 1} layers fit: all of them take {shown(sizes.total)}, and {free} free"
