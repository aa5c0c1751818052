"""Texts into tokens with the real engine: what one token can stand for."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shimmy.engine import variants
from shimmy.engine.binding import LIBRARY_FOLDER
from shimmy.engine.llama import CpuBackend, LlamaModel
from shimmy.formats import gguf
from tests.tiny_models import STRING, vocabulary, write_tiny_bert, write_tiny_model

LONGEST = max(len(text.encode()) for text, _ in vocabulary())


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


@pytest.fixture
def model(tiny_model: Path, cpu: CpuBackend) -> Iterator[LlamaModel]:
    model = opened(tiny_model, cpu)
    yield model
    model.close()


def opened(path: Path, cpu: CpuBackend) -> LlamaModel:
    return LlamaModel(path, cpu, longest_token_bytes=gguf.validated(path).longest_token_bytes)


# -- how much a token stands for -------------------------------------------------------------------------------------


def test_no_token_stands_for_more_than_the_longest_of_the_vocabulary(model: LlamaModel) -> None:
    assert model.tokenizer.longest_token_bytes() == LONGEST
    for text in ("hello world and the user", "日本語 のテキスト", "\n" * 50, "🙂🙂", " " * 40):
        n_tokens = len(model.tokenize(text, add_special=False, parse_special=True))
        assert n_tokens * LONGEST >= len(text.encode())


def test_there_is_no_bound_where_a_tokenizer_leaves_text_out(tmp_path: Path, cpu: CpuBackend) -> None:
    swallows = write_tiny_model(tmp_path, "modern-bert")  # by its name: white space before a mask
    changed = write_tiny_model(tmp_path, "changed", more=[("shimmy.tokenizer.normalizer", STRING, '{"form":"NFC"}')])
    for path in (swallows, changed, write_tiny_bert(tmp_path)):
        assert opened(path, cpu).tokenizer.longest_token_bytes() is None


def test_a_bound_needs_the_length_of_all_tokens(tiny_model: Path, cpu: CpuBackend) -> None:
    assert LlamaModel(tiny_model, cpu).tokenizer.longest_token_bytes() is None
