"""Which of llama.cpp's pre-tokenizers cuts text as a byte-level tokenizer of Hugging Face does.

Knows the `pre_tokenizer` of tokenizer.json and the names in src/llama-vocab.cpp, and which of those that have no name
there are cut by `words`; nothing of tokens. An unknown one is refused: another cut gives other tokens for common text,
and the model answers worse without anybody knowing why.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.tokenizer.normalizer import CHINESE, CHINESE_LETTERS, Cuts

_MAX_PARTS = 64
_MAX_SHOWN = 600  # characters

# fmt: off
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Words of Chinese by themselves; && takes Chinese out of the letters.
KIMI = (
    r"[\p{Han}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    (
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
)
_DEEPSEEK_CODER = ("[\\r\\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+")
# Letters with and without a case, of Latin and its neighbours.
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-"
    "\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-"
    "\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-"
    "\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-"
    "\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-"
    "\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-"
    "\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-"
    "\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_LLM = (
    "[\\r\\n]", rf"\s?[{_DEEPSEEK_LETTERS}]+", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$", _DEEPSEEK_CODER[-1],
)
_K_EXAONE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED = _LLAMA3.replace(r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*", r"\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+")
_LING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
# fmt: on

_UNLIKE_TEKKEN = re.compile(r"[0-9]{2}|[A-Za-z]'")

RAW_MERGES = "sarvam-moe"  # merges of letters in place of bytes, of the whole text
_ACROSS_CHINESE = re.compile(f"[{CHINESE_LETTERS}][^{CHINESE}]|[^{CHINESE}][{CHINESE_LETTERS}]")

DIGITS = "digits"  # the step Digits, each digit alone
PUNCTUATION = "punctuation"  # the step Punctuation, signs in a row together
BYTES = "bytes"  # the step ByteLevel, without its expression
DIGITS_FROM_THE_RIGHT = r"\d{1,3}(?=(?:\d{3})*\b)"

# What cuts text, step by step, and whether a word that is a token is taken before any merge.
NAMES: dict[tuple[tuple[str, ...], bool], str] = {
    ((GPT2,), False): "gpt-2",
    ((DIGITS, GPT2), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((QWEN2,), False): "qwen2",
    ((_QWEN35,), False): "qwen35",
    # llama.cpp's `gpt-4o` and `tekken` cut words at marks, Hindi's vowels among them; this one does not. It also takes
    # words that are tokens before any merge, which is the same where merges lead to every token, as they do in these.
    ((GPT4O,), False): "granite-embed-multi-97m",
    ((GPT4O,), True): "granite-embed-multi-97m",
    ((TEKKEN,), True): "tekken",
    (_DEEPSEEK3, False): "deepseek-v3",
    ((*_DEEPSEEK_CODER, DIGITS), False): "deepseek-coder",
    ((_K_EXAONE,), False): "exaone-moe",
    ((_LING,), False): "bailingmoe2",
    ((KIMI,), False): "kimi-k2",
    ((KIMI,), True): "kimi-k2",
    ((_SEED,), False): "seed-coder",
}
# What no pre-tokenizer of llama.cpp cuts alike, step by step: `words` does it, under the names of those that come near.
WORDS: dict[tuple[str, ...], str] = {
    (*_DEEPSEEK_LLM, DIGITS, BYTES): "deepseek-llm",  # DeepSeek LLM, V2, V2 Lite, Coder V2
    (PUNCTUATION, TEKKEN, BYTES, "[0-9]"): "falcon-h1",
    (PUNCTUATION, GPT2, BYTES, DIGITS): "falcon3",
    (DIGITS_FROM_THE_RIGHT, GPT4O, BYTES): "tiny_aya",
}
WORDS_KEY = "shimmy.tokenizer.words"  # under which a GGUF has such a name


def name(pre_tokenizer: object, tokens: Iterable[str], *, ignore_merges: bool) -> str:
    """`tokenizer.ggml.pre` for a byte-level `pre_tokenizer`; Unconvertible for an unknown one.

    `tokens` are those that merges make: without added ones, which are found before anything is cut.
    """
    cuts = _all_cuts(pre_tokenizer)
    found = NAMES.get((cuts[:-1], ignore_merges)) if cuts[-1:] == (BYTES,) else None
    if found is None:
        raise Unconvertible(
            f"its pre-tokenizer is not known, and guessing would give wrong tokens: {shown(pre_tokenizer)}"
            + (" with `ignore_merges`" if ignore_merges else "")
        )
    return tekken(tokens) if found == "tekken" else found


def words(pre_tokenizer: object) -> str:
    """The name in `WORDS` of a byte-level `pre_tokenizer`; '' for none, as most have a `name`."""
    return WORDS.get(_all_cuts(pre_tokenizer), "")


def kimi(tokens: Iterable[str], *, has_all_merges: bool) -> tuple[str, Cuts]:
    """`tokenizer.ggml.pre` and `Normalizer.cuts` for a tokenizer that cuts text as Kimi's do.

    llama.cpp's own `kimi-k2` cuts words at marks, Hindi's vowels among them. `tiny_aya` cuts no word at all, which is
    the same where no token goes across such a cut, and knows nothing of tokens that no merge makes. The other one cuts
    at capitals of ASCII alone, and ÜBER behind the Ü.
    """
    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}

    def crosses(token: str) -> bool:
        text = bytes(byte_of.get(letter, 0) for letter in token).decode("utf-8", "ignore")
        if any(left.islower() and right.isupper() for left, right in pairwise(text)):
            return True
        return _ACROSS_CHINESE.search(text) is not None

    if has_all_merges and not any(map(crosses, tokens)):
        return "tiny_aya", "kimi"
    return "granite-embed-multi-97m", "kimi-words"


def tekken(tokens: Iterable[str]) -> str:
    """`tokenizer.ggml.pre` for a tokenizer that cuts text as Mistral's do; `tokens` as for `name`."""
    # The other one joins digits, up to three, and 's with the word before it, which no token of most does.
    return "tekken" if any(map(_UNLIKE_TEKKEN.search, tokens)) else "granite-embed-multi-97m"


