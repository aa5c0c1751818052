"""What a worker says of its progress."""

from pathlib import Path

import pytest

from shimmy.engine import pulse
from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.engine.pulse import Activity, Pulse, nodes
from tests.workers.test_hang_verdict import Clock


def test_the_thread_that_got_on_longest_ago_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, clock = Activity(), Clock()
    monkeypatch.setattr(pulse, "engine", engine)
    nodes.were_computed()
    heart = Pulse(lambda _: None, clock)
    assert heart.stalled_s() is None
    engine.begin()
    clock.now_s += 3
    assert heart.stalled_s() == 0
    clock.now_s += 3
    assert heart.stalled_s() == 3
    engine.n_steps += 1
    clock.now_s += 1
    assert heart.stalled_s() == 0
    heart.preparing.begin()
    for second in range(1, 5):
        engine.n_steps += 1
        clock.now_s += 1
        assert heart.stalled_s() == second - 1, "one thread that gets on does not speak for the other"
    heart.preparing.end()
    engine.end()
    assert heart.stalled_s() is None
    engine.begin()
    clock.now_s += 60
    assert heart.stalled_s() == 0, "it has just begun, as far as anybody knows"


def test_the_engine_tells_of_each_node_that_it_computes(tiny_model: Path) -> None:
    before = pulse.engine.n_steps
    model = LlamaModel(tiny_model, CpuBackend(variants.libraries(LIBRARY_FOLDER, None)))
    assert pulse.engine.n_steps > before + 10, "each tensor of a load is a step"
    model.open_context(n_ctx=256, n_batch=32, n_sequences=2, n_outputs=2, n_threads=1)
    nodes.were_computed()
    assert not nodes.were_computed()
    model.warm_up()
    assert nodes.were_computed()
    assert not nodes.were_computed()
