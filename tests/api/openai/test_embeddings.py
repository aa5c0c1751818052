"""`/v1/embeddings`: what its body may be, and its reply, over a worker played by the test."""

import base64
import json
import struct
from dataclasses import replace
from typing import Any

import pytest

from shimmy import config
from shimmy.api.app import create_app
from shimmy.api.openai.embeddings import BODY, N_INPUTS_MAX, embed_request
from shimmy.errors import BadRequest, ContextExceeded, ShimmyError
from shimmy.messages.event import Finished, FinishReason, JobOutput, Timings, Usage, Vectors
from shimmy.messages.request import EmbeddingJob, EmbedRequest
from shimmy.workers.worker_streams import EmbeddingStream
from tests.fakes import Call, FakeWorker, Reply, fetch, model, on_loop, services, until

CONFIG = config.load({}, {})
ENDED = Finished(FinishReason.STOP, Usage(7, 0, 0), Timings(1.0, 5.0, 0.0))
BERT = replace(model("bert"), architecture="bert", is_embedding=True, is_causal=False, pooling="mean")
PATH = "/v1/embeddings"
# Numbers that need all nine digits, and some that are written with an exponent.
VECTORS = (struct.pack("<3f", 1 / 3, -0.1, 1e-9), struct.pack("<3f", 0.0, -1.0, 0.70710678))


class Embedding(FakeWorker):
    """Answers jobs of embeddings with `script`, or leaves them to the test where there is none."""

    def __init__(self, *script: JobOutput | ShimmyError) -> None:
        super().__init__(script)
        self.asked: list[EmbedRequest] = []

    def embed(self, request: EmbedRequest) -> EmbeddingStream:
        self.asked.append(request)
        job = EmbeddingJob(len(self.asked), request)
        stream = EmbeddingStream(job, lambda _: self.cancelled.set())
        for event in self.script:
            stream.put(event)
        return stream


async def ask(worker: FakeWorker, body: dict[str, Any]) -> Reply:
    return await fetch(create_app(services(worker, models=[BERT])), "POST", PATH, body)


def read(**fields: object) -> EmbedRequest:
    return embed_request(BODY.read({"model": "bert", **fields}), CONFIG)


@pytest.mark.parametrize(
    ("given", "inputs"),
    [
        ("hello", ("hello",)),
        (["hello", "world"], ("hello", "world")),
        ([5, 6], ((5, 6),)),
        ([[5], [6, 7]], ((5,), (6, 7))),
        (["x"] * N_INPUTS_MAX, ("x",) * N_INPUTS_MAX),
        ([7] * (N_INPUTS_MAX + 1), ((7,) * (N_INPUTS_MAX + 1),)),
    ],
)
def test_an_input_has_four_forms(given: object, inputs: tuple[object, ...]) -> None:
    assert read(input=given).inputs == inputs


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ("", "input", "expected a string that is not empty, got an empty one"),
        ([], "input", "got an empty array"),
        ([[]], "input[0]", "expected an array of token ids, got an empty one"),
        (["a", ""], "input[1]", "expected a string that is not empty, got an empty one"),
        (["a", [1]], "input[1]", "expected a string, got an array"),
        ([[1], "a"], "input[1]", "expected an array of token ids, got a string"),
        ([1, "a"], "input[1]", "expected an integer, got a string"),
        ([-1], "input[0]", "from 0 to"),
        ([[2, 1.5]], "input[0][1]", "expected an integer, got 1.5"),
        ([True], "input[0]", "expected an integer, got a boolean"),
        ([None], "input[0]", "expected an integer, got null"),
        (None, "input", "got null"),
        ({"text": "a"}, "input", "got an object"),
        ("\ud800", "input", "a lone surrogate"),
        (["x"] * (N_INPUTS_MAX + 1), "input", "expected at most 2048 inputs, got 2049"),
    ],
)
def test_another_input_is_refused_by_its_place(given: object, param: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(input=given)
    assert caught.value.param == param
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 1.0}, "dimensions"),
        ({"input": "a", "dimensions": "8"}, "dimensions"),
        ({"input": "a", "keep_alive": "soon"}, "keep_alive"),
        ({"input": "a", "embd_normalize": -1}, "embd_normalize"),
        ({"input": "a", "lora": [{"id": 0, "scale": 1}]}, "lora"),
    ],
)
def test_a_wrong_field_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(**fields)
    assert caught.value.param == param


def test_the_other_fields() -> None:
    request = read(input="a", dimensions=8, keep_alive="10m", user="ann", embd_normalize=2, lora=[])
    assert request == EmbedRequest("bert", ("a",), 8, 600.0)
    assert read(input="a", dimensions=None, keep_alive=None) == EmbedRequest("bert", ("a",))


