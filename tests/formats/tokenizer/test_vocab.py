"""Vocabularies of Hugging Face folders: the ids that llama.cpp gives are those of the tokenizer; the rest is refused.

The ids come from the `tokenizers` library, once: see tests/golden/record_tokenizers.py.
"""

import json
import lzma
import math
import os
import shutil
import struct
import unicodedata
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import pytest

from shimmy.engine.llama import binding
from shimmy.engine.llama.tokenizer import Tokenizer, overrides_for_words
from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.gguf.writer import GgufType, encode_header
from shimmy.formats.tokenizer import vocab
from shimmy.formats.tokenizer.charsmap import Charsmap
from shimmy.formats.tokenizer.normalizer import KEY, Normalizer
from shimmy.formats.tokenizer.pretokenizers import WORDS_KEY
from tests.awkward_texts import texts
from tests.models import demo_model, template_free_model
from tests.tokenizer_folders import (
    BYTE,
    BYTE_LEVEL,
    CONTROL,
    LEGACY_PREFIX,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    Json,
    added_token,
    bpe,
    gemma3,
    minilm,
    smollm2,
    surrounded_by,
    tokenizer,
    write_folder,
)

_low_level = binding.llama

GOLDEN: Json = json.loads(lzma.decompress((Path(__file__).parents[2] / "golden" / "tokenizers.json.xz").read_bytes()))
TINY = [name for name in GOLDEN if name.startswith("tiny-") and "tokenizer" in GOLDEN[name]]
BYTES = {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
LETTERS = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]


class Vocabulary:
    """A GGUF with nothing but a vocabulary, in llama.cpp."""

    def __init__(self, path: Path, metadata: vocab.Metadata) -> None:
        self.values = {key: value[1] if code is GgufType.ARRAY else value for key, code, value in metadata}
        kind = "bert" if self.values["tokenizer.ggml.model"] == "bert" else "llama"
        path.write_bytes(encode_header([("general.architecture", GgufType.STRING, kind), *metadata], []))
        params = _low_level.llama_model_default_params()
        params.vocab_only = True
        words: str = self.values.get(WORDS_KEY, "")
        overrides = overrides_for_words() if words else None
        params.kv_overrides = overrides
        self._model = _low_level.llama_model_load_from_file(os.fsencode(path), params)
        assert self._model, "llama.cpp does not load it"
        self._vocab = _low_level.llama_model_get_vocab(self._model)
        self.normalizer = Normalizer.from_text(self.values.get(KEY, "{}"))
        self.tokenizer = Tokenizer(self._vocab, self._text_of, 0, words)

    def _text_of(self, key: str) -> str | None:
        value = self.values.get(key)
        return value if value is None or isinstance(value, str) else str(value).lower()

    def ids(self, text: str, *, parse_special: bool = True) -> list[int]:
        parts = self.normalizer.parts(text, parse_special=parse_special)
        return [
            token
            for part in parts
            for token in self.tokenizer.tokenize(part, add_special=len(parts) == 1, parse_special=parse_special)
        ]

    def ends(self, token: int) -> bool:
        return bool(_low_level.llama_vocab_is_eog(self._vocab, token))

    def close(self) -> None:
        _low_level.llama_model_free(self._model)


