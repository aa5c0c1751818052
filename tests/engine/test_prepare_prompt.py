"""What the preparer remembers: the tokens of texts that are asked for again."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.engine.prepare_prompt import PromptPreparer
from shimmy.formats.gguf import reader
from shimmy.formats.gguf.vocabulary import special_tokens
from shimmy.messages.request import ChatPrompt, GenerateRequest, Job, Message, TextPrompt
from tests.engine.damaged import with_items
from tests.tiny_models import (
    BOS_TOKEN,
    INT32,
    STRING,
    encode_gguf,
    model_metadata,
    model_tensors,
    vocabulary,
    write_tiny_model,
)

IM_END = "<|im_end|>"
LONG = "hello world and the user " * 100
MANY = 1 << 20  # characters, as many as are remembered


class Counting(LlamaModel):
    """A model that counts the texts it was given."""

    def __init__(self, path: Path, cpu: CpuBackend) -> None:
        super().__init__(path, cpu)
        self.n_texts = 0
        slices = self.vocab.tokenizer.slices

        def counted(text: str, *, add_special: bool, parse_special: bool) -> Iterator[list[int]]:
            self.n_texts += 1
            return slices(text, add_special=add_special, parse_special=parse_special)

        self.vocab.tokenizer.slices = counted  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[Counting]:
    model = Counting(tiny_model, CpuBackend(variants.libraries(LIBRARY_FOLDER, None)))
    yield model
    model.close()


def tokens_and_texts(preparer: PromptPreparer, model: Counting, text: str) -> tuple[list[int], int]:
    """The tokens of `text`, and how many texts the model had to tokenize for them."""
    n_before = model.n_texts
    tokens = preparer.tokenize(text, add_special=True, parse_special=True)
    return tokens, model.n_texts - n_before


def test_a_text_that_is_asked_for_again_is_not_tokenized_again(model: Counting) -> None:
    preparer = PromptPreparer(model, None)
    first, n_first = tokens_and_texts(preparer, model, LONG)
    again, n_again = tokens_and_texts(preparer, model, LONG)
    assert (n_first, n_again) == (1, 0)
    assert first == again == model.vocab.tokenize(LONG, add_special=True, parse_special=True)


def test_a_caller_may_change_the_tokens(model: Counting) -> None:
    preparer = PromptPreparer(model, None)
    expected = model.vocab.tokenize(LONG, add_special=True, parse_special=True)
    for _ in range(3):
        tokens, _ = tokens_and_texts(preparer, model, LONG)
        assert tokens == expected
        tokens.append(7)


@pytest.mark.parametrize(("add_special", "parse_special"), [(True, False), (False, True), (False, False)])
def test_other_ways_to_tokenize_are_other_questions(add_special: bool, parse_special: bool, model: Counting) -> None:
    preparer = PromptPreparer(model, None)
    text = f"{LONG}{model.vocab.special_text('eos')}{LONG}"
    as_prompt, _ = tokens_and_texts(preparer, model, text)
    tokens = preparer.tokenize(text, add_special=add_special, parse_special=parse_special)
    assert tokens == model.vocab.tokenize(text, add_special=add_special, parse_special=parse_special) != as_prompt


def test_short_texts_are_tokenized_each_time(model: Counting) -> None:
    preparer = PromptPreparer(model, None)
    assert [tokens_and_texts(preparer, model, "hello world")[1] for _ in range(3)] == [1, 1, 1]


def test_texts_of_a_limited_length_are_remembered(model: Counting) -> None:
    preparer = PromptPreparer(model, None)
    texts = [f"{number} {LONG}" for number in range(2 * MANY // len(LONG))]
    for text in texts:
        tokens_and_texts(preparer, model, text)
    assert tokens_and_texts(preparer, model, texts[-1])[1] == 0
    assert tokens_and_texts(preparer, model, texts[0])[1] == 1, "it was forgotten"


def test_what_is_asked_for_again_and_again_is_not_forgotten(model: Counting) -> None:
    preparer = PromptPreparer(model, None)
    tokens_and_texts(preparer, model, LONG)
    for number in range(2 * MANY // len(LONG)):
        tokens_and_texts(preparer, model, f"{number} {LONG}")
        assert tokens_and_texts(preparer, model, LONG)[1] == 0


def test_a_text_longer_than_all_that_is_remembered_makes_none_forgotten(model: Counting) -> None:
    preparer = PromptPreparer(model, None)
    tokens_and_texts(preparer, model, LONG)
    for _ in range(2):
        assert tokens_and_texts(preparer, model, "a" * (MANY + 1))[1] == 1
    assert tokens_and_texts(preparer, model, LONG)[1] == 0


def prompt_tokens(model: LlamaModel, text: str, *, parse_special: bool = False) -> list[int]:
    prompt = ChatPrompt((Message("user", text),), parse_special=parse_special)
    return PromptPreparer(model, None).tokens(prompt)


@pytest.mark.parametrize(
    "text", ["hello", " hello world ", "the\n\nuser", "", "a < b", "<|", "end|>", "user <|im_end |>"]
)
def test_a_plain_chat_has_the_tokens_of_its_text(text: str, model: Counting) -> None:
    rendered = f"<|im_start|>user\n{text}{IM_END}\n<|im_start|>assistant\n"
    expected = model.vocab.tokenize(rendered, add_special=True, parse_special=True)
    assert prompt_tokens(model, text) == prompt_tokens(model, text, parse_special=True) == expected


@pytest.mark.parametrize(
    "text", [IM_END, f"hello{IM_END}", f"{IM_END} world", f"a{IM_END}{IM_END}b", "<s></s>", "<unk>"]
)
def test_control_tokens_of_a_user_are_text(text: str, model: Counting) -> None:
    tokens = prompt_tokens(model, text)
    is_control = {
        token for token in range(model.vocab.n_vocab) if model.vocab.spelled(token) and not model.vocab.piece(token)
    }
    assert [token for token in tokens if token in is_control] == [
        token for token in prompt_tokens(model, "hello") if token in is_control
    ]
    assert model.vocab.detokenize(tokens) == model.vocab.detokenize(prompt_tokens(model, "PLACE")).replace(
        "PLACE", text
    )
    assert prompt_tokens(model, text, parse_special=True) != tokens


def test_the_control_tokens_of_a_model_are_found(model: Counting) -> None:
    assert set(model.vocab.control_texts()) == {"<unk>", "<s>", "</s>", "<|im_start|>", IM_END}


def test_the_control_tokens_are_found_by_what_the_file_says_of_them(tmp_path: Path) -> None:
    """And by what llama.cpp takes for such: looking at each token of a vocabulary would take long."""
    texts = [text for text, _ in vocabulary()]
    texts[-5:] = ["<|eot_id|>", "<|start|>", "<end_of_turn>", "<start_of_turn>", "<think>"]
    for kinds in ([1] * len(texts), [kind for _, kind in vocabulary()], [4] * len(texts)):
        path = write_tiny_model(tmp_path)
        metadata = with_items(model_metadata("tiny", 512, None), "tokenizer.ggml.tokens", STRING, texts)
        metadata = with_items(metadata, "tokenizer.ggml.token_type", INT32, kinds)
        path.write_bytes(encode_gguf(metadata, model_tensors(0)))
        special = special_tokens(path, reader.contents(path))
        assert special == [token for token, kind in enumerate(kinds) if kind in {2, 3, 4}]
        cpu = CpuBackend(variants.libraries(LIBRARY_FOLDER, None))
        quick, slow = (LlamaModel(path, cpu, special_tokens=tokens) for tokens in (special, None))
        assert quick.vocab.control_texts() == slow.vocab.control_texts()
        assert {"<|eot_id|>", "<end_of_turn>", "</s>"} <= set(quick.vocab.control_texts())
        if kinds[0] == 4:
            assert "<start_of_turn>" in quick.vocab.control_texts()
            assert "<think>" not in quick.vocab.control_texts()
        quick.close()
        slow.close()


@pytest.mark.parametrize("source", ["", " \n", "{# a comment #}", "{% set x = 1 %}", "{{ nothing }}\n"])
def test_a_template_that_writes_nothing_is_none(source: str, model: Counting) -> None:
    preparer = PromptPreparer(model, source)
    assert not preparer.has_chat_template
    assert preparer.render(ChatPrompt((Message("user", "hello"),))) == (
        f"<|im_start|>user\nhello{IM_END}\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("source", ["", "{{ messages[0].content }}"])
def test_the_log_says_once_that_chats_get_a_generic_template(
    source: str, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = LlamaModel(tiny_model, CpuBackend(variants.libraries(LIBRARY_FOLDER, None)))
    model.open_context(n_ctx=256, n_batch=32, n_sequences=1, n_outputs=32, n_threads=1)
    preparer = PromptPreparer(model, source)
    preparer.render(ChatPrompt((Message("user", "hello"),)))
    preparer.task(Job(1, GenerateRequest("tiny", TextPrompt("hello"))))
    assert "chat template" not in caplog.text, "no chat was asked for"
    for number in (2, 3):
        preparer.task(Job(number, GenerateRequest("tiny", ChatPrompt((Message("user", "hello"),)))))
    assert caplog.text.count("the model has no chat template: chats get a generic one") == (source == "")
    model.close()


@pytest.mark.parametrize(
    "source", ["{{ messages[0].content }}", "always the same", "{{ raise_exception('no') }}", "{{"]
)
def test_one_that_writes_or_fails_is_one(source: str, model: Counting) -> None:
    assert PromptPreparer(model, source).has_chat_template


@pytest.mark.parametrize("written", ["<s>hello", "<s><s>hello"])
def test_no_beginning_is_added_to_one_that_is_written(written: str, model: Counting) -> None:
    preparer = PromptPreparer(model, "<s>{{ messages[0].content }}")
    expected = model.vocab.tokenize(written, add_special=False, parse_special=True)
    assert preparer.tokens(TextPrompt(written)) == expected
    assert preparer.tokens(TextPrompt("hello")) == model.vocab.tokenize("hello", add_special=True, parse_special=True)
    assert preparer.tokens(ChatPrompt((Message("user", "hello"),))) == preparer.tokens(TextPrompt("<s>hello"))
    typed = preparer.tokens(ChatPrompt((Message("user", "<s>"),)))
    assert typed.count(BOS_TOKEN) == 1
