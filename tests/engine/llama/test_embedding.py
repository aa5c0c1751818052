"""The real llama.cpp with a tiny BERT and a tiny llama: their embeddings against arithmetic, and against each other."""

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.context import EmbeddingContext
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.engine.schedule.embedder import Embedder, EmbeddingTask, unit
from shimmy.errors import ModelUnavailable, ShimmyError
from shimmy.formats.pooling_type import EmbeddingPlan
from shimmy.messages.event import Finished, Vectors
from tests.tiny_models import (
    BERT_CLS,
    BERT_EPSILON,
    BERT_N_EMBD,
    BERT_N_HEAD,
    BERT_N_LAYER,
    BERT_SEP,
    BERT_UNKNOWN,
    N_EMBD,
    bert_tensors,
    bert_vocabulary,
    write_tiny_bert,
    write_tiny_model,
)

if TYPE_CHECKING:
    from shimmy.engine.schedule.interfaces import JobEvent

N_CTX_TRAIN = 64
TEXTS = (
    "hello world", "the fox tells a story of water.", "a", "users!", "Hello, WORLD?", "héllo", "水 water",
    "the user tells the fox, and the fox tells a story: " * 2,
)  # fmt: skip
Vector = list[float]


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


def opened(path: Path, cpu: CpuBackend, plan: EmbeddingPlan) -> tuple[LlamaModel, EmbeddingContext]:
    model = LlamaModel(path, cpu)
    model.open_embeddings(plan, 1)
    model.warm_up()
    assert model.embeddings is not None
    return model, model.embeddings


def whole(pooling: str, n_ctx: int = N_CTX_TRAIN, n_packed: int = 48) -> EmbeddingPlan:
    return EmbeddingPlan(pooling, n_ctx, n_ctx, n_packed, in_parts=False)


def embed(context: EmbeddingContext, inputs: Sequence[list[int]], n_dimensions: int | None = None) -> list[Vector]:
    """Through the embedder, all at once."""
    said: list[JobEvent] = []
    embedder = Embedder(context, said.extend)
    embedder.submit(EmbeddingTask(1, list(inputs), n_dimensions or context.n_embd, 0.0))
    while embedder.n_tasks:
        embedder.step()
    assert not isinstance(said[-1][1], ShimmyError), said[-1][1]
    assert isinstance(said[-1][1], Finished)
    vectors = [vector for _, event in said if isinstance(event, Vectors) for vector in event.vectors]
    return [list(struct.unpack(f"<{len(vector) // 4}f", vector)) for vector in vectors]


def farthest(left: Sequence[Vector], right: Sequence[Vector]) -> float:
    pairs = zip(left, right, strict=True)
    return max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))


def tokens_of(model: LlamaModel, texts: Sequence[str] = TEXTS) -> list[list[int]]:
    return [model.vocab.tokenize(text, add_special=True, parse_special=True) for text in texts]


# -- BERT in a few lines ---------------------------------------------------------------------------------------------


class Bert:
    """Post-norm BERT as Devlin et al. have it, one number at a time."""

    def __init__(self, seed: int = 0) -> None:
        self.weights = {
            tensor.name: (tensor.shape, struct.unpack(f"<{len(tensor.data) // 4}f", tensor.data))
            for tensor in bert_tensors(N_CTX_TRAIN, seed)
        }

    def row(self, name: str, index: int) -> Vector:
        (n, *_), values = self.weights[name]
        return list(values[index * n : (index + 1) * n])

    def linear(self, name: str, x: Vector) -> Vector:
        (_, n_out), _ = self.weights[f"{name}.weight"]
        bias = self.row(f"{name}.bias", 0)
        return [dot(self.row(f"{name}.weight", index), x) + bias[index] for index in range(n_out)]

    def norm(self, name: str, x: Vector) -> Vector:
        mean = sum(x) / len(x)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in x) / len(x) + BERT_EPSILON)
        scale, shift = self.row(f"{name}.weight", 0), self.row(f"{name}.bias", 0)
        return [(value - mean) / deviation * a + b for value, a, b in zip(x, scale, shift, strict=True)]

    def states(self, tokens: Sequence[int]) -> list[Vector]:
        """The last layer's output for each token."""
        rows = [
            add(
                add(self.row("token_embd.weight", token), self.row("token_types.weight", 0)),
                self.row("position_embd.weight", place),
            )
            for place, token in enumerate(tokens)
        ]
        states = [self.norm("token_embd_norm", row) for row in rows]
        for layer in range(BERT_N_LAYER):
            block = f"blk.{layer}"
            mixed = [self.linear(f"{block}.attn_output", x) for x in self.attention(block, states)]
            states = [self.norm(f"{block}.attn_output_norm", add(x, y)) for x, y in zip(states, mixed, strict=True)]
            inner = [list(map(gelu, self.linear(f"{block}.ffn_up", x))) for x in states]
            outer = [self.linear(f"{block}.ffn_down", x) for x in inner]
            states = [self.norm(f"{block}.layer_output_norm", add(x, y)) for x, y in zip(states, outer, strict=True)]
        return states

    def attention(self, block: str, states: list[Vector]) -> list[Vector]:
        queries, keys, values = ([self.linear(f"{block}.attn_{name}", x) for x in states] for name in ("q", "k", "v"))
        size = BERT_N_EMBD // BERT_N_HEAD
        result = []
        for query in queries:
            mixed: Vector = []
            for start in range(0, BERT_N_EMBD, size):
                head = slice(start, start + size)
                scores = [math.exp(dot(query[head], key[head]) / math.sqrt(size)) for key in keys]
                columns = zip(*(value[head] for value in values), strict=True)
                mixed += [dot(scores, column) / sum(scores) for column in columns]
            result.append(mixed)
        return result


def dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def add(left: Vector, right: Vector) -> Vector:
    return [a + b for a, b in zip(left, right, strict=True)]


def gelu(x: float) -> float:
    return x / 2 * (1 + math.erf(x / math.sqrt(2)))


def pooled(states: list[Vector], pooling: str) -> Vector:
    match pooling:
        case "mean":
            vector = [sum(column) / len(states) for column in zip(*states, strict=True)]
        case "cls":
            vector = states[0]
        case _:
            vector = states[-1]
    length = math.hypot(*vector)
    return [value / length for value in vector]


# -- BERT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_bert_computes_what_arithmetic_does(tmp_path: Path, cpu: CpuBackend, pooling: str) -> None:
    model, context = opened(write_tiny_bert(tmp_path), cpu, whole(pooling))
    inputs = tokens_of(model)
    bert = Bert()
    # llama.cpp takes GELU from a table of half precision, and keys and values go through it as well.
    assert farthest(embed(context, inputs), [pooled(bert.states(tokens), pooling) for tokens in inputs]) < 2e-3


def test_wordpiece_finds_the_tokens_of_the_vocabulary(tmp_path: Path, cpu: CpuBackend) -> None:
    model, _ = opened(write_tiny_bert(tmp_path), cpu, whole("mean"))
    token = {text: index for index, text in enumerate(bert_vocabulary())}
    assert tokens_of(model, ["Hello worlds, ☃", ""]) == [
        [BERT_CLS, token["▁hello"], token["▁world"], token["s"], token["▁,"], BERT_UNKNOWN, BERT_SEP],
        [BERT_CLS, BERT_SEP],
    ]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_many_inputs_at_once_are_as_each_alone_in_order_and_of_length_one(
    tmp_path: Path, cpu: CpuBackend, pooling: str
) -> None:
    model, context = opened(write_tiny_bert(tmp_path), cpu, whole(pooling))
    inputs = tokens_of(model) * 3
    together = embed(context, inputs)
    alone = [embed(context, [tokens])[0] for tokens in inputs]
    assert farthest(together, alone) < 1e-5
    assert len(set(map(tuple, alone))) == len(TEXTS), "vectors that do not depend on their texts prove nothing"
    for vector in together:
        assert len(vector) == BERT_N_EMBD
        assert math.isclose(math.hypot(*vector), 1, abs_tol=1e-6)


def test_fewer_dimensions_are_the_first_ones_made_longer(tmp_path: Path, cpu: CpuBackend) -> None:
    model, context = opened(write_tiny_bert(tmp_path), cpu, whole("mean"))
    inputs = tokens_of(model)
    cut = [unit(vector, 5) for vector in embed(context, inputs)]
    assert farthest(embed(context, inputs, 5), [list(struct.unpack("<5f", data or b"")) for data in cut]) < 1e-6


def test_an_input_as_long_as_the_training_length_is_computed(tmp_path: Path, cpu: CpuBackend) -> None:
    _, context = opened(write_tiny_bert(tmp_path), cpu, whole("mean", n_ctx=4096))
    assert context.n_ctx == N_CTX_TRAIN, "there are no positions beyond"
    tokens = [BERT_CLS, *[7] * (N_CTX_TRAIN - 2), BERT_SEP]
    assert farthest(embed(context, [tokens]), [pooled(Bert().states(tokens), "mean")]) < 2e-3


def test_an_encoder_has_no_context_for_text(tmp_path: Path, cpu: CpuBackend) -> None:
    model = LlamaModel(write_tiny_bert(tmp_path), cpu)
    with pytest.raises(ModelUnavailable, match="cannot generate text"):
        model.open_context(n_ctx=64, n_batch=64, n_sequences=4, n_outputs=32, n_threads=1)


# -- a decoder -------------------------------------------------------------------------------------------------------


def in_parts(n_packed: int) -> EmbeddingPlan:
    return EmbeddingPlan("last", 256, n_packed, n_packed, in_parts=True)


def test_a_decoder_reads_long_inputs_in_parts(tiny_model: Path, cpu: CpuBackend) -> None:
    model, small = opened(tiny_model, cpu, in_parts(16))
    _, large = opened(tiny_model, cpu, whole("last", n_ctx=256, n_packed=256))
    inputs = tokens_of(model, [*TEXTS, "the user and the world " * 20])
    assert max(map(len, inputs)) > 100
    vectors = embed(small, inputs)
    assert farthest(vectors, embed(large, inputs)) < 1e-4
    assert farthest(vectors, [embed(small, [tokens])[0] for tokens in inputs]) < 1e-4
    assert {len(vector) for vector in vectors} == {N_EMBD}


def test_an_encoder_never_reads_in_parts(tmp_path: Path, cpu: CpuBackend) -> None:
    _, context = opened(write_tiny_bert(tmp_path), cpu, in_parts(16))
    assert not context.in_parts
    assert context.n_ctx == 16


def test_text_and_embeddings_of_one_model_do_not_meet(tiny_model: Path, cpu: CpuBackend) -> None:
    model = LlamaModel(tiny_model, cpu)
    model.open_context(n_ctx=256, n_batch=64, n_sequences=4, n_outputs=32, n_threads=1)
    model.open_embeddings(in_parts(64), 1)
    model.warm_up()
    assert model.embeddings is not None
    inputs = tokens_of(model)
    first = embed(model.embeddings, inputs)
    model.backend.batch.clear()
    model.backend.batch.add(inputs[0], 0, 0, n_outputs=1)
    assert model.backend.decode() == 0
    model.set_threads(1)
    assert embed(model.embeddings, inputs) == first
    _, alone = opened(write_tiny_model(tiny_model.parent, "again"), cpu, in_parts(64))
    assert embed(alone, inputs) == first