Load = Callable[..., Vocabulary]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Turn files of a folder into a vocabulary in llama.cpp."""
    loaded: list[Vocabulary] = []

    def load(config: Mapping[str, Any] | None = None, **files: Any) -> Vocabulary:
        folder = write_folder(tmp_path / f"model{len(loaded)}", **files)
        loaded.append(Vocabulary(tmp_path / "vocabulary.gguf", vocab.vocabulary(folder, config or {})))
        return loaded[-1]

    yield load
    for vocabulary in loaded:
        vocabulary.close()


def differences(vocabulary: Vocabulary, of: list[str], expected: list[list[int]]) -> list[str]:
    assert len(of) == len(expected)
    return [text for text, ids in zip(of, expected, strict=True) if vocabulary.ids(text) != ids]


# -- the same ids as the tokenizers themselves -----------------------------------------------------------------------


def test_ids_of_smollm2_are_those_of_its_tokenizer(load: Load) -> None:
    config = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    vocabulary = load({"vocab_size": 49152}, tokenizer_json=smollm2(demo_model()), tokenizer_config_json=config)
    assert vocabulary.values["tokenizer.ggml.pre"] == "smollm"
    assert differences(vocabulary, texts(), GOLDEN["smollm2"]["ids"]) == []


def test_ids_of_minilm_are_those_of_its_tokenizer(load: Load) -> None:
    vocabulary = load(tokenizer_json=minilm(GOLDEN["minilm"]["words"]))
    assert vocabulary.values["tokenizer.ggml.token_type_count"] == 2
    assert differences(vocabulary, texts(), GOLDEN["minilm"]["ids"]) == []


@pytest.mark.thorough
def test_ids_of_gemma_are_those_of_its_tokenizer_but_for_written_meta_spaces(load: Load) -> None:
    config = {"eos_token": "<eos>", "bos_token": "<bos>"}
    tokens = gemma3(template_free_model())
    vocabulary = load({"vocab_size": 262144}, tokenizer_json=tokens, tokenizer_config_json=config)
    assert vocabulary.values["tokenizer.ggml.model"] == "llama"
    # Two ▁ in a text are a token of their own there, and two spaces here.
    assert all("▁▁" in text for text in differences(vocabulary, texts(), GOLDEN["gemma3"]["ids"]))


@pytest.mark.parametrize("name", TINY)
def test_ids_are_those_of_tiny_tokenizers_of_every_kind(load: Load, name: str) -> None:
    golden = GOLDEN[name]
    vocabulary = load(tokenizer_json=golden["tokenizer"], tokenizer_config_json={"eos_token": "</s>"})
    of = texts(len(golden["ids"]))
    different = differences(vocabulary, of, golden["ids"])
    if name.startswith("tiny-tekken"):  # digits that share bytes are joined, see pretokenizers.py
        different = [text for text in different if not any(letter.isdigit() for letter in text if letter > "~")]
    assert different == []


def test_ids_are_those_of_a_tiny_sentencepiece_model(load: Load) -> None:
    golden = GOLDEN["tiny-sentencepiece"]
    vocabulary = load(tokenizer_model=b64decode(golden["model"]))
    of = texts(len(golden["ids"]))
    found = [vocabulary.ids(text, parse_special=False)[1:] for text in of]  # without the first one, <s>
    assert [text for text, ids, expected in zip(of, found, golden["ids"], strict=True) if ids != expected] == []


def test_mistrals_tokenizers_cut_text_as_the_models_learned_it(load: Load) -> None:
    """Version 4 of transformers wrote them with the cuts of Llama 3."""
    golden = GOLDEN["tiny-tekken-ignoring-merges"]
    tokens = deepcopy(golden["tokenizer"])
    tokens["pre_tokenizer"] = GOLDEN["tiny-llama-bpe-ignoring-merges"]["tokenizer"]["pre_tokenizer"]
    first = max(token["id"] for token in tokens["added_tokens"]) + 1
    marks = ("[INST]", "[/INST]", "[TOOL_CALLS]")
    files = {"tokenizer_json": tokens, "tokenizer_config_json": {"eos_token": "</s>"}}
    as_it_is = load({"model_type": "mistral"}, **files)
    tokens["added_tokens"] += [added_token(first + index, text) for index, text in enumerate(marks)]
    mended = load({"model_type": "mistral"}, **files)
    another = load({"model_type": "llama"}, **files)
    assert as_it_is.values["tokenizer.ggml.pre"] == another.values["tokenizer.ggml.pre"] == "llama-bpe"
    different = differences(mended, texts(len(golden["ids"])), golden["ids"])
    assert not [text for text in different if not any(letter.isdigit() for letter in text if letter > "~")]
    assert len(differences(another, texts(len(golden["ids"])), golden["ids"])) > len(different)


def test_normalized_special_tokens_are_found_wherever_they_stand(load: Load) -> None:
    """As by transformers 5; `tokenizers` finds them where a space stands before, which it puts into their names."""
    tokens = deepcopy(GOLDEN["tiny-legacy"]["tokenizer"])
    of = ["<s>a</s><s>b", "a<|im_end|>", "<s>", "a<think>b"]
    expected = [load(tokenizer_json=tokens, tokenizer_config_json=EOS).ids(text) for text in of]
    for token in tokens["added_tokens"]:
        token["normalized"] = True
    assert differences(load(tokenizer_json=tokens, tokenizer_config_json=EOS), of, expected) == []
    assert [ids.count(1) for ids in expected] == [2, 0, 1, 0]


def test_names_of_mistrals_special_tokens_say_nothing_of_its_cuts(load: Load) -> None:
    """Their digits (`<SPECIAL_20>`) were taken for those of words: Hindi's vowels were cut off."""
    golden = GOLDEN["tiny-tekken-ignoring-merges"]
    tokens = deepcopy(golden["tokenizer"])
    first = max(token["id"] for token in tokens["added_tokens"]) + 1
    for number, text in enumerate(("<SPECIAL_20>", "[INST]", "[/INST]", "[TOOL_CALLS]"), first):
        tokens["model"]["vocab"][text] = number
        tokens["added_tokens"].append(added_token(number, text))
    config = {"eos_token": "</s>"}
    vocabulary = load(tokenizer_json=tokens, tokenizer_config_json=config)
    tokens["pre_tokenizer"] = GOLDEN["tiny-llama-bpe-ignoring-merges"]["tokenizer"]["pre_tokenizer"]
    mended = load({"model_type": "mistral"}, tokenizer_json=tokens, tokenizer_config_json=config)
    of = texts(len(golden["ids"]))
    assert [text for text in differences(vocabulary, of, golden["ids"]) if text.isalpha()] == []
    assert differences(mended, of, golden["ids"]) == differences(vocabulary, of, golden["ids"])
    assert vocabulary.values["tokenizer.ggml.pre"] == mended.values["tokenizer.ggml.pre"] != "tekken"


# -- hand-written ones, kind by kind ---------------------------------------------------------------------------------


def byte_level(*words: str, merges: tuple[str, ...] = (), **parts: Any) -> Json:
    """A tokenizer of GPT-2's kind: </s> is token 0, then come all bytes, then `words`."""
    ids = {text: index for index, text in enumerate(("</s>", *LETTERS, *words))}
    parts = {"pre_tokenizer": BYTE_LEVEL, "added_tokens": [added_token(0, "</s>")]} | parts
    return tokenizer(bpe(ids, merges), **parts)


