"""Texts into tokens with the real engine: what one token can stand for, and how long ones are cut."""

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama import sampler_chain, text_slices
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.engine.llama.tokenizer import Tokenizer
from shimmy.errors import BadRequest, ModelUnavailable
from shimmy.formats.gguf import reader
from shimmy.formats.tokenizer import pretokenizers
from shimmy.messages.request import SamplingParams
from tests.tiny_models import BOOL, STRING, vocabulary, write_tiny_bert, write_tiny_bpe, write_tiny_model

LONGEST = max(len(text.encode()) for text, _ in vocabulary())


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


@pytest.fixture
def model(tiny_model: Path, cpu: CpuBackend) -> Iterator[LlamaModel]:
    model = opened(tiny_model, cpu)
    yield model
    model.close()


def opened(path: Path, cpu: CpuBackend) -> LlamaModel:
    found = reader.validated(path)
    return LlamaModel(path, cpu, longest_token_bytes=found.longest_token_bytes, words=found.words)


# -- how much a token stands for -------------------------------------------------------------------------------------


def test_no_token_stands_for_more_than_the_longest_of_the_vocabulary(model: LlamaModel) -> None:
    assert model.vocab.tokenizer.longest_token_bytes() == LONGEST
    for text in ("hello world and the user", "日本語 のテキスト", "\n" * 50, "🙂🙂", " " * 40):
        n_tokens = len(model.vocab.tokenize(text, add_special=False, parse_special=True))
        assert n_tokens * LONGEST >= len(text.encode())


def test_there_is_no_bound_where_a_tokenizer_leaves_text_out(tmp_path: Path, cpu: CpuBackend) -> None:
    swallows = write_tiny_model(tmp_path, "modern-bert")  # by its name: white space before a mask
    changed = write_tiny_model(tmp_path, "changed", more=[("shimmy.tokenizer.normalizer", STRING, '{"form":"NFC"}')])
    for path in (swallows, changed, write_tiny_bert(tmp_path)):
        assert opened(path, cpu).vocab.tokenizer.longest_token_bytes() is None


def test_a_bound_needs_the_length_of_all_tokens(tiny_model: Path, cpu: CpuBackend) -> None:
    assert LlamaModel(tiny_model, cpu).vocab.tokenizer.longest_token_bytes() is None


# -- long texts ------------------------------------------------------------------------------------------------------

# One of each family of `llm_tokenizer_bpe` that may be told apart by what stands around a word.
PRES = (  # noqa: SIM905 - one name a line would fill a page
    "default gpt-4o tekken deepseek-v3 deepseek-llm deepseek-coder youtu falcon bloom viking chameleon afmoe kimi-k2"
    " tiny_aya superbpe bailingmoe seed-coder laguna exaone-moe gemma4 sarvam-moe minicpm5 jais-2 spark2_5 llama-bpe"
    " qwen2 qwen35 gpt-2 smollm granite-embed-multi-97m"
).split()
ATOMS = [
    *("a", "A", "hello", " hello", " the", " ", "    ", "\n", "\n\n", " \n", "\r\n", "\t", "1", "123", "12345678"),
    *("-", "...", "'s", "'S", "e\u0301", "é", "漢字", "かな", "ж", "กิ์", "🙂", "\u3000", "\x1c", "▁", "(", "|", "/"),
    *("<|im_start|>", "<|im_end|>", "<|im_", "<s>", "</s>", "<unk>", "a b c ", "hello world ", " x y z", "\ud800"),
]


def random_texts(seed: int, n: int) -> Iterator[str]:
    random = Random(seed)
    for _ in range(n):
        atoms = random.sample(ATOMS, random.choice([2, 4, 10, len(ATOMS)]))
        yield "".join(random.choices(atoms, k=random.choice([3, 30, 200])))


