from dataclasses import dataclass

import pytest

from shimmy.formats.pooling_type import EmbeddingPlan, plan, refusal


@dataclass(frozen=True)
class Facts:
    is_embedding: bool = True
    is_causal: bool = False
    pooling: str = ""
    n_ctx_train: int = 512


BERT = Facts(pooling="cls")
CHAT = Facts(is_embedding=False, is_causal=True, n_ctx_train=2048)


@pytest.mark.parametrize(
    ("model", "pooling", "expected"),
    [
        (BERT, None, "cls"),
        (BERT, "mean", "mean"),
        (Facts(), None, "mean"),
        (Facts(is_causal=True), None, "last"),
        (Facts(is_causal=True, pooling="mean"), None, "mean"),
        (Facts(pooling="rank"), "cls", "cls"),
    ],
)
def test_pooling_is_what_somebody_says_then_what_the_model_says(
    model: Facts, pooling: str | None, expected: str
) -> None:
    chosen = plan(model, n_ctx=512, n_batch=512, pooling=pooling)
    assert chosen is not None
    assert chosen.pooling == expected


def test_who_makes_none() -> None:
    assert plan(CHAT, n_ctx=512, n_batch=512) is None
    assert plan(CHAT, n_ctx=512, n_batch=512, pooling="mean") is None
    assert plan(Facts(pooling="rank"), n_ctx=512, n_batch=512, embeddings=True) is None
    assert "`--embeddings`" in (refusal(CHAT, pooling=None, embeddings=False) or "")
    assert "`--pooling`" in (refusal(Facts(pooling="rank"), pooling=None, embeddings=False) or "")


@pytest.mark.parametrize(
    ("model", "n_ctx", "n_batch", "expected"),
    [
        (BERT, 8192, 512, EmbeddingPlan("cls", 512, 512, 256, in_parts=False)),
        (BERT, 128, 512, EmbeddingPlan("cls", 128, 128, 128, in_parts=False)),
        (BERT, 8192, 32, EmbeddingPlan("cls", 512, 512, 32, in_parts=False)),
        (Facts(n_ctx_train=0), 1024, 512, EmbeddingPlan("mean", 1024, 1024, 256, in_parts=False)),
        (CHAT, 8192, 512, EmbeddingPlan("last", 8192, 256, 256, in_parts=True)),
        (CHAT, 8192, 64, EmbeddingPlan("last", 8192, 64, 64, in_parts=True)),
        (Facts(is_causal=True, pooling="mean"), 1024, 512, EmbeddingPlan("mean", 1024, 1024, 256, in_parts=False)),
    ],
)
def test_an_input_is_read_whole_but_for_the_last_token_of_a_causal_model(
    model: Facts, n_ctx: int, n_batch: int, expected: EmbeddingPlan
) -> None:
    assert plan(model, n_ctx=n_ctx, n_batch=n_batch, embeddings=True) == expected


def test_a_small_batch_holds_fewer_sequences() -> None:
    assert EmbeddingPlan("mean", 16, 16, 16, in_parts=False).n_sequences == 16
    assert EmbeddingPlan("mean", 512, 512, 256, in_parts=False).n_sequences == 64
