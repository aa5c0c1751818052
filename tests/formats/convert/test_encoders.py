"""Vectors of converted encoders against those of `transformers` (golden/README.md)."""

import json
from array import array
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.engine.schedule.embedder import unit
from shimmy.formats.convert.convert import convert
from shimmy.formats.gguf.reader import read_header
from shimmy.formats.pooling_type import plan
from shimmy.formats.tokenizer import vocab
from shimmy.formats.tokenizer.normalizer import Bert, Form, Normalizer
from tests.golden.weights import families, golden, makes_embeddings, write_folder
from tests.models import embedding_model

ENCODERS = [family for family in families() if makes_embeddings(family)]
MINILM = Path(__file__).parents[2] / "golden" / "minilm.json"


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


def opened(folder: Path, target: Path, cpu: CpuBackend, n_ctx: int = 512) -> LlamaModel:
    """The converted model, pooling as its folder says."""
    convert(folder, target, lambda _: None)
    model = LlamaModel(target, cpu)
    found = plan(read_header(target), n_ctx=n_ctx, n_batch=n_ctx)
    assert found is not None
    model.open_embeddings(found, n_threads=1)
    return model


def vector(model: LlamaModel, tokens: list[int]) -> list[float]:
    context = model.embeddings
    assert context is not None
    if context._memory:  # of a decoder
        context.forget(0)
    context.batch.clear()
    context.batch.add(tokens, 0, 0, n_outputs=len(tokens))
    assert context.compute() == 0
    normalised = unit(context.vector(0), context.n_embd)
    assert normalised is not None
    return list(array("f", normalised))


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Of two normalised vectors."""
    return sum(x * y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("family", ENCODERS)
def test_vectors_are_those_of_transformers(family: str, tmp_path: Path, cpu: CpuBackend) -> None:
    model = opened(write_folder(family, tmp_path / "model", "5"), tmp_path / "model.gguf", cpu)
    for prompt in golden(family)["prompts"]:
        ours = vector(model, prompt["tokens"])
        assert cosine(ours, prompt["vector"]) > 0.99999
        assert max(abs(x - y) for x, y in zip(ours, prompt["vector"], strict=True)) < 2e-3


@pytest.mark.parametrize("n_ctx", [65, 100, 127])
@pytest.mark.parametrize("family", ["bert-mean", "qwen3-embedding"])
def test_a_context_of_any_length_is_opened(family: str, n_ctx: int, tmp_path: Path, cpu: CpuBackend) -> None:
    """One that was no multiple of the number of sequences made the engine abort where it took the mean."""
    model = opened(write_folder(family, tmp_path / "model", "5"), tmp_path / "model.gguf", cpu, n_ctx)
    prompt = golden(family)["prompts"][-1]
    assert cosine(vector(model, prompt["tokens"]), prompt["vector"]) > 0.99999


def test_the_vectors_tell_apart_what_is_different() -> None:
    first, second = (golden(family)["prompts"][2]["vector"] for family in ("bert-mean", "bert-cls"))
    assert cosine(first, second) < 0.9
    vectors = [prompt["vector"] for prompt in golden("bert-mean")["prompts"]]
    assert max(cosine(a, b) for a in vectors for b in vectors if a is not b) < 0.99


def test_all_minilm_as_published(tmp_path: Path, cpu: CpuBackend) -> None:
    folder = embedding_model()
    model = opened(folder, tmp_path / "minilm.gguf", cpu)
    recorded = json.loads(MINILM.read_text())
    vectors = array("f", b64decode(recorded["vectors"]))
    n_embd = len(vectors) // len(recorded["sentences"])
    cosines = {}
    normalizer = Normalizer.from_text(vocab.normalizer(folder) or "{}")
    for index, sentence in enumerate(recorded["sentences"]):
        tokens = model.vocab.tokenize(normalizer.apply(sentence), add_special=True, parse_special=True)
        cosines[sentence] = cosine(vector(model, tokens), vectors[index * n_embd :][:n_embd])
    assert min(cosines.values()) >= 0.9999, {text: value for text, value in cosines.items() if value < 0.9999}


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_long_texts_are_changed_in_slices_as_they_are_as_a_whole(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(3)
    atoms = ["a", " b", "c d e", " ", "e\u0301", "\u0301", "ﬁ", "가", "\u1100\u1161", "Å", "漢", "<x>", "a b"]
    normalizers = [
        Normalizer(form, special=("<x>", "<xy>")),
        Normalizer(form, bert=Bert(lowercase=True, strip_accents=True, max_word=8)),
    ]
    for _ in range(300):
        text = "".join(random.choices(atoms, k=60))
        for normalizer in normalizers:
            whole = normalizer.apply(text)
            with monkeypatch.context() as patch:
                patch.setattr("shimmy.formats.tokenizer.normalizer._SLICE_CHARACTERS", 4)
                assert normalizer.apply(text) == whole
