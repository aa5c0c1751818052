"""Texts into tokens, by the tokenizer that a model brings along, and how much text a token can stand for.

Knows llama.cpp's vocabulary and where its tokenizers lose text; nothing of prompts, templates or jobs.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from shimmy.engine.binding import llama

_PIECE_BYTES = 256
# Every byte that text has in UTF-8: each as the first of a character, and 80 to BF behind it. Without the control
# characters and the planes without characters: some vocabularies lack their bytes, no long text has them.
_EVERY_BYTE = "\t\n\r" + "".join(map(chr, (*range(0x20, 0x7F), *range(0x80, 0x800, 0x3F),
                                            0x800, *range(0x1000, 0x10000, 0x1000), 0x1F600)))  # fmt: skip
# Models whose special tokens swallow white space beside them; llama.cpp goes by their names (`llama_vocab::impl::load`,
# "Handle per token attributes").
_SWALLOWING = {
    "general.name": ("phi-3", "phi3", "modern-bert"),
    "tokenizer.ggml.pre": ("jina-v2-de", "jina-v2-es", "jina-v2-code"),
    "general.architecture": ("nomic-bert-moe", "jina-bert-v3"),
}


class Tokenizer:
    """The tokenizer of one loaded model; any thread may use it."""

    def __init__(self, vocab: Any, metadata: Callable[[str], str | None], longest_bytes: int) -> None:
        """`vocab` is llama.cpp's and lives as long as the model; `longest_bytes` has the text of its longest token, 0
        where that is not known."""
        self._vocab = vocab
        self._metadata = metadata
        self._longest_bytes = longest_bytes

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", "replace")  # a lone surrogate has no UTF-8 form
        return self._tokens(data, add_special=add_special, parse_special=parse_special)

    def _tokens(self, data: bytes, *, add_special: bool, parse_special: bool) -> list[int]:
        n_max = len(data) + 8
        buffer = (ctypes.c_int32 * n_max)()
        n_tokens = llama.llama_tokenize(self._vocab, data, len(data), buffer, n_max, add_special, parse_special)
        if n_tokens < 0:
            buffer = (ctypes.c_int32 * -n_tokens)()
            n_tokens = llama.llama_tokenize(self._vocab, data, len(data), buffer, -n_tokens, add_special, parse_special)
        return list(buffer[:n_tokens])

    def token_bytes(self, token: int, *, special: bool) -> bytes:
        """The bytes of a token, those of control tokens only with `special`."""
        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        n_bytes = llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if n_bytes < 0:
            buffer = ctypes.create_string_buffer(-n_bytes)
            n_bytes = llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:n_bytes]

    def longest_token_bytes(self) -> int | None:
        """No token stands for more bytes of a text than that; None where one may stand for any number, or for none.

        In a vocabulary a byte of text takes one byte at least, so the longest entry is a bound. It is none where the
        tokenizer leaves out white space, joins what it does not know, or is given a changed text.
        """
        kind = llama.llama_vocab_type(self._vocab)
        if kind not in (llama.LLAMA_VOCAB_TYPE_SPM, llama.LLAMA_VOCAB_TYPE_BPE) or not self._longest_bytes:
            return None
        if self._metadata("tokenizer.ggml.model") == "whitespace" or self._metadata("shimmy.tokenizer.normalizer"):
            return None
        for key, names in _SWALLOWING.items():
            value = (self._metadata(key) or "").lower()
            if any(name in value for name in names):
                return None
        tokens = self.tokenize(_EVERY_BYTE, add_special=False, parse_special=False)
        n_bytes = sum(len(self.token_bytes(token, special=True)) for token in tokens)
        return self._longest_bytes if n_bytes >= len(_EVERY_BYTE.encode()) else None
