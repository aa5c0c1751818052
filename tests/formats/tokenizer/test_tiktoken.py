"""Vocabularies in tiktoken's format: the ids are tiktoken's own; what is no such file is refused.

The ids come from tiktoken, once: see tests/golden/record_tiktoken.py.
"""

import json
import lzma
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path
from random import Random
from time import thread_time

import pytest

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.tokenizer import pretokenizers, tiktoken, vocab
from shimmy.formats.tokenizer.normalizer import Cuts, Normalizer
from tests.formats.tokenizer.test_vocab import Load, differences, load
from tests.golden.record_tiktoken import KIMI_NAMES, all_texts
from tests.tokenizer_folders import BYTE_LEVEL, CONTROL, USER_DEFINED, Json, added_token, bpe, tokenizer, write_folder

__all__ = ["load"]

GOLDEN: Json = json.loads(lzma.decompress((Path(__file__).parents[2] / "golden" / "tiktoken.json.xz").read_bytes()))
BYTES = [bytes((byte,)) for byte in range(256)]
CONFIG = {
    "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
    "tokenizer_class": "TikTokenTokenizer",
    "bos_token": "[BOS]",
    "eos_token": "[EOS]",
}
LETTERS = list(pretokenizers.byte_letters())


def tokens_of(name: str) -> list[bytes]:
    return [b64decode(token) for token in GOLDEN[name]["tokens"]]


def written(tokens: Sequence[bytes]) -> bytes:
    return b"".join(b"%b %d\n" % (b64encode(token), rank) for rank, token in enumerate(tokens))


def text_of(token: bytes) -> str:
    return "".join(LETTERS[byte] for byte in token)


def kimi_added(n_tokens: int) -> Json:
    return {
        str(n_tokens + place): added_token(0, text, special="tool" not in text) for place, text in KIMI_NAMES.items()
    }


def files_of(name: str) -> tuple[Json, int]:
    """The files of a folder whose tokens are the golden ones, and how many tokens it has."""
    tokens = tokens_of(name)
    config: Json = {"tokenizer_class": "HYTokenizer", "eos_token": "<|eos|>"}
    if name == "hunyuan":
        return {"hy_tiktoken": written(tokens), "tokenizer_config_json": config}, len(tokens) + 210
    config = {**CONFIG, "added_tokens_decoder": kimi_added(len(tokens))}
    return {"tiktoken_model": written(tokens), "tokenizer_config_json": config}, len(tokens) + 256


# -- the same ids as tiktoken's --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kimi", "hunyuan"])
def test_ids_are_tiktokens(load: Load, name: str) -> None:
    files, n_tokens = files_of(name)
    vocabulary = load({"vocab_size": n_tokens}, **files)
    assert differences(vocabulary, all_texts(), GOLDEN[name]["ids"]) == []


def test_ids_of_kimi_with_tokens_across_words_are_tiktokens_but_for_some_capitals(load: Load) -> None:
    files, n_tokens = files_of("kimi-of-other-tokens")
    vocabulary = load({"vocab_size": n_tokens}, **files)
    different = differences(vocabulary, all_texts(), GOLDEN["kimi-of-other-tokens"]["ids"])
    assert [text for text in different if not any(map(is_capital, text))] == []
    assert len(different) < 20


def is_capital(letter: str) -> bool:
    return letter.isupper() and not letter.isascii()


def test_hunyuans_special_tokens_follow_the_others(load: Load) -> None:
    files, n_tokens = files_of("hunyuan")
    vocabulary = load({"vocab_size": n_tokens}, **files)
    assert vocabulary.ids("a<|endoftext|><|extra_204|>") == [*vocabulary.ids("a"), n_tokens - 210, n_tokens - 1]


def test_ids_of_kimi_are_the_same_by_a_tokenizer_json(load: Load) -> None:
    tokens = tokens_of("kimi")
    merges = [[text_of(left), text_of(right)] for left, right in tiktoken.merges(tokens)]
    split = {"type": "Split", "pattern": {"Regex": pretokenizers.KIMI}, "behavior": "Isolated", "invert": False}
    cuts = {"type": "Sequence", "pretokenizers": [split, {**BYTE_LEVEL, "use_regex": False}]}
    added = [added_token(len(tokens) + place, text) for place, text in KIMI_NAMES.items()]
    model = bpe({text_of(token): rank for rank, token in enumerate(tokens)}, merges, ignore_merges=True)
    file = tokenizer(model, pre_tokenizer=cuts, added_tokens=added)
    vocabulary = load(tokenizer_json=file, tokenizer_config_json={"eos_token": "[EOS]"})
    assert differences(vocabulary, all_texts(), GOLDEN["kimi"]["ids"]) == []


