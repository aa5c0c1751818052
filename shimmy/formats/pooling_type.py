"""Whether and how a model makes embeddings. The parent asks, to refuse a request and to reckon with memory before there
is a worker, and so does the worker, of the header it reads itself. Knows nothing of requests or llama.cpp.
"""

from dataclasses import dataclass
from typing import Protocol

# Rows of a decode that is filled with several inputs, or with a part of a long one: enough to keep the processor busy,
# few enough that text generated beside them goes on flowing, and that the logits which llama.cpp keeps room for, of
# every row and for nobody, stay small.
_PACKED_ROWS = 256
# In one decode; llama.cpp keeps room for the outputs of as many, and knows 256 at most.
_MAX_SEQUENCES = 64


class Facts(Protocol):
    """What a header says of a model; `registry.Model` and `gguf.GgufHeader` have it."""

    @property
    def is_embedding(self) -> bool: ...
    @property
    def is_causal(self) -> bool: ...
    @property
    def pooling(self) -> str: ...
    @property
    def n_ctx_train(self) -> int: ...


@dataclass(frozen=True, slots=True)
class EmbeddingPlan:
    """How the context of a model for embeddings is opened, and how it is filled."""

    pooling: str  # 'mean', 'cls' or 'last'
    n_ctx: int  # the most tokens of one input
    n_batch: int  # the most rows of one decode
    n_packed: int  # rows of a decode with several inputs
    in_parts: bool  # an input may take several decodes

    @property
    def n_sequences(self) -> int:
        """Inputs in one decode."""
        return min(_MAX_SEQUENCES, self.n_batch)


def plan(
    model: Facts, *, n_ctx: int, n_batch: int, pooling: str | None = None, embeddings: bool = False
) -> EmbeddingPlan | None:
    """How `model` makes embeddings with a context of `n_ctx` tokens; None where it does not.

    `pooling` overrides the model's, `embeddings` is for models that were not made for embeddings. Where nobody says how
    to pool, it is the mean for encoders, as in Sentence Transformers, and the last token for others, as in Ollama.
    """
    if refusal(model, pooling=pooling, embeddings=embeddings):
        return None
    pooling = pooling or model.pooling or ("last" if model.is_causal else "mean")
    if not model.is_causal:  # there is no position, or no sense, beyond the training length
        n_ctx = min(n_ctx, model.n_ctx_train or n_ctx)
    n_packed = min(_PACKED_ROWS, n_batch, n_ctx)
    # The last token of a causal model needs no later one and no other row: its input may come in parts. All else needs
    # one decode: a mean would be that of a part, and without causal attention llama.cpp aborts.
    in_parts = model.is_causal and pooling == "last"
    return EmbeddingPlan(pooling, n_ctx, n_packed if in_parts else n_ctx, n_packed, in_parts)


def refusal(model: Facts, *, pooling: str | None, embeddings: bool) -> str | None:
    """Why `model` makes no embeddings, the end of a sentence for a person; None when it does."""
    if not (model.is_embedding or embeddings):
        return (
            "was made to generate text and makes no embeddings: ask a model that does, or start the server with "
            "`--embeddings`"
        )
    if model.pooling == "rank" and pooling is None:
        return "ranks texts and makes no embeddings: ask a model that does, or start the server with `--pooling`"
    return None