def byte_fallback(*words: str, merges: tuple[str, ...] = (), **parts: Any) -> Json:
    """A tokenizer of SentencePiece's kind: <unk>, <s>, </s>, then all bytes, then `words`."""
    ids = {text: index for index, text in enumerate(("<unk>", "<s>", "</s>", *BYTES, *words))}
    added = [added_token(index, text) for index, text in enumerate(("<unk>", "<s>", "</s>"))]
    model = bpe(ids, [merge.split(" ") for merge in merges], byte_fallback=True, unk_token="<unk>")
    return tokenizer(model, **({"normalizer": LEGACY_PREFIX, "added_tokens": added} | parts))


EOS = {"eos_token": "</s>", "bos_token": {"content": "<s>"}}
PAIRS = ("a b", "ab c")


def test_merges_may_be_pairs_or_strings(load: Load) -> None:
    for merges in (PAIRS, [["a", "b"], ["ab", "c"]]):
        vocabulary = load(tokenizer_json=byte_level("ab", "abc", merges=merges), tokenizer_config_json=EOS)  # type: ignore[arg-type]
        assert vocabulary.values["tokenizer.ggml.merges"] == [*PAIRS]
        assert vocabulary.ids("abc") == [258]


def test_added_tokens_and_holes_have_types(load: Load) -> None:
    added = [added_token(0, "</s>"), added_token(257, "<think>", special=False), added_token(260, "<|im_end|>")]
    vocabulary = load({"vocab_size": 263}, tokenizer_json=byte_level(added_tokens=added), tokenizer_config_json=EOS)
    tokens, types = vocabulary.values["tokenizer.ggml.tokens"], vocabulary.values["tokenizer.ggml.token_type"]
    assert tokens[257:] == ["<think>", "[PAD258]", "[PAD259]", "<|im_end|>", "[PAD261]", "[PAD262]"]
    assert types[257:] == [USER_DEFINED, UNUSED, UNUSED, CONTROL, UNUSED, UNUSED]
    assert types[0] == CONTROL
    assert types[1] == NORMAL
    assert vocabulary.ids("<think><|im_end|>") == [257, 260]


def test_a_word_with_the_name_of_a_special_token_is_none(load: Load) -> None:
    """Qwen's merges could make `</s>`, which texts are never cut for: llama.cpp took it for the end of a text."""
    words = ("<|im_end|>", "</", "</s", "</s>")
    tokens = byte_level(*words, merges=("< /", "</ s", "</s >"), added_tokens=[added_token(257, "<|im_end|>")])
    vocabulary = load(tokenizer_json=tokens, tokenizer_config_json={"eos_token": "<|im_end|>"})
    letters = {letter: index for index, letter in enumerate(LETTERS, 1)}
    assert vocabulary.ids("</s>") == [258, letters["s"], letters[">"]]
    assert not vocabulary.ends(260)
    for config in ({"eos_token_id": [257, 260]}, {"bos_token_id": 260}):
        in_use = load(config, tokenizer_json=tokens, tokenizer_config_json={"eos_token": "<|im_end|>"})
        assert in_use.ids("</s>") == [260]


def test_tokens_beyond_the_embeddings_are_left_out(load: Load) -> None:
    added = [added_token(0, "</s>"), added_token(257, "<image>")]
    vocabulary = load({"vocab_size": 257}, tokenizer_json=byte_level(added_tokens=added), tokenizer_config_json=EOS)
    assert len(vocabulary.values["tokenizer.ggml.tokens"]) == 257


def test_scores_are_ranks_where_all_ways_to_a_token_are_merges(load: Load) -> None:
    words = ("▁", "a", "b", "▁a", "ab", "▁ab")
    merges = ("a b", "▁ a", "▁a b", "▁ ab")
    vocabulary = load(tokenizer_json=byte_fallback(*words, merges=merges), tokenizer_config_json=EOS)
    values = vocabulary.values
    assert values["tokenizer.ggml.model"] == "llama"
    assert values["tokenizer.ggml.scores"][-3:] == [-1.0, 0.0, -2.0]
    assert values["tokenizer.ggml.token_type"][3:259] == [BYTE] * 256
    assert values["tokenizer.ggml.add_space_prefix"] is True
    assert vocabulary.ids("ab") == [264]
    assert vocabulary.ids("é") == [259, BYTES["<0xC3>"], BYTES["<0xA9>"]]


def test_merges_stay_where_scores_would_join_more(load: Load) -> None:
    words = ("▁", "a", "b", "▁a", "ab", "▁ab")
    merges = ("▁ a", "a b", "▁a b")  # not "▁ ab", which llama.cpp would join by scores
    vocabulary = load(tokenizer_json=byte_fallback(*words, merges=merges), tokenizer_config_json=EOS)
    assert vocabulary.values["tokenizer.ggml.merges"] == [*merges]
    assert vocabulary.values["tokenizer.ggml.add_space_prefix"] is False
    assert vocabulary.ids("ab") == [264]
    assert vocabulary.ids("é") == [259, BYTES["<0xC3>"], BYTES["<0xA9>"]]


