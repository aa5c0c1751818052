"""Texts into tokens, by the tokenizer that a model brings along, and how much text a token can stand for.

llama.cpp is given a long text in slices: a request can be cancelled between two of them, and the time of its search for
special tokens grows with the square of their number. Text that cannot be cut runs on a stack that is large enough for
its length: `std::regex` recurses for every character of a word. Text that llama.cpp cannot cut as a converted model's
tokenizer does is cut into words for it. Knows llama.cpp's vocabularies; nothing of prompts, templates or jobs.
"""

import ctypes
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from time import perf_counter
from typing import TYPE_CHECKING, Any

from shimmy.engine import deep_thread
from shimmy.engine.llama import text_slices
from shimmy.engine.llama.binding import llama
from shimmy.errors import BadRequest, ModelUnavailable
from shimmy.formats.format_errors import Unconvertible

if TYPE_CHECKING:
    from shimmy.formats.tokenizer.words import Words

_PIECE_BYTES = 256
# `std::regex` of GCC 12 takes 321 bytes for each character of a word, with every pre-tokenizer.
_STACK_BYTES = 4 << 20
_STACK_BYTES_FOR_EACH = 1 << 10
_MAX_STACK_BYTES = 512 << 20
_MAX_WORD_CHARACTERS = (_MAX_STACK_BYTES - _STACK_BYTES) // _STACK_BYTES_FOR_EACH
_SLICE_S = 0.1
_MIN_SLICE_CHARACTERS = 1024
_WINDOW = 2048  # characters, in which a word ends or does not
_MAX_SPECIALS = 16_384  # of a slice: a second
_MAX_UNCUT = 1 << 16  # characters, where nothing is known of special tokens
# White space that all engines of regular expressions know, and where words end that may have spaces in them.
_BREAK, _NO_BREAK = re.compile(r"[ \t-\r]"), re.compile(r"[^ \t-\r]")
_LINE, _NO_LINE = re.compile(r"\n"), re.compile(r"[^\n]")
# What a pre-tokenizer looks at once more for each of its characters, by `tokenizer.ggml.pre`: 2,000 take 0.2 seconds.
_QUADRATIC = {"superbpe": re.compile(r"[^0-9]"), "deepseek-llm": re.compile(r"\S"), "jais-2": re.compile(r"\S")}
_MAX_QUADRATIC = 2000
# llama.cpp ends the process where `whitespace` leaves these together.
_TOGETHER = re.compile(r" \s|\s ")
# What a text to be found may begin with, and what may stand behind: llama.cpp tokenizes that without our words.
_PLAIN_BEHIND = re.compile(r".[!-~]*", re.DOTALL)
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
_SPACE = "▁".encode()
_HIDDEN = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN
_SPECIAL = _HIDDEN | llama.LLAMA_TOKEN_ATTR_USER_DEFINED
# Merges each run of letters between white space by itself, and takes letters of bytes as they are.
_OF_WORDS = "whitespace"
# As llama_tokenize: vocabulary, text, its bytes, tokens, room for them, add_special, parse_special.
_TOKENIZE = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_bool,
    ctypes.c_bool,
)  # fmt: skip


