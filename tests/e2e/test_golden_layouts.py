"""Each quantised layout as a person serves it: the weights in the GGUF that the program makes are those that the
layout's own library reads, and log-probabilities over HTTP are those of the same weights in F32."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import pytest

from tests.converted_files import Tensor, assert_same, converted_file, tensors_of, weights_of
from tests.e2e.harness import COMPLETION, Json, Server, run, serving
from tests.engine.layouts.stored import cases
from tests.engine.layouts.test_layouts import HELD
from tests.engine.layouts.test_quantised_llama import BECOMES
from tests.layout_models import MODULES, write_layout_model
from tests.quantised_llama import LAYOUTS, write_both
from tests.tiny_checkpoints import N_VOCAB

CASES = cases()
_RANDOM = Random(7)
PROMPTS = [[_RANDOM.randrange(3, N_VOCAB) for _ in range(12)] for _ in range(8)]
N_TOP = 20  # as many candidates of a token as the server tells
TOLERANCE = 2e-2  # the engine's own rounding of what it multiplies with quantised weights, to 8 or 11 bits


class Served(NamedTuple):
    """A running server, with the folder of its models and that of what it makes of them."""

    server: Server
    models: Path
    cache: Path
    target_type: str

    def log_probabilities(self, name: str) -> list[Json]:
        """What is told of the tokens of each prompt; the model is unloaded then."""
        body = {"model": name, "prompt": PROMPTS, "max_tokens": 0, "echo": True, "logprobs": N_TOP, "keep_alive": 0}
        reply = self.server.post(COMPLETION, body)
        assert reply.status == 200, reply.body
        return [choice["logprobs"] for choice in reply.json()["choices"]]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Of the GGUF that a model has become."""
        return tensors_of(converted_file(self.models / name, self.cache, self.target_type))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    for name in CASES:
        write_layout_model(folder / f"golden-{name}", name)
    for layout in LAYOUTS:
        write_both(folder, layout)
    return folder


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Served]:
    """A server that makes F32 of all weights."""
    folder = tmp_path_factory.mktemp("exact")
    options = ("--model-path", models, "--cache-dir", folder / "cache", "--safetensors-type", "f32")
    with serving(folder / "server", *options) as server:
        yield Served(server, models, folder / "cache", "f32")


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Served]:
    """A server with the defaults."""
    folder = tmp_path_factory.mktemp("usual")
    with serving(folder / "server", "--model-path", models, "--cache-dir", folder / "cache") as server:
        yield Served(server, models, folder / "cache", "")


def assert_alike(found: list[Json], wanted: list[Json], away: float) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["token_logprobs"][1:] == pytest.approx(theirs["token_logprobs"][1:], abs=away)
        for some, others in zip(ours["top_logprobs"][1:], theirs["top_logprobs"][1:], strict=True):
            both = some.keys() & others.keys()
            assert len(both) > N_TOP // 2
            assert [some[token] for token in both] == pytest.approx([others[token] for token in both], abs=away)


@pytest.mark.parametrize("case", CASES)
def test_golden_weights_are_served(exact: Served, usual: Served, case: str) -> None:
    name = f"golden-{case}"
    wanted = exact.log_probabilities(name)
    golden, held = exact.tensors(name), HELD[case]
    assert_alike(usual.log_probabilities(name), wanted, TOLERANCE)
    made = usual.tensors(name)
    for layer in range(len(MODULES)):
        tensor = f"blk.{layer}.ffn_down.weight"
        numbers = golden[tensor].numbers()
        assert golden[tensor].kind == "F32"
        assert hashlib.sha256((numbers + np.float32(0)).tobytes()).hexdigest() == CASES[case]["sha256"]
        beside = f"blk.{layer}.ffn_down.scale" in made  # of which the engine multiplies the products
        assert made[tensor].kind == held.kind
        error = 3e-7 if beside else held.error
        assert (np.abs(weights_of(made, tensor) - numbers) <= error * np.abs(numbers) + bool(error) * 2.0**-25).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_quantised_llama_is_served(exact: Served, usual: Served, layout: str) -> None:
    """All its matrices are quantised, those of attention, whose rows the GGUF has in another order, among them."""
    wanted = exact.log_probabilities(f"{layout}-plain")
    assert_alike(exact.log_probabilities(layout), wanted, TOLERANCE)
    plain = exact.tensors(f"{layout}-plain")
    assert_same(exact.tensors(layout), plain)
    kind, error = BECOMES[layout]
    assert_alike(usual.log_probabilities(layout), wanted, TOLERANCE)
    made = usual.tensors(layout)
    assert kind in {tensor.kind for tensor in made.values()}
    for name in plain:
        away = np.abs(weights_of(made, name) - plain[name].numbers())
        assert (away <= (2.0**-11 if error else 3e-7) * np.abs(plain[name].numbers()) + 2.0**-25).all(), name


@pytest.mark.parametrize("case", ["awq", "bnb-nf4-nested", "fp8-block", "gptq-4-desc-act", "mlx-8", "modelopt-nvfp4"])
def test_convert_writes_what_a_server_does(exact: Served, case: str, tmp_path: Path) -> None:
    name = f"golden-{case}"
    target = tmp_path / "made.gguf"
    done = run(tmp_path, "convert", exact.models / name, "--type", "f32", "-o", target)
    assert (done.returncode, done.stderr) == (0, ""), "of F32 nothing has to be told"
    exact.log_probabilities(name)
    assert tensors_of(target) == exact.tensors(name)
