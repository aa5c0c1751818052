"""With which tokenizer each family is published: its parts, and the golden cases whose ids prove them.

Knows parts of tokenizer.json files as they lie on the hub, as far as they could be looked up (docs/safetensors.md says
of which families they could not). The ids are in tests/golden/tokenizers.json.xz, for tiny vocabularies that were
trained with these parts.
"""

# ruff: noqa: RUF001 -- signs that look like others are what is cut

from collections.abc import Mapping
from typing import Any

from shimmy.formats.tokenizer import pretokenizers
from tests.tokenizer_folders import BYTE_LEVEL, SMOLLM, Json

NFC: Json = {"type": "NFC"}
_CUT: Json = {**BYTE_LEVEL, "use_regex": False}


def _split(pattern: str, **options: Any) -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **options}


def _sequence(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": [*steps]}


def _kept(pattern: str) -> Json:
    """As Isolated, where an expression matches all text."""
    return _split(pattern, behavior="Removed", invert=True)


_DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώ"
    "ᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏"
    "𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_KNOWN = {name: cuts for (cuts, _), name in pretokenizers.NAMES.items()}

# Parts that were not made of a name of llama.cpp's: a golden case, and that whose vocabulary it shares. `added` has the
# texts of tokens that any text may hold.
VARIANTS: Mapping[str, tuple[str, Json]] = {
    "tiny-qwen35-composed": ("tiny-qwen35", {"normalizer": NFC}),
    "tiny-gpt-4o-kept": (
        "tiny-gpt-4o",
        {"normalizer": NFC, "pre_tokenizer": _sequence(_kept(pretokenizers.GPT4O), _CUT)},
    ),
    "tiny-smaug-bpe-kept": ("tiny-smaug-bpe", {"pre_tokenizer": _sequence(_kept(*_KNOWN["smaug-bpe"]), _CUT)}),
    "tiny-cohere": ("tiny-gpt-2", {"normalizer": NFC, "pre_tokenizer": SMOLLM}),
    # Its spaces are tokens of their own, found before anything is cut, as those of GPT-NeoX.
    "tiny-olmo": (
        "tiny-gpt-2",
        {"normalizer": NFC, "pre_tokenizer": BYTE_LEVEL, "added": [" " * (24 - index) for index in range(23)]},
    ),
    # Letters that stand for bytes which UTF-8 does not have.
    "tiny-deepseek-llm-added": ("tiny-deepseek-llm", {"added": [*"õ÷ÁýÀÿøúþüùöû"]}),
}

_PUNCTUATION: Json = {"type": "Punctuation", "behavior": "Contiguous"}
_DIGITS: Json = {"type": "Digits", "individual_digits": True}
# How text is cut by `words` in llama.cpp's place: by the names there.
WORDS: Mapping[str, Json] = {
    "deepseek-llm": _sequence(
        _split("[\r\n]"), _split(rf"\s?[{_DEEPSEEK_LETTERS}]+"), _split("\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"),
        _split(r"\s+$"), _split("[一-龥ࠀ-一가-\ud7ff]+"), _DIGITS, _CUT,
    ),
    "falcon-h1": _sequence(_PUNCTUATION, _split(pretokenizers.TEKKEN), _CUT, _split("[0-9]")),
    "falcon3": _sequence(_PUNCTUATION, BYTE_LEVEL, _DIGITS),
    "tiny_aya": _sequence(_split(r"\d{1,3}(?=(?:\d{3})*\b)"), _split(pretokenizers.GPT4O), _CUT),
}  # fmt: skip
# What looks like one of these and cuts otherwise.
REFUSED: Mapping[str, Json] = {
    "DeepSeek LLM with a few letters": _sequence(
        _split("[\r\n]"), _split(r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+"), _split("\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"),
        _split(r"\s+$"), _split("[一-龥ࠀ-一가-\ud7ff]+"), _DIGITS, _CUT,
    ),
    "Falcon-H1 with each sign alone": _sequence(
        {**_PUNCTUATION, "behavior": "Isolated"}, _split(pretokenizers.TEKKEN), _CUT, _split("[0-9]")
    ),
    "Falcon 3 with digits first": _sequence(_PUNCTUATION, _DIGITS, BYTE_LEVEL),
    "Falcon": _sequence(
        _PUNCTUATION, BYTE_LEVEL, {**_DIGITS, "individual_digits": False}, _split("[0-9][0-9][0-9]")
    ),
    "Tiny Aya without its letters of bytes": _sequence(
        _split(r"\d{1,3}(?=(?:\d{3})*\b)"), _split(pretokenizers.GPT4O)
    ),
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
    **dict.fromkeys(
        ("llama", "llama4_text"),
        (*_LLAMA3, *_METASPACE, "smollm2", "tiny-deepseek-coder", *_GPT4O, "tiny-deepseek-llm", "tiny-falcon3"),
    ),
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
    "cohere": ("tiny-cohere",),
    "cohere2": ("tiny-cohere", "tiny-aya"),
    "deepseek_v2": ("tiny-deepseek-llm", "tiny-deepseek-llm-added"),
    "falcon_h1": ("tiny-falcon-h1", "tiny-falcon-h1-ignoring-merges"),
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
