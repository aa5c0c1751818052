"""More models than there is memory for: each answers for itself, and the limit holds."""

import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.harness import CHAT, COMPLETION, ENDLESS, Server, chat_body
from tests.e2e.processes import wait_for
from tests.tiny_models import write_tiny_model

N_MODELS, N_CLIENTS, N_REQUESTS = 6, 6, 36
PROMPT = "hello world"


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crowd")
    for number in range(N_MODELS):
        write_tiny_model(folder, f"m{number}", seed=number)
    return folder


def memory_bytes(server: Server, name: str) -> int:
    total: int = server.get(f"/api/models/{name}/status").json()["memory"]["total_bytes"]
    return total


def states(server: Server) -> dict[str, str]:
    return {entry["name"]: entry["state"] for entry in server.get("/api/models").json()["models"]}


def limit_for(n_models: int, server: Server) -> str:
    return str(36_000_000 + n_models * memory_bytes(server, "m0"))


@pytest.fixture
def roomy(start: StartServer, crowd: Path) -> Server:
    return start("--model-path", crowd)


def test_every_model_answers_for_itself_within_the_limit(start: StartServer, roomy: Server, crowd: Path) -> None:
    names = [f"m{number}" for number in range(N_MODELS)]
    expected = {name: roomy.chat(PROMPT, name, max_tokens=16) for name in names}
    assert len(set(expected.values())) == N_MODELS
    server = start("--model-path", crowd, "--max-memory", limit_for(2, roomy))
    most = 0

    def ask(number: int) -> None:
        nonlocal most
        name = random.Random(number).choice(names)
        assert server.chat(PROMPT, name, max_tokens=16) == expected[name]
        most = max(most, len(server.workers()))

    with ThreadPoolExecutor(N_CLIENTS) as pool:
        list(pool.map(ask, range(N_REQUESTS)))
    assert 1 <= most <= 2, "never more workers than there is memory for"
    assert server.metric("shimmy_worker_deaths_total") == 0
    assert 'shimmy_unloads_total{reason="memory"}' in server.get("/metrics").body.decode()


def test_a_running_job_is_not_ended_for_another_model(start: StartServer, roomy: Server, crowd: Path) -> None:
    server = start("--model-path", crowd, "--max-memory", limit_for(1, roomy))
    with ExitStack() as connections:
        stream = connections.enter_context(server.stream(PROMPT, "m0", **ENDLESS)).read()
        waiting = connections.enter_context(server.later(CHAT, chat_body(PROMPT, "m1")))
        stream.finish()
        assert stream.finish_reason == "length"
        assert waiting.reply().status == 200
    assert states(server)["m1"] == "ready"
    assert states(server)["m0"] == "unloaded"


def test_a_pinned_model_stays_and_the_other_is_refused_with_numbers(
    start: StartServer, roomy: Server, crowd: Path
) -> None:
    server = start("--model-path", crowd, "--max-memory", limit_for(1, roomy))
    server.chat(PROMPT, "m0", keep_alive=-1)
    reply = server.post(CHAT, chat_body(PROMPT, "m1"))
    assert (reply.status, reply.error["code"]) == (503, "out_of_memory")
    assert reply.headers["retry-after"]
    for part in ("`m1` takes", "KV cache", "`--max-memory`"):
        assert part in reply.error["message"]
    assert "KV cache" in server.get("/api/models/m1/status").json()["error"]
    assert server.chat(PROMPT, "m0")
    server.chat(PROMPT, "m0", keep_alive="5m")
    assert server.chat(PROMPT, "m1"), "no longer pinned, it makes room"


def test_a_full_queue_is_a_503_that_says_when_to_come_back(start: StartServer, crowd: Path) -> None:
    server = start("--model-path", crowd, "--parallel", "1", "--max-queue", "1", "--ctx-size", "16384")
    with ExitStack() as connections:
        connections.enter_context(server.stream(PROMPT, "m0", max_tokens=None, ignore_eos=True)).read()
        connections.enter_context(server.later(CHAT, chat_body(PROMPT, "m0")))
        wait_for("both jobs", lambda: server.n_jobs("m0") == 2)
        reply = server.post(COMPLETION, {"model": "m0", "prompt": PROMPT})
        assert (reply.status, reply.error["code"]) == (503, "overloaded")
        assert reply.headers["retry-after"]
        assert server.chat(PROMPT, "m1"), "another model has a queue of its own"