def test_white_space_behind_a_token_that_swallows_it_is_gone(load: Load) -> None:
    added = [added_token(1, "<s>"), added_token(2, "</s>", rstrip=True, lstrip=True)]
    tokens = byte_fallback("▁", "a", added_tokens=added, normalizer={"type": "Replace", **SPACES})
    vocabulary = load(tokenizer_json=tokens, tokenizer_config_json=EOS)
    assert vocabulary.ids("a \n</s> \ta") == [260, 2, 260]
    assert vocabulary.ids("a <s> a") == [260, 259, 1, 259, 260]


SPACES: Json = {"pattern": {"String": " "}, "content": "▁"}


def test_a_token_behind_each_text_takes_the_place_of_the_eos_which_ends_texts_still(load: Load) -> None:
    """As in Qwen3-Embedding, made of a model for chats."""
    added = [added_token(257, "<stop>"), added_token(258, "<pad>")]
    tokens = byte_level(added_tokens=added, post_processor=surrounded_by(None, "<pad>"))
    vocabulary = load(tokenizer_json=tokens, tokenizer_config_json={"eos_token": "<stop>"})
    assert vocabulary.ids("a")[-1] == 258
    assert len(vocabulary.ids("a")) == 2
    assert [vocabulary.ends(token) for token in (257, 258, 256)] == [True, True, False]


def test_a_byte_level_encoder_has_tokens_around_its_texts(load: Load) -> None:
    """As ModernBERT, which has no tokens that are called `bos` and `eos`."""
    added = [added_token(0, "</s>"), added_token(257, "[CLS]"), added_token(258, "[SEP]")]
    tokens = byte_level(added_tokens=added, post_processor=surrounded_by("[CLS]", None, "[SEP]"))
    vocabulary = load(tokenizer_json=tokens, tokenizer_config_json={"cls_token": "[CLS]", "sep_token": "[SEP]"})
    ids = vocabulary.ids("a")
    assert (ids[0], ids[-1], len(ids)) == (257, 258, 3)


def test_special_tokens_around_a_text_are_those_of_the_template(load: Load) -> None:
    tokens = byte_fallback("▁", post_processor=surrounded_by("<s>", None, "</s>"))
    vocabulary = load(tokenizer_json=tokens, tokenizer_config_json=EOS)
    assert vocabulary.ids("") == [1, 2]
    plain = load(tokenizer_json=byte_fallback("▁"), tokenizer_config_json=EOS)
    assert plain.ids("") == []
    asked = load(tokenizer_json=byte_fallback("▁"), tokenizer_config_json={**EOS, "add_bos_token": True})
    assert asked.ids("") == [1]


def test_a_tokenizer_of_llamas_class_begins_a_text_as_its_configuration_says(load: Load) -> None:
    """DeepSeek's tokenizer.json puts nothing around a text: completions lost the token with which theirs begin."""
    tokens = byte_level(added_tokens=[added_token(0, "</s>"), added_token(257, "<begin>")], post_processor=BYTE_LEVEL)
    config = {**EOS, "bos_token": {"content": "<begin>"}, "add_bos_token": True, "add_eos_token": False}
    first = {
        kind: load(tokenizer_json=tokens, tokenizer_config_json={**config, "tokenizer_class": kind}).ids("a")[0]
        for kind in ("LlamaTokenizerFast", "PreTrainedTokenizerFast")
    }
    assert first["LlamaTokenizerFast"] == 257 != first["PreTrainedTokenizerFast"]
    unsaid = {**config, "tokenizer_class": "LlamaTokenizer", "add_bos_token": None}
    assert load(tokenizer_json=tokens, tokenizer_config_json=unsaid).ids("a")[0] != 257


def test_every_token_that_generation_config_names_ends_a_text(load: Load) -> None:
    added = [added_token(0, "</s>"), *(added_token(number, f"<end{number}>") for number in (257, 258, 259))]
    ends = {"eos_token_id": [0, 257, 258]}
    vocabulary = load(
        tokenizer_json=byte_level(added_tokens=added), tokenizer_config_json=EOS, generation_config_json=ends
    )
    assert [token for token in range(260) if vocabulary.ends(token)] == [0, 257, 258]
    with pytest.raises(Unconvertible, match="more tokens that end"):
        load(
            tokenizer_json=byte_level(added_tokens=added), tokenizer_config_json=EOS,
            generation_config_json={"eos_token_id": [0, 257, 258, 259]},
        )  # fmt: skip


def test_roles_come_from_config_where_the_tokenizer_names_none(load: Load) -> None:
    vocabulary = load({"eos_token_id": 5, "bos_token_id": 6, "pad_token_id": 7}, tokenizer_json=byte_level())
    values = vocabulary.values
    assert values["tokenizer.ggml.eos_token_id"] == 5
    assert values["tokenizer.ggml.bos_token_id"] == 6
    assert values["tokenizer.ggml.padding_token_id"] == 7
    with pytest.raises(Unconvertible, match="which token a text ends"):
        load({"eos_token_id": 5_000}, tokenizer_json=byte_level())


