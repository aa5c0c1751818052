"""Importance matrices that are computed: the sums are those of the activations, which numpy computes as well."""

import struct
from pathlib import Path
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from shimmy.engine.llama.calibration import Collector, calibrate, main
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.errors import BadRequest, ModelUnavailable
from shimmy.formats.convert.convert import convert
from shimmy.formats.gguf import importance, reader
from tests import tiny_families
from tests.tiny_checkpoints import write_checkpoint, write_tokenizer
from tests.tiny_models import (
    N_EMBD,
    N_HEAD,
    N_LAYER,
    model_tensors,
    write_tiny_bert,
    write_tiny_mamba,
    write_tiny_model,
)

N_PIECE, SEED, FOCUS = 256, 3, 0.1
N_PIECES = 2
TEXT = " ".join(Random(0).choices(["hello world", "the user", "a fox tells", "bamo dexi", "12, 7!"], k=150))

Floats = NDArray[np.float64]


def open_model(path: Path, cpu: CpuBackend) -> LlamaModel:
    return LlamaModel(path, cpu, repacks=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    return write_tiny_model(folder, n_ctx_train=N_PIECE, seed=SEED, focus=FOCUS)


# -- numpy's own calculation of the tiny llama ----------------------------------------------------------------------


def weights() -> dict[str, Floats]:
    """By name: [outputs, inputs]."""
    return {
        tensor.name: np.frombuffer(tensor.data, "<f4").astype(np.float64).reshape(tensor.shape[::-1])
        for tensor in model_tensors(SEED, FOCUS)
    }


def rotated(x: Floats) -> Floats:
    """Pairs of neighbours in each head, turned by an angle that grows with the position."""
    n_rows, _, n_head = x.shape
    angles = np.arange(n_rows)[:, None, None] * 10000.0 ** (-np.arange(0, n_head, 2) / n_head)
    turned = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
    return np.stack((turned.real, turned.imag), axis=-1).reshape(x.shape)


def attention(q: Floats, k: Floats, v: Floats) -> Floats:
    heads = [part.reshape(len(part), N_HEAD, -1) for part in (q, k, v)]
    scores = np.einsum("ihd,jhd->hij", rotated(heads[0]), rotated(heads[1])) / (N_EMBD // N_HEAD) ** 0.5
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True)) * np.tri(len(q))
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed: Floats = np.einsum("hij,jhd->ihd", scores, heads[2]).reshape(q.shape)
    return mixed


def inputs(tokens: list[int]) -> dict[str, Floats]:
    """What goes into the product with each weight of the layers, for one piece: [tokens, columns]."""
    found, w = {}, weights()
    x = w["token_embd.weight"][tokens]
    for layer in range(N_LAYER):

        def product(name: str, given: Floats, layer: int = layer) -> Floats:
            found[f"blk.{layer}.{name}.weight"] = given
            return given @ w[f"blk.{layer}.{name}.weight"].T

        normed = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-5)
        mixed = attention(*(product(f"attn_{name}", normed) for name in "qkv"))
        x = x + product("attn_output", mixed)
        normed = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-5)
        gate, up = product("ffn_gate", normed), product("ffn_up", normed)
        x = x + product("ffn_down", gate / (1 + np.exp(-gate)) * up)
    return found


def test_the_sums_are_those_of_the_activations(tiny: Path, cpu: CpuBackend) -> None:
    model = open_model(tiny, cpu)
    shares: list[float] = []
    sums, n_pieces, n_piece = calibrate(model, TEXT, 1, shares.append)
    assert (n_pieces, n_piece, shares) == (N_PIECES, N_PIECE, [0.5, 1.0])
    tokens = model.vocab.tokenize(TEXT, add_special=True, parse_special=False)
    first = model.vocab.bos_token()
    assert first is not None
    expected: dict[str, Floats] = {}
    for piece in range(N_PIECES):
        for name, given in inputs([first, *tokens[piece * N_PIECE + 1 : (piece + 1) * N_PIECE]]).items():
            expected[name] = expected.get(name, np.zeros(given.shape[1])) + np.square(given).sum(axis=0)
    assert sums.keys() == expected.keys()
    for name, (values, counts) in sums.items():
        assert [*counts] == [N_PIECES * N_PIECE]
        # Embeddings are exact; what follows attention has been through a KV cache in F16.
        tolerance = 1e-5 if name.startswith("blk.0.attn_") and "output" not in name else 1e-2
        assert np.allclose(values, expected[name], rtol=tolerance, atol=0), name


# -- experts ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def experts(cpu: CpuBackend, tmp_path_factory: pytest.TempPathFactory) -> importance.Sums:
    folder = tmp_path_factory.mktemp("experts")
    write_checkpoint(folder / "moe", tiny_families.config("mixtral"), tiny_families.tensors("mixtral"))
    write_tokenizer(folder / "moe")
    convert(folder / "moe", folder / "moe.gguf", lambda _: None)
    return calibrate(open_model(folder / "moe.gguf", cpu), TEXT, 2, lambda _: None)[0]