def test_a_token_that_no_merge_makes_is_found_where_it_is_a_word(load: Load) -> None:
    tokens = [*tokens_of("kimi"), b" qzxjv"]
    config = {**CONFIG, "added_tokens_decoder": kimi_added(len(tokens))}
    vocabulary = load(tiktoken_model=written(tokens), tokenizer_config_json=config)
    assert vocabulary.ids("a qzxjv") == [tokens.index(b"a"), tokens.index(b" qzxjv")]
    assert vocabulary.ids("12345") == [tokens.index(text) for text in (b"123", b"45")]
    assert vocabulary.ids("12345/") == [tokens.index(text) for text in (b"123", b"45", b"/")]


def test_text_is_cut_where_words_end_and_never_within_special_tokens() -> None:
    cut = Normalizer(cuts="kimi", special=("<|12345|>",), plain=("/\n/",))
    assert cut.parts("a 1234567 b\n/c 中'd<|12345|>1234") == ["a 123", "456", "7 b\n", "/c 中", "'d<|12345|>123", "4"]
    assert cut.parts("<|12345|>", parse_special=False) == ["<|123", "45|>"]
    assert cut.parts("/\n/") == ["/\n/"]
    assert cut.parts("") == [""]
    words = Normalizer(cuts="kimi-words").parts("a  中文 b\n中\u3007文。\u3000中")
    assert words == ["a ", " ", "中文", " b\n", "中\u3007文", "。\u3000", "中"]
    assert cut.apply("1234") == "1234"
    assert Normalizer.from_text(cut.to_text()) == cut
    assert Normalizer().parts("1234") == ["1234"]


@pytest.mark.parametrize("cuts", ["", "kimi"])
def test_parts_of_many_special_tokens_take_no_square_of_their_number(cuts: Cuts) -> None:
    changes = Normalizer(form="NFC", cuts=cuts, special=("<|im_end|>",))
    text = "<|im_end|>" * 300_000
    begun_s = thread_time()
    assert changes.parts(text) == [text]
    assert thread_time() - begun_s < 7  # 0.7 s; the square of it takes more than 10


# -- special tokens --------------------------------------------------------------------------------------------------


def test_kimis_special_tokens_have_the_names_of_the_configuration_or_their_numbers(load: Load) -> None:
    tokens = tokens_of("kimi")
    n = len(tokens)
    config = {**CONFIG, "added_tokens_decoder": kimi_added(n), "chat_template": "{{ messages }}"}
    generation = {"eos_token_id": n + 2}
    vocabulary = load(
        {"vocab_size": n + 256}, tiktoken_model=written(tokens), tokenizer_config_json=config,
        generation_config_json=generation,
    )  # fmt: skip
    values = vocabulary.values
    texts, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert len(texts) == n + 256
    assert texts[n : n + 5] == ["[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>", "<|im_assistant|>"]
    assert texts[n + 5] == f"<|reserved_token_{n + 5}|>"
    assert [types[n + place] for place in (0, 2, 5, 11, 255)] == [CONTROL, CONTROL, CONTROL, USER_DEFINED, CONTROL]
    assert (values["tokenizer.ggml.bos_token_id"], values["tokenizer.ggml.eos_token_id"]) == (n, n + 1)
    assert not values["tokenizer.ggml.add_bos_token"]
    assert vocabulary.ends(n + 1)
    assert vocabulary.ends(n + 2)
    assert values["tokenizer.chat_template"] == "{{ messages }}"
    assert vocabulary.ids("<|im_user|>a<|im_end|>") == [n + 3, tokens.index(b"a"), n + 2]
    assert vocabulary.ids(f"<|reserved_token_{n + 5}|>") == [n + 5]
    assert n + 3 not in vocabulary.ids("<|im_user|>", parse_special=False)


def test_an_added_token_with_the_id_of_another_is_refused(tmp_path: Path) -> None:
    config = {**CONFIG, "added_tokens_decoder": {"7": added_token(0, "[BOS]")}}
    with pytest.raises(Unconvertible, match="has the id of another token"):
        vocab.vocabulary(write_folder(tmp_path, tiktoken_model=written(BYTES), tokenizer_config_json=config), {})


# -- merges ----------------------------------------------------------------------------------------------------------


def test_merges_make_what_ranks_make() -> None:
    """Against tiktoken's rule itself, with ranks that no training would give."""
    random = Random(3)
    for _ in range(200):
        letters = [b"a", b"b", b"c"]
        found = dict.fromkeys(b"".join(random.choices(letters, k=random.randint(2, 6))) for _ in range(12))
        tokens = [*BYTES, *found]
        ranks = {token: rank for rank, token in enumerate(tokens)}
        pieces = tokens[97:100] + tokens[256:]
        places = {pair: place for place, pair in enumerate(tiktoken.merges(tokens))}
        of_pairs = {(left, right): ranks.get(left + right) for left, right in product(pieces, pieces)}
        for _ in range(40):
            text = b"".join(random.choices(letters, k=random.randint(1, 12)))
            assert joined(text, places) == joined(text, of_pairs)


