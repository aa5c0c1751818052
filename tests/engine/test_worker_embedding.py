"""Embeddings of a real worker process, through the parent's own client."""

import asyncio
import math
import struct
from pathlib import Path

import pytest

from shimmy.errors import BadRequest, ContextExceeded, ModelUnavailable, ShimmyError
from shimmy.messages.event import Embeddings, Usage
from shimmy.messages.request import EmbeddingInput, EmbedRequest
from shimmy.workers.worker_client import WorkerClient
from tests.engine.test_main import answer, request, worker
from tests.fakes import on_loop
from tests.tiny_models import (
    BERT_N_EMBD,
    N_EMBD,
    UINT32,
    bert_vocabulary,
    write_tiny_adapter,
    write_tiny_bert,
    write_tiny_model,
)

LONG = "the user tells the fox a story. " * 200


async def embed(client: WorkerClient, *inputs: EmbeddingInput, n_dimensions: int | None = None) -> Embeddings:
    return await client.embed(EmbedRequest("tiny", inputs, n_dimensions)).result()


async def refusal(client: WorkerClient, *inputs: EmbeddingInput, n_dimensions: int | None = None) -> ShimmyError:
    with pytest.raises(ShimmyError) as caught:
        await embed(client, *inputs, n_dimensions=n_dimensions)
    return caught.value


def numbers(vector: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))


def cosine(left: bytes, right: bytes) -> float:
    return sum(a * b for a, b in zip(numbers(left), numbers(right), strict=True))


@on_loop
async def test_texts_and_tokens_are_embedded_with_a_true_account(tmp_path: Path) -> None:
    async with worker(write_tiny_bert(tmp_path)) as client:
        assert client.facts.n_ctx == 64
        tokens = tuple(await client.tokenize("hello world", add_special=True, parse_special=True))
        result = await embed(client, "hello world", tokens, "the fox")
        assert result.finished.usage == Usage(4 + 4 + 4, 0, 0)
        assert result.vectors[0] == result.vectors[1]
        assert cosine(result.vectors[0], result.vectors[2]) < 0.999
        for vector in result.vectors:
            assert len(vector) == 4 * BERT_N_EMBD
            assert math.isclose(math.hypot(*numbers(vector)), 1, abs_tol=1e-6)


@on_loop
async def test_requests_at_once_get_what_each_gets_alone(tmp_path: Path) -> None:
    async with worker(write_tiny_bert(tmp_path)) as client:
        texts = ["hello", "the world", "a story of water and the fox", "users " * 20, "!"]
        alone = [(await embed(client, text)).vectors[0] for text in texts]
        assert len(set(alone)) == len(texts)
        together = await asyncio.gather(*(embed(client, text, *texts * 20) for text in texts))
        for text, own, result in zip(texts, alone, together, strict=True):
            for vector, expected in zip(result.vectors, [own, *alone * 20], strict=True):
                assert math.isclose(cosine(vector, expected), 1, abs_tol=1e-5), text


@on_loop
async def test_what_cannot_be_embedded_is_refused_by_its_place(tmp_path: Path) -> None:
    async with worker(write_tiny_bert(tmp_path)) as client:
        error = await refusal(client, "hello", LONG)
        assert isinstance(error, ContextExceeded)
        assert error.param == "input[1]"
        assert "takes 64" in error.message
        assert "--ctx-size" not in error.message
        assert (await refusal(client, LONG)).param == "input"
        n_vocab = len(bert_vocabulary())
        error = await refusal(client, (1, n_vocab))
        assert isinstance(error, BadRequest)
        assert f"0 to {n_vocab - 1}" in error.message
        error = await refusal(client, "hello", n_dimensions=BERT_N_EMBD + 1)
        assert (type(error), error.param) == (BadRequest, "dimensions")
        assert f"{BERT_N_EMBD} numbers" in error.message
        assert len((await embed(client, "hello", n_dimensions=BERT_N_EMBD)).vectors[0]) == 4 * BERT_N_EMBD


@on_loop
async def test_a_smaller_context_says_how_to_get_a_larger_one(tmp_path: Path) -> None:
    async with worker(write_tiny_bert(tmp_path), n_ctx=32) as client:
        error = await refusal(client, "hello world " * 20)
        assert "takes 32" in error.message
        assert "--ctx-size" in error.message


