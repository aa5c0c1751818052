"""What a GPU of the tests sees: only what somebody reads is copied from it; and when it crashes, hangs or fails in the
midst of its work, the jobs there are lost, and nothing else is.

The engine's library for NVIDIA's GPUs is one of the tests here (`tests/gpus/fake_backend.py`), and so is their driver.
The program is that of the source tree: the frozen file takes no other library than its own.
"""

import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.harness import COMPLETION, ENDLESS, FROZEN_FILE, PROMPTS, STEADY_SEED, Json, Server
from tests.gpus.fake_backend import NAME, source_tree
from tests.gpus.fake_driver import HOPPER, compile_driver
from tests.models import demo_model
from tests.tiny_models import vocabulary, write_tiny_bert, write_tiny_model

REAL = "smollm2-135m-instruct.q4-1"
ALL = 3  # layers of the tiny models, with their output
LIMITS = ("--worker-timeout", "5")
# The program, where a device that has failed is tried again at once, and not after ten minutes.
TRIES_AGAIN = """
import sys
from shimmy.__main__ import main
from shimmy.pool import device_choice
device_choice.RETRY_S = 0.0
sys.exit(main())
"""

pytestmark = [
    # The source tree alone can open the library, so that `make test` runs this there.
    pytest.mark.smoke,
    pytest.mark.thorough,
    pytest.mark.skipif(FROZEN_FILE is not None, reason="the frozen file has libraries of its own"),
    pytest.mark.timeout(120),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source tree with a library for a GPU of the tests."""
    return source_tree(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def harm(tmp_path: Path, driver: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says what becomes of the next thing that the GPU computes."""
    path = tmp_path / "harm"
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver.parent), prepend=":")
    for name, value in {"FAKE_CUDA_GPUS": HOPPER, "FAKE_BACKEND": str(path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return path


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    write_tiny_model(folder, "alpha", n_ctx_train=65536, seed=STEADY_SEED)
    write_tiny_model(folder, "beta", seed=1)
    write_tiny_bert(folder, "bert")
    return folder


def program(tree: Path, *words: str) -> tuple[str, ...]:
    return ("env", f"PYTHONPATH={tree}", sys.executable, *(words or ("-m", "shimmy")))


def befall(harm: Path, what: str) -> None:
    """Have that become of the next thing that the GPU computes: the file is there with all of it, or not at all."""
    new = harm.with_name("new")
    new.write_text(what)
    new.rename(harm)


def entry(server: Server, name: str = "alpha") -> Json:
    return server.get(f"/api/models/{name}/status").json()


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("abort", "the fake device aborts"),
        ("segfault", "signal 11"),
        ("hang", "it got no further"),
        ("fail", "the engine failed to decode (status -3)"),
    ],
)
def test_what_a_device_does_in_a_decode_costs_the_jobs_there_and_the_processor_goes_on(
    what: str, reason: str, tree: Path, harm: Path, start: StartServer
) -> None:
    server = start("--ctx-size", "65536", *LIMITS, program=program(tree))
    text, other = server.chat(PROMPTS[0]), server.chat(PROMPTS[0], "beta")
    before = entry(server, "beta")
    for told in (before, entry(server)):
        assert (told["device"], told["n_device_layers"], told["n_layers"]) == (NAME, ALL, ALL)
    with ExitStack() as connections:
        streams = [connections.enter_context(server.stream(prompt, **ENDLESS)) for prompt in PROMPTS[:3]]
        for stream in streams:
            stream.read(3)
        befall(harm, what)
        for stream in streams:
            stream.finish()
            assert stream.error is not None
            assert stream.error["code"] == "worker_died"
            assert reason in stream.error["message"]
    assert server.chat(PROMPTS[0]) == text, "by the processor"
    told = entry(server)
    assert (told["device"], told["state"], told["error"]) == (None, "ready", None)
    assert told["device_note"].startswith(f"it failed on {NAME}: ")
    assert reason in told["device_note"]
    assert server.metric('shimmy_gpu_failures_total{model="alpha",outcome="processor"}') == 1
    assert server.chat(PROMPTS[0], "beta") == other
    assert {name: entry(server, "beta")[name] for name in ("pid", "device")} == {"pid": before["pid"], "device": NAME}
    server.post("/api/models/alpha/unload", {})
    assert server.post("/api/models/alpha/load", {}).status == 200
    assert (entry(server)["device"], entry(server)["device_note"]) == (NAME, ""), "a person wants it tried again"
    assert server.chat(PROMPTS[0]) == text