def test_templates_in_a_folder_of_their_own(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path / "model", tokenizer_json=byte_level(), tokenizer_config_json={**EOS, "chat_template": "S"}
    )
    (folder / "additional_chat_templates").mkdir()
    for name, text in (("tool_use.jinja", "T"), ("default.jinja", "D"), ("rag.jinja", "R"), ("x.txt", "X")):
        (folder / "additional_chat_templates" / name).write_text(text)

    def templates() -> dict[str, object]:
        return {key: value for key, _, value in vocab.vocabulary(folder, {}) if "chat_template" in key}

    assert templates() == {"tokenizer.chat_template": "S", "tokenizer.chat_template.tool_use": "T"}
    (folder / "tokenizer_config.json").write_text(json.dumps(EOS))
    assert templates() == {"tokenizer.chat_template": "D", "tokenizer.chat_template.tool_use": "T"}
    shutil.rmtree(folder / "additional_chat_templates")
    (folder / "additional_chat_templates").write_text("no folder")
    assert templates() == {}


@pytest.mark.parametrize("chosen", ["file", "string", "list"])
def test_the_chat_template(load: Load, chosen: str) -> None:
    named = [
        {"name": "rag", "template": "R"},
        {"name": "tool_use", "template": "T"},
        {"name": "default", "template": "L"},
    ]
    files: Json = {"tokenizer_config_json": {**EOS, "chat_template": named if chosen == "list" else "S"}}
    if chosen == "file":
        files["chat_template_jinja"] = "F{{ 'é' }}"
    values = load(tokenizer_json=byte_level(), **files).values
    expected = {"file": "F{{ 'é' }}", "string": "S", "list": "L"}[chosen]
    assert values["tokenizer.chat_template"] == expected
    assert values.get("tokenizer.chat_template.tool_use") == ("T" if chosen == "list" else None)


def test_a_cased_bert_keeps_its_case(load: Load) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "É", "e", "##t", "é"]
    tokens = minilm(words)
    tokens["normalizer"] |= {"lowercase": False}
    vocabulary = load({"type_vocab_size": 1}, tokenizer_json=tokens)
    assert vocabulary.ids("É et E") == [2, 5, 6, 7, 1, 3]
    assert vocabulary.ids("e[MASK]é") == [2, 6, 4, 8, 3]
    assert vocabulary.values["tokenizer.ggml.token_type_count"] == 1


# -- the normalizer --------------------------------------------------------------------------------------------------


def test_qwens_text_is_brought_into_its_normal_form(load: Load, tmp_path: Path) -> None:
    tokens = byte_level(normalizer={"type": "NFC"})
    vocabulary = load(tokenizer_json=tokens, tokenizer_config_json=EOS)
    assert vocabulary.normalizer.apply("e\u0301") == "é"
    assert vocab.normalizer(tmp_path / "model0") == vocabulary.values[KEY]
    write_folder(tmp_path / "plain", tokenizer_json=byte_level())
    assert vocab.normalizer(tmp_path / "plain") is None


def test_a_normalizer_survives_being_written() -> None:
    table = b64encode(struct.pack("<I", 4) + bytes(5)).decode()
    normalizer = Normalizer("NFC", "first", None, table, "strip", ("<s>",), ("<t>",), ("<s>",), ("<t>",))
    assert Normalizer.from_text(normalizer.to_text()) == normalizer
    assert not Normalizer.from_text("{}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        '{"form": "NFX"}',
        '{"prefix": 1}',
        '{"bert": 3}',
        '{"bert": {}}',
        '{"charsmap": "?"}',
        '{"charsmap": "AAAA"}',
        '{"spaces": "x"}',
        '{"spaces": []}',
        '{"x": []}',
        "[" * 9999,
    ],
)
def test_a_broken_normalizer_is_refused(text: str) -> None:
    with pytest.raises(Unconvertible):
        Normalizer.from_text(text)


def test_special_tokens_are_no_text_only_where_they_are_parsed() -> None:
    normalizer = Normalizer("NFC", "always", special=("<s>",), plain=("<t>",))
    assert normalizer.apply("a<s>b<t>c") == " a<s> b<t> c"
    assert normalizer.apply("a<s>b<t>c", parse_special=False) == " a<s>b<t> c"


