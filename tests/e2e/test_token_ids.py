"""Converted folders of each kind of tokenizer give its own ids for the awkward texts, asked over HTTP."""

import json
from base64 import b64decode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.awkward_texts import texts
from tests.e2e.harness import Server, run, serving
from tests.formats.tokenizer.test_tiktoken import GOLDEN as TIKTOKEN
from tests.formats.tokenizer.test_tiktoken import files_of
from tests.formats.tokenizer.test_vocab import GOLDEN
from tests.golden import weights
from tests.golden.record_tiktoken import all_texts
from tests.published_tokenizers import WORDS
from tests.rewriting import rewrite
from tests.tiny_checkpoints import LLAMA_CONFIG, Weights, llama_tensors, write_checkpoint
from tests.tiny_models import N_EMBD
from tests.tokenizer_folders import Json, write_folder

CASES = [name for name in GOLDEN if name.startswith("tiny-")]
TIKTOKEN_CASES = ["kimi", "hunyuan"]
EACH = 4  # of so many texts one is asked for


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tokenizers")
    for name in CASES:
        write_model(folder / "models" / name, GOLDEN[name])
    for name in TIKTOKEN_CASES:
        files, n_tokens = files_of(name)
        write_checkpoint_of(folder / "models" / name, files, n_tokens)
    with serving(folder / "server", "--model-path", folder / "models", "--cache-dir", folder / "cache") as running:
        yield running


def write_model(folder: Path, golden: Mapping[str, Any]) -> None:
    """A tiny Llama that has as many tokens as its tokenizer."""
    files: Json = {"tokenizer_config_json": {"eos_token": "</s>"}}
    if "tokenizer" in golden:
        files["tokenizer_json"] = golden["tokenizer"]
        vocab, added = golden["tokenizer"]["model"]["vocab"], golden["tokenizer"]["added_tokens"]
        n_tokens = max(len(vocab), *(token["id"] + 1 for token in added))
    else:
        files["tokenizer_model"] = b64decode(golden["model"])
        n_tokens = golden["n_tokens"]
    write_checkpoint_of(folder, files, n_tokens)


def write_checkpoint_of(folder: Path, files: Json, n_tokens: int) -> None:
    write_folder(folder, **files)
    rows = np.zeros((n_tokens, N_EMBD), np.float32).tobytes()
    tensors = llama_tensors() | dict.fromkeys(
        ("model.embed_tokens.weight", "lm_head.weight"), Weights((n_tokens, N_EMBD), rows)
    )
    config = {key: value for key, value in LLAMA_CONFIG.items() if not key.endswith("_token_id")}
    write_checkpoint(folder, config | {"vocab_size": n_tokens}, tensors)


@pytest.mark.parametrize("name", CASES)
def test_ids_are_those_of_the_tokenizer(server: Server, name: str) -> None:
    golden = GOLDEN[name]
    options = {"add_special": True} if "tokenizer" in golden else {"parse_special": False}
    different = []
    for text, expected in [*zip(texts(len(golden["ids"])), golden["ids"], strict=True)][::EACH]:
        if name.startswith("tiny-tekken") and any(letter.isdigit() for letter in text if letter > "~"):
            continue  # digits that share bytes are joined, see pretokenizers.py
        reply = server.post("/tokenize", {"model": name, "content": text, **options})
        assert reply.status == 200, reply.body
        if reply.json()["tokens"] != expected:
            different.append(text)
    assert different == [], json.dumps(different)


@pytest.mark.parametrize("name", TIKTOKEN_CASES)
def test_ids_are_those_of_tiktoken(server: Server, name: str) -> None:
    different = []
    for text, expected in [*zip(all_texts(), TIKTOKEN[name]["ids"], strict=True)][::-EACH]:
        reply = server.post("/tokenize", {"model": name, "content": text, "add_special": True})
        assert reply.status == 200, reply.body
        if reply.json()["tokens"] != expected:
            different.append(text)
    assert different == [], json.dumps(different)


@pytest.mark.parametrize("name", ["tiny-deepseek-llm", "tiny-falcon3"])
def test_a_model_whose_words_are_cut_by_the_worker_writes_and_reads_as_others(server: Server, name: str) -> None:
    text = "Hello the  world, \u00fcber \u4e2d\u6587 \u00bd 1234!\n\n<think>y"
    ids = server.post("/tokenize", {"model": name, "content": text, "parse_special": True}).json()["tokens"]
    assert server.post("/detokenize", {"model": name, "tokens": ids}).json()["content"] == text
    echoed = server.post("/v1/completions", {"model": name, "prompt": text, "max_tokens": 0, "echo": True}).json()
    assert echoed["choices"][0]["text"] == text
    n_around = 2 * (name == "tiny-falcon3")  # <s> and </s>
    assert echoed["usage"]["prompt_tokens"] == len(ids) + n_around
    # The grammar forces all of it, in the tokens that the tokenizer makes of it.
    forced = "the name of it is \u00fcber  alles: 1234 \u4e2d\u6587"
    reply = server.post("/v1/completions", {"model": name, "prompt": text, "grammar": f'root ::= "{forced}"'}).json()
    assert reply["choices"][0]["text"] == forced
    n_forced = len(server.post("/tokenize", {"model": name, "content": forced}).json()["tokens"])
    assert reply["usage"]["completion_tokens"] in {n_forced, n_forced + 1}


def test_a_person_is_told_that_only_shimmy_cuts_words_so(tmp_path: Path) -> None:
    write_model(tmp_path / "tiny", GOLDEN["tiny-aya"])
    written = run(tmp_path, "convert", tmp_path / "tiny", "-o", tmp_path / "tiny.gguf")
    assert "Shimmy does not, other programs with it do" in written.stderr
    with serving(tmp_path / "server", "--model-path", tmp_path / "tiny.gguf") as server:
        for text, expected in [*zip(texts(40), GOLDEN["tiny-aya"]["ids"][:40], strict=True)]:
            reply = server.post("/tokenize", {"model": "tiny", "content": text, "add_special": True})
            assert reply.json()["tokens"] == expected
    write_model(tmp_path / "other", GOLDEN["tiny-qwen2"])
    assert run(tmp_path, "convert", tmp_path / "other", "-o", tmp_path / "other.gguf").stderr == ""


@pytest.mark.parametrize(
    ("family", "words"), [("deepseek2-lite", "deepseek-llm"), ("falcon-h1", "falcon-h1"), ("cohere2", "tiny_aya")]
)
def test_a_family_is_served_with_the_tokenizer_that_it_is_published_with(
    family: str, words: str, tmp_path: Path
) -> None:
    folder = weights.write_folder(family, tmp_path / "model", "5")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    rewrite(folder / "tokenizer.json", json.dumps({**tokenizer, "pre_tokenizer": WORDS[words]}).encode())
    with serving(tmp_path / "server", "--model-path", folder, "--cache-dir", tmp_path / "cache") as server:
        text = 'Hello "world", \u00fcber \u4e2d\u6587\u3002 12345\n  x'
        asked = {"model": "model", "prompt": text, "echo": True, "max_tokens": 8, "temperature": 0}
        reply = server.post("/v1/completions", asked)
        assert reply.status == 200, reply.body
        assert reply.json()["choices"][0]["text"].startswith(text)
        assert server.stream("Hello", "model", max_tokens=8).finish().is_done
