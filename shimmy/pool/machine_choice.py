"""Which other machines have layers of a model: those that answer before its load, by what they have free.

Knows the options, what is reserved of each machine's memory, and when machines were lost; nothing of devices here. For
`device_choice`, which asks where there are machines to ask; nothing of `gpus` is imported before.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from shimmy.background import in_thread
from shimmy.config import Config
from shimmy.pool.memory_budget import MemoryBudget
from shimmy.system.backends import NO_RPC, RPC
from shimmy.wire.worker_options import Offload

if TYPE_CHECKING:
    from shimmy.gpus.machines import Machine
    from shimmy.gpus.placement import DeviceWish, FreeDevice, LayerSizes
    from shimmy.rpc.offer import OfferedDevice


class MachineChoice:
    """`pending` has what is chosen for models and not reserved yet."""

    def __init__(self, config: Config, budget: MemoryBudget, pending: dict[str, Offload]) -> None:
        self._config = config
        self._budget = budget
        self._pending = pending
        self._lost_s: dict[str, float] = {}  # when models with layers on other machines failed last

    async def spread(
        self, wish: "DeviceWish", own: "Sequence[FreeDevice]", sizes: "LayerSizes", notes: Sequence[str] = ()
    ) -> Offload:
        """Over the machines that answer now, and those of the `own` devices that are wished."""
        from shimmy.gpus import spread

        if not RPC.is_there():
            return Offload(note=NO_RPC)
        machines = await in_thread(self._find)
        places = [*spread.own_places(wish, own)]
        missing = {*(wish.names or ())} - {place.name for place in places}
        for machine in machines:
            for each in machine.devices:
                name = spread.remote_name(machine, each.name)
                places.append(spread.Place(name, self._left_bytes(name, each), each.is_processor))
        told = [f"there is no device `{name}`" for name in sorted(missing)]
        told += [f"{machine.address} is not used: {machine.reason}" for machine in machines if machine.reason]
        return spread.spread(wish, places, self._budget.available_bytes(), sizes, [*told, *notes])

    def is_first_loss(self, name: str, now_s: float, within_s: float) -> bool:
        """Whether the model called `name`, which has just failed, had not failed `within_s` before."""
        before_s, self._lost_s[name] = self._lost_s.get(name), now_s
        return before_s is None or now_s - before_s > within_s

    def forget(self, name: str) -> None:
        self._lost_s.pop(name, None)

    def _find(self) -> "list[Machine]":
        from shimmy.gpus import machines

        return machines.find_machines(self._config.rpc, self._config.rpc_key_file, self._config.rpc_timeout_s)

    def _left_bytes(self, name: str, device: "OfferedDevice") -> int:
        """What is free there by that machine's word, less what loading workers will take; and no more than what we have
        left of all."""
        pending = sum(_bytes_on(name, zip(each.devices, each.n_bytes, strict=True)) for each in self._pending.values())
        of_all = device.total_bytes - self._budget.on_device(name)
        free = device.free_bytes - self._budget.on_device(name, is_taken=False)
        return max(0, min(of_all, free) - pending)


def _bytes_on(device: str, parts: Iterable[tuple[str, int]]) -> int:
    return sum(n_bytes for name, n_bytes in parts if name == device)
