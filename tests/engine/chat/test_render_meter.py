"""How large the values of a template may get."""

from threading import Thread

import pytest

from shimmy.engine.chat.render_meter import MAX_TOTAL_BYTES, MAX_VALUE_BYTES, RenderMeter, weight_bytes
from shimmy.errors import TemplateFailed


def test_one_value_and_all_together_have_a_size() -> None:
    meter = RenderMeter()
    with pytest.raises(TemplateFailed):
        meter.spend(MAX_VALUE_BYTES + 1)
    meter = RenderMeter()
    for _ in range(MAX_TOTAL_BYTES // MAX_VALUE_BYTES):
        meter.spend(MAX_VALUE_BYTES)
    with pytest.raises(TemplateFailed):
        meter.spend(1)


def test_each_thread_counts_for_itself() -> None:
    meter = RenderMeter()
    meter.spend(1000)
    left: list[int] = []
    thread = Thread(target=lambda: left.append(meter.left_bytes))
    thread.start()
    thread.join()
    assert left == [MAX_TOTAL_BYTES]
    assert meter.left_bytes == MAX_TOTAL_BYTES - 1000


def test_what_is_inside_twice_counts_twice_and_an_explosion_ends() -> None:
    value: list[object] = ["x" * 1000]
    assert weight_bytes([value, value]) > 2 * 1000
    for _ in range(60):
        value = [value, value]
    assert MAX_VALUE_BYTES < weight_bytes(value) < 2 * MAX_VALUE_BYTES
