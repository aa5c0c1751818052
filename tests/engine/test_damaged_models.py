"""Files that llama.cpp aborts on are refused with the reason, and whatever else is odd about a file ends no process."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

import pytest

from shimmy.engine import loading
from shimmy.engine.llama import binding
from shimmy.formats.convert.convert import convert
from shimmy.formats.gguf import reader
from shimmy.formats.gguf.header import CONTEXT_LIMIT
from shimmy.wire import worker_options
from tests import tiny_models
from tests.engine.damaged import keys_changed, tensors_changed, with_items, with_key
from tests.golden.weights import write_folder
from tests.tiny_models import (
    ARRAY,
    CHATML,
    FLOAT32,
    INT32,
    STRING,
    UINT32,
    Items,
    Metadata,
    Tensor,
    encode_gguf,
    model_tensors,
    vocabulary,
)

METADATA: Metadata = tiny_models.model_metadata("tiny", 512, CHATML)
TENSORS = list(model_tensors(0))
TOKENS = [text for text, _ in vocabulary()]
N_RANDOM = 70

Load = Callable[..., str]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """What becomes of a file with some metadata and tensors, loaded as a worker loads it."""
    path = tmp_path_factory.mktemp("damaged") / "tiny.gguf"
    command = [sys.executable, "-m", "tests.engine.damaged"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        questions, answers = process.stdin, process.stdout
        assert questions is not None
        assert answers is not None

        def outcome(metadata: Metadata = METADATA, tensors: Sequence[Tensor] = TENSORS, *, n_ctx: int = 128) -> str:
            alignment = next((value for key, _, value in metadata if key == "general.alignment"), 32)
            if not isinstance(alignment, int) or not 0 < alignment <= 4096:
                alignment = 32
            path.write_bytes(encode_gguf(metadata, tensors, alignment=alignment))
            questions.write(json.dumps([str(path), n_ctx]) + "\n")
            questions.flush()
            return str(json.loads(answers.readline()))

        yield outcome
        questions.close()


def test_a_sound_file_is_served(load: Load) -> None:
    assert load() == "served"


def tokens(changed: Sequence[str | bytes]) -> Metadata:
    return with_items(METADATA, "tokenizer.ggml.tokens", STRING, changed)


def of_type(name: str, code: int) -> list[Tensor]:
    """The tensors with one of another type; its data are zeros of the right length."""
    n_bytes = {1: 2, 24: 1, 26: 4, 28: 8}
    blocks = {9: 36, 15: 292}
    result = []
    for tensor in TENSORS:
        n_items = math.prod(tensor.shape)
        size = n_items * n_bytes[code] if code in n_bytes else n_items // 32 * blocks[code]
        changed = Tensor(tensor.name, tensor.shape, bytes(size), code)
        result.append(changed if tensor.name == name else tensor)
    return result


LLAMA = "llama."
WITHOUT_A_BYTE = with_items(
    tokens(["qqq" if text == "<0x0B>" else text for text in TOKENS]), "tokenizer.ggml.token_type", INT32,
    [1 if text == "<0x0B>" else kind for text, kind in vocabulary()],
)  # fmt: skip


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (tokens([*TOKENS[:-1], TOKENS[-2]]), f"tokens {len(TOKENS) - 2} and {len(TOKENS) - 1} are the same"),
        (tokens([*TOKENS[:300], TOKENS[299], *TOKENS[301:]]), "its tokens 299 and 300 are the same"),
        (tokens([*TOKENS[:300], "a\0b", *TOKENS[301:]]), "which ends at the NUL"),
        (tokens([*TOKENS[:300], "zz\0b", "zz\0c", *TOKENS[302:]]), "its tokens 300 and 301 are the same"),
        (tokens([*TOKENS[:300], "", "[EMPTY_300]", *TOKENS[302:]]), "its tokens 300 and 301 are the same"),
        (WITHOUT_A_BYTE, "no token for the byte 0x0b"),
        (with_key(METADATA, "tokenizer.ggml.model", STRING, "none"), "no tokenizer"),
        (with_key(METADATA, "tokenizer.ggml.model", STRING, "no_vocab"), "no tokenizer"),
        (with_key(METADATA, "tokenizer.ggml.model", STRING, "bert"), "llama-vocab.cpp"),
        ([row for row in METADATA if row[0] != "tokenizer.ggml.model"], "tokenizer.ggml.model"),
        (with_items(METADATA, "tokenizer.ggml.scores", FLOAT32, [0.0] * (len(TOKENS) - 1)), "scores"),
        (with_items(METADATA, "tokenizer.ggml.token_type", INT32, [1] * (len(TOKENS) - 1)), "toktypes"),
        (with_key(METADATA, LLAMA + "context_length", UINT32, 1), "its context length is 1"),
        (with_key(METADATA, LLAMA + "context_length", UINT32, 0), "its context length is 0"),
        (with_key(METADATA, LLAMA + "context_length", UINT32, 2**31), "its context length is 2147483648"),
        (with_key(METADATA, LLAMA + "context_length", UINT32, 2**32 - 1), "its context length is 4294967295"),
        (with_key(METADATA, LLAMA + "block_count", UINT32, 0), "0 blocks"),
        (with_key(METADATA, LLAMA + "block_count", UINT32, 513), "513 blocks"),
        (with_key(METADATA, LLAMA + "block_count", UINT32, 2**32 - 1), "blocks"),
        (with_key(METADATA, LLAMA + "nextn_predict_layers", UINT32, 3), "predict further"),
        (with_key(METADATA, LLAMA + "attention.head_count", UINT32, 0), "attn_q"),
        (with_key(METADATA, LLAMA + "embedding_length", UINT32, 0), "n_rot"),
        (with_key(METADATA, LLAMA + "attention.layer_norm_rms_epsilon", FLOAT32, -1.0), "rms_epsilon` is -1"),
        (with_key(METADATA, LLAMA + "attention.layer_norm_rms_epsilon", FLOAT32, math.nan), "rms_epsilon` is nan"),
        (with_key(METADATA, LLAMA + "rope.scaling.type", STRING, "bogus"), "`bogus`"),
        (with_key(METADATA, LLAMA + "rope.dimension_count", UINT32, 7), "n_rot"),
        (with_key(METADATA, LLAMA + "expert_count", UINT32, 4), "0 of its 4 experts"),
        (with_key(METADATA, LLAMA + "expert_count", UINT32, 10_000), "10000 experts"),
        (with_key(METADATA, LLAMA + "expert_used_count", UINT32, 3), "3 of its 0 experts"),
        (with_key(METADATA, LLAMA + "attention.head_count_kv", ARRAY, Items(UINT32, [4, 0])), "ggml.c"),
        (with_key(METADATA, "general.alignment", UINT32, 3), "power of two"),
        (with_key(METADATA, "general.alignment", UINT32, 1), "general.alignment"),
        (with_key(METADATA, "general.alignment", UINT32, 2**31), "general.alignment"),
    ],
)
def test_what_the_engine_would_abort_on_is_refused_with_the_reason(metadata: Metadata, reason: str, load: Load) -> None:
    outcome = load(metadata)
    assert outcome.startswith("refused: ")
    assert reason in outcome


@pytest.mark.parametrize(
    "name", ["token_embd.weight", "output_norm.weight", "blk.0.attn_q.weight", "blk.1.ffn_norm.weight"]
)
@pytest.mark.parametrize("code", [1, 9, 24, 26, 28])
def test_weights_of_types_that_the_engine_cannot_compute_with_are_refused(name: str, code: int, load: Load) -> None:
    outcome = load(METADATA, of_type(name, code))
    if code == 1 and "norm" not in name:
        assert outcome == "served", "F16 are good weights, though not for norms"
    else:
        assert outcome.startswith("refused: ")
        assert name in outcome


@pytest.mark.parametrize("n_ctx", [1, 2, 16, 100])
def test_a_short_context_is_served(n_ctx: int, load: Load) -> None:
    """llama.cpp takes no more rows in a batch than its context has, and aborts at more."""
    assert load(n_ctx=n_ctx) == "served"
    short = with_key(METADATA, LLAMA + "context_length", UINT32, max(2, n_ctx))
    original = with_key(short, LLAMA + "rope.scaling.original_context_length", UINT32, max(2, n_ctx))
    longrope = with_key(original, LLAMA + "rope.scaling.type", STRING, "longrope")
    assert load(longrope, n_ctx=n_ctx) == "served"


@pytest.mark.thorough
def test_whatever_is_odd_about_a_file_ends_no_process(load: Load) -> None:
    """Some of about 1,200 changes; `keys_changed` and `tensors_changed` have them all."""
    cases = [(name, metadata, TENSORS) for name, metadata in keys_changed(METADATA)]
    cases += [(name, METADATA, tensors) for name, tensors in tensors_changed(TENSORS)]
    for name, metadata, tensors in Random(16).sample(cases, N_RANDOM):
        outcome = load(metadata, tensors)
        assert outcome == "served" or outcome.startswith("refused: "), f"{name}: {outcome}"


def test_no_text_has_a_position_that_a_table_lacks(tmp_path: Path) -> None:
    """What is behind the end of a table of positions would be looked up nonetheless."""
    path = tmp_path / "gpt2.gguf"
    convert(write_folder("gpt2", tmp_path / "folder", "5"), path, lambda _: None)
    n_positions = reader.contents(path).n_positions
    assert n_positions is not None
    for n_ctx in (2 * n_positions, n_positions, 1):
        options = worker_options.WorkerOptions(str(path), n_ctx, 1, 64, 1, None, None)
        model, _ = loading.load(options, 1, lambda _: None)
        assert model.n_ctx == min(n_positions, -(-n_ctx // 256) * 256)
        model.close()


@pytest.mark.parametrize(("family", "limit"), [("mistral-window", 64), ("phi3-longrope", 256)])
def test_no_larger_context_is_taken_than_a_model_is_converted_for(family: str, limit: int, tmp_path: Path) -> None:
    """`--ctx-size` lifted the limit without a word: texts beyond a window were computed as if there were none, and with
    factors for long texts those of short ones, too."""
    path = tmp_path / "made.gguf"
    convert(write_folder(family, tmp_path / "folder", "4"), path, lambda _: None)
    model, _ = loading.load(worker_options.WorkerOptions(str(path), 2048, 1, 64, 1, None, None), 1, lambda _: None)
    assert model.n_ctx == limit
    if family == "phi3-longrope":
        assert binding.llama.llama_n_ctx(model.backend._context) == limit
    model.close()


def test_no_longer_text_becomes_a_vector_than_a_model_is_converted_for(tmp_path: Path) -> None:
    path = tmp_path / "made.gguf"
    convert(write_folder("mistral-window", tmp_path / "folder", "4"), path, lambda _: None)
    options = worker_options.WorkerOptions(str(path), 2048, 1, 64, 1, None, None, embeddings=True)
    model, _ = loading.load(options, 1, lambda _: None)
    assert model.embeddings is not None
    assert model.embeddings.n_ctx == 64
    model.close()


@pytest.mark.parametrize("limit", ["9" * 5_000, "-1", "0", "many"])
def test_a_limit_that_is_no_number_of_tokens_counts_for_none(limit: str, load: Load) -> None:
    """Python makes no number of that many digits, and the worker ended with that."""
    assert load(with_key(METADATA, CONTEXT_LIMIT, STRING, limit)) == "served"