def test_experts_share_what_their_router_sees(experts: importance.Sums) -> None:
    """Each token goes to two experts, so both sums of theirs are twice what the router was given."""
    for layer in range(tiny_families.LAYERS):
        given, (n_tokens,) = experts[f"blk.{layer}.ffn_gate_inp.weight"]
        for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
            values, counts = experts[f"blk.{layer}.{name}.weight"]
            assert len(counts) == tiny_families.EXPERTS
            assert sum(counts) == 2 * n_tokens
            assert len(set(counts)) > 1
            if name != "ffn_down_exps":
                parts = np.reshape(values, (tiny_families.EXPERTS, -1))
                assert np.allclose(parts.sum(axis=0), 2 * np.array(given), rtol=1e-5)
        assert experts[f"blk.{layer}.ffn_gate_exps.weight"] == experts[f"blk.{layer}.ffn_up_exps.weight"]


@pytest.mark.parametrize("n_given", [1, 2])
def test_each_expert_gets_the_rows_that_chose_it(n_given: int) -> None:
    random = np.random.default_rng(0)
    given = random.standard_normal((50, n_given, 8)).astype(np.float32)
    chosen = np.array([random.permutation(5)[:2] for _ in range(50)], np.int32) % 4
    sums, counts = np.zeros((5, 8)), np.zeros(5)
    for token in range(50):
        for place, expert in enumerate(chosen[token]):
            sums[expert] += given[token, place % n_given].astype(np.float64) ** 2
            counts[expert] += 1
    collector = Collector()
    collector._add_experts("x", 5, given, chosen)
    values, found = collector.sums()["x"]
    assert np.allclose(values, sums.ravel(), rtol=1e-5)
    assert [*found] == [*counts]
    assert found[4] == 0


# -- the sub-command ----------------------------------------------------------------------


def test_what_is_written_is_read_back(
    tiny: Path, cpu: CpuBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, target = tmp_path / "text.txt", tmp_path / "matrix.gguf"
    text.write_text(TEXT)
    assert main([str(tiny), str(text), str(target), "1"]) == 0
    assert capsys.readouterr().out == "0.500\n1.000\n"
    sums, _, _ = calibrate(open_model(tiny, cpu), TEXT, 1, lambda _: None)
    matrix = importance.read(target)
    read = {name: list(means) for name, means in matrix.values(matrix.entries)}
    assert read.keys() == sums.keys()
    for name, (values, counts) in sums.items():
        assert matrix.entries[name].counts == tuple(counts)
        assert np.allclose(np.array(read[name]) * counts[0], values, rtol=1e-5)
    shapes = {name.decode(): tensor.shape for name, tensor in reader.contents(tiny).tensors.items()}
    assert importance.check(matrix, shapes) == ()
    found = reader.contents(target)
    assert found.metadata[b"general.type"] == b"imatrix"
    assert (found.metadata[b"imatrix.chunk_count"], found.metadata[b"imatrix.chunk_size"]) == (N_PIECES, N_PIECE)


def test_a_model_that_remembers_in_states(tmp_path: Path, cpu: CpuBackend) -> None:
    sums, _, _ = calibrate(open_model(write_tiny_mamba(tmp_path), cpu), TEXT, 1, lambda _: None)
    assert {f"blk.{layer}.ssm_{name}.weight" for layer in range(N_LAYER) for name in ("in", "x", "out")} <= sums.keys()


def test_a_short_text_is_refused(tiny: Path, cpu: CpuBackend) -> None:
    for text in ("", "hello"):
        with pytest.raises(BadRequest, match="256 are the least"):
            calibrate(open_model(tiny, cpu), text, 1, lambda _: None)


def test_a_model_that_writes_no_text_is_refused(tmp_path: Path, cpu: CpuBackend) -> None:
    with pytest.raises(ModelUnavailable, match="cannot generate text"):
        calibrate(open_model(write_tiny_bert(tmp_path), cpu), TEXT, 1, lambda _: None)


def damaged(path: Path, target: Path) -> Path:
    """With a weight of the second layer that is no number."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<f", data, reader.contents(path).starts[b"blk.1.attn_q.weight"], float("nan"))
    struct.pack_into("<f", data, reader.contents(path).starts[b"blk.0.ffn_down.weight"], float("nan"))
    target.write_bytes(data)
    return target


def test_a_damaged_model_is_refused(tiny: Path, tmp_path: Path, cpu: CpuBackend) -> None:
    with pytest.raises(ModelUnavailable, match="no numbers"):
        calibrate(open_model(damaged(tiny, tmp_path / "nan.gguf"), cpu), TEXT, 1, lambda _: None)


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"\xff\xfe\0", "UTF-8"), (b"hello", "are the least"), (None, "No such file")]
)
def test_the_reason_goes_to_stderr(
    content: bytes | None, complaint: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    assert main([str(tiny), str(text), str(tmp_path / "matrix.gguf"), "1"]) == 1
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "matrix.gguf").exists()
