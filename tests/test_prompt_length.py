"""What cannot fit a context is refused by its length, and nothing that could."""

import pytest

from shimmy.errors import ContextExceeded
from shimmy.messages.request import ChatPrompt, FillPrompt, Message, Prompt, TextPrompt, TokenPrompt
from shimmy.prompt_length import refuse_longer, refuse_longer_inputs

CHAT = ChatPrompt((Message("user", "x" * 10**6),))


@pytest.mark.parametrize(
    ("prompt", "n_tokens"),
    [
        (TokenPrompt((1,) * 64), "64"),
        (TextPrompt("x" * (63 * 16 + 1)), "at least 64"),
        (FillPrompt("x" * (32 * 16), "y" * (32 * 16)), "at least 64"),
    ],
)
def test_a_prompt_that_is_too_long_by_its_length_is_refused(prompt: Prompt, n_tokens: str) -> None:
    with pytest.raises(ContextExceeded) as caught:
        refuse_longer(prompt, 64, 16)
    assert f"the prompt has {n_tokens} tokens, this model's maximum context length is 64 tokens" in caught.value.message


@pytest.mark.parametrize(
    "prompt", [TokenPrompt((1,) * 63), TextPrompt("x" * (63 * 16)), FillPrompt("x" * (31 * 16), "y" * (32 * 16)), CHAT]
)
def test_a_prompt_that_might_fit_is_not_refused(prompt: Prompt) -> None:
    refuse_longer(prompt, 64, 16)


def test_without_a_longest_token_no_text_is_too_long() -> None:
    refuse_longer(TextPrompt("x" * 10**6), 64)
    refuse_longer(FillPrompt("x" * 10**6, ""), 64, None)
    refuse_longer_inputs(["x" * 10**6], 64)


def test_an_input_for_embeddings_may_fill_the_context() -> None:
    refuse_longer_inputs([(1,) * 64, "x" * (64 * 16)], 64, 16)
    with pytest.raises(ContextExceeded, match="`input` has 65 tokens, the model takes 64 here") as caught:
        refuse_longer_inputs([(1,) * 65], 64)
    assert caught.value.param == "input"
    with pytest.raises(ContextExceeded, match=r"`input\[1\]` has at least 65 tokens") as caught:
        refuse_longer_inputs(["x", "x" * (64 * 16 + 1)], 64, 16)
    assert caught.value.param == "input[1]"
