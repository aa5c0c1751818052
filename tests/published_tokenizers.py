"""With which tokenizer each family is published: its parts, and the golden cases whose ids prove them.

Knows parts of tokenizer.json files as they lie on the hub, as far as they could be looked up (docs/safetensors.md says
of which families they could not). The ids are in tests/golden/tokenizers.json.xz, for tiny vocabularies that were
trained with these parts.
"""

# ruff: noqa: RUF001 -- signs that look like others are what is cut

from collections.abc import Mapping
from typing import Any

from shimmy.formats.tokenizer import pretokenizers
from tests.tokenizer_folders import BYTE_LEVEL, SMOLLM, Json, added_token

NFC: Json = {"type": "NFC"}
_CUT: Json = {**BYTE_LEVEL, "use_regex": False}


def _split(pattern: str, **options: Any) -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **options}


def _sequence(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": [*steps]}


def _kept(pattern: str) -> Json:
    """As Isolated, where an expression matches all text."""
    return _split(pattern, behavior="Removed", invert=True)


_KNOWN = {name: cuts for (cuts, _), name in pretokenizers.NAMES.items()}

# Parts that were not made of a name of llama.cpp's: a golden case, and that whose vocabulary it shares.
VARIANTS: Mapping[str, tuple[str, Json]] = {
    "tiny-qwen35-composed": ("tiny-qwen35", {"normalizer": NFC}),
    "tiny-gpt-4o-kept": (
        "tiny-gpt-4o",
        {"normalizer": NFC, "pre_tokenizer": _sequence(_kept(pretokenizers.GPT4O), _CUT)},
    ),
    "tiny-smaug-bpe-kept": ("tiny-smaug-bpe", {"pre_tokenizer": _sequence(_kept(*_KNOWN["smaug-bpe"]), _CUT)}),
    "tiny-cohere": ("tiny-gpt-2", {"normalizer": NFC, "pre_tokenizer": SMOLLM}),
    # Its spaces are tokens of their own, found before anything is cut, as those of GPT-NeoX.
    "tiny-olmo": ("tiny-gpt-2", {"normalizer": NFC, "pre_tokenizer": BYTE_LEVEL}),
}
SPACES = [added_token(902 + index, " " * (24 - index), special=False, normalized=True) for index in range(23)]

_PUNCTUATION: Json = {"type": "Punctuation", "behavior": "Contiguous"}
_DIGITS: Json = {"type": "Digits", "individual_digits": True}
# What llama.cpp would cut otherwise for some of the awkward texts.
REFUSED: Mapping[str, Json] = {
    # With the published vocabulary 2 of 2000 got other tokens, by `deepseek-llm`: ideographic spaces. (Its letters are
    # a longer list.)
    "DeepSeek LLM, V2, V2 Lite, Coder V2": _sequence(
        _split("[\r\n]"), _split(r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+"), _split("\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"),
        _split(r"\s+$"), _split("[一-龥ࠀ-一가-\ud7ff]+"), _DIGITS, _CUT,
    ),
    # 25 of 2000 by `tiny_aya`: digits beside letters of other scripts.
    "Tiny Aya": _sequence(_split(r"\d{1,3}(?=(?:\d{3})*\b)"), _split(pretokenizers.GPT4O), _CUT),
    # 172 of 2000 by the best name.
    "Falcon-H1": _sequence(_PUNCTUATION, _split(pretokenizers.TEKKEN), _CUT, _split("[0-9]")),
    "Falcon 3": _sequence(_PUNCTUATION, BYTE_LEVEL, _DIGITS),
}  # fmt: skip


_SENTENCEPIECE = ("tiny-sentencepiece",)
_LLAMA3 = ("tiny-llama-bpe-ignoring-merges", "tiny-smaug-bpe")
_QWEN2 = ("tiny-qwen2",)
_QWEN35 = ("tiny-qwen35-composed",)
_GPT4O = ("tiny-gpt-4o-ignoring-merges", "tiny-gpt-4o-kept")
_TEKKEN = ("tiny-tekken-ignoring-merges",)
_DEEPSEEK = ("tiny-deepseek-v3",)
_GEMMA = ("gemma3", "tiny-gemma")
_UNIGRAM = ("tiny-unigram-split", "tiny-unigram-merge", "tiny-unigram-strip")
_METASPACE = ("tiny-legacy", "tiny-meta-space-first", *_SENTENCEPIECE)

# The golden cases of each `model_type`.
CASES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "llama4_text"), (*_LLAMA3, *_METASPACE, "smollm2", "tiny-deepseek-coder", *_GPT4O)),
    **dict.fromkeys(("mistral", "mixtral", "ministral3", "mistral4"), (*_TEKKEN, *_METASPACE)),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"), _QWEN2),
    **dict.fromkeys(("qwen3", "qwen3_moe", "qwen3_next", "qwen3_vl_text", "qwen3_vl_moe_text"), _QWEN2),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text"), _QWEN35),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n_text"), _GEMMA),
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), _GEMMA),
    **dict.fromkeys(("glm4", "glm4_moe", "glm4v_text", "glm4v_moe_text", "glm4_moe_lite", "glm_moe_dsa"), _LLAMA3),
    **dict.fromkeys(("deepseek_v3", "deepseek_v32", "hunyuan_v1_dense"), _DEEPSEEK),
    **dict.fromkeys(("minimax_m2", "minimax_m3_vl", "minimax_m3_vl_text"), ("tiny-gpt-4o-kept",)),
    **dict.fromkeys(("bailing_moe", "bailing_moe_v2", "bailing_hybrid"), ("tiny-bailingmoe2",)),
    **dict.fromkeys(("olmo2", "olmo3", "granitemoehybrid"), ("tiny-smaug-bpe-kept",)),
    **dict.fromkeys(("lfm2", "lfm2_moe", "eurobert"), _LLAMA3),
    **dict.fromkeys(("cohere", "cohere2"), ("tiny-cohere",)),
    **dict.fromkeys(("exaone_moe", "exaone4_5_text"), ("tiny-exaone-moe",)),
    **dict.fromkeys(("camembert", "xlm-roberta", "jina_embeddings_v3"), _UNIGRAM),
    **dict.fromkeys(("roberta", "gpt2"), ("tiny-gpt-2",)),
    **dict.fromkeys(("kimi_k2", "kimi_linear"), ("tiny-kimi-k2", "tiny-kimi-k2-ignoring-merges")),
    "phi3": ("tiny-legacy", "tiny-smaug-bpe-kept", "tiny-gpt-4o-kept"),
    "starcoder2": ("smollm2",),
    "gpt_oss": ("tiny-gpt-4o-ignoring-merges",),
    "nemotron_h": _TEKKEN,
    "exaone": ("smollm2", "tiny-cohere"),
    "exaone4": ("tiny-modern-bert", "tiny-gpt-2"),
    "hunyuan_v1_moe": _QWEN2,
    "stablelm": (*_QWEN2, "tiny-olmo"),
    "seed_oss": ("tiny-seed-coder",),
    "olmoe": ("tiny-olmo",),
    "modernbert": ("tiny-modern-bert", "tiny-olmo"),
    "bert": ("minilm", "tiny-gpt-2"),
    "nomic_bert": ("minilm", *_UNIGRAM),
    # Not looked up: what llama.cpp takes them for.
    "apertus": _TEKKEN,
    "granite": ("smollm2",),
    "arcee": _LLAMA3,
    "smollm3": _LLAMA3,
    "dots1": _QWEN2,
    "internlm3": _SENTENCEPIECE,
    "ernie4_5": _SENTENCEPIECE,
    "ernie4_5_moe": _SENTENCEPIECE,
}
# Families whose published tokenizer is refused.
WITHOUT = {"deepseek_v2": "DeepSeek LLM, V2, V2 Lite, Coder V2", "falcon_h1": "Falcon-H1"}
