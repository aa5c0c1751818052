"""Folders whose quantisation is described wrongly: refused by name, or served with the weights that they have."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from tests.converted_files import assert_same, converted_file, tensors_of
from tests.e2e.harness import COMPLETION, Json, Reply, Server, serving
from tests.engine.layouts.test_mutated_configurations import is_another_model, mutated
from tests.quantised_llama import LAYOUTS, write_both

N_MUTATIONS = int(os.environ.get("SHIMMY_TEST_MUTATIONS", "300"))
N_EACH = N_MUTATIONS // len(LAYOUTS) + 1
REFUSED = (404, 503)  # when it is found, and when its scales and zero points are read


class Served(NamedTuple):
    """A running server, the folder of its models and that of what it makes of them; what the configurations say of the
    quantisation, and what the server lists."""

    server: Server
    models: Path
    cache: Path
    described: dict[str, Json]
    entries: dict[str, Json]

    def load(self, name: str) -> Reply:
        return self.server.post(COMPLETION, {"model": name, "prompt": "hello", "max_tokens": 1, "keep_alive": 0})

    def made(self, name: str) -> Path:
        return converted_file(self.models / name, self.cache, "f32")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that makes F32 of all weights."""
    folder = tmp_path_factory.mktemp("mutated")
    models, cache = folder / "models", folder / "cache"
    described: dict[str, Json] = {}
    for layout in LAYOUTS:
        whole, _ = write_both(models, layout)
        random, config = Random(layout), json.loads((whole / "config.json").read_text())
        own = {key: config.pop(key) for key in ("quantization", "quantization_config") if key in config}
        for index in range(N_EACH):
            name = f"{layout}-{index}"
            described[name] = mutated(own, random)
            (models / name).mkdir()
            for path in whole.iterdir():
                os.link(path, models / name / path.name)
            (models / name / "config.json").unlink()
            (models / name / "config.json").write_text(json.dumps({**config, **described[name]}))
    options = ("--model-path", models, "--cache-dir", cache, "--safetensors-type", "f32")
    with serving(folder / "server", *options) as server:
        entries = {entry["name"]: entry for entry in server.get("/api/models").json()["models"]}
        yield Served(server, models, cache, described, entries)


def assert_tells_why(reason: str) -> None:
    """One of our own sentences, and none that quotes an exception or tells of the end of a worker."""
    assert reason
    for word in ("cannot be understood", "Error:", "Traceback", "signal", "ended"):
        assert word not in reason


@pytest.mark.timeout(900)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_mutated_configurations_are_refused_or_served_as_before(served: Served, layout: str) -> None:
    assert served.load(f"{layout}-plain").status == 200
    plain = tensors_of(served.made(f"{layout}-plain"))
    names = [f"{layout}-{index}" for index in range(N_EACH)]
    accepted = [name for name in names if not served.entries[name]["error"]]
    for name in names:
        if name not in accepted:
            assert_tells_why(served.entries[name]["error"])
    with ThreadPoolExecutor(2) as threads:
        replies = dict(zip(accepted, threads.map(served.load, accepted), strict=True))
    for name, reply in replies.items():
        if reply.status != 200:
            assert reply.status in REFUSED, (name, served.described[name], reply.body)
            assert_tells_why(reply.error["message"])
        elif not is_another_model(served.described[name].get("quantization_config")):
            assert_same(tensors_of(served.made(name)), plain)
    n_served = sum(reply.status == 200 for reply in replies.values())
    assert N_EACH // 20 < n_served < N_EACH - N_EACH // 20
    assert "Traceback" not in served.server.log
