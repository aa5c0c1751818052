"""Replies that a grammar allows, drawn at random without a model: llguidance over a vocabulary of bytes and marks."""

import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

llguidance = pytest.importorskip("llguidance")

_FIRST = 64  # token ids of control tokens; the bytes follow
_MOST_TOKENS = 6_000
# What a model would write.
_LIKELY = [*range(32, 127), 10, *"éß—😀".encode()]


class _Bytes:
    eos_token_id = 0
    bos_token_id = None

    def __init__(self, special: Sequence[str]) -> None:
        assert len(special) < _FIRST
        names = ["<end>", *special, *(f"<unused{index}>" for index in range(_FIRST - 1 - len(special)))]
        self.special_token_ids = tuple(range(_FIRST))
        self.tokens = [b"\xff" + name.encode() for name in names] + [bytes([byte]) for byte in range(256)]

    def __call__(self, data: bytes) -> list[int]:
        return [_FIRST + byte for byte in data]


class Walker:
    """Draws replies of one grammar. `special` are the texts that are one control token, which text does not show."""

    def __init__(self, special: Sequence[str] = ()) -> None:
        self._special = list(special)
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes(special)))

    def id(self, mark: str) -> int | None:
        return 1 + self._special.index(mark) if mark in self._special else None

    def matcher(self, lark: str) -> Any:
        matcher = llguidance.LLMatcher(self._tokenizer, lark, log_level=0)
        assert not matcher.is_error(), f"{matcher.get_error()}\n{lark}"
        return matcher

    def tokens(self, text: str) -> list[int]:
        found: list[int] = []
        while text:
            places = [(text.find(mark), mark) for mark in self._special if mark in text]
            place, mark = min(places, default=(len(text), ""))
            found += [_FIRST + byte for byte in text[:place].encode()]
            if mark:
                found.append(1 + self._special.index(mark))
            text = text[place + len(mark) :]
        return found

    def takes(self, lark: str, text: str) -> bool:
        matcher, tokens = self.matcher(lark), self.tokens(text)
        return bool(
            matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and matcher.is_accepting()
        )

    def reply(self, lark: str, seed: int, exits: Iterable[str]) -> str:
        """One reply; `exits` are texts that end what would otherwise go on for long, tried now and then."""
        drawn, matcher = random.Random(seed), self.matcher(lark)
        ways_out = [self.tokens(text) for text in exits if text]
        tokens: list[int] = []
        while not matcher.is_stopped():
            assert len(tokens) < _MOST_TOKENS, self.text(tokens)[:500]
            forced: list[int] = []
            if drawn.random() < 0.2:
                drawn.shuffle(ways_out)
                forced = next((out for out in ways_out if matcher.validate_tokens(out) == len(out)), [])
            forced = forced or matcher.compute_ff_tokens()
            if not forced:
                if matcher.is_accepting() and drawn.random() < 0.5:
                    break
                mask = matcher.compute_bitmask()
                allowed = [token for token in range(_FIRST + 256) if mask[token // 8] >> token % 8 & 1]
                likely = [token for token in allowed if token < _FIRST or token - _FIRST in _LIKELY]
                forced = [drawn.choice(likely if likely and drawn.random() < 0.9 else allowed)]
            assert matcher.consume_tokens(forced), matcher.get_error()
            tokens += forced
        return self.text(tokens)

    def text(self, tokens: Sequence[int]) -> str:
        data = b"".join(
            self._special[token - 1].encode() if 0 < token < _FIRST else bytes([token - _FIRST]) if token else b""
            for token in tokens
        )
        return data.decode()
