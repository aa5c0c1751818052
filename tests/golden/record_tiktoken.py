"""Records how tiktoken cuts the awkward texts for Kimi and for Hunyuan: tests/golden/tiktoken.json.xz.

Run from the repository's folder, in an environment of its own that has `tiktoken` (0.14.0 it was) and `tokenizers`
(0.23.3):

    python -m tests.golden.record_tiktoken

The vocabularies are trained here, on the texts themselves. The expressions are those of tokenization_kimi.py of Kimi K2
and of tokenization_hy.py of Hunyuan A13B.
"""

import importlib
import json
import lzma
import unicodedata
from base64 import b64encode
from pathlib import Path
from typing import Any

from shimmy.formats.tokenizer import pretokenizers, tiktoken
from tests.awkward_texts import texts
from tools.steps import say

FILE = Path(__file__).parent / "tiktoken.json.xz"
N_TEXTS = 800
_SIZE = 2000  # tokens
# Names that tokenizer_config.json of Kimi K2 gives to special tokens, by their places behind the others.
KIMI_NAMES = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_assistant|>", 9: "[EOT]",
              10: "<|im_system|>", 11: "<|tool_calls_section_begin|>", 254: "[UNK]", 255: "[PAD]"}  # fmt: skip
# Where llama.cpp's pre-tokenizers are not Kimi's.
BESIDES = (
    "ÜBER ALLES ÖSTERREICH MÜNCHEN ÉCOLE ÉTAT GRÜSSE İSTANBUL",
    "使用'data'字段, 用'test'和\"foo\"。中's 中'll 中'lloyd中'd",
    "x;\n/usr/bin/env }\n/foo // a\n//b\n/c };\n/* a */\r\n/** b",
    "佐々木 我々 人々 々 葛\U000e0100城 ⺀⺁ ㊀", "12345678 2024 1000000 ٣٤٥٦ ²³¹⁰", "don't I'm WE'LL he'dgo fooBar's",
    "HelloWorld fooBar XMLHttp getHTTP", " 中文  中文\u3000中文 (中 ((中 中\u0301a",
    "a\u0301B\u0301C\u0301 q\u0307\u0323Z",
)  # fmt: skip


def main() -> None:
    library = importlib.import_module("tiktoken")
    golden = {}
    for name, pattern, kind, names, trained_with in (
        ("kimi", pretokenizers.KIMI, "TikTokenTokenizer", KIMI_NAMES, pretokenizers.KIMI),
        ("kimi-of-other-tokens", pretokenizers.KIMI, "TikTokenTokenizer", KIMI_NAMES, pretokenizers.QWEN2),
        ("hunyuan", pretokenizers.QWEN2, "HYTokenizer", {}, pretokenizers.QWEN2),
    ):
        tokens = _trained(trained_with)
        ranks = {token: rank for rank, token in enumerate(tokens)}
        special = {
            names.get(place, text): len(tokens) + place
            for place, text in enumerate(tiktoken.KINDS[kind].special_tokens(len(tokens)))
        }
        encoding = library.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
        of = [unicodedata.normalize("NFC", text) if name == "hunyuan" else text for text in all_texts()]
        golden[name] = {
            "tokens": [b64encode(token).decode() for token in tokens],
            "ids": [encoding.encode(text, allowed_special="all") for text in of],
        }
    data = json.dumps(golden, separators=(",", ":")).encode()
    FILE.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    say(f"{FILE}: {FILE.stat().st_size} bytes")


def all_texts() -> list[str]:
    return [*texts(N_TEXTS), *BESIDES]


def _trained(pattern: str) -> list[bytes]:
    """Tokens by their ranks."""
    library: Any = importlib.import_module("tokenizers")
    cuts = library.pre_tokenizers.Split(library.Regex(pattern), "isolated")
    letters = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence([cuts, letters])
    trainer = library.trainers.BpeTrainer(
        vocab_size=_SIZE, initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*texts(), *BESIDES * 20], trainer)
    bytes_of = {letter: byte for byte, letter in enumerate(pretokenizers.byte_letters())}
    found = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return [bytes(bytes_of[letter] for letter in text) for text, _ in found]


if __name__ == "__main__":
    main()
