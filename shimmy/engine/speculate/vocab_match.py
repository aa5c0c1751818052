"""Whether two models have the same vocabulary, so that a token of one means the same to the other.

The rules are those of llama.cpp (common/speculative.cpp): the same kind, the same beginning and end of a text, and the
same tokens but for a few at the end.
"""

from typing import TYPE_CHECKING

from shimmy.engine.llama.binding import llama
from shimmy.wire.worker_options import MAX_VOCABULARY_DIFFERENCE

if TYPE_CHECKING:
    from shimmy.engine.llama.vocab import LlamaVocab

# Tokens before this one may be called differently, such as those for the beginning and for what is unknown.
_FIRST_COMPARED = 5
_MAX_SHOWN_BYTES = 32


def difference(one: "LlamaVocab", other: "LlamaVocab") -> str | None:
    """What sets the vocabulary of `one` apart from that of `other`, in words for a person; None: nothing."""
    mine, yours = one.pointer, other.pointer
    if llama.llama_vocab_type(mine) != llama.llama_vocab_type(yours):
        return "its vocabulary is of another kind"
    for name in ("get_add_bos", "get_add_eos", "bos", "eos"):
        of = getattr(llama, f"llama_vocab_{name}")
        if of(mine) != of(yours):
            return "its texts begin or end with other tokens"
    if abs(one.n_vocab - other.n_vocab) > MAX_VOCABULARY_DIFFERENCE:
        return f"its vocabulary has {one.n_vocab} tokens and not {other.n_vocab}"
    text_of = llama.llama_vocab_get_text
    for token in range(_FIRST_COMPARED, min(one.n_vocab, other.n_vocab)):
        if (text := text_of(mine, token)) != (expected := text_of(yours, token)):
            return f"its token {token} is {_shown(text)} and not {_shown(expected)}"
    return None


def _shown(text: bytes) -> str:
    return f"`{ascii(text[:_MAX_SHOWN_BYTES].decode('utf-8', 'replace'))[1:-1]}`"
