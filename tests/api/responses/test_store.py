"""The memory of responses: what it keeps, what it lets go first, and that its limits are those of the process."""

import tracemalloc

from shimmy.api.responses.store import ResponseStore, StoredResponse


def stored(name: str, size_bytes: int = 0, *item_ids: str) -> StoredResponse:
    return StoredResponse(name, bytes(size_bytes), slice(0), b"[]", item_ids)


def test_a_response_is_found_by_its_id_and_by_those_of_its_items_until_it_is_removed() -> None:
    store = ResponseStore()
    response = stored("resp_a", 10, "msg_1", "msg_2")
    store.put(response)
    store.put(stored("resp_b", 10, "msg_3"))

    assert store.get("resp_a") is response
    assert store.get_by_item("msg_2") is response
    assert store.remove("resp_a")
    assert not store.remove("resp_a")
    assert store.get("resp_a") is None
    assert store.get_by_item("msg_2") is None
    assert store.get_by_item("msg_3") is not None
    assert store.get("") is None


def test_what_was_not_used_for_longest_goes_first() -> None:
    store = ResponseStore(n_max=3)
    for name in "abc":
        store.put(stored(name, 0, f"item_{name}"))
    store.get("a")
    store.get_by_item("item_b")
    store.put(stored("d"))
    assert [name for name in "abcd" if store.get(name)] == ["a", "b", "d"]
    assert store.get_by_item("item_c") is None


def test_a_large_response_takes_the_place_of_many_and_one_that_is_too_large_is_not_kept() -> None:
    store = ResponseStore(bytes_max=100_000)
    for name in "abcdef":
        store.put(stored(name, 15_000))
    store.put(stored("large", 60_000))
    assert [name for name in "abcdef" if store.get(name)] == ["e", "f"]
    store.put(stored("too large", 100_000))
    assert store.get("too large") is None
    store.put(stored("next", 10))
    assert store.get("next") is not None


def test_small_responses_with_many_items_take_no_more_memory_than_the_limit() -> None:
    limit_bytes = 2**20
    store = ResponseStore(n_max=10**9, bytes_max=limit_bytes)
    tracemalloc.start()
    try:
        for number in range(3000):
            items = tuple(f"msg_{number:030d}_{item}" for item in range(number % 20))
            store.put(
                StoredResponse(f"resp_{number:040d}", b"%d" % number, slice(0), b"[]", items, f"resp_{number - 1:040d}")
            )
        taken_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert store.get(f"resp_{0:040d}") is None
    assert store.get(f"resp_{2999:040d}") is not None
    assert limit_bytes / 4 < taken_bytes < limit_bytes
