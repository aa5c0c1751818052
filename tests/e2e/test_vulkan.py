"""Models on a device of Vulkan: llvmpipe, Mesa's driver that computes on the processor, and drivers that fail.

llvmpipe compiles a program for each kind of product at its first use, and keeps them in the build cache; it computes a
thousand times slower than the processor itself. So these models are tiny and their replies short.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from shimmy.system.backends import VULKAN
from tests import tiny_families
from tests.e2e.conftest import StartServer
from tests.e2e.harness import COMPLETION, FROZEN_FILE, PROMPTS, STEADY_SEED, Json, Server, run, serving
from tests.e2e.processes import wait_for
from tests.gpu.check import PROMPTS as REAL_PROMPTS
from tests.gpu.check import choices, compare, complete
from tests.gpus.fake_loader import FAILS_LATER, GEFORCE, LOADER, compile_loader
from tests.models import demo_model
from tests.smollm2_folder import write_as
from tests.tiny_checkpoints import write_checkpoint, write_tokenizer
from tests.tiny_models import write_tiny_adapter, write_tiny_model
from tools import lavapipe

DEVICE = "Vulkan0"
ALL = 3  # layers of the tiny models, with their output
N_TOKENS = 12
N_FORCED = 16  # of a real model
F16 = 1  # llama_ftype
LONG = " ".join(PROMPTS + PROMPTS[:12])  # more tokens than a new pool has cells
COMPILES_S = 900  # for a request that llvmpipe has nothing compiled for: a minute on processors of which a test has all
ON_DEVICE = ("--device", DEVICE, "--worker-timeout", "10m")  # compiling is not seen as progress
# Of log-probabilities, between the processor and llvmpipe (0.002 was the most, with F32 weights).
TOLERANCE = 0.02

pytestmark = [
    pytest.mark.skipif(VULKAN.built() is None, reason="this build has no Vulkan"),
    pytest.mark.timeout(1000),
]


@pytest.fixture(scope="module")
def device_server(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Server]:
    """A server that computes on llvmpipe, with the shared models, and a folder of the module's own."""
    own = tmp_path_factory.mktemp("own")
    write_tiny_model(own, "gamma", seed=STEADY_SEED)
    with pytest.MonkeyPatch.context() as patch:
        use_llvmpipe(patch)
        folder = tmp_path_factory.mktemp("device")
        with serving(folder, "--model-path", models, "--model-path", own, *ON_DEVICE) as server:
            greedy(server, LONG)  # the other tests find in the build cache what was compiled for this
            yield server


def use_llvmpipe(patch: pytest.MonkeyPatch) -> None:
    for name, value in lavapipe.environment().items():
        patch.setenv(name, value)
    if FROZEN_FILE:  # which heeds no LD_LIBRARY_PATH
        patch.setenv("LD_PRELOAD", f"{lavapipe.environment()['LD_LIBRARY_PATH']}/{LOADER}")


def entry(server: Server, name: str = "alpha") -> Json:
    return server.get(f"/api/models/{name}/status").json()


def greedy(server: Server, prompt: str, **fields: Any) -> Json:
    body = {"model": "alpha", "prompt": prompt, "temperature": 0, "max_tokens": N_TOKENS, "ignore_eos": True, **fields}
    reply = server.request("POST", COMPLETION, body, deadline_s=COMPILES_S)
    assert reply.status == 200, reply.body
    choice: Json = reply.json()["choices"][0]
    return choice


def test_all_layers_are_on_the_device_and_everything_says_so(device_server: Server, tmp_path: Path) -> None:
    device_server.chat(PROMPTS[0], max_tokens=2)
    told = entry(device_server)
    assert (told["device"], told["n_device_layers"], told["n_layers"], told["device_note"]) == (DEVICE, ALL, ALL, "")
    assert told["memory"]["device_bytes"] > 0
    line = f'shimmy_model_gpu_layers{{model="alpha",device="{DEVICE}"}} {ALL}'
    assert line in device_server.get("/metrics").body.decode()
    assert f"{ALL} of {ALL} layers on {DEVICE} (llvmpipe" in device_server.log
    shown = run(tmp_path, "ps", "--url", device_server.url)
    assert f"{DEVICE}: {ALL} of {ALL}" in shown.stdout


