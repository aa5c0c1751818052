"""What stands in the arrays of a model's vocabulary, read from where its header has them; most loads need little of it.

Knows how GGUF stores arrays and llama.cpp's token types; nothing of tokenizers.
"""

import sys
from array import array
from pathlib import Path

from shimmy.formats.gguf.header import Array
from shimmy.formats.gguf.reader import Contents

_TOKENS, _TYPES = b"tokenizer.ggml.tokens", b"tokenizer.ggml.token_type"
_INT32 = (4, 5)  # gguf_type, unsigned or not: llama.cpp reads both as the same
_STRING = 8
# llama_token_type: unknown, control and those that users define.
_SPECIAL = frozenset((2, 3, 4))
_LENGTH_BYTES = 8


def special_tokens(path: Path, found: Contents) -> list[int]:
    """The ids of all tokens that the file at `path` says are no plain text; OSError when it cannot be read."""
    types = found.metadata.get(_TYPES)
    if not isinstance(types, Array) or types.code not in _INT32:
        return []
    numbers = array("i")
    with path.open("rb") as file:
        file.seek(types.start)
        numbers.frombytes(file.read(types.n_items * numbers.itemsize)[: types.n_items * numbers.itemsize])
    if sys.byteorder == "big":
        numbers.byteswap()
    return [token for token, kind in enumerate(numbers) if kind in _SPECIAL]


def fault(path: Path, found: Contents) -> str | None:
    """What llama.cpp would abort on among the tokens: one that is there twice, or is to its eyes; None for nothing."""
    tokens = found.metadata.get(_TOKENS)
    if not isinstance(tokens, Array) or tokens.code != _STRING:
        return None
    known: dict[bytes, int] = {}
    with path.open("rb") as file:
        file.seek(tokens.start)
        for token in range(tokens.n_items):
            text = file.read(int.from_bytes(file.read(_LENGTH_BYTES), "little"))
            read = text.partition(b"\0")[0] or b"[EMPTY_%d]" % token
            if read in known:
                shown = ascii(text[:64].decode("utf-8", "replace"))
                reason = f"its tokens {known[read]} and {token} are the same: {shown}"
                return f"{reason}, which ends at the NUL" if b"\0" in text else reason
            known[read] = token
    return None
