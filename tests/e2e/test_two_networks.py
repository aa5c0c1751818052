"""Models over machines in other network namespaces, 20 ms and 100 Mbit/s away: the same tokens, weights that travel
once, and machines that are killed, stopped or cut off."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from shimmy.system.backends import RPC
from tests.e2e.conftest import StartServer
from tests.e2e.harness import COMPLETION, FROZEN_FILE, PROMPTS, Server
from tests.e2e.network_namespace import Network, network
from tests.e2e.processes import wait_for
from tests.e2e.rpc_machine import Machine, machine
from tests.e2e.test_other_machines import N_TOKENS, ends_in_time, entry, options
from tests.models import demo_model

NAME = "smollm2-135m-instruct.q4-1"

pytestmark = [
    pytest.mark.skipif(not FROZEN_FILE and RPC.built() is None, reason="not made: `python3 build.py rpc`"),
    pytest.mark.thorough,
    pytest.mark.timeout(240),
]


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Callable[[], tuple[Machine, Network]]]:
    """Makes machines in networks of their own."""
    with ExitStack() as stack:

        def make(*, v6: bool = False) -> tuple[Machine, Network]:
            beyond = stack.enter_context(network())
            host = f"[{beyond.address_v6}]" if v6 else beyond.address
            folder = tmp_path / beyond.name
            return stack.enter_context(machine(folder, bind=f"{host}:50052", prefix=beyond.prefix)), beyond

        yield make


def test_the_same_tokens_over_two_networks(
    tmp_path: Path, start: StartServer, far: Callable[..., tuple[Machine, Network]], server: Server
) -> None:
    (first, _), (second, _) = far(), far(v6=True)
    spread = start(*options(tmp_path, first, second))
    text = spread.chat(PROMPTS[0], max_tokens=N_TOKENS)
    assert text == server.chat(PROMPTS[0], max_tokens=N_TOKENS)
    assert entry(spread)["device"] == f"{first.address}/CPU, {second.address}/CPU"


def test_a_real_model_whose_weights_travel_once(
    tmp_path: Path, start: StartServer, far: Callable[..., tuple[Machine, Network]]
) -> None:
    (first, to_first), (second, to_second) = far(), far()
    body = {"model": NAME, "prompt": "The capital of France is", "max_tokens": 24, "temperature": 0}
    mapped = ("--model-path", demo_model(), "--weights", "mapped")
    alone = start(*mapped, "--device", "none").post(COMPLETION, body).json()["choices"][0]["text"]
    sent = []
    for _ in range(2):
        before = to_first.n_bytes_sent + to_second.n_bytes_sent
        server = start(*mapped, *options(tmp_path, first, second), "--gpu-layers", "20")
        assert server.post(COMPLETION, body).json()["choices"][0]["text"] == alone
        sent.append(to_first.n_bytes_sent + to_second.n_bytes_sent - before)
        server.stop()
        wait_for("the engines' end", lambda: not first.engines() and not second.engines())
    assert sent[1] < sent[0] - 10 * 2**20, "the large tensors were kept there"


@pytest.mark.parametrize("harm", ["killed", "stopped", "cut off"])
def test_a_machine_that_is_lost_costs_the_jobs_that_it_computes(
    tmp_path: Path, start: StartServer, far: Callable[..., tuple[Machine, Network]], harm: str
) -> None:
    (lost, link), (stays, _) = far(), far()
    server = start(*options(tmp_path, lost, stays))
    text = server.chat(PROMPTS[1], max_tokens=N_TOKENS)
    harms = {
        "killed": lambda: os.kill(lost.pid, signal.SIGKILL),
        "stopped": lambda: os.kill(lost.pid, signal.SIGSTOP),
        "cut off": link.cut,
    }
    said = ends_in_time(server, harms[harm])
    assert lost.address in said
    assert server.chat(PROMPTS[1], max_tokens=N_TOKENS) == text
    assert entry(server)["device"] == f"{stays.address}/CPU"
    if harm == "cut off":  # it noticed, too, and is used again when it is back
        wait_for("the end of what it computed", lambda: not lost.engines())
        link.mend()
        server.post("/api/models/alpha/unload", {})
        assert server.chat(PROMPTS[1], max_tokens=N_TOKENS) == text
        assert entry(server)["device"] == f"{lost.address}/CPU, {stays.address}/CPU"