def steps(part: object, key: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre-tokenizer: those of its `Sequence`s (under `key`) in one list."""
    found: list[Mapping[str, Any]] = []
    waiting, n_parts = [part], 0
    while waiting:
        step = waiting.pop()
        n_parts += 1
        if step is None:
            continue
        inner = step.get(key) if isinstance(step, dict) and step.get("type") == "Sequence" else []
        if not isinstance(step, dict) or not isinstance(inner, list) or n_parts + len(inner) > _MAX_PARTS:
            raise Unconvertible(f"`tokenizer.json` has {key} that cannot be read: {shown(part)}")
        if step.get("type") == "Sequence":
            waiting += reversed(inner)
        else:
            found.append(step)
    return found


def shown(part: object) -> str:
    """A part of tokenizer.json for an error message."""
    try:
        text = json.dumps(part, ensure_ascii=False)
    except RecursionError:  # it was read a few frames further up, where that much depth was still left
        text = "parts within parts"
    return f"`{text[:_MAX_SHOWN]}{'…' if len(text) > _MAX_SHOWN else ''}`"


def _all_cuts(pre_tokenizer: object) -> tuple[str, ...]:
    return tuple(cut or "" for step in steps(pre_tokenizer, "pretokenizers") for cut in _cuts(step))


def _cuts(step: Mapping[str, Any]) -> list[str | None]:
    """The expressions by which one step cuts text, or its name; None for an unknown one."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return [BYTES]
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return [GPT2, BYTES]
        case {"type": "Punctuation", "behavior": "Contiguous"}:
            return [PUNCTUATION]
        case {"type": "Digits", "individual_digits": True}:
            return [DIGITS]
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return [pattern.replace("\r", r"\r").replace("\n", r"\n")]
        # Only what matches is kept: the same where an expression matches all text.
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Removed", "invert": True}:
            return [pattern if pattern in {_LLAMA3, QWEN2, _QWEN35, TEKKEN, GPT4O} else None]
        case _:
            return [None]


def byte_letters() -> Iterator[str]:
    """The letters that stand for bytes since GPT-2: those that can be printed for themselves, the rest from 256 on."""
    n_others = 0
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174:
            yield chr(byte)
        else:
            yield chr(256 + n_others)
            n_others += 1
