"""Models over other machines: which are asked, what is reserved there, and what follows when one is lost."""

import asyncio
import logging
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from shimmy.gpus import machines
from shimmy.gpus.machines import Machine
from shimmy.pool.device_choice import RETRY_S
from shimmy.rpc.address import Address
from shimmy.rpc.offer import OfferedDevice
from shimmy.system.backends import Backend
from shimmy.wire.worker_options import Offload
from tests.fakes import on_loop, until
from tests.pool.harness import TINY, Client, Harness, Load

GB = 10**9
ONE, TWO = Address("localhost", 1), Address("localhost", 2)
ALL = 3  # layers of TINY, with its output


class Network:
    """The machines that answer now; what was asked of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.free_bytes = dict.fromkeys((ONE, TWO), 100 * GB)
        self.reasons: dict[Address, str] = {}
        monkeypatch.setattr(machines, "find_machines", self._find)
        monkeypatch.setattr(Backend, "is_there", lambda _: True)

    def _find(self, addresses: tuple[Address, ...], key_file: Path | None, limit_s: float) -> list[Machine]:
        assert (key_file, limit_s) == (None, 10.0)
        return [self._machine(address) for address in addresses]

    def _machine(self, address: Address) -> Machine:
        if address in self.reasons:
            return Machine(address, reason=self.reasons[address])
        return Machine(address, (OfferedDevice("CPU", "a processor", 200 * GB, self.free_bytes[address]),))

    def harness(self, **flags: str | list[str]) -> Harness:
        both: dict[str, str | list[str]] = {"rpc": [str(ONE), str(TWO)], "device": "none", "gpu_layers": "all"}
        return Harness(None, lambda: self.now_s, **(both | flags))


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return Network(monkeypatch)


def succeed(load: Load) -> Client:
    load.client.facts = replace(load.client.facts, device=", ".join(load.options.offload.devices))
    return load.succeed()


async def offload_of(harness: Harness, name: str = TINY.name) -> Offload:
    task = harness.ask(name)
    load = await harness.loading()
    succeed(load)
    await task
    return load.options.offload


async def unload(harness: Harness) -> None:
    harness.pool.unload(TINY.name)
    await until(lambda: not harness.pool.ready())


@on_loop
async def test_layers_are_divided_and_reserved_there(network: Network) -> None:
    harness = network.harness()
    offload = await offload_of(harness)
    assert offload.devices == ("localhost:1/CPU", "localhost:2/CPU")
    assert offload.n_layers == ALL
    assert offload.has_remote
    assert [name for name, _ in harness.pool.estimate(TINY).on_devices] == [*offload.devices]


@on_loop
async def test_what_a_load_will_take_there_is_not_given_twice(network: Network) -> None:
    needed = (await offload_of(network.harness(rpc=str(ONE)))).n_bytes[0]
    network.free_bytes[ONE] = int(1.5 * needed)
    harness = network.harness(rpc=str(ONE), gpu_layers="auto")
    one, two = harness.ask("one"), harness.ask("two")
    loads = [await harness.loading() for _ in range(2)]
    on_machine = [sum(load.options.offload.n_bytes) for load in loads]
    assert sum(on_machine) <= 1.5 * needed
    for load in loads:
        succeed(load)
    await asyncio.gather(one, two)


@on_loop
async def test_a_machine_that_does_not_answer_is_left_out_and_told(network: Network) -> None:
    network.reasons[ONE] = "nothing listens there"
    offload = await offload_of(network.harness())
    assert offload.devices == ("localhost:2/CPU",)
    assert offload.note == "localhost:1 is not used: nothing listens there"
    network.reasons[TWO] = "it is busy"
    offload = await offload_of(network.harness())
    assert offload.devices == ()
    assert offload.note == "localhost:1 is not used: nothing listens there; localhost:2 is not used: it is busy"


@on_loop
async def test_a_machine_that_was_named_and_is_not_used_is_in_the_log(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    for note in ("", "localhost:1 is not used: nothing listens there"):
        harness = network.harness()
        task = harness.ask()
        load = await harness.loading()
        load.client.facts = replace(load.client.facts, device_note=note)
        load.succeed()
        await task
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert warnings == ([f"`{TINY.name}` does not use all of `--rpc`: {note}"] if note else [])


@on_loop
async def test_a_model_whose_machine_is_lost_is_loaded_from_what_is_left(network: Network) -> None:
    harness = network.harness()
    task = harness.ask()
    client = succeed(await harness.loading())
    await task
    network.reasons[TWO] = "no sign of life"
    client.end_reason = "localhost:2: no sign of life for 10 s"
    client.die()
    assert (await offload_of(harness)).devices == ("localhost:1/CPU",)
    await unload(harness)
    network.reasons.clear()
    assert len((await offload_of(harness)).devices) == 2, "it is back"


@on_loop
async def test_a_machine_that_fails_again_and_again_is_left_alone_for_a_while(network: Network) -> None:
    harness = network.harness(rpc=str(ONE))
    for _ in range(2):
        task = harness.ask()
        client = succeed(await harness.loading())
        await task
        client.n_finished = 1
        client.end_reason = "the engine ended"
        client.die()
    offload = await offload_of(harness)
    assert offload == Offload(note="it failed on localhost:1/CPU: the engine ended")
    await unload(harness)
    network.now_s += RETRY_S
    assert (await offload_of(harness)).devices == ("localhost:1/CPU",)


@on_loop
async def test_a_load_that_loses_a_machine_goes_on_with_those_that_are_left(network: Network) -> None:
    harness = network.harness()
    task = harness.ask()
    load = await harness.loading()
    network.reasons[ONE] = "no sign of life"
    load.fail("localhost:1: no sign of life for 10 s")
    load = await harness.loading()
    assert load.options.offload.devices == ("localhost:2/CPU",)
    client = succeed(load)
    assert await task is cast("object", client)


@on_loop
async def test_a_load_that_loses_one_machine_after_the_other_is_left_to_the_processor(network: Network) -> None:
    harness = network.harness()
    task = harness.ask()
    load = await harness.loading()
    network.reasons[ONE] = "no sign of life"
    load.fail("localhost:1: no sign of life for 10 s")
    (await harness.loading()).fail("localhost:2: no sign of life for 10 s")
    load = await harness.loading()
    assert load.options.offload == Offload(note="it failed on localhost:2/CPU: localhost:2: no sign of life for 10 s")
    client = succeed(load)
    assert await task is cast("object", client)


@on_loop
async def test_a_load_that_fails_though_all_answer_is_left_to_the_processor(network: Network) -> None:
    harness = network.harness(rpc=str(ONE))
    task = harness.ask()
    (await harness.loading()).fail("the engine aborts")
    load = await harness.loading()
    assert load.options.offload == Offload(note="it failed on localhost:1/CPU: the engine aborts")
    succeed(load)
    await task


@on_loop
async def test_a_build_that_has_no_such_part_says_so(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "is_there", lambda _: False)
    offload = await offload_of(network.harness())
    assert (offload.devices, offload.note[:40]) == ((), "this build cannot use several machines: ")


@on_loop
async def test_a_model_with_adapters_is_not_divided(network: Network) -> None:
    harness = network.harness(lora="/adapter.gguf")
    assert (await offload_of(harness)).devices == ()


@on_loop
async def test_a_model_with_adapters_stays_here_and_says_so(network: Network) -> None:
    offload = await offload_of(network.harness(rpc=str(ONE), lora="/adapter.gguf"))
    assert offload == Offload(note="models with LoRA adapters are not computed by other machines")
