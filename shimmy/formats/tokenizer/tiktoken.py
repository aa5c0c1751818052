"""Vocabularies in tiktoken's format, as Moonshot and Tencent publish them: in each line a token in base64 and its rank.

Knows the format, how a token is put together from two others, and what the Python code beside such a file (never run)
would say: by the name of its class, how text is cut and which special tokens follow the others. Nothing of folders and
of GGUF.
"""

import binascii
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.tokenizer.pretokenizers import shown

_MAX_TOKENS = 1 << 20  # Kimi's have 163,584
_MAX_TOKEN_BYTES = 4096
# Of all tokens, the squares of their lengths: the time that `merges` takes, about 10 seconds. Kimi's have 10 M.
_MAX_SQUARES = 1 << 26
_MAX_LINE_BYTES = 4 * _MAX_TOKEN_BYTES // 3 + 16
_NEVER = 1 << 30

FILES = ("tiktoken.model", "hy.tiktoken")


@dataclass(frozen=True, slots=True)
class TokenizerClass:
    """What the class of a tokenizer adds to its file."""

    file: str
    cuts: Literal["kimi", "qwen2"]  # how text is cut: `pretokenizers.KIMI`, or as Qwen2's
    form: Literal["", "NFC"]
    special_tokens: Callable[[int], Iterator[str]]  # behind so many others


def _of_kimi(n_tokens: int) -> Iterator[str]:
    return (f"<|reserved_token_{index}|>" for index in range(n_tokens, n_tokens + 256))


def _of_hunyuan(n_tokens: int) -> Iterator[str]:
    del n_tokens
    yield from ("<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>")
    yield from (f"<|extra_{number}|>" for number in range(205))


# By the name of the class: tokenization_kimi.py of Kimi K2, tokenization_hy.py of Hunyuan A13B.
KINDS: Mapping[str, TokenizerClass] = {
    "TikTokenTokenizer": TokenizerClass("tiktoken.model", "kimi", "", _of_kimi),
    "HYTokenizer": TokenizerClass("hy.tiktoken", "qwen2", "NFC", _of_hunyuan),
}


def kind(config: Mapping[str, Any], name: str) -> TokenizerClass:
    """The kind that `config`, of tokenizer_config.json, says of the file `name`; Unconvertible for an unknown one."""
    match config:
        case {"auto_map": {"AutoTokenizer": str(code) | [str(code), *_]}}:
            found = code.rpartition(".")[2]
        case {"tokenizer_class": str(found)}:
            pass
        case _:
            found = ""
    known = KINDS.get(found)
    if known is None or known.file != name:
        raise Unconvertible(
            f"how its tokenizer in `{name}` cuts text is in Python code of a class that is not known: "
            f"{shown(found)}; put the `tokenizer.json` of a model with the same tokens beside it"
        )
    return known


def parse(data: bytes, name: str) -> list[bytes]:
    """The tokens in a file called `name`, by their ranks, which are their ids. Raises Unconvertible for any other file.

    Every rank from 0 on is there once, every token once, and so is every byte.
    """
    if data.count(b"\n") > 2 * _MAX_TOKENS:
        raise Unconvertible(f"`{name}` has more than {_MAX_TOKENS} tokens")
    refused = partial(_refused, name)
    ranks: dict[bytes, int] = {}
    n_squares = 0
    for number, line in enumerate(data.split(b"\n"), 1):
        if len(line) > _MAX_LINE_BYTES:
            raise refused(number, f"is longer than {_MAX_LINE_BYTES} bytes")
        parts = line.split()
        if not parts:
            continue
        if len(parts) != 2 or not parts[1].isdigit() or len(parts[1]) > 7:
            raise refused(number, "is not a token and its rank")
        try:
            token = binascii.a2b_base64(parts[0], strict_mode=True)
        except ValueError as exc:
            raise refused(number, f"is not base64: {exc}") from exc
        if not 0 < len(token) <= _MAX_TOKEN_BYTES:
            raise refused(number, f"has a token of no bytes, or of more than {_MAX_TOKEN_BYTES}")
        n_squares += len(token) ** 2
        if n_squares > _MAX_SQUARES or len(ranks) == _MAX_TOKENS:
            raise refused(number, "is one too many: no tokenizer has so many tokens, or so long ones")
        if token in ranks:
            raise refused(number, "has a token that an earlier line has too")
        ranks[token] = int(parts[1])
    tokens = [b""] * len(ranks)
    for token, rank in ranks.items():
        if rank >= len(tokens) or tokens[rank]:
            raise Unconvertible(f"the ranks in `{name}` are not the numbers from 0 to {len(tokens) - 1}, each once")
        tokens[rank] = token
    if any(bytes((byte,)) not in ranks for byte in range(256)):
        raise Unconvertible(f"`{name}` has bytes without a token, which llama.cpp leaves out of the text")
    return tokens


def _refused(name: str, number: int, reason: str) -> Unconvertible:
    return Unconvertible(f"line {number} of `{name}` {reason}")


def merges(tokens: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """The merges that make `tokens`, best first: at most one for each token, and none for one that no merge makes.

    tiktoken joins any two neighbours that together are a token, the one with the lowest rank first, and of equal ones
    the first. While both ends of a token's bytes are ends of pieces, what happens between them is what would happen to
    these bytes alone. So a token comes from one pair only: the last two pieces of its own bytes.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    letters = [bytes((byte,)) for byte in range(256)]
    pairs = (_last_pair([letters[byte] for byte in token], ranks) for token in tokens if len(token) > 1)
    return [pair for pair in pairs if pair is not None]


def _last_pair(pieces: list[bytes], ranks: Mapping[bytes, int]) -> tuple[bytes, bytes] | None:
    """Join the `pieces` of a token by their ranks until two are left; None where more are left that nothing joins."""
    rank_of = ranks.get
    joined = [rank_of(left + right, _NEVER) for left, right in pairwise(pieces)]
    while len(pieces) > 2:
        best = min(joined)
        if best == _NEVER:
            return None
        at = joined.index(best)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        del joined[at]
        if at < len(joined):
            joined[at] = rank_of(pieces[at] + pieces[at + 1], _NEVER)
        if at:
            joined[at - 1] = rank_of(pieces[at - 1] + pieces[at], _NEVER)
    return pieces[0], pieces[1]