def test_a_device_that_failed_is_tried_again_by_itself(tree: Path, harm: Path, start: StartServer) -> None:
    server = start(program=program(tree, "-c", TRIES_AGAIN))
    text = server.chat(PROMPTS[0])
    befall(harm, "abort")
    assert server.post(COMPLETION, {"model": "alpha", "prompt": PROMPTS[0]}).status == 502
    assert server.chat(PROMPTS[0]) == text
    assert entry(server)["device"] == NAME
    assert server.metric("shimmy_worker_deaths_total", "alpha") == 1


def test_embeddings_that_a_device_fails_to_compute(tree: Path, harm: Path, start: StartServer) -> None:
    server = start(program=program(tree))
    body = {"model": "bert", "input": "hello world"}
    vector = server.post("/v1/embeddings", body).json()["data"]
    assert entry(server, "bert")["device"] == NAME
    befall(harm, "fail")
    reply = server.post("/v1/embeddings", body)
    assert reply.status == 502
    assert "the engine failed to decode (status -3)" in reply.error["message"]
    assert server.post("/v1/embeddings", body).json()["data"] == vector
    assert entry(server, "bert")["device"] is None


def test_a_model_that_finds_no_memory_in_a_decode_has_fewer_layers_there(
    tree: Path, harm: Path, start: StartServer
) -> None:
    server = start(program=program(tree))
    text = server.chat(PROMPTS[0])
    befall(harm, "no memory")
    reply = server.post(COMPLETION, {"model": "alpha", "prompt": PROMPTS[0]})
    assert reply.status == 502
    assert "CUDA error" in reply.error["message"]
    assert server.chat(PROMPTS[0]) == text
    told = entry(server)
    assert (told["device"], told["n_device_layers"]) == (NAME, ALL - 1)
    assert told["device_note"].startswith(f"{NAME} had no memory for {ALL} layers: ")
    assert server.metric('shimmy_gpu_failures_total{model="alpha",outcome="fewer_layers"}') == 1


@pytest.mark.usefixtures("harm")
def test_a_quantised_cache_leaves_room_for_more_layers_and_an_exact_one_for_fewer(
    tree: Path, start: StartServer
) -> None:
    needed = []
    for kv_type in ("q8_0", "f16", "f32"):
        options = ("--kv-type", kv_type, "--ctx-size", "8192")
        server = start("--model-path", demo_model(), *options, program=program(tree))
        body = {"model": REAL, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
        reply = server.request("POST", COMPLETION, body, deadline_s=60).json()
        assert "Paris" in reply["choices"][0]["text"]
        told = entry(server, REAL)
        assert (told["device"], told["n_device_layers"]) == (NAME, told["n_layers"])
        needed.append(told["memory"]["device_bytes"])
    assert needed[1] - needed[0] > 80 * 10**6
    assert needed[2] - needed[1] > 250 * 10**6, "and scores of each head"


def test_no_logits_are_copied_that_nobody_reads(
    tree: Path, harm: Path, start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = harm.with_name("reads")
    monkeypatch.setenv("FAKE_BACKEND_READS", str(reads))
    server = start("--no-speculation", program=program(tree))
    assert server.post("/tokenize", {"model": "alpha", "content": "a"}).status == 200
    reads.unlink()  # what the load has tried out
    body = {"model": "alpha", "prompt": " ".join(PROMPTS), "max_tokens": 8, "ignore_eos": True, "temperature": 0}
    usage = server.post(COMPLETION, body).json()["usage"]
    assert usage["prompt_tokens"] > 100
    row = f"result_output {4 * len(vocabulary())}"
    assert reads.read_text().splitlines() == [row] * usage["completion_tokens"]


@pytest.mark.parametrize("what", ["abort", "fail"])
def test_a_device_that_is_required_is_tried_again_at_each_load(
    what: str, tree: Path, harm: Path, start: StartServer
) -> None:
    server = start("--device-required", program=program(tree))
    text = server.chat(PROMPTS[0])
    befall(harm, what)
    assert server.post(COMPLETION, {"model": "alpha", "prompt": PROMPTS[0]}).status == 502
    assert server.chat(PROMPTS[0]) == text
    assert entry(server)["device"] == NAME
