"""Memory is given out in the order it was asked for, and never more than there is."""

import asyncio

import pytest

from shimmy.errors import OutOfMemory
from shimmy.pool.memory_budget import MemoryBudget
from shimmy.pool.memory_estimate import SERVER_BYTES, MemoryEstimate
from tests.fakes import on_loop, until

MB = 10**6


def memory_budget(limit_mb: int | None = None, free_mb: int | None = None) -> MemoryBudget:
    limit = None if limit_mb is None else SERVER_BYTES + limit_mb * MB
    return MemoryBudget(limit, lambda: None if free_mb is None else free_mb * MB)


def estimate(weights_mb: int, kv_mb: int = 0) -> MemoryEstimate:
    return MemoryEstimate(weights_mb * MB, kv_mb * MB, 0)


def never(_missing_bytes: int) -> bool:
    return False


def wait(_missing_bytes: int) -> bool:
    return True


@on_loop
async def test_without_limits_everything_fits() -> None:
    budget = memory_budget()
    for _ in range(3):
        await budget.reserve("big", estimate(10**9), never)
    assert budget.reserved_bytes == 3 * 10**9 * MB


@on_loop
async def test_what_was_given_back_can_be_given_again() -> None:
    budget = memory_budget(limit_mb=100)
    reservation = await budget.reserve("one", estimate(60), never)
    second = asyncio.create_task(budget.reserve("two", estimate(60), wait))
    await asyncio.sleep(0)
    assert not second.done()
    budget.release(reservation)
    await second
    assert budget.reserved_bytes == 60 * MB


@on_loop
async def test_who_asks_first_is_served_first_even_if_a_later_one_would_fit() -> None:
    budget = memory_budget(limit_mb=100)
    reservation = await budget.reserve("one", estimate(60), never)
    order: list[str] = []

    async def take(name: str, n_mb: int) -> None:
        await budget.reserve(name, estimate(n_mb), wait)
        order.append(name)

    tasks = [asyncio.create_task(take("large", 80)), asyncio.create_task(take("small", 10))]
    await asyncio.sleep(0.01)
    assert order == []
    budget.release(reservation)
    await asyncio.gather(*tasks)
    assert order == ["large", "small"]


@on_loop
async def test_no_room_is_said_with_the_numbers_and_the_next_one_gets_its_turn() -> None:
    budget = memory_budget(limit_mb=100, free_mb=5000)
    with pytest.raises(OutOfMemory) as error:
        await budget.reserve("large", MemoryEstimate(90 * MB, 30 * MB, 1200 * MB), never)
    for part in (
        "`large` takes 1.3 GB",
        "90 MB of weights",
        "30 MB of KV cache",
        "1.2 GB to compute",
        "100 MB",
        "5.0 GB",
    ):
        assert part in error.value.message
    await budget.reserve("small", estimate(100), never)


@on_loop
async def test_who_waits_has_a_position() -> None:
    budget = memory_budget(limit_mb=100)
    reservation = await budget.reserve("one", estimate(60), never)
    loads = {name: asyncio.create_task(budget.reserve(name, estimate(60), wait)) for name in ("two", "three", "four")}
    await asyncio.sleep(0)
    assert [budget.position(name) for name in ("one", *loads)] == [0, 1, 2, 3]
    loads["three"].cancel()
    await asyncio.wait([loads["three"]])
    assert [budget.position(name) for name in loads] == [1, 0, 2]
    budget.release(reservation)
    await loads["two"]
    assert [budget.position(name) for name in loads] == [0, 0, 1]
    loads["four"].cancel()
    await asyncio.wait([loads["four"]])
    assert budget.position("four") == 0


@on_loop
async def test_the_maker_of_room_hears_how_much_is_missing() -> None:
    budget = memory_budget(limit_mb=100)
    reservation = await budget.reserve("one", estimate(60), never)
    heard: list[int] = []

    def make_room(missing_bytes: int) -> bool:
        heard.append(missing_bytes)
        budget.release(reservation)
        return True

    await budget.reserve("two", estimate(70), make_room)
    assert heard == [30 * MB]


@on_loop
async def test_weights_that_are_loaded_count_as_left_in_the_systems_figure_and_are_not_given_twice() -> None:
    budget = memory_budget(free_mb=100)
    reservation = await budget.reserve("one", estimate(70, kv_mb=10), never)
    with pytest.raises(OutOfMemory):  # it is still loading: nothing of it shows in the system's figure
        await budget.reserve("two", estimate(25), never)
    budget.settle(reservation, None)  # its own 10 MB show: the system had 110
    await budget.reserve("two", estimate(25), never)
    assert budget.available_bytes() == 5 * MB


@on_loop
async def test_a_worker_that_takes_more_than_predicted_is_booked_with_that() -> None:
    budget = memory_budget(limit_mb=100)
    reservation = await budget.reserve("one", estimate(40), never)
    assert budget.n_loading == 1
    budget.settle(reservation, 70 * MB)
    assert budget.n_loading == 0
    assert budget.reserved_bytes == 70 * MB
    other = await budget.reserve("two", estimate(30), never)
    budget.settle(other, 10 * MB)
    assert budget.reserved_bytes == 100 * MB, "what was predicted may still come"


@on_loop
async def test_one_that_gives_up_waiting_leaves_the_line() -> None:
    budget = memory_budget(limit_mb=100)
    reservation = await budget.reserve("one", estimate(60), never)
    waiting = asyncio.create_task(budget.reserve("two", estimate(60), wait))
    third = asyncio.create_task(budget.reserve("three", estimate(50), wait))
    await asyncio.sleep(0)
    waiting.cancel()
    budget.release(reservation)
    await third
    await until(waiting.cancelled)
    assert budget.reserved_bytes == 50 * MB