# -- SentencePiece ---------------------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def message(number: int, content: bytes | int) -> bytes:
    """One field of protobuf."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def piece(text: str, score: float = 0.0, kind: int = NORMAL) -> bytes:
    fields = message(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + message(3, kind)
    return message(1, fields)


PIECES = (
    piece("<unk>", 0, 2), piece("<s>", 0, CONTROL), piece("</s>", 0, CONTROL),
    *(piece(text, 0, BYTE) for text in BYTES),
    piece("▁", -9), piece("a", -9), piece("b", -9), piece("ab", -1), piece("▁a", -2), piece("▁▁", 0, USER_DEFINED),
)  # fmt: skip
TRAINER, IDENTITY = message(2, message(3, 2)), message(3, message(4, 0))


def test_a_sentencepiece_model(load: Load) -> None:
    vocabulary = load({"vocab_size": 270}, tokenizer_model=b"".join(PIECES) + TRAINER + IDENTITY)
    values = vocabulary.values
    assert values["tokenizer.ggml.model"] == "llama"
    assert values["tokenizer.ggml.tokens"][259:267] == ["▁", "a", "b", "ab", "▁a", "  ", "[PAD265]", "[PAD266]"]
    assert values["tokenizer.ggml.scores"][262:264] == [-1.0, -2.0]
    assert vocabulary.ids("ab") == [1, 259, 262]
    assert vocabulary.ids("a<s>a") == [1, 263, 1, 263]


def test_tokens_are_added_to_a_sentencepiece_model(load: Load) -> None:
    decoder = {"266": {"content": "<|user|>", "special": True}, "2": {"content": "</s>", "special": True}}
    vocabulary = load(
        tokenizer_model=b"".join(PIECES) + TRAINER + IDENTITY,
        added_tokens_json={"<x>": 265},
        tokenizer_config_json={**EOS, "added_tokens_decoder": decoder, "legacy": False, "add_bos_token": False},
    )
    assert vocabulary.values["tokenizer.ggml.token_type"][265:] == [USER_DEFINED, CONTROL]
    assert vocabulary.ids("a<x>a<|user|>b") == [263, 265, 260, 266, 261]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a byte-pair"),
        (b"\xff" * 30, "cut off"),
        (b"\x0b", "no SentencePiece"),
        (b"".join(PIECES) + TRAINER + IDENTITY[:-1], "cut off"),
        (message(1, 5), "no SentencePiece"),
        (message(1, message(1, b"\xff")), "broken"),
        (message(1, message(3, 9)), "broken"),
        (message(1, message(2, b"abc")), "broken"),
        (b"".join(PIECES) + message(2, message(3, 1)) + IDENTITY, "not a byte-pair"),
        (b"".join(PIECES) + TRAINER, "normalises text"),
        (b"".join(PIECES) + TRAINER + message(3, message(4, 0) + message(2, b"table")), "normalises text"),
        (b"".join(PIECES[:20]) + TRAINER + IDENTITY, "bytes without a token"),
        (b"".join(PIECES) + piece("a") + TRAINER + IDENTITY, "same text"),
    ],
)
def test_a_broken_or_unknown_sentencepiece_model_is_refused(load: Load, data: bytes, reason: str) -> None:
    with pytest.raises(Unconvertible, match=reason):
        load(tokenizer_model=data)


def test_every_cut_of_a_sentencepiece_model_is_read_or_refused(tmp_path: Path) -> None:
    data = b"".join(PIECES[250:]) + TRAINER + IDENTITY
    for end in range(len(data)):
        with pytest.raises(Unconvertible):
            vocab.vocabulary(write_folder(tmp_path, tokenizer_model=data[:end]), {})


# -- what is refused -------------------------------------------------------------------------------------------------

GOOD = byte_level("ab", merges=("a b",))


def changed(*path: str | int, to: Any) -> Json:
    """GOOD with one value replaced."""
    found: Json = json.loads(json.dumps(GOOD))
    inner: Any = found
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return found


SPLIT = {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        (
            changed("pre_tokenizer", to={"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL]}),
            r"not known.*\\\\w\+",
        ),
        (changed("pre_tokenizer", to=None), "not known"),
        (changed("pre_tokenizer", to=7), "cannot be read"),
        (changed("pre_tokenizer", to={**BYTE_LEVEL, "add_prefix_space": True}), "not known"),
        (changed("pre_tokenizer", to={"type": "Sequence", "pretokenizers": [BYTE_LEVEL, SPLIT]}), "not known"),
        (changed("model", "ignore_merges", to=True), "with `ignore_merges`"),
        (changed("model", "dropout", to=0.1), "dropout"),
        (changed("model", "type", to="WordLevel"), "WordLevel"),
        (changed("model", "type", to="Unigram"), "vocabulary is empty"),
        (changed("model", to=[]), "no `model`"),
        (changed("model", "vocab", to={}), "vocabulary is empty"),
        (changed("model", "vocab", to=[]), "vocabulary is empty"),
        (changed("model", "vocab", "ab", to=-1), "id that is none"),
        (changed("model", "vocab", "ab", to=2**24), "id that is none"),
        (changed("model", "vocab", "ab", to=True), "id that is none"),
        (changed("model", "vocab", "ab", to="5"), "id that is none"),
        (changed("model", "vocab", "ab", to=5), "same id"),
        (changed("model", "merges", to=["a x y"]), "broken"),
        (changed("model", "merges", to=[["a", 5]]), "broken"),
        (changed("model", "merges", to=["b a"]), "not of its tokens"),
        (changed("model", "merges", to=["a b", "a b"]), "twice"),
        (changed("model", "merges", to={}), "no list"),
        (changed("normalizer", to={"type": "Lowercase"}), "Lowercase"),
        (changed("added_tokens", to=[{"id": 0}]), "broken"),
        (changed("added_tokens", to=[added_token(-1, "x")]), "broken"),
        (changed("added_tokens", to=[added_token(300, "ab")]), "two ids"),
        (changed("added_tokens", to=[added_token(300, "x", single_word=True)]), "whole words"),
        (changed("added_tokens", to=[added_token(300, "[PAD299]")]), "same text"),
        (changed("added_tokens", to=[added_token(300, "\0")]), "not text"),
        (changed("added_tokens", to=[added_token(300, "\ud800")]), "not text"),
        (changed("added_tokens", to=[added_token(300, "x" * 5000)]), "longer than"),
        (changed("added_tokens", to=7), "no list"),
        (changed("post_processor", to={"type": "RobertaProcessing"}), "not known"),
        (changed("post_processor", to=surrounded_by("</s>", None)), "not its `bos`"),
        (changed("post_processor", to=surrounded_by("<x>", None)), "not a token"),
        (changed("post_processor", to=[]), "cannot be read"),
    ],
)
def test_what_llama_cpp_cannot_do_and_what_is_broken_is_refused(tmp_path: Path, tokens: Json, reason: str) -> None:
    config = {"bos_token": "Ā", "eos_token": "</s>"}
    folder = write_folder(tmp_path, tokenizer_json=json.dumps(tokens), tokenizer_config_json=config)
    with pytest.raises(Unconvertible, match=reason):
        vocab.vocabulary(folder, {})


def unigram(**changes: Any) -> Json:
    """XLM-RoBERTa's kind: <unk>, <s>, </s>, then pieces; without a table of characters."""
    vocab = [["<unk>", 0.0], ["<s>", 0.0], ["</s>", 0.0], ["▁", -2.0], ["a", -3.0], ["▁a", -2.5], ["b", -3.0]]
    model = {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": False}
    meta_space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    added = [added_token(index, text) for index, text in enumerate(("<unk>", "<s>", "</s>"))]
    parts = {"pre_tokenizer": meta_space, "post_processor": surrounded_by("<s>", None, "</s>"), "added_tokens": added}
    return tokenizer({**model, **changes.pop("model", {})}, **(parts | changes))


def charsmap(data: bytes) -> Json:
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": b64encode(data).decode()}}


def test_pieces_of_a_unigram_tokenizer_are_those_with_the_best_sum(load: Load) -> None:
    vocabulary = load(tokenizer_json=unigram(), tokenizer_config_json=EOS)
    assert vocabulary.values["tokenizer.ggml.model"] == "t5"
    assert vocabulary.ids("ab a") == [1, 5, 6, 5, 2]
    assert vocabulary.ids("") == [1, 2]
    assert vocabulary.ids("xyb") == [1, 3, 0, 6, 2]  # unknown ones are one


def test_an_unknown_token_without_an_embedding_is_refused(tmp_path: Path) -> None:
    """llama.cpp would take the second token for it, or none at all."""
    vocabulary = [["</s>", 0.0], ["a", -1.0], ["<unk>", 0.0]]
    added = [added_token(0, "</s>"), added_token(2, "<unk>")]
    around = surrounded_by(None, "</s>")
    tokens = unigram(model={"vocab": vocabulary, "unk_id": 2}, added_tokens=added, post_processor=around)
    folder = write_folder(tmp_path, tokenizer_json=tokens, tokenizer_config_json={"eos_token": "</s>"})
    with pytest.raises(Unconvertible, match="no embedding"):
        vocab.vocabulary(folder, {"vocab_size": 2})


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        (unigram(model={"unk_id": 7}), "byte_fallback"),
        (unigram(model={"unk_id": None}), "byte_fallback"),
        (unigram(model={"byte_fallback": True}), "byte_fallback"),
        (unigram(model={"vocab": []}), "vocabulary is empty"),
        (unigram(model={"vocab": [["a", 0.0], ["a", 1.0]]}), "twice"),
        (unigram(model={"vocab": [["a"]]}), "broken"),
        (unigram(model={"vocab": [["a", "b"]]}), "broken"),
        (unigram(model={"vocab": [["a", 1e30]]}), "broken"),
        (unigram(model={"vocab": [["a", math.nan]]}), "broken"),
        (unigram(pre_tokenizer=None), "not supported"),
        (unigram(pre_tokenizer=BYTE_LEVEL), "not supported"),
        (unigram(pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}), "not supported"),
        (unigram(normalizer={"type": "Lowercase"}), "not supported"),
        (unigram(normalizer={"type": "Precompiled", "precompiled_charsmap": "?"}), "charsmap"),
        (unigram(normalizer={"type": "Precompiled"}), "charsmap"),
        (unigram(**charsmap(b"")), "charsmap"),
        (unigram(**charsmap(struct.pack("<I", 400) + bytes(8))), "charsmap"),
        (unigram(**charsmap(struct.pack("<I", 6) + bytes(8))), "charsmap"),
        (unigram(**charsmap(struct.pack("<I", 4) + bytes(4) + b"x" * 300)), "long texts"),
    ],
)
def test_another_unigram_tokenizer_is_refused(tmp_path: Path, tokens: Json, reason: str) -> None:
    folder = write_folder(tmp_path, tokenizer_json=json.dumps(tokens), tokenizer_config_json=EOS)
    with pytest.raises(Unconvertible, match=reason):
        vocab.vocabulary(folder, {})