def joined(text: bytes, rank_of: Mapping[tuple[bytes, bytes], int | None]) -> list[bytes]:
    pieces = [bytes((byte,)) for byte in text]
    while True:
        found = [(rank, at) for at, pair in enumerate(pairwise(pieces)) if (rank := rank_of.get(pair)) is not None]
        if not found:
            return pieces
        at = min(found)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]


def test_merges_of_a_large_vocabulary_take_seconds() -> None:
    random = Random(5)
    tokens, known = [*BYTES], set(BYTES)
    while len(tokens) < 20_000:
        token = tokens[random.randrange(97, len(tokens))] + tokens[random.randrange(97, len(tokens))]
        if token not in known and len(token) < 24:
            tokens.append(token)
            known.add(token)
    begun_s = thread_time()
    tiktoken.merges(tiktoken.parse(written(tokens), "tiktoken.model"))
    assert thread_time() - begun_s < 10  # 0.6 s


# -- hostile files ---------------------------------------------------------------------------------------------------

GOOD = written([*BYTES, b"ab", b"abc"])


def _hostile() -> Iterator[tuple[str, bytes]]:
    yield "an earlier line has too", GOOD + b"YWI= 258\n"
    yield "numbers from 0 to 258", GOOD + b"eHk= 259\n"
    yield "numbers from 0 to 258", GOOD + b"eHk= 257\n"
    yield "numbers from 0 to 258", GOOD + b"eHk= 1048577\n"
    yield "line 259 .* not a token and its rank", GOOD + b"eHk=\n"
    yield "not a token and its rank", GOOD + b"eHk= 258 9\n"
    yield "not a token and its rank", GOOD + b"eHk= -1\n"
    yield "not a token and its rank", GOOD + b"eHk= 1e3\n"
    yield "not a token and its rank", GOOD + b"eHk= " + b"9" * 5000 + b"\n"
    yield "not base64", GOOD + b"eH!= 258\n"
    yield "not base64", GOOD + b"eHk 258\n"
    yield "not base64", GOOD + b"\xff\xfe 258\n"
    yield "more than 4096", GOOD + b64encode(b"x" * 4097) + b" 258\n"
    yield "longer than", GOOD + b"A" * 10_000_000 + b" 258\n"
    yield "more than 1048576 tokens", b"\n" * (1 << 22)
    yield "one too many", GOOD + b"".join(b"%b %d\n" % (b64encode(b"%04096d" % n), 258 + n) for n in range(6))
    yield "bytes without a token", b"".join(GOOD.splitlines(keepends=True)[:255])
    yield "bytes without a token", b""
    yield "not a token and its rank", b'{"model": {"vocab": {}, "merges": []}}'


HOSTILE = list(_hostile())


@pytest.mark.parametrize(("cause", "data"), HOSTILE, ids=[cause for cause, _ in HOSTILE])
def test_what_is_no_such_file_is_refused_with_the_cause(cause: str, data: bytes) -> None:
    with pytest.raises(Unconvertible, match=cause):
        tiktoken.parse(data, "tiktoken.model")


def test_empty_lines_and_ends_of_windows_are_read() -> None:
    assert tiktoken.parse(GOOD.replace(b"\n", b"\r\n\r\n"), "tiktoken.model")[-1] == b"abc"


def test_mutated_files_are_read_or_refused() -> None:
    random = Random(7)
    for _ in range(300):
        data = bytearray(GOOD)
        for _ in range(random.randint(1, 4)):
            data[random.randrange(len(data))] = random.choice(b"Aa+/= \n\r09\x00\xff")
        try:
            tokens = tiktoken.parse(bytes(data), "tiktoken.model")
        except Unconvertible:
            continue
        assert set(tokens) >= set(BYTES)
        tiktoken.merges(tokens)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("tiktoken_model", {"tokenizer_class": "QWenTokenizer"}),
        ("tiktoken_model", {"tokenizer_class": "HYTokenizer"}),
        ("hy_tiktoken", CONFIG),
        ("hy_tiktoken", {}),
    ],
)
def test_code_of_an_unknown_class_is_refused_by_its_name(name: str, config: Json, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, **{name: GOOD, "tokenizer_config_json": config})
    with pytest.raises(Unconvertible, match=f'a class that is not known: `"{config.get("tokenizer_class", "")}"`'):
        vocab.vocabulary(folder, {})


def test_more_tokens_than_the_model_has_are_refused(tmp_path: Path) -> None:
    config = {**CONFIG, "added_tokens_decoder": kimi_added(256)}
    folder = write_folder(tmp_path, tiktoken_model=written(BYTES), tokenizer_config_json=config)
    with pytest.raises(Unconvertible, match="more tokens than its `vocab_size`"):
        vocab.vocabulary(folder, {"vocab_size": 200})
