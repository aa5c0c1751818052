"""The file with CUDA on machines without a GPU: nothing of CUDA is unpacked there, and whatever NVIDIA's driver does,
one line says it and the processor computes. `make cuda-e2e` runs this; without that file, all of it is skipped."""

import json
import os
from pathlib import Path

import pytest

from tests.e2e.conftest import StartServer
from tests.e2e.harness import COMPLETION, FROZEN_FILE, PROMPTS, Json, Server, run
from tests.gpus.fake_driver import HOPPER, PASCAL, compile_driver

LIBRARY_BYTES = 50_000_000  # at least
LOAD_S = "30"

pytestmark = [
    pytest.mark.frozen,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not (FROZEN_FILE or "").endswith("-cuda"), reason="this is not the file with CUDA"),
]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver of NVIDIA's with one GPU, by our library: the frozen file heeds no LD_LIBRARY_PATH."""
    monkeypatch.setenv("LD_PRELOAD", str(compile_driver(tmp_path)))
    monkeypatch.setenv("FAKE_CUDA_GPUS", HOPPER)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def unpacked(folder: Path) -> list[Path]:
    """Libraries of the size of CUDA's in a folder, where no start and no driver without a GPU has to leave one."""
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size > LIBRARY_BYTES]


def generates(server: Server) -> Json:
    """What is told of a model that has been asked for a reply."""
    reply = server.post(COMPLETION, {"model": "alpha", "prompt": PROMPTS[0], "max_tokens": 4, "ignore_eos": True})
    assert reply.status == 200, reply.body
    told: Json = server.get("/api/models/alpha/status").json()
    assert (told["device"], told["state"], told["error"]) == (None, "ready", None)
    return told


def test_without_a_driver_the_processor_computes_and_nothing_is_unpacked(start: StartServer, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    server = start("--cache-dir", cache)
    generates(server)
    assert not unpacked(tmp_path)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"FAKE_CUDA": "cuInit=999"}, "cuInit failed: an unknown error"),
        ({"FAKE_CUDA": "cuDeviceGetCount=100"}, "cuDeviceGetCount failed"),
        ({"FAKE_CUDA": "cuDeviceGetName=abort"}, "NVIDIA's driver crashed (SIGABRT) when it was asked for its devices"),
        ({"FAKE_CUDA": "cuInit=hang"}, "NVIDIA's driver did not answer within"),
        ({"FAKE_CUDA_VERSION": "12080"}, "needs 13.0: install NVIDIA's driver 580 or newer"),
        ({"FAKE_CUDA_GPUS": PASCAL}, "it has compute capability 6.1, CUDA in this program needs 7.5"),
    ],
)
def test_one_line_says_why_a_driver_is_of_no_use(
    variables: dict[str, str], reason: str, start: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ended = run(tmp_path, "gpu-info")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert sum(reason in line for line in ended.stdout.splitlines()) == 1
    server = start("--device", "CUDA0")
    assert reason in generates(server)["device_note"]
    assert not unpacked(tmp_path)


@pytest.mark.usefixtures("driver")
def test_a_driver_that_lists_a_gpu_and_cannot_compute_leaves_the_model_to_the_processor(
    start: StartServer, tmp_path: Path
) -> None:
    """CUDA's library is unpacked, once, and finds that the driver has none of what it calls."""
    (device,) = json.loads(run(tmp_path, "gpu-info", "--json").stdout)["devices"]
    assert (device["name"], device["is_used"]) == ("CUDA0", True)
    cache = tmp_path / "cache"
    server = start("--cache-dir", cache, "--load-timeout", LOAD_S)
    assert generates(server)["device_note"].startswith("it failed on CUDA0: ")
    (library,) = unpacked(cache)
    assert library.stat().st_mode & 0o022 == 0
    before = library.stat()
    assert server.post("/api/models/alpha/unload", {}).status == 200
    generates(server)
    assert os.path.samestat(before, library.stat())
