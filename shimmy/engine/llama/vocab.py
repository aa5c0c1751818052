"""The vocabulary of one loaded model: what its tokens are and how they are written. Any thread may use it.

Knows llama.cpp's vocabularies; `tokenizer` turns texts into tokens, and `backend` decodes these.
"""

import ctypes
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from shimmy.engine.llama.binding import function, llama
from shimmy.engine.llama.tokenizer import Tokenizer
from shimmy.errors import ModelUnavailable

_CONTROL = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN
_SPECIAL = _CONTROL | llama.LLAMA_TOKEN_ATTR_USER_DEFINED
_MARK_OF_TURN = re.compile(
    r"<[|\uff5c][^<>]+>|<[^<>]+[|\uff5c]>|\[/?INST\]|\[gMASK\]|"
    r"</?[^<>\s]*(?:turn|role|system|user|assistant|bos|eos|sop)[^<>\s]*>"
)
# llama.cpp takes tokens with these texts for control tokens, whatever the file says (`llama_vocab::impl::load`).
_ALWAYS_CONTROL = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>"),
    *("[EOT]", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<end_of_utterance>", "<|eom_id|>", "<|fim_prefix|>"),
    *("<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>", "\u2581<PRE>", "<|code_prefix|>"),
    *("<|prefix|>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>"),
    *("\u2581<SUF>", "<|code_suffix|>", "<|suffix|>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>"),
    *(
        "<\uff5cfim\u2581end\uff5c>",
        "<MID>",
        "\u2581<MID>",
        "<|code_middle|>",
        "<|middle|>",
        "<|fim_pad|>",
        "<fim-pad>",
    ),
    *("<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    *("<|file_sep|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>", "[EOS]", "<eos>", "<turn|>"),
    *("<|tool_response>", "[e~["),
    *("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"),  # and these for tokens that users define
)
_N_FIRST_TOKENS = 512  # most vocabularies have the tokens of bytes among these
_NEVER_ADD_SPACES = (llama.LLAMA_VOCAB_TYPE_BPE, llama.LLAMA_VOCAB_TYPE_WPM, llama.LLAMA_VOCAB_TYPE_RWKV)


class LlamaVocab:
    """The vocabulary of one loaded model, which lives as long as the model."""

    def __init__(
        self,
        model: Any,
        name: str,
        metadata: Callable[[str], str | None],
        *,
        longest_token_bytes: int = 0,
        special_tokens: Sequence[int] | None = None,
        words: str = "",
    ) -> None:
        """The vocabulary of the model behind the pointer `model`, called `name` in errors.

        `longest_token_bytes` is the length of its longest token, 0 where that is not known; `special_tokens` are those
        that the model file marks, None where that is not known; `words` is for its Tokenizer. Raises ModelUnavailable
        for a vocabulary that llama.cpp would abort on.
        """
        self.pointer = self._vocab = llama.llama_model_get_vocab(model)
        self._name = name
        self.tokenizer = Tokenizer(self._vocab, metadata, longest_token_bytes, words)
        self.n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        self.adds_bos: bool = llama.llama_vocab_get_add_bos(self._vocab)
        self._check()
        self._special_tokens = special_tokens
        self._pieces: list[bytes | None] = [None] * self.n_vocab
        self.suppressed = self._suppressed()

    def _check(self) -> None:
        """Refuse a vocabulary that lacks a token its tokenizer puts around a text: llama.cpp would abort there."""
        is_wordpiece = llama.llama_vocab_type(self._vocab) == llama.LLAMA_VOCAB_TYPE_WPM
        wanted = {
            "bos": is_wordpiece or self.adds_bos,
            "eos": not is_wordpiece and llama.llama_vocab_get_add_eos(self._vocab),
            "sep": is_wordpiece,
        }
        for which, is_wanted in wanted.items():
            if is_wanted and getattr(llama, f"llama_vocab_{which}")(self._vocab) < 0:
                raise ModelUnavailable(f"`{self._name}` has no {which} token, which its tokenizer puts around a text")
        if llama.llama_vocab_type(self._vocab) == llama.LLAMA_VOCAB_TYPE_SPM and (
            missing := self._bytes_without_token()
        ):
            raise ModelUnavailable(f"`{self._name}` has no token for the byte {missing[0]:#04x}, which a text may have")

    def _bytes_without_token(self) -> list[int]:
        """The bytes for which a SentencePiece vocabulary has no token: llama.cpp would abort at a text with one."""
        texts = set(map(partial(llama.llama_vocab_get_text, self._vocab), range(min(self.n_vocab, _N_FIRST_TOKENS))))
        missing = [byte for byte in range(256) if b"<0x%02X>" % byte not in texts]
        if missing:  # among the first tokens
            texts = set(map(partial(llama.llama_vocab_get_text, self._vocab), range(self.n_vocab)))
            missing = [byte for byte in missing if b"<0x%02X>" % byte not in texts and bytes([byte]) not in texts]
        return missing

    def is_end(self, token: int) -> bool:
        return bool(llama.llama_vocab_is_eog(self._vocab, token))

    def end_tokens(self) -> list[int]:
        """Every end-of-generation token; walks the whole vocabulary."""
        return [token for token in range(self.n_vocab) if self.is_end(token)]

    def piece(self, token: int) -> bytes:
        """The bytes of a token as text shows them; control tokens are empty."""
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self.token_bytes(token, special=False)
        return piece

    def spelled(self, token: int) -> bytes:
        """The bytes of a token as a vocabulary lists them; control tokens have theirs too."""
        return self.piece(token) or self.token_bytes(token, special=True)

    def token_bytes(self, token: int, *, special: bool) -> bytes:
        """The bytes of a token, those of control tokens only with `special`."""
        return self.tokenizer.token_bytes(token, special=special)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return self.tokenizer.tokenize(text, add_special=add_special, parse_special=parse_special)

    def control_texts(self) -> list[str]:
        """The texts that the tokenizer takes for control tokens where it looks for special ones.

        These are the control tokens, and those user-defined tokens that look like the mark of a turn (`<|start|>`,
        `<start_of_turn>`): llama.cpp may call such a token user-defined because replies show it, or because the file
        says so. Other user-defined tokens (`<think>`, `<table>`) may well stand in what users write.
        """
        attribute, text_of, found = llama.llama_vocab_get_attr, llama.llama_vocab_get_text, []
        for token in self._maybe_special():
            if (attributes := attribute(self._vocab, token)) & _SPECIAL:
                text = text_of(self._vocab, token).decode("utf-8", "ignore")
                if attributes & _CONTROL or _MARK_OF_TURN.fullmatch(text):
                    found.append(text)
        return found

    def _maybe_special(self) -> Iterable[int]:
        """The tokens that the file marks as special, and those that llama.cpp makes special because of their texts."""
        if self._special_tokens is None:
            return range(self.n_vocab)
        named = (self.tokenize(text, add_special=False, parse_special=True) for text in _ALWAYS_CONTROL)
        tokens = {tokens[0] for tokens in named if len(tokens) == 1}
        return sorted(tokens.union(token for token in self._special_tokens if token < self.n_vocab))

    @property
    def may_add_spaces(self) -> bool:
        """Whether the tokenizer may put a space before a text."""
        return llama.llama_vocab_type(self._vocab) not in _NEVER_ADD_SPACES

    def tokenizer_addresses(self) -> tuple[int, int]:
        """The addresses of the vocabulary, which lives as long as the model, and of a function as `llama_tokenize`."""
        return int(self._vocab), self.tokenizer.address()

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of `tokens` (all inside the vocabulary), special tokens written out."""
        return b"".join(self.token_bytes(token, special=True) for token in tokens).decode("utf-8", "replace")

    def special_text(self, which: str) -> str:
        """How a template writes the `bos` or `eos` token; empty when the model has none."""
        token = getattr(llama, f"llama_vocab_{which}")(self._vocab)
        return "" if token < 0 else self.token_bytes(token, special=True).decode("utf-8", "replace")

    def bos_token(self) -> int | None:
        token = int(llama.llama_vocab_bos(self._vocab))
        return None if token < 0 else token

    def fill_tokens(self) -> tuple[int, int, int] | None:
        """The tokens before a prefix, before a suffix, and before the middle to be written; None without them."""
        names = ("fim_pre", "fim_suf", "fim_mid")
        before, behind, middle = (int(getattr(llama, f"llama_vocab_{name}")(self._vocab)) for name in names)
        return None if min(before, behind, middle) < 0 else (before, behind, middle)

    def _suppressed(self) -> list[tuple[int, float]]:
        n_tokens = ctypes.c_int32(0)
        suppress = function(
            "llama_vocab_get_suppress_tokens",
            ctypes.POINTER(ctypes.c_int32),
            ctypes.c_void_p,
            ctypes.POINTER(ctypes.c_int32),
        )
        tokens = suppress(self._vocab, ctypes.byref(n_tokens))
        return [(tokens[i], float("-inf")) for i in range(n_tokens.value)]