def compare(model: LlamaModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of 16 characters have the tokens of the whole."""
    n_slices = 0
    for index, text in enumerate(random_texts(1, 40)):
        ways = {"add_special": bool(index & 1), "parse_special": bool(index & 2)}
        whole = model.vocab.tokenize(text, **ways)
        with monkeypatch.context() as patch:
            patch.setattr(text_slices, "MAX_SLICE_CHARACTERS", 16)
            parts = [part for part in model.vocab.tokenizer.slices(text, **ways) if part]
        assert [token for part in parts for token in part] == whole, (text, ways)
        n_slices += len(parts)
    assert n_slices > 60


@pytest.mark.thorough
@pytest.mark.parametrize("pre", PRES)
def test_a_long_text_has_the_same_tokens_in_slices(
    pre: str, tmp_path: Path, cpu: CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(opened(write_tiny_bpe(tmp_path, pre=pre), cpu), monkeypatch)


@pytest.mark.parametrize("kind", ["pieces", "pieces without a space", "words"])
def test_other_vocabularies_have_the_same_tokens_in_slices(
    kind: str, tmp_path: Path, cpu: CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_space = [("tokenizer.ggml.add_space_prefix", BOOL, False)]
    path = write_tiny_bert(tmp_path) if kind == "words" else write_tiny_model(tmp_path, more=no_space * ("out" in kind))
    compare(opened(path, cpu), monkeypatch)


@pytest.mark.parametrize(
    "pre",
    [
        *("gpt-4o", "deepseek-llm"),
        *(
            pytest.param(pre, marks=pytest.mark.thorough)
            for pre in ("tekken", "deepseek-v3", "granite-embed-multi-97m")
        ),
    ],
)
def test_a_word_of_any_length_does_not_end_the_process(pre: str, tmp_path: Path, cpu: CpuBackend) -> None:
    """`std::regex` recursed over the 8 MiB of an ordinary stack: from 26,000 characters on."""
    model = opened(write_tiny_bpe(tmp_path, pre=pre), cpu)
    for character, length in (("A", 200_000), (" ", 60_000), ("-", 60_000), ("漢", 60_000), ("ж", 60_000)):
        with suppress(BadRequest):  # deepseek-llm's look at every space from every space
            tokens = model.vocab.tokenize(character * length, add_special=False, parse_special=True)
            said = {token: model.vocab.token_bytes(token, special=True) for token in {*tokens}}
            assert b"".join(said[token] for token in tokens).decode() == character * length
    with pytest.raises(BadRequest, match="characters without a space"):
        model.vocab.tokenize("A" * 3_000_000, add_special=False, parse_special=True)


# -- words that llama.cpp does not cut -------------------------------------------------------------------------------


def opened_with_words(folder: Path, cpu: CpuBackend, name: str = "falcon3") -> LlamaModel:
    return opened(write_tiny_bpe(folder, words=name), cpu)


@pytest.mark.parametrize("name", pretokenizers.WORDS.values())
def test_a_text_whose_words_are_cut_here_has_the_same_tokens_in_slices(
    name: str, tmp_path: Path, cpu: CpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(opened_with_words(tmp_path, cpu, name), monkeypatch)


def test_special_tokens_stand_between_words(tmp_path: Path, cpu: CpuBackend) -> None:
    vocab = opened_with_words(tmp_path, cpu).vocab
    text = "AA  hello<|im_start|>  the<|im_end|>\n\n漢 ½"

    def spelled(*, parse_special: bool) -> list[bytes]:
        tokens = vocab.tokenize(text, add_special=False, parse_special=parse_special)
        return [vocab.token_bytes(token, special=True) for token in tokens]

    # ½ has the bytes C2 and BD, and the letter of the second is a number.
    assert spelled(parse_special=True) == [
        b"AA", b" ", b" ", b"hello", b"<|im_start|>", b" ", b" t", b"he", b"<|im_end|>", b"\n", b"\n",
        b"\xe6", b"\xbc", b"\xa2", b" ", b"\xc2", b"\xbd",
    ]  # fmt: skip
    assert b"<|im_start|>" not in spelled(parse_special=False)
    assert b"".join(spelled(parse_special=False)).decode() == text
    assert vocab.tokenize("", add_special=True, parse_special=True) == []
    assert vocab.tokenizer.longest_token_bytes() is not None


def test_code_in_c_gets_the_same_words(tmp_path: Path, cpu: CpuBackend) -> None:
    vocab = opened_with_words(tmp_path, cpu).vocab
    model, address = vocab.tokenizer_addresses()
    call = ctypes.CFUNCTYPE(
        ctypes.c_int32, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32),
        ctypes.c_int32, ctypes.c_bool, ctypes.c_bool,
    )(address)  # fmt: skip
    for text in ("hello the  world ½", "", "漢\n\n<|im_start|>"):
        data, buffer = text.encode(), (ctypes.c_int32 * 64)()
        expected = vocab.tokenize(text, add_special=False, parse_special=False)
        n_tokens = call(model, data, len(data), buffer, len(buffer), False, False)
        assert buffer[:n_tokens] == expected
        assert call(model, data, len(data), buffer, 0, False, False) == -len(expected), "there was no room"


def test_words_of_any_length_do_not_end_the_process(tmp_path: Path, cpu: CpuBackend) -> None:
    vocab = opened_with_words(tmp_path, cpu, "deepseek-llm").vocab
    for text in ("A" * 200_000, " " * 60_000 + "ж", "漢" * 60_000, "سلام " * 20_000, "1" * 60_000 + "é"):
        tokens = vocab.tokenize(text, add_special=False, parse_special=True)
        said = {token: vocab.token_bytes(token, special=True) for token in {*tokens}}
        assert b"".join(said[token] for token in tokens).decode() == text
    for text in ("漢" * 300_000, "1" * 600_000):
        with pytest.raises(BadRequest, match="characters without a space"):
            vocab.tokenize(text, add_special=False, parse_special=True)
    for text in ("漢字、" * 10_000, "жд лж " * 10_000, "한국 " * 10_000, "かな。" * 10_000):
        assert len(list(vocab.tokenizer.slices(text, add_special=False, parse_special=True))) > 3


def test_other_programs_find_a_pre_tokenizer_that_comes_near(tmp_path: Path, cpu: CpuBackend) -> None:
    path = write_tiny_bpe(tmp_path, pre="falcon3", words="falcon3")
    here, elsewhere = opened(path, cpu).vocab, LlamaModel(path, cpu).vocab
    ways = {"add_special": False, "parse_special": True}
    text = "hello the AAAA<|im_start|>  hi"
    assert here.tokenize(text, **ways) == elsewhere.tokenize(text, **ways)
    assert here.tokenize("hi\n\nhi", **ways) != elsewhere.tokenize("hi\n\nhi", **ways)


def test_what_llama_cpp_would_tokenize_without_words_is_refused(tmp_path: Path, cpu: CpuBackend) -> None:
    """It ended the process at two spaces: `dry_sequence_breakers` are tokenized by the sampler."""
    model = opened_with_words(tmp_path, cpu)
    chain = sampler_chain.chain(SamplingParams(dry_multiplier=0.8), seed=1, n_ctx=64)
    for text in ("\n", ":", "USER:", "漢", " "):
        model.new_sampler(chain, [], [text]).close()
    for text in ("a  b", " b ", "\n\n", "é漢", "\n—"):
        with pytest.raises(BadRequest, match="behind the first character") as caught:
            model.new_sampler(chain, [], ["\n", text])
        assert caught.value.param == "dry_sequence_breakers"
    others = opened(write_tiny_bpe(tmp_path, "other"), cpu)
    others.new_sampler(chain, [], ["a  b"]).close()
    odd = opened(write_tiny_bpe(tmp_path, "odd", pre="whitespace"), cpu).vocab
    assert odd.tokenize("hello A", add_special=False, parse_special=True)
    with pytest.raises(BadRequest, match="spaces in a row"):
        odd.tokenize("hello  A", add_special=False, parse_special=True)


def test_words_of_another_version_are_refused(tmp_path: Path, cpu: CpuBackend) -> None:
    with pytest.raises(ModelUnavailable, match="of another version"):
        opened_with_words(tmp_path, cpu, "falcon-4")


@pytest.mark.parametrize(("pre", "run"), [("superbpe", "1" * 8000), ("deepseek-llm", " " * 8000 + "1")])
def test_what_takes_the_square_of_its_length_is_refused(pre: str, run: str, tmp_path: Path, cpu: CpuBackend) -> None:
    model = opened(write_tiny_bpe(tmp_path, pre=pre), cpu)
    assert model.vocab.tokenize(run[-900:], add_special=False, parse_special=True)
    with pytest.raises(BadRequest, match="in a row"):
        model.vocab.tokenize(run, add_special=False, parse_special=True)


def test_thousands_of_messages_are_tokenized_some_at_a_time(model: LlamaModel) -> None:
    """llama.cpp's search for special tokens takes the square of their number: 20,000 of them took 6 seconds."""
    text = "<|im_start|>user\nhi<|im_end|>\n" * 10_000
    parts = list(model.vocab.tokenizer.slices(text, add_special=True, parse_special=True))
    assert max(map(len, parts)) < 8192
    assert sum(part.count(model.vocab.n_vocab - 1) for part in parts) == 10_000
    with pytest.raises(BadRequest, match="special tokens"):
        list(opened_with_unclean(model).slices("<<" * 40_000, add_special=True, parse_special=True))


def opened_with_unclean(model: LlamaModel) -> Tokenizer:
    """A tokenizer whose special tokens can overlap, so that no text can be cut before one."""
    tokenizer = Tokenizer(model.vocab.tokenizer._vocab, model.metadata, 0)
    tokenizer._cuts[True] = text_slices.Cuts(["<", "<<"], None)
    return tokenizer
