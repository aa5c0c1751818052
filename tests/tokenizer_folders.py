"""Folders with tokenizers as the Hugging Face hub ships them, made from vocabularies in GGUF files or from tables.

Both the script that records ids with the `tokenizers` library and the tests that compare them begin with these.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.rewriting import rewrite
from tests.tiny_models import ARRAY, STRING

Json = dict[str, Any]

BYTE_LEVEL: Json = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SMOLLM: Json = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]}
META_SPACES: Json = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
LEGACY_PREFIX: Json = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, META_SPACES]}

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_FORMATS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))


def added_token(number: int, text: str, *, special: bool = True, **options: bool) -> Json:
    defaults = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **defaults, "special": special, **options}


def bpe(tokens: Mapping[str, int], merges: Sequence[Sequence[str]], **options: Any) -> Json:
    """The `model` of a tokenizer.json."""
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        "vocab": dict(tokens), "merges": [*merges], **options,
    }  # fmt: skip


def surrounded_by(*tokens: str | None) -> Json:
    """A `post_processor` that puts tokens around a text, which is None."""
    parts = [{"Sequence": {"id": "A", "type_id": 0}} if text is None else {"SpecialToken": {"id": text, "type_id": 0}}
             for text in tokens]  # fmt: skip
    return {"type": "TemplateProcessing", "single": parts, "pair": [], "special_tokens": {}}


def tokenizer(model: Json, **parts: Any) -> Json:
    """A tokenizer.json."""
    nothing = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", **nothing, "added_tokens": [], **parts, "model": model}


def write_folder(folder: Path, **files: Any) -> Path:
    """Write each file, `a_json` as a.json; text and bytes as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, bytes | str) else json.dumps(content, ensure_ascii=False)
        data = text if isinstance(text, bytes) else text.encode()
        rewrite(folder / ".".join(name.rsplit("_", 1)), data)
    return folder


def smollm2(gguf: Path) -> Json:
    """SmolLM2's tokenizer.json, from its GGUF: each digit alone, then GPT-2's expression."""
    metadata = read_metadata(gguf)
    texts, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    added = [added_token(index, text) for index, text in enumerate(texts) if types[index] == CONTROL]
    merges = [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]]
    model = bpe({text: index for index, text in enumerate(texts)}, merges)
    return tokenizer(model, added_tokens=added, pre_tokenizer=SMOLLM, post_processor=BYTE_LEVEL)


def gemma3(gguf: Path) -> Json:
    """Gemma 3's tokenizer.json, from its GGUF: every way to make a token is a merge, the best tokens first."""
    metadata = read_metadata(gguf)
    types, scores = metadata["tokenizer.ggml.token_type"], metadata["tokenizer.ggml.scores"]
    texts = [
        text.replace(" ", "▁") if types[index] == USER_DEFINED else text
        for index, text in enumerate(metadata["tokenizer.ggml.tokens"])
    ]
    added = [
        added_token(index, text, special=types[index] == CONTROL)
        for index, text in enumerate(texts) if types[index] in {CONTROL, USER_DEFINED}
    ]  # fmt: skip
    ids = {text: index for index, text in enumerate(texts)}
    ways: list[tuple[float, int, int, str]] = []
    for text, index in ids.items():
        if types[index] in {NORMAL, USER_DEFINED}:
            score = 0.0 if types[index] == USER_DEFINED else scores[index]
            cuts = [cut for cut in range(1, len(text)) if text[:cut] in ids and text[cut:] in ids]
            cuts.sort(key=lambda cut: (ids[text[:cut]], ids[text[cut:]]))
            ways += [(score, cut, len(text) - cut, text) for cut in cuts]
    ways.sort(key=lambda way: way[:3], reverse=True)
    model = bpe(ids, [(text[:cut], text[cut:]) for _, cut, _, text in ways], byte_fallback=True, fuse_unk=True)
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    surroundings = {**surrounded_by("<bos>", None), "special_tokens": {"<bos>": template_token("<bos>", ids["<bos>"])}}
    return tokenizer(
        {**model, "unk_token": "<unk>"},
        added_tokens=added, normalizer=META_SPACES, pre_tokenizer=split, post_processor=surroundings,
    )  # fmt: skip


def minilm(words: Sequence[str]) -> Json:
    """all-MiniLM-L6-v2's tokenizer.json, from its vocabulary (BERT's, lower case)."""
    ids = {word: index for index, word in enumerate(words)}
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    model = {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": ids,
    }  # fmt: skip
    around = surrounded_by("[CLS]", None, "[SEP]")
    return tokenizer(
        model,
        added_tokens=[added_token(ids[text], text) for text in special],
        normalizer={
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
            "lowercase": True,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor={
            **around, "special_tokens": {text: template_token(text, ids[text]) for text in ("[CLS]", "[SEP]")},
        },
    )  # fmt: skip


def template_token(text: str, number: int) -> Json:
    return {"id": text, "ids": [number], "tokens": [text]}


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file that is trusted, arrays of strings and all."""
    data = path.read_bytes()
    position = 24

    def number(form: str) -> Any:
        nonlocal position
        (found,) = struct.unpack_from("<" + form, data, position)
        position += struct.calcsize("<" + form)
        return found

    def value(code: int) -> Any:
        nonlocal position
        if code == STRING:
            size = number("Q")
            position += size
            return data[position - size : position].decode()
        if code == ARRAY:
            item_code, n_items = number("I"), number("Q")
            return [value(item_code) for _ in range(n_items)]
        return number(_FORMATS[code])

    (n_keys,) = struct.unpack_from("<Q", data, 16)
    return {value(STRING): value(number("I")) for _ in range(n_keys)}
