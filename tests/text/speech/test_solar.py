"""Replies of Solar Open: thoughts, answers and calls as messages, however they are cut."""

import pytest

from shimmy.engine.chat.render import Chat
from shimmy.engine.chat.template import ChatTemplate
from shimmy.engine.constrain.tool_grammar import tool_lark
from shimmy.messages.reply import ReplyFormat
from shimmy.messages.request import ChatPrompt, Message, Tool, ToolCall, ToolChoice
from shimmy.text.reply_parser import ReplyParser
from shimmy.text.speech import solar
from tests.engine.constrain.walker import Walker
from tests.real_templates import real_templates
from tests.text.speech.whole_and_cut import replies

CHAT = Chat(ChatTemplate(real_templates()["upstage-Solar-Open-100B"], bos="<s>", eos="</s>"))
USER = Message("user", "Hi.")
TOOLS = (Tool("f", "", "{}"),)
FORM = ReplyFormat(solar.THINKING, tools=solar.FORM, answer=solar.ANSWER)
THOUGHT = "<|think|>Well.<|end|><|begin|>assistant"
CALL = '<|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>f<|tool_call:args|>{"a": 1}<|tool_call:end|>'
OTHER_CALL = "<|tool_call:begin|>0<|tool_call:name|>g<|tool_call:args|>{}<|tool_call:end|>"


def read(text: str, form: ReplyFormat = FORM) -> tuple[str, str, list[tuple[str, str, str]]]:
    results = [
        (reply.reasoning, reply.content, [(call.id, call.name, call.arguments) for call in reply.calls])
        for reply in replies(text, form)
    ]
    assert all(result == results[0] for result in results)
    return results[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|content|>Hi.<|end|>", ("", "Hi.", [])),
        (f"{THOUGHT}<|content|>Hi.<|end|>", ("Well.", "Hi.", [])),
        (f"<|tool_calls|>{CALL}<|calls|>", ("", "", [("a1b2c3d4e5", "f", '{"a": 1}')])),
        (f"{THOUGHT}<|tool_calls|>{CALL}<|calls|>", ("Well.", "", [("a1b2c3d4e5", "f", '{"a": 1}')])),
        (f"<|tool_calls|>{CALL}{OTHER_CALL}<|calls|>", ("", "", [("a1b2c3d4e5", "f", '{"a": 1}'), ("0", "g", "{}")])),
        ("<|tool_calls|>Hi.", ("", "<|tool_calls|>Hi.", [])),
        ("Hi.", ("", "Hi.", [])),
    ],
)
def test_a_reply_is_messages(text: str, expected: tuple[str, str, list[tuple[str, str, str]]]) -> None:
    assert read(text) == expected


def test_a_call_without_an_id_gets_one() -> None:
    parser = ReplyParser(FORM)
    delta = parser.feed("<|tool_calls|><|tool_call:begin|>f<|tool_call:args|>{}<|tool_call:end|>")
    assert (delta.calls[0].name, delta.calls[1].arguments) == ("f", "{}")
    assert str(delta.calls[0].id).startswith("call_")


@pytest.mark.parametrize("with_special", [False, True])
def test_the_grammar_has_thoughts_then_an_answer_or_calls(with_special: bool) -> None:
    marks = ("<|think|>", "<|end|>", "<|begin|>", "<|content|>", "<|tool_calls|>", "<|tool_call:begin|>", "<|calls|>")
    walker = Walker((*marks, "<|tool_call:name|>", "<|tool_call:args|>", "<|tool_call:end|>") if with_special else ())

    def lark(choice: ToolChoice) -> str:
        return tool_lark(
            TOOLS, choice, solar.FORM, prepare=lambda _: {"type": "object"}, special=walker.id, around=FORM
        )

    auto, required = lark(ToolChoice()), lark(ToolChoice(required=True))
    calls = f"<|tool_calls|>{CALL}<|calls|>"
    for before in ("", THOUGHT):
        for text, is_required in ((f"{before}{calls}", True), (f"{before}<|content|>Hi.<|end|>", False)):
            assert walker.takes(auto, text), text
            assert walker.takes(required, text) == is_required, text
        assert not walker.takes(auto, before + calls.replace("a1b2c3d4e5", "A1"))
        assert not walker.takes(auto, before + calls.replace("name|>f", "name|>g"))


def test_a_prompt_ends_in_front_of_the_kind_of_a_message() -> None:
    text, form = CHAT.render(ChatPrompt((USER,), tools=TOOLS))
    assert text.endswith("<|begin|>assistant")
    assert form == FORM
    assert CHAT.render(ChatPrompt((USER,)))[1] == ReplyFormat(solar.THINKING, answer=solar.ANSWER)


def test_ids_of_other_servers_become_the_models() -> None:
    calling = Message("assistant", None, tool_calls=(ToolCall("call_1234567890abcdef", "f", "{}"),))
    result = Message("tool", "sunny", tool_call_id="call_1234567890abcdef")
    text, _ = CHAT.render(ChatPrompt((USER, calling, result), tools=TOOLS))
    (_, again) = solar.with_ids((calling, result))
    assert f"<|tool_call:begin|>{again.tool_call_id}<|tool_call:name|>f" in text
    assert f"<|tool_response:begin|>{again.tool_call_id}<|tool_response:name|>f" in text
    assert tuple(solar.with_ids(tuple(solar.with_ids((calling, result))))) == tuple(solar.with_ids((calling, result)))


def test_thoughts_are_shown_behind_the_last_question() -> None:
    calling = Message("assistant", None, tool_calls=(ToolCall("a1b2c3d4e5", "f", "{}"),), reasoning_content="Hm.")
    result = Message("tool", "sunny", tool_call_id="a1b2c3d4e5")
    text, _ = CHAT.render(ChatPrompt((USER, calling, result), tools=TOOLS))
    assert "<|begin|>assistant<|think|>Hm.<|end|><|begin|>assistant<|tool_calls|>" in text
