"""Embeddings through OpenAI's own client, which asks for base64 unless it is told otherwise, and through plain HTTP."""

import json
import math
from array import array
from base64 import b64decode
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from tests.e2e.conftest import StartServer
from tests.e2e.harness import STEADY_SEED, Server, chat_body, serving
from tests.formats.convert.test_encoders import MINILM
from tests.tiny_models import BERT_N_EMBD, N_EMBD, UINT32, write_tiny_bert, write_tiny_model
from tools.demo_models import fetch_minilm

PATH = "/v1/embeddings"
TEXTS = ["hello world", "the fox tells a story", "a", "water, water and water!"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the encoder `bert`, the decoder `last` that is made for embeddings, and `alpha`, which is not."""
    folder = tmp_path_factory.mktemp("embeddings")
    write_tiny_bert(folder)
    write_tiny_model(folder, "last", more=[("llama.pooling_type", UINT32, 3)])
    write_tiny_model(folder, "alpha", seed=STEADY_SEED)
    with serving(folder / "server", "--model-path", folder) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key="any", max_retries=0) as openai:
        yield openai


def vectors(client: OpenAI, **fields: Any) -> list[list[float]]:
    reply = client.embeddings.create(**{"model": "bert", "input": TEXTS, **fields})
    assert [item.index for item in reply.data] == list(range(len(reply.data)))
    return [item.embedding for item in reply.data]


def farthest(left: list[list[float]], right: list[list[float]]) -> float:
    pairs = zip(left, right, strict=True)
    return max(abs(a - b) for one, other in pairs for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("model", "n_embd"), [("bert", BERT_N_EMBD), ("last", N_EMBD)])
def test_vectors_have_length_one_and_come_in_order(client: OpenAI, model: str, n_embd: int) -> None:
    together = vectors(client, model=model)
    assert {len(vector) for vector in together} == {n_embd}
    for vector in together:
        assert math.isclose(math.hypot(*vector), 1, abs_tol=1e-6)
    assert farthest(together, [vectors(client, model=model, input=text)[0] for text in TEXTS]) < 1e-5
    assert all(farthest([one], [other]) > 0.01 for one, other in pairwise(together))


def test_floats_and_base64_say_the_same(client: OpenAI, server: Server) -> None:
    as_base64, as_floats = vectors(client), vectors(client, encoding_format="float")
    assert [array("f", vector) for vector in as_base64] == [array("f", vector) for vector in as_floats]
    body = {"model": "bert", "input": TEXTS[0], "encoding_format": "base64"}
    (item,) = server.post(PATH, body).json()["data"]
    assert isinstance(item["embedding"], str)


def test_tokens_are_taken_as_they_are(client: OpenAI, server: Server) -> None:
    tokens = [
        server.post("/tokenize", {"model": "bert", "content": text, "add_special": True}).json()["tokens"]
        for text in TEXTS
    ]
    assert vectors(client, input=tokens) == vectors(client)
    assert vectors(client, input=tokens[1]) == vectors(client, input=TEXTS[1])
    assert vectors(client, input=tokens[1][1:-1]) != vectors(client, input=TEXTS[1])


def test_fewer_dimensions(client: OpenAI) -> None:
    (full,), (cut,) = vectors(client, input="hello"), vectors(client, input="hello", dimensions=5)
    length = math.hypot(*full[:5])
    assert farthest([cut], [[value / length for value in full[:5]]]) < 1e-6
    with pytest.raises(BadRequestError, match=f"{BERT_N_EMBD} numbers") as caught:
        vectors(client, input="hello", dimensions=BERT_N_EMBD + 1)
    assert caught.value.param == "dimensions"


def test_usage_and_metrics_count_the_tokens(client: OpenAI, server: Server) -> None:
    before = server.metric("shimmy_prompt_tokens_total", "bert")
    reply = client.embeddings.create(model="bert", input=["hello world", "hello"], user="ann")
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (7, 7)
    assert (reply.object, reply.model) == ("list", "bert")
    assert server.metric("shimmy_prompt_tokens_total", "bert") == before + 7


def test_an_input_longer_than_the_context_is_refused_with_its_place_and_both_numbers(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match=r"`input\[1\]` has 102 tokens, the model takes 64\b") as caught:
        vectors(client, input=["hello", "hello " * 100])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "input[1]"


@pytest.mark.parametrize("given", ["", [], ["a", ""], [[]]])
def test_an_empty_input_is_refused(server: Server, given: object) -> None:
    reply = server.post(PATH, {"model": "bert", "input": given})
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"
    assert reply.error["param"].startswith("input")


def test_as_many_inputs_as_there_may_be(client: OpenAI) -> None:
    texts = [TEXTS[index % len(TEXTS)] for index in range(2048)]
    expected = vectors(client)
    assert farthest(vectors(client, input=texts), expected * 512) < 1e-5
    with pytest.raises(BadRequestError, match="2048"):
        vectors(client, input=[*texts, "one more"])


def test_a_model_for_embeddings_writes_no_text_and_one_for_text_makes_no_embeddings(server: Server) -> None:
    for model in ("bert", "last"):
        reply = server.post("/v1/chat/completions", chat_body("hello", model))
        assert (reply.status, reply.error["param"]) == (400, "model")
    reply = server.post(PATH, {"model": "alpha", "input": "hello"})
    assert (reply.status, reply.error["param"]) == (400, "model")
    assert "--embeddings" in reply.error["message"]


def test_a_client_that_leaves_ends_its_job(server: Server) -> None:
    with server.later(PATH, {"model": "bert", "input": ["the fox " * 30] * 2048}) as call:
        call.leave()
    server.wait_until_idle("bert")
    assert server.post(PATH, {"model": "bert", "input": "hello"}).status == 200


def test_a_server_may_let_models_for_text_make_embeddings(start: StartServer, tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "alpha", seed=STEADY_SEED)
    server = start("--model-path", tmp_path / "alpha.gguf", "--embeddings", "--pooling", "mean")
    text = server.chat("hello world")
    (item,) = server.post(PATH, {"model": "alpha", "input": "hello"}).json()["data"]
    assert math.isclose(math.hypot(*item["embedding"]), 1, abs_tol=1e-6)
    assert server.chat("hello world") == text


def test_keep_alive_holds_for_embeddings_too(start: StartServer, tmp_path: Path) -> None:
    write_tiny_bert(tmp_path)
    server = start("--model-path", tmp_path / "bert.gguf")
    assert server.post(PATH, {"model": "bert", "input": "hello", "keep_alive": -1}).status == 200
    assert server.get("/api/models/bert/status").json()["pinned"]


def test_all_minilm_as_published(start: StartServer, tmp_path: Path) -> None:
    """Found, converted, loaded; its vectors are those that transformers computes for the same fifty sentences."""
    golden = json.loads(MINILM.read_text())
    server = start("--model-path", fetch_minilm(), "--cache-dir", tmp_path / "cache", threads="")
    with OpenAI(base_url=server.url, api_key="any", max_retries=0) as openai:
        reply = openai.embeddings.create(model="all-minilm-l6-v2", input=golden["sentences"])
    expected = array("f", b64decode(golden["vectors"]))
    n_embd = len(expected) // len(reply.data)
    for item in reply.data:
        mine, theirs = item.embedding, expected[item.index * n_embd : (item.index + 1) * n_embd]
        assert sum(a * b for a, b in zip(mine, theirs, strict=True)) >= 0.9999  # both have length 1
