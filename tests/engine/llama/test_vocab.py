"""The vocabulary of a real model: texts, tokens and their bytes."""

import pytest

from shimmy.engine.llama.model import LlamaModel
from tests.tiny_models import (
    BOS_TOKEN,
    EOS_TOKEN,
    vocabulary,
)

TEXTS = ["hello world", "née 😀 €", "a\0b\0", "\n\t tabs", "x" * 3000, "<s>no token</s>", "\x7f\u200d\ufeff", " "]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_text_comes_back_from_its_tokens(text: str, model: LlamaModel) -> None:
    tokens = model.vocab.tokenize(text, add_special=False, parse_special=False)
    # SentencePiece puts a space before the text.
    assert model.vocab.detokenize(tokens) == " " + text
    assert b"".join(model.vocab.piece(token) for token in tokens) == b" " + text.encode()
    assert not set(tokens) & {BOS_TOKEN, EOS_TOKEN}


def test_special_tokens_are_read_and_written_when_asked_for(model: LlamaModel) -> None:
    start, end = model.vocab.n_vocab - 2, model.vocab.n_vocab - 1
    text = "<|im_start|>user<|im_end|>"
    tokens = model.vocab.tokenize(text, add_special=False, parse_special=True)
    assert (tokens[0], tokens[-1]) == (start, end)
    assert model.vocab.detokenize([start, end]) == "<|im_start|><|im_end|>"
    assert not {start, end} & set(model.vocab.tokenize(text, add_special=False, parse_special=False))
    assert model.vocab.piece(start) == model.vocab.piece(BOS_TOKEN) == b"", "control tokens are no text of a reply"


def test_the_beginning_is_added_when_asked_for(model: LlamaModel) -> None:
    assert model.vocab.adds_bos
    assert model.vocab.tokenize("", add_special=True, parse_special=True) == [BOS_TOKEN]
    assert model.vocab.tokenize("", add_special=False, parse_special=True) == []
    with_it = model.vocab.tokenize("hello", add_special=True, parse_special=False)
    assert with_it == [BOS_TOKEN, *model.vocab.tokenize("hello", add_special=False, parse_special=False)]


def test_a_lone_surrogate_has_no_bytes_and_breaks_nothing(model: LlamaModel) -> None:
    tokens = model.vocab.tokenize("a\ud800b\udfff", add_special=False, parse_special=False)
    assert model.vocab.detokenize(tokens) == " a?b?"


def test_every_token_has_a_piece_and_bytes_that_are_no_character_are_marked(model: LlamaModel) -> None:
    pieces = [model.vocab.piece(token) for token in range(model.vocab.n_vocab)]
    byte_tokens = [index for index, (_, kind) in enumerate(vocabulary()) if kind == 6]
    assert [pieces[token] for token in byte_tokens] == [bytes([byte]) for byte in range(256)]
    assert model.vocab.detokenize([byte_tokens[0xFF]]) == "\ufffd"
    assert model.vocab.detokenize([byte_tokens[byte] for byte in "é".encode()]) == "é"
    assert model.vocab.detokenize([]) == ""


def test_end_tokens_are_the_models_own_and_those_of_chat_formats(model: LlamaModel) -> None:
    assert model.vocab.end_tokens() == [EOS_TOKEN, model.vocab.n_vocab - 1]
    assert model.vocab.is_end(EOS_TOKEN)
    assert not model.vocab.is_end(BOS_TOKEN)
    assert (model.vocab.special_text("bos"), model.vocab.special_text("eos"), model.vocab.bos_token()) == (
        "<s>",
        "</s>",
        BOS_TOKEN,
    )