def test_a_format_is_one_of_two() -> None:
    for right in (None, "float", "base64"):
        assert BODY.read({"input": "a", "encoding_format": right}).get("encoding_format") == right
    for wrong in ("hex", 5):
        with pytest.raises(BadRequest) as caught:
            read(input="a", encoding_format=wrong)
        assert caught.value.param == "encoding_format"


@on_loop
async def test_a_reply_has_the_floats_as_they_are() -> None:
    worker = Embedding(Vectors(VECTORS[:1]), Vectors(VECTORS[1:]), ENDED)
    reply = await ask(worker, {"model": "bert", "input": ["a", "b"]})
    assert reply.status == 200
    assert reply.headers[b"content-type"] == b"application/json"
    body = reply.json()
    assert [struct.pack("<3f", *item["embedding"]) for item in body["data"]] == list(VECTORS)
    for item in body["data"]:
        item.pop("embedding")
    assert body == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0}, {"object": "embedding", "index": 1}],
        "model": "bert",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    assert worker.asked == [EmbedRequest("bert", ("a", "b"))]


@on_loop
async def test_a_reply_may_be_in_base64() -> None:
    reply = await ask(
        Embedding(Vectors(VECTORS), ENDED), {"model": "bert", "input": ["a", "b"], "encoding_format": "base64"}
    )
    assert [base64.b64decode(item["embedding"]) for item in reply.json()["data"]] == list(VECTORS)


@on_loop
async def test_an_error_of_the_worker_is_the_reply() -> None:
    error = ContextExceeded("`input[1]` has 600 tokens, the model takes 512", param="input[1]")
    reply = await ask(Embedding(error), {"model": "bert", "input": ["a", "b"]})
    assert reply.status == 400
    assert reply.json() == {
        "error": {
            "message": error.message, "type": "invalid_request_error", "param": "input[1]",
            "code": "context_length_exceeded",
        }
    }  # fmt: skip


@on_loop
async def test_a_client_that_leaves_cancels_the_job() -> None:
    worker = Embedding()
    app = create_app(services(worker, models=[BERT]))
    call = Call(app, "POST", PATH, json.dumps({"model": "bert", "input": "a"}).encode())
    task = call.start()
    await until(lambda: bool(worker.asked))
    call.leave()
    await worker.cancelled.wait()
    await task
    assert call.sent.empty()


@on_loop
async def test_prompt_tokens_are_counted() -> None:
    running = services(Embedding(Vectors(VECTORS[:1]), ENDED), models=[BERT])
    await fetch(create_app(running), "POST", PATH, {"model": "bert", "input": "a"})
    page = running.metrics.render()
    assert 'shimmy_prompt_tokens_total{model="bert"} 7' in page
    assert 'shimmy_queue_wait_seconds_count{model="bert"} 1' in page


# -- which models ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "stream": True}),
        ("/v1/completions", {"prompt": "hi"}),
    ],
)
@on_loop
async def test_a_model_for_embeddings_writes_no_text(route: str, body: dict[str, Any]) -> None:
    worker = FakeWorker()
    reply = await fetch(create_app(services(worker, models=[BERT])), "POST", route, {"model": "bert", **body})
    assert reply.status == 400
    assert reply.json()["error"]["param"] == "model"
    assert "`bert` was made for embeddings" in reply.json()["error"]["message"]
    assert not worker.requests


@on_loop
async def test_a_model_for_text_makes_embeddings_where_the_server_lets_it() -> None:
    chat = model("chat")
    body = {"model": "chat", "input": "a"}
    refused = await fetch(create_app(services(Embedding(), models=[chat])), "POST", PATH, body)
    assert refused.status == 400
    assert refused.json()["error"]["param"] == "model"
    assert "`--embeddings`" in refused.json()["error"]["message"]
    worker = Embedding(Vectors(VECTORS[:1]), ENDED)
    reply = await fetch(create_app(services(worker, models=[chat], embeddings="true")), "POST", PATH, body)
    assert reply.status == 200


@on_loop
async def test_a_ranker_makes_embeddings_only_with_another_pooling() -> None:
    ranker = replace(BERT, pooling="rank")
    body = {"model": "bert", "input": "a"}
    refused = await fetch(create_app(services(Embedding(), models=[ranker])), "POST", PATH, body)
    assert refused.status == 400
    assert "ranks texts" in refused.json()["error"]["message"]
    worker = Embedding(Vectors(VECTORS[:1]), ENDED)
    reply = await fetch(create_app(services(worker, models=[ranker], pooling="cls")), "POST", PATH, body)
    assert reply.status == 200


@on_loop
async def test_an_unknown_model_is_not_found() -> None:
    reply = await ask(Embedding(), {"model": "nothing", "input": "a"})
    assert (reply.status, reply.json()["error"]["code"]) == (404, "model_not_found")