def test_a_table_of_characters_may_hold_anything() -> None:
    random = Random(7)
    for _ in range(2000):
        n_units = random.randrange(1, 40)
        units = [random.choice([random.getrandbits(32), random.getrandbits(12), 97 | 1 << 10]) for _ in range(n_units)]
        table = Charsmap(struct.pack(f"<I{n_units}I", 4 * n_units, *units) + random.randbytes(random.randrange(99)))
        table.apply("a\u0301b\r\n\U0001f600 \ud800" * 3)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "neither"),
        ({"tokenizer_json": b"{"}, "not JSON"),
        ({"tokenizer_json": b"[]"}, "not a JSON object"),
        ({"tokenizer_json": b"[" * 100_000}, "not JSON"),
        ({"tokenizer_json": b'{"a":' * 100_000}, "not JSON"),
        ({"tokenizer_json": b"\xff\xfe"}, "not JSON"),
        ({"tokenizer_json": b"[" + b"[]," * 3_000_000 + b"[]]"}, "more parts"),
        ({"tokenizer_json": b" " * (vocab.MAX_TOKENIZER_BYTES + 1)}, "more than 256 MB"),
        ({"tokenizer_json": GOOD, "tokenizer_config_json": b" " * (vocab.MAX_CONFIG_BYTES + 1)}, "more than 16 MB"),
        ({"tokenizer_json": GOOD, "chat_template_jinja": b"\xff"}, "no UTF-8"),
        ({"tokenizer_json": GOOD, "chat_template_jinja": b" " * (2 << 20)}, "more than 1 MB"),
        (
            {"tokenizer_json": GOOD, "tokenizer_config_json": {"added_tokens_decoder": {"x": {"content": "a"}}}},
            "broken",
        ),
        ({"tokenizer_json": GOOD, "tokenizer_config_json": {"added_tokens_decoder": []}}, None),
        ({"tokenizer_json": GOOD, "added_tokens_json": {"x": 1.5}}, "broken"),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, files: Json, reason: str | None) -> None:
    folder = write_folder(tmp_path, **files)
    if reason is None:
        assert vocab.vocabulary(folder, {"eos_token_id": 0})
        return
    with pytest.raises(Unconvertible, match=reason):
        vocab.vocabulary(folder, {"eos_token_id": 0})


