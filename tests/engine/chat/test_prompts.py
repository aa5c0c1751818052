"""Prompts of conversations with tools equal what transformers renders with the same template."""

from dataclasses import replace

import pytest

from shimmy.engine.chat.render import Chat
from shimmy.engine.chat.template import ChatTemplate
from shimmy.messages.request import ChatPrompt
from tests.conversations import conversations
from tests.real_templates import real_templates
from tests.rendering_oracle import (
    FAMILIES,
    HARMONY,
    KIMI,
    NEEDS_TOOLS,
    ONE_CALL_A_TURN,
    SOLAR,
    TEXT_ARGUMENTS,
    WITHOUT_CALLS,
    WITHOUT_CONTENT_BESIDE_CALLS,
    WITHOUT_TOOLS,
    WITHOUT_TOOLS_AND_CALLS,
    rendered,
)

N_CONVERSATIONS = 50


def chat_of(family: str) -> Chat:
    return Chat(ChatTemplate(real_templates()[family], bos="<s>", eos="</s>"))


@pytest.mark.parametrize(
    "n_conversations", [N_CONVERSATIONS // 2, pytest.param(2 * N_CONVERSATIONS, marks=pytest.mark.thorough)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_what_transformers_renders(family: str, n_conversations: int) -> None:
    chat, n_compared = chat_of(family), 0
    for prompt in conversations(1, n_conversations):
        expected = rendered(family, prompt)
        if expected is not None:
            assert chat.render(prompt)[0] == expected
            n_compared += 1
    assert n_compared >= n_conversations // 2


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NEEDS_TOOLS])
def test_a_prompt_without_its_tools_is_what_transformers_renders_of_none(family: str) -> None:
    """As `tool_choice: "none"` asks for, in the middle of a conversation with calls."""
    chat, n_compared = chat_of(family), 0
    for prompt in conversations(8, 20):
        untold = replace(prompt, tools=())
        expected = rendered(family, untold)
        if expected is not None:
            text, reply = chat.render(untold)
            assert text == expected
            assert reply.tools is None
            n_compared += 1
    assert n_compared >= 10


def all_are_rendered(family: str, seed: int) -> None:
    """Each of the conversations is what the template makes of what it has to be given."""
    chat = chat_of(family)
    for prompt in conversations(seed, N_CONVERSATIONS):
        expected = rendered(family, prompt)
        assert expected is not None
        assert chat.render(prompt)[0] == expected


@pytest.mark.parametrize("family", [*HARMONY, *ONE_CALL_A_TURN])
def test_a_prompt_is_what_transformers_renders_of_one_call_at_a_time_and_its_result(family: str) -> None:
    all_are_rendered(family, 2)


@pytest.mark.parametrize("family", TEXT_ARGUMENTS)
def test_a_prompt_with_arguments_as_text_is_what_transformers_renders(family: str) -> None:
    all_are_rendered(family, 4)


@pytest.mark.parametrize("family", SOLAR)
def test_a_prompt_with_ids_in_front_is_what_transformers_renders(family: str) -> None:
    from shimmy.text.speech.solar import with_ids

    all_are_rendered(family, 5)
    chat = chat_of(family)
    for prompt in conversations(5, N_CONVERSATIONS):
        named = ChatPrompt(tuple(with_ids(prompt.messages)), tools=prompt.tools)
        assert chat.render(named)[0] == chat.render(prompt)[0]


@pytest.mark.parametrize("family", KIMI)
def test_a_prompt_with_ids_of_the_model_is_what_transformers_renders(family: str) -> None:
    from shimmy.text.speech.kimi import with_ids

    all_are_rendered(family, 3)
    chat = chat_of(family)
    for prompt in conversations(3, N_CONVERSATIONS):
        named = ChatPrompt(tuple(with_ids(prompt.messages)), tools=prompt.tools)
        assert chat.render(named)[0] == chat.render(prompt)[0]


@pytest.mark.parametrize("family", [*WITHOUT_TOOLS, *WITHOUT_CONTENT_BESIDE_CALLS, *WITHOUT_TOOLS_AND_CALLS])
def test_a_prompt_whose_template_knows_no_tools_is_what_transformers_renders_with_them_in_the_system_message(
    family: str,
) -> None:
    all_are_rendered(family, 6)


@pytest.mark.parametrize("family", WITHOUT_CALLS)
def test_a_prompt_whose_template_knows_no_calls_is_what_transformers_renders_with_them_as_text(family: str) -> None:
    all_are_rendered(family, 7)
