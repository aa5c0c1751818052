"""Which layers of a model go to other machines, beside the devices of this one and its processor: by free memory.

Knows sizes and names; nothing of how machines are found. As llama.cpp has it, the first layers stay on the processor
and the devices have the last ones in their order, with the output behind them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shimmy.gpus.machines import Machine
from shimmy.gpus.placement import DeviceWish, FreeDevice, LayerSizes, divided, n_fitting, n_wished
from shimmy.option_kinds import MAX_DEVICES
from shimmy.system.memory import shown
from shimmy.text.plural import plural
from shimmy.wire.worker_options import Offload


@dataclass(frozen=True, slots=True)
class Place:
    """A device of this or another machine, by the name that it has here, and what a model may have of its memory."""

    name: str
    free_bytes: int
    is_processor: bool = False


def remote_name(machine: Machine, device: str) -> str:
    """What a device of another machine is called here."""
    return f"{machine.address}/{device}"


def own_places(wish: DeviceWish, found: Sequence[FreeDevice]) -> list[Place]:
    """The devices of this machine that take part."""
    wanted = [each for each in found if not each.device.unusable]
    if wish.names is None:
        wanted = [each for each in wanted if each.device.is_automatic]
    else:
        wanted = [each for each in wanted if each.device.name in wish.names]
    return [Place(each.device.name, each.free_bytes) for each in wanted]


def spread(
    wish: DeviceWish, places: Sequence[Place], processor_bytes: float, sizes: LayerSizes, notes: Sequence[str]
) -> Offload:
    """Where the layers of a model go. `notes` say why machines that were named have none.

    Where one of the `places` is a GPU, the processor has what is left over; else it is one of those that share.
    """
    places = places[:MAX_DEVICES]
    if not sizes.n_layers:
        return Offload(note="the file does not say how many layers the model has")
    if not places:
        return Offload(note="; ".join(notes) or "no other machine was found")
    if wish.split and len(wish.split) != len(places):
        numbers, devices = plural(len(wish.split), "number"), plural(len(places), "device")
        return Offload(note=f"`--tensor-split` has {numbers} for {devices}")
    n_all = sizes.n_layers + 1
    shares = wish.split or [place.free_bytes for place in places]
    n_layers = n_wished(wish, sizes)
    if wish.n_layers is None and all(place.is_processor for place in places):
        n_layers = min(
            n_layers, n_all - divided(n_all, [min(processor_bytes, float(sizes.total)), *_capped(places, sizes)])[0]
        )
    if wish.n_layers is None:
        n_layers = n_fitting(n_layers, places, shares, sizes)
    layers = divided(n_layers, shares)
    n_bytes = sizes.on_each(layers)
    used = [index for index, n in enumerate(layers) if n]
    if not used:
        free = " and ".join(f"{place.name} has {shown(place.free_bytes)} free" for place in places)
        return Offload(note="; ".join([*notes, f"not one of its layers fits: {free}"]))
    return Offload(
        devices=tuple(places[index].name for index in used),
        layers=tuple(layers[index] for index in used),
        n_bytes=tuple(n_bytes[index] for index in used),
        n_cpu_moe=sizes.n_cpu_moe,
        note="; ".join(notes),
    )


def _capped(places: Sequence[Place], sizes: LayerSizes) -> list[float]:
    """Memory beyond what the whole model takes is no reason for a larger share."""
    return [float(min(place.free_bytes, sizes.total)) for place in places]