def test_the_same_tokens_are_as_likely_as_on_the_processor(device_server: Server, server: Server) -> None:
    for prompt in PROMPTS[:2]:
        text = prompt + greedy(server, prompt)["text"]
        expected, got = (greedy(each, text, max_tokens=1, echo=True, logprobs=2) for each in (server, device_server))
        assert got["logprobs"]["tokens"] == expected["logprobs"]["tokens"]
        pairs = zip(got["logprobs"]["token_logprobs"][1:], expected["logprobs"]["token_logprobs"][1:], strict=True)
        assert max(abs(mine - theirs) for mine, theirs in pairs) < TOLERANCE
        # One token after the other is computed by other programs than a prompt.
        assert prompt + greedy(device_server, prompt)["text"] == text


def test_streams_run_at_once_and_a_long_prompt_lets_the_pool_grow(device_server: Server, server: Server) -> None:
    prompts = [*PROMPTS[:3], LONG]
    alone = [server.chat(prompt, max_tokens=N_TOKENS) for prompt in prompts]
    streams = [device_server.stream(prompt, max_tokens=N_TOKENS) for prompt in prompts]
    assert [stream.finish().text for stream in streams] == alone
    assert entry(device_server)["n_ctx_used"] > 512


@pytest.mark.thorough
@pytest.mark.usefixtures("device_server")
def test_a_cache_in_f32_is_computed_with_on_the_device(
    server: Server, start: StartServer, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_llvmpipe(monkeypatch)
    on_device = start("--model-path", models, *ON_DEVICE, "--kv-type", "f32")
    for prompt in (PROMPTS[0], LONG):
        assert greedy(on_device, prompt)["text"] == greedy(server, prompt)["text"]
    assert entry(on_device)["n_device_layers"] == ALL


@pytest.mark.thorough
def test_a_changed_file_is_swapped_on_the_device(device_server: Server) -> None:
    before = device_server.chat(PROMPTS[0], "gamma", max_tokens=N_TOKENS)
    path = Path(entry(device_server, "gamma")["path"])
    write_tiny_model(path.parent, "new", seed=1).rename(path)
    wait_for(
        "the swap", lambda: device_server.metric("shimmy_models_loaded") and "swapped `gamma`" in device_server.log
    )
    assert device_server.chat(PROMPTS[0], "gamma", max_tokens=N_TOKENS) != before
    assert entry(device_server, "gamma")["n_device_layers"] == ALL


@pytest.mark.thorough
@pytest.mark.usefixtures("device_server")
def test_some_layers_and_the_prompts_that_they_have_stored(
    tmp_path: Path, start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_llvmpipe(monkeypatch)
    write_tiny_model(tmp_path, "alpha", n_ctx_train=4096, seed=STEADY_SEED)
    options = ("--model-path", tmp_path, "--cache-dir", tmp_path / "cache", "--prompt-cache", "9M")
    long_prompt = " ".join(PROMPTS)
    on_processor = start(*options)
    text = on_processor.chat(long_prompt, max_tokens=N_TOKENS)
    on_processor.stop()
    on_device = start(*options, *ON_DEVICE, "--gpu-layers", "2")
    assert on_device.chat(long_prompt, max_tokens=N_TOKENS) == text
    told = entry(on_device)
    assert (told["n_device_layers"], told["device_note"]) == (2, "`--gpu-layers 2`")
    assert 'outcome="miss"} 1' in on_device.get("/metrics").body.decode(), "what the processor stored is not used"
    on_device.post("/api/models/alpha/unload", {})
    wait_for("the end of the worker", lambda: not on_device.workers())
    assert on_device.chat(long_prompt, max_tokens=N_TOKENS) == text
    assert 'outcome="hit"} 1' in on_device.get("/metrics").body.decode()


@pytest.mark.thorough
@pytest.mark.usefixtures("device_server")
def test_quantised_experts_some_of_which_stay_on_the_processor(
    tmp_path: Path, start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_llvmpipe(monkeypatch)
    folder = tmp_path / "models" / "moe"
    write_checkpoint(folder, tiny_families.config("mixtral"), tiny_families.tensors("mixtral"))
    write_tokenizer(folder)
    options = ("--model-path", tmp_path / "models", "--log-level", "debug", "--safetensors-type", "q8_0")
    likely = []
    for more in ((), (*ON_DEVICE, "--n-cpu-moe", "1")):
        server = start(*options, *more)
        told = greedy(server, "hello world", model="moe", max_tokens=4, echo=True, logprobs=1)["logprobs"]
        likely.append(told["token_logprobs"][1:])
    assert max(abs(mine - theirs) for mine, theirs in zip(*likely, strict=True)) < TOLERANCE
    moved = re.findall(r"tensor blk\.(\d)\.ffn_(\w+)_exps\.weight .*buffer type overridden", server.log)
    assert sorted(moved) == [("0", "down"), ("0", "gate"), ("0", "up")]
    assert entry(server, "moe")["n_device_layers"] == ALL


@pytest.mark.usefixtures("device_server")
def test_adapters_are_computed_on_the_device_and_take_turns(
    tmp_path: Path, start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_llvmpipe(monkeypatch)
    write_tiny_model(tmp_path, "alpha", seed=STEADY_SEED)
    (tmp_path / "adapters").mkdir()
    first, second = (write_tiny_adapter(tmp_path / "adapters", name, seed=seed) for name, seed in (("a", 1), ("b", 2)))
    options = ("--model-path", tmp_path / "alpha.gguf", "--lora", f"{first}=0", "--lora", second, "--embeddings")
    wishes = [[{"id": 0, "scale": scale}, {"id": 1, "scale": 1 - scale}] for scale in (0, 1, 0.5)]
    text, likely, vectors = "", [], []
    for more in ((), ON_DEVICE):
        server = start(*options, *more)
        vectors.append(server.post("/v1/embeddings", {"model": "alpha", "input": LONG}).json()["data"][0]["embedding"])
        text = text or PROMPTS[0] + greedy(server, PROMPTS[0], lora=wishes[0])["text"]
        told = [greedy(server, text, max_tokens=1, echo=True, logprobs=1, lora=wish)["logprobs"] for wish in wishes]
        likely.append([each["token_logprobs"][1:] for each in told])
    moved = [median(abs(a - b) for a, b in zip(likely[0][0], each, strict=True)) for each in likely[0][1:]]
    assert min(moved) > 10 * TOLERANCE
    for expected, got in zip(*likely, strict=True):
        # A scale moves nearly all tokens. After rounding, a head that looks at one token only may look at another one,
        # which moves a few.
        assert median(abs(mine - theirs) for mine, theirs in zip(expected, got, strict=True)) < TOLERANCE
    assert max(abs(mine - theirs) for mine, theirs in zip(*vectors, strict=True)) < TOLERANCE
    alone = [server.chat(PROMPTS[1], max_tokens=N_TOKENS, lora=wish) for wish in wishes]
    streams = [server.stream(PROMPTS[1], max_tokens=N_TOKENS, lora=wish) for wish in wishes]
    assert [stream.finish().text for stream in streams] == alone
    assert entry(server)["n_device_layers"] == ALL


@pytest.mark.usefixtures("device_server")
def test_a_device_without_memory_for_all_layers_has_fewer(
    tmp_path: Path, start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_llvmpipe(monkeypatch)
    # Between what four layers take of a pool's first 512 cells, and what six of them take.
    monkeypatch.setenv("GGML_VK_FORCE_MAX_BUFFER_SIZE", str(750_000))
    write_tiny_model(tmp_path, "alpha", n_layers=8, seed=STEADY_SEED)
    server = start("--model-path", tmp_path, *ON_DEVICE, "--batch-size", "32")
    assert greedy(server, PROMPTS[0])["text"]
    told = entry(server)
    assert (told["n_device_layers"], told["n_layers"]) == (5, 9)
    assert told["device_note"].startswith(f"{DEVICE} had no memory for 7 layers: ")
    assert "failed to allocate Vulkan0 buffer" in told["device_note"]
    assert server.metric('shimmy_gpu_failures_total{model="alpha",outcome="fewer_layers"}') == 2


@pytest.mark.thorough
@pytest.mark.usefixtures("device_server")
def test_an_idle_model_makes_room_on_the_device(
    tmp_path: Path, start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_llvmpipe(monkeypatch)
    names = [f"model-{number}" for number in range(12)]  # llvmpipe tells of 2 GB; each takes 0.3 GB to compute
    for name in names:
        write_tiny_model(tmp_path, name, seed=STEADY_SEED)
    server = start("--model-path", tmp_path, *ON_DEVICE)
    n_loaded = 0
    while not server.metric('shimmy_unloads_total{reason="device_memory"}'):
        greedy(server, "hello", model=names[n_loaded], max_tokens=1)
        assert entry(server, names[n_loaded])["n_device_layers"] == ALL
        n_loaded += 1
    assert n_loaded > 2
    states = [entry(server, name)["state"] for name in names[:n_loaded]]
    assert states == ["unloaded", *["ready"] * (n_loaded - 1)], "the least recently used one"


@pytest.mark.frozen  # llvmpipe takes a minute for so many tokens of a model of this size
@pytest.mark.usefixtures("device_server")
@pytest.mark.parametrize("kind", ["F16", "Q4_1"])
def test_a_real_model_makes_the_choices_of_the_processor_where_that_is_sure(
    kind: str, tmp_path: Path, start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = demo_model() if kind == "Q4_1" else write_as(F16, demo_model(), tmp_path / "smollm2.gguf")
    server = start("--model-path", model)
    texts = [prompt + complete(server.port, prompt, max_tokens=N_FORCED)["text"] for prompt in REAL_PROMPTS]
    expected = [choices(server.port, text) for text in texts]
    use_llvmpipe(monkeypatch)
    server = start("--model-path", model, *ON_DEVICE)
    found = compare([(choices(server.port, text), each) for text, each in zip(texts, expected, strict=True)])
    assert found["n_clear"] > 2 * N_FORCED
    assert found["n_other_choices"] == 0, found


def test_a_device_that_is_not_there_leaves_the_model_to_the_processor(
    start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_llvmpipe(monkeypatch)
    server = start("--device", "Vulkan7")
    assert server.chat(PROMPTS[0], max_tokens=2)
    assert entry(server)["device_note"] == f"there is no device `Vulkan7`; there are: {DEVICE}"
    required = start("--device", "Vulkan7", "--device-required")
    reply = required.post(COMPLETION, {"model": "alpha", "prompt": "hello"})
    assert reply.status == 503
    assert "there is no device `Vulkan7`" in reply.error["message"]


@pytest.mark.parametrize(
    ("mode", "reason"), [("abort", "signal 6"), ("hang", "it got no further"), ("fail", "does not work here")]
)
def test_a_driver_that_fails_costs_its_worker_and_the_processor_serves(
    mode: str, reason: str, tmp_path: Path, start: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = compile_loader(tmp_path, FAILS_LATER)
    for name, value in {"FAKE_DEVICES": GEFORCE, "FAKE_LATER": mode, "LD_PRELOAD": str(loader)}.items():
        monkeypatch.setenv(name, value)
    server = start("--load-timeout", "10")
    assert greedy(server, PROMPTS[0], max_tokens=4)["text"]
    told = entry(server)
    assert (told["device"], told["state"], told["error"]) == (None, "ready", None)
    assert told["device_note"].startswith(f"it failed on {DEVICE}: ")
    assert reason in told["device_note"]
    assert "is loaded again for the processor" in server.log
