"""Log-probabilities of a real model are a softmax of the logits that llama.cpp itself computes for the same tokens."""

import math
from collections.abc import Sequence
from functools import cache
from heapq import nlargest

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama import binding
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from tests.e2e.conftest import StartServer
from tests.e2e.harness import COMPLETION
from tests.models import demo_model

SUBJECTS = ("fox", "sea", "city", "clock", "garden", "train", "letter", "bridge", "storm", "violin")
PROMPTS = [f"{how} the {what}" for what in SUBJECTS for how in ("Once upon a time,", "Five facts, each true, about")]
N_TOKENS, N_TOP = 12, 4
TOLERANCE = 1e-3


@cache
def model() -> LlamaModel:
    model = LlamaModel(demo_model(), CpuBackend(variants.libraries(LIBRARY_FOLDER, None)))
    model.open_context(n_ctx=512, n_batch=512, n_sequences=1, n_outputs=512, n_threads=2)
    return model


def direct(tokens: Sequence[int]) -> list[list[float]]:
    """For each token but the first, the logits of the whole vocabulary at its place."""
    model().backend.forget(0, 0)
    model().backend.batch.clear()
    model().backend.batch.add(tokens, 0, 0, n_outputs=len(tokens))
    assert model().backend.decode() == 0
    return [
        binding.llama.llama_get_logits_ith(model().backend._context, row)[: model().vocab.n_vocab]
        for row in range(len(tokens) - 1)
    ]


def log_total(logits: Sequence[float]) -> float:
    most = max(logits)
    return most + math.log(sum(map(math.exp, [logit - most for logit in logits])))


@pytest.mark.timeout(600)
def test_log_probabilities_are_those_of_the_engine(start: StartServer) -> None:
    server = start("--model-path", demo_model(), "--no-speculation", threads="")
    assert len(PROMPTS) == 20
    n_odd = 0
    for prompt in PROMPTS:
        asked = {"model": demo_model().stem, "prompt": prompt, "max_tokens": N_TOKENS, "temperature": 0}
        asked["ignore_eos"] = True  # the token that ends a reply is told, too, and is not in its text
        choice = server.post(COMPLETION, asked | {"echo": True, "logprobs": N_TOP}).json()["choices"][0]
        told = choice["logprobs"]
        assert "".join(told["tokens"]) == choice["text"]
        tokens = server.post("/tokenize", {"model": asked["model"], "content": choice["text"]}).json()["tokens"]
        if len(tokens) != len(told["tokens"]):  # a model may write a word in other tokens than its tokenizer does
            n_odd += 1
            continue
        assert told["token_logprobs"][0] is None
        chosen = []
        for token, top, logits in zip(tokens[1:], told["top_logprobs"][1:], direct(tokens), strict=True):
            total = log_total(logits)
            chosen.append(logits[token] - total)
            best = [logit - total for logit in nlargest(N_TOP, logits)]
            assert sorted(top.values(), reverse=True)[:N_TOP] == pytest.approx(best, abs=TOLERANCE)
        assert told["token_logprobs"][1:] == pytest.approx(chosen, abs=TOLERANCE)
        perplexity = math.exp(-math.fsum(chosen) / len(chosen))
        assert math.exp(-math.fsum(told["token_logprobs"][1:]) / len(chosen)) == pytest.approx(
            perplexity, rel=TOLERANCE
        )
    assert n_odd <= 2