@on_loop
async def test_a_model_for_embeddings_takes_no_job_for_text(tmp_path: Path) -> None:
    async with worker(write_tiny_bert(tmp_path)) as client:
        with pytest.raises(BadRequest, match="writes no text"):
            await client.submit(request("hello")).accepted()
        assert len((await embed(client, "hello")).vectors) == 1


@on_loop
async def test_a_cancelled_job_makes_way_for_the_next(tmp_path: Path) -> None:
    async with worker(write_tiny_bert(tmp_path)) as client:
        streams = [client.embed(EmbedRequest("tiny", ("the fox " * 20,) * 2048)) for _ in range(8)]
        for stream in streams:
            stream.close()
        assert client.is_idle
        assert (await embed(client, "hello")).vectors


@on_loop
async def test_a_decoder_made_for_embeddings_reads_more_than_a_batch(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path, more=[("llama.pooling_type", UINT32, 3)])
    async with worker(path, n_ctx=512, n_batch=32) as client:
        text = "hello world the user " * 20
        result = await embed(client, text, "hello")
        assert result.finished.usage.n_prompt > 64
        assert len(result.vectors[0]) == 4 * N_EMBD
        assert (await embed(client, text)).vectors[0] == result.vectors[0]
    async with worker(path, n_ctx=512, n_batch=512) as client:
        assert math.isclose(cosine((await embed(client, text)).vectors[0], result.vectors[0]), 1, abs_tol=1e-5)


@on_loop
async def test_a_model_for_text_makes_embeddings_beside_it_when_asked_to(tiny_model: Path) -> None:
    async with worker(tiny_model) as client:
        before = await answer(client, "hello world")
        with pytest.raises(BadRequest, match="makes no embeddings"):
            await embed(client, "hello")
    async with worker(tiny_model, embeddings=True) as client:
        text, result = await asyncio.gather(answer(client, "hello world"), embed(client, *["hello", "world"] * 50))
        assert text == before
        assert result.vectors[0] == (await embed(client, "hello")).vectors[0]
    async with worker(tiny_model, embeddings=True, pooling="mean") as client:
        assert cosine((await embed(client, "hello")).vectors[0], result.vectors[0]) < 0.999


@on_loop
async def test_adapters_that_were_asked_for_apply_to_embeddings(tiny_model: Path, tmp_path: Path) -> None:
    async with worker(tiny_model, embeddings=True) as client:
        plain = (await embed(client, "hello")).vectors[0]
    adapter = str(write_tiny_adapter(tmp_path))
    async with worker(tiny_model, embeddings=True, siblings=(adapter,)) as client:
        assert (await embed(client, "hello")).vectors[0] == plain
    async with worker(tiny_model, embeddings=True, lora=((adapter, 1.0),)) as client:
        adapted = (await embed(client, "hello")).vectors[0]
        assert adapted != plain
    only = write_tiny_model(tmp_path, more=[("llama.pooling_type", UINT32, 3)])
    async with worker(only, lora=((adapter, 1.0),)) as client:
        assert (await embed(client, "hello")).vectors[0] == adapted


@on_loop
async def test_a_model_that_ranks_is_not_loaded(tmp_path: Path) -> None:
    path = write_tiny_bert(tmp_path, pooling=4)
    with pytest.raises(ModelUnavailable, match="ranks texts"):
        async with worker(path):
            pass
    async with worker(path, pooling="cls") as client:
        assert (await embed(client, "hello")).vectors


@on_loop
async def test_damaged_weights_are_found_when_the_model_is_loaded(tmp_path: Path) -> None:
    path = write_tiny_bert(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[:-4] + struct.pack("<f", math.nan))
    with pytest.raises(ModelUnavailable, match="NaN"):
        async with worker(path):
            pass


@on_loop
async def test_a_vocabulary_without_what_a_text_begins_with_is_found_when_the_model_is_loaded(tmp_path: Path) -> None:
    path = write_tiny_bert(tmp_path)
    # Without the key llama.cpp takes token 101, as BERT has it, and this vocabulary is smaller.
    assert len(bert_vocabulary()) < 101
    path.write_bytes(path.read_bytes().replace(b"tokenizer.ggml.bos_token_id", b"tokenizer.ggml.bus_token_id"))
    with pytest.raises(ModelUnavailable, match="has no bos token"):
        async with worker(path):
            pass