@pytest.mark.parametrize("part", ["pre_tokenizer", "normalizer", "post_processor", "model"])
def test_what_is_nested_to_the_last_is_refused(tmp_path: Path, part: str) -> None:
    """Read just within Python's limit, it was beyond it where the reason shows it, a few frames further down."""
    for depth in range(880, 980):
        text = json.dumps({**byte_level(), part: "@@"}).replace('"@@"', "[" * depth + "]" * depth)
        folder = write_folder(tmp_path, tokenizer_json=text)
        with pytest.raises(Unconvertible):
            vocab.vocabulary(folder, {"eos_token_id": 0})


@pytest.mark.parametrize("words", [["x" * 5_000], [f"{index:04000}" for index in range(4_500)]])
def test_vocabularies_of_long_tokens_are_refused_at_once(tmp_path: Path, words: list[str]) -> None:
    """Each place at which a token might be cut was looked at: hours for a file of the size that is read."""
    folder = write_folder(tmp_path, tokenizer_json=byte_fallback(*words))
    with pytest.raises(Unconvertible, match="longer than any"):
        vocab.vocabulary(folder, {"eos_token_id": 0})


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    random = Random(5)
    values: tuple[object, ...] = (
        None,
        True,
        -1,
        2**70,
        1.5,
        float("nan"),
        "",
        "\ud800",
        "a",
        [],
        {},
        [[]],
        {"type": []},
        [None],
        ["a"],
    )
    wordpiece = minilm(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"])
    sentences = byte_fallback("▁", "a", "▁a", merges=("▁ a",), post_processor=surrounded_by("<s>", None))
    settings = {
        **EOS, "chat_template": [{"name": "default", "template": "x"}], "add_bos_token": True,
        "added_tokens_decoder": {"0": {"content": "</s>", "special": True}},
    }  # fmt: skip
    n_read = 0
    for _ in range(1500):
        files: Json = {
            "tokenizer_json": random.choice((GOOD, wordpiece, sentences)), "tokenizer_config_json": settings,
            "generation_config_json": {"eos_token_id": [0, 2]}, "added_tokens_json": {"a": 5},
            "special_tokens_map_json": EOS,
        }  # fmt: skip
        files = json.loads(json.dumps(files))
        config = {"vocab_size": 300, "type_vocab_size": 2, "eos_token_id": 0}
        for _ in range(random.randint(1, 3)):
            mutate(random.choice((*files.values(), config)), random, values)
        folder = write_folder(tmp_path, **{name: json.dumps(content) for name, content in files.items()})
        try:
            encode_header(vocab.vocabulary(folder, config), [])
            n_read += 1
        except Unconvertible:
            pass
    assert n_read > 100


def mutate(inner: Any, random: Random, values: tuple[object, ...]) -> None:
    """Replace, or remove, one value somewhere in `inner`; large tables are seldom entered."""
    while True:
        keys = [*inner] if isinstance(inner, dict) else [*range(len(inner))]
        if not keys:
            return
        key = random.choice(keys)
        if isinstance(inner[key], dict | list) and inner[key] and random.random() < 0.7:
            inner = inner[key]
        elif random.random() < 0.2:
            del inner[key]
            return
        else:
            inner[key] = deepcopy(random.choice(values))
            return


@pytest.mark.parametrize("size", [0, -1, True, "5", 2**24, 100])
def test_an_impossible_number_of_tokens_is_refused(tmp_path: Path, size: object) -> None:
    folder = write_folder(tmp_path, tokenizer_json=GOOD)
    with pytest.raises(Unconvertible, match="vocab_size"):
        vocab.vocabulary(folder, {"eos_token_id": 0, "vocab_size": size})


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer.json")
    with pytest.raises(Unconvertible, match="not a file"):
        vocab.vocabulary(tmp_path, {})


def test_the_awkward_texts_are_awkward() -> None:
    letters = set("".join(texts()))
    assert len(texts()) == 2000
    assert {"Mn", "Mc", "Cf", "Cc", "Zs", "So", "Lo", "Nl", "No", "Lt"} <= set(map(unicodedata.category, letters))