class Tokenizer:
    """The tokenizer of one loaded model; any thread may use it."""

    def __init__(self, vocab: Any, metadata: Callable[[str], str | None], longest_bytes: int, words: str = "") -> None:
        """`vocab` is llama.cpp's and lives as long as the model; `longest_bytes` has the text of its longest token, 0
        where that is not known. Text is cut into `words` (`pretokenizers.WORDS`) where that is not '': llama.cpp has to
        have been loaded with `overrides_for_words`. Raises ModelUnavailable for words that are not known."""
        self._vocab = vocab
        self._metadata = metadata
        self._longest_bytes = longest_bytes
        self._type: int = llama.llama_vocab_type(vocab)
        self._has_words = self._type == llama.LLAMA_VOCAB_TYPE_BPE  # that `std::regex` may have to find
        self._pre = (metadata("tokenizer.ggml.pre") or "") if self._has_words else ""
        self._words = _words(words) if words else None
        if words:
            self._pre = _OF_WORDS
        self._cuts: dict[bool, text_slices.Cuts] = {}
        # What takes about as long as others should wait: some pre-tokenizers take milliseconds for each piece of text
        # between special tokens, as they compile their expressions for each.
        self._n_at_once = text_slices.MAX_SLICE_CHARACTERS

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """All tokens of `text`; raises what `slices` raises."""
        slices = self.slices(text, add_special=add_special, parse_special=parse_special)
        return [token for tokens in slices for token in tokens]

    def slices(self, text: str, *, add_special: bool, parse_special: bool) -> Iterator[list[int]]:
        """The tokens of `text`, as many at a time as take some milliseconds, or longer where it cannot be cut.

        Raises BadRequest for what would take a stack or a time that there is not, and OutOfMemory where the system
        gives no stack.
        """
        if len(text) <= self._n_now and self._words is None:
            yield self._tokens(text, add_special, parse_special)
            return
        before, behind = self._around if add_special else ([], [])
        yield before
        cuts = self._cuts_of(parse_special)
        start = 0
        while start < len(text):
            end = cuts.end(text, start, self._n_now)
            part = text[start:end]
            if start and self._adds_space and part[0] == " ":
                part = part[1:]  # it comes back in front of the slice
            begun_s = perf_counter()
            tokens = self._tokens_of_slice(part, parse_special, cuts)
            self._learn(perf_counter() - begun_s)
            yield tokens
            start = end
        yield behind

    def _learn(self, taken_s: float) -> None:
        if taken_s > _SLICE_S:
            self._n_at_once = max(_MIN_SLICE_CHARACTERS, self._n_at_once // 2)
        elif taken_s < _SLICE_S / 4:
            self._n_at_once = min(text_slices.MAX_SLICE_CHARACTERS, self._n_at_once * 2)

    @property
    def _n_now(self) -> int:
        """Characters of the next slice."""
        return min(self._n_at_once, text_slices.MAX_SLICE_CHARACTERS)

    def _tokens_of_slice(self, text: str, parse_special: bool, cuts: text_slices.Cuts) -> list[int]:
        text = self._written(text, cuts)
        if len(text) <= text_slices.MAX_SLICE_CHARACTERS:
            return self._tokens(text, False, parse_special)
        if not cuts.is_known and len(text) > _MAX_UNCUT:
            raise BadRequest(f"the model takes no text of more than {_MAX_UNCUT} characters: its vocabulary is too odd")
        if cuts.n_specials(text, _MAX_SPECIALS) == _MAX_SPECIALS:
            raise BadRequest(f"the text has more than {_MAX_SPECIALS} special tokens with nothing between them")
        n_word = self._longest_word(text) if self._has_words else 0
        if n_word > _MAX_WORD_CHARACTERS:
            raise BadRequest(f"the text has more than {_MAX_WORD_CHARACTERS} characters without a space between them")
        stack_bytes = _STACK_BYTES + n_word * _STACK_BYTES_FOR_EACH
        return deep_thread.call(lambda: self._tokens(text, False, parse_special), stack_bytes)

    def _written(self, text: str, cuts: text_slices.Cuts) -> str:
        """What llama.cpp has to read for `text`: its words, where they are cut here, between its special tokens."""
        if self._words is None:
            return text
        if not cuts.is_known:
            raise BadRequest("the model takes no text: its special tokens are too many, or too odd")
        if len(text) > _MAX_WORD_CHARACTERS:
            raise BadRequest(f"the text has more than {_MAX_WORD_CHARACTERS} characters without a space between words")
        parts = cuts.parts(text)
        parts[::2] = map(self._words.written, parts[::2])
        return "".join(parts)

    def _longest_word(self, text: str) -> int:
        """No word of the pre-tokenizer's has more characters: a run without white space, and the white space behind."""
        breaks, others = (_LINE, _NO_LINE) if self._pre == "exaone-moe" else (_BREAK, _NO_BREAK)
        longest = n_windows = 0
        for start in range(0, len(text), _WINDOW):
            end = start + _WINDOW
            is_mixed = breaks.search(text, start, end) and others.search(text, start, end)
            n_windows = 0 if is_mixed else n_windows + 1
            longest = max(longest, n_windows)
        return min(len(text), 2 * (longest + 2) * _WINDOW)

    def _tokens(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        if self._pre in _QUADRATIC:
            self._check_runs(text)
        if self._pre == _OF_WORDS and self._metadata("tokenizer.ggml.model") == "gpt2" and _TOGETHER.search(text):
            raise BadRequest("the text has spaces in a row, which the model cannot read")
        data = text.encode("utf-8", "replace")  # a lone surrogate has no UTF-8 form
        n_max = len(data) + 8
        buffer = (ctypes.c_int32 * n_max)()
        n_tokens = llama.llama_tokenize(self._vocab, data, len(data), buffer, n_max, add_special, parse_special)
        if n_tokens < 0:
            buffer = (ctypes.c_int32 * -n_tokens)()
            n_tokens = llama.llama_tokenize(self._vocab, data, len(data), buffer, -n_tokens, add_special, parse_special)
        return list(buffer[:n_tokens])

    def _check_runs(self, text: str) -> None:
        """A run of twice as many characters has all of a window."""
        half = _MAX_QUADRATIC // 2
        for start in range(0, len(text) - half + 1, half):
            if not _QUADRATIC[self._pre].search(text, start, start + half):
                raise BadRequest(f"the text has {half} digits or spaces in a row, which the model cannot read")

    # -- what is known of the vocabulary -------------------------------------------------------------------------------

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The tokens before and behind every text."""
        tokens = self._tokens("", True, False)
        is_wordpiece = self._type == llama.LLAMA_VOCAB_TYPE_WPM
        n_before = int(bool(tokens) and (is_wordpiece or bool(llama.llama_vocab_get_add_bos(self._vocab))))
        return tokens[:n_before], tokens[n_before:]

    @cached_property
    def _adds_space(self) -> bool:
        """Whether a text that begins with a word gets a space in front."""
        has_pieces = self._type == llama.LLAMA_VOCAB_TYPE_SPM
        return has_pieces and self._metadata("tokenizer.ggml.add_space_prefix") != "false"

    def _cuts_of(self, parse_special: bool) -> text_slices.Cuts:
        if parse_special not in self._cuts:
            kinds = _SPECIAL if parse_special else _SPECIAL & ~_HIDDEN
            self._cuts[parse_special] = text_slices.Cuts(self._specials(kinds), self._place, swallows=self._swallows)
        return self._cuts[parse_special]

    def _specials(self, kinds: int) -> list[str] | None:
        attributes, text_of = llama.llama_vocab_get_attr, llama.llama_vocab_get_text
        tokens = [token for token in range(llama.llama_vocab_n_tokens(self._vocab))
                  if attributes(self._vocab, token) & kinds]  # fmt: skip
        if kinds & _HIDDEN == 0:
            tokens = [token for token in tokens if not attributes(self._vocab, token) & _HIDDEN]
        try:
            return [text_of(self._vocab, token).decode() for token in tokens]
        except UnicodeDecodeError:
            return None  # it may stand inside of a character

    @cached_property
    def _place(self) -> text_slices.CutPlace | None:
        if self._type == llama.LLAMA_VOCAB_TYPE_WPM:
            return text_slices.WORD
        if self._type == llama.LLAMA_VOCAB_TYPE_SPM:
            return None if self._joins_words() else text_slices.WORD
        if self._words is not None:
            from shimmy.formats.tokenizer.words import LETTER

            return text_slices.CutPlace(LETTER, "[\n \u3001\u3002\uff0c]")
        is_plain = self._type == llama.LLAMA_VOCAB_TYPE_BPE and self._metadata("tokenizer.ggml.model") != "hybriddna"
        return text_slices.place_of(self._pre) if is_plain else None

    def _joins_words(self) -> bool:
        """Whether a token has a space behind something else: two words might then be one token."""
        text_of = llama.llama_vocab_get_text
        texts = (text_of(self._vocab, token) for token in range(llama.llama_vocab_n_tokens(self._vocab)))
        return any(b" " in text.replace(_SPACE, b" ").lstrip(b" ") for text in texts)

    @cached_property
    def _swallows(self) -> bool:
        values = {key: (self._metadata(key) or "").lower() for key in _SWALLOWING}
        return any(name in values[key] for key, names in _SWALLOWING.items() for name in names)

    def check_breakers(self, texts: Sequence[str]) -> None:
        """Raise BadRequest for a text that llama.cpp would tokenize otherwise, as it does for the sampler DRY."""
        if self._words is not None and (odd := [text for text in texts if not _PLAIN_BEHIND.fullmatch(text)]):
            raise BadRequest(
                "dry_sequence_breakers: behind the first character this model takes letters and signs of ASCII alone, "
                f"and no white space: got {odd[0]!r}",
                param="dry_sequence_breakers",
            )

    # -- for code in C and Rust ----------------------------------------------------------------------------------------

    def address(self) -> int:
        """That of a function as llama_tokenize, for this vocabulary: forced text gets the tokens of any other."""
        function = llama._lib.llama_tokenize if self._words is None else self._callback
        return ctypes.cast(function, ctypes.c_void_p).value or 0

    @cached_property
    def _callback(self) -> Any:  # which lives as long as its callers: they belong to the same model
        return _TOKENIZE(self._tokenize_in_c)

    def _tokenize_in_c(
        self, _vocab: int, text: int, n_bytes: int, target: int, n_max: int, add_special: bool, parse_special: bool
    ) -> int:
        data = ctypes.string_at(text, n_bytes).decode("utf-8", "replace") if n_bytes else ""
        tokens = self.tokenize(data, add_special=add_special, parse_special=parse_special)
        if len(tokens) > n_max:
            return -len(tokens)
        if tokens:
            ctypes.memmove(target, (ctypes.c_int32 * len(tokens))(*tokens), 4 * len(tokens))
        return len(tokens)

    # -- what tokens stand for -----------------------------------------------------------------------------------------

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
        has_all = self._type in (llama.LLAMA_VOCAB_TYPE_SPM, llama.LLAMA_VOCAB_TYPE_BPE) and not self._swallows
        if not has_all or not self._longest_bytes or self._metadata("tokenizer.ggml.model") == "whitespace":
            return None
        if self._metadata("shimmy.tokenizer.normalizer"):
            return None
        tokens = self.tokenize(_EVERY_BYTE, add_special=False, parse_special=False)
        n_bytes = sum(len(self.token_bytes(token, special=True)) for token in tokens)
        return self._longest_bytes if n_bytes >= len(_EVERY_BYTE.encode()) else None


def overrides_for_words() -> Any:
    """`kv_overrides` with which llama.cpp takes words as they are, whatever pre-tokenizer the file names."""
    overrides = (llama.llama_model_kv_override * 2)()  # the last one is empty
    overrides[0].tag, overrides[0].key = llama.LLAMA_KV_OVERRIDE_TYPE_STR, b"tokenizer.ggml.pre"
    overrides[0].value.val_str = _OF_WORDS.encode()
    return overrides


def _words(name: str) -> "Words":
    """What cuts the text of a converted model into words, by the name that is stored."""
    from shimmy.formats.tokenizer.words import Words  # few models need it

    try:
        return Words(name)
    except Unconvertible as exc:
        raise ModelUnavailable(f"the model cannot be used: {exc}") from exc
