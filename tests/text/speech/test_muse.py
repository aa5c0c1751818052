"""Replies of Muse Glimmer: messages to itself, the user and tools, forced and read back; what is read of odd ones."""

import json
import random

import pytest

from shimmy.engine.chat.render import Chat
from shimmy.engine.chat.template import ChatTemplate
from shimmy.engine.constrain.tool_grammar import answer_lark, tool_lark
from shimmy.messages.reply import Channels, ReplyFormat
from shimmy.messages.request import ChatPrompt, Message, Tool, ToolCall, ToolChoice
from shimmy.text.reply_parser import Reply, ReplyParser
from shimmy.text.speech.argument_types import argument_types
from shimmy.text.speech.muse import FORM, MARKS, THINKING
from tests.engine.constrain.walker import Walker
from tests.real_templates import real_templates

TOOL = Tool("f", "", '{"type": "object", "properties": {"a": {"type": "string"}, "n": {"type": "integer"}}}')
BODY = (
    '<atem:function_calls>\n<atem:invoke name="f">\n<atem:parameter name="a"> 3\n</atem:parameter>\n'
    '<atem:parameter name="n">3</atem:parameter>\n</atem:invoke>\n</atem:function_calls>'
)
CALL = f" to=f<|message|>{BODY}"
NEXT = "<|eom|><|start|>assistant"
THOUGHT = f" to=self<|message|>Well.{NEXT}"
ANSWER = " to=user<|message|>Hi."
MEANT = ("f", {"a": " 3\n", "n": 3})


def read(text: str, form: ReplyFormat) -> tuple[str, str, list[tuple[str, object]]]:
    results = []
    for size in (1, 3, len(text)):
        parser, reply = ReplyParser(form), Reply()
        for start in range(0, len(text), size):
            reply.add(parser.feed(text[start : start + size]))
        reply.add(parser.flush())
        results.append((reply.content, reply.reasoning, [(call.name, call.arguments) for call in reply.calls]))
    assert results[0] == results[1] == results[2]
    content, reasoning, calls = results[0]
    return content, reasoning, [(name, json.loads(arguments)) for name, arguments in calls]


def form_of(*, is_thinking: bool = False, has_tools: bool = True) -> ReplyFormat:
    tools, types = FORM if has_tools else None, argument_types([TOOL])
    return ReplyFormat(THINKING, is_thinking, tools, channels=Channels.MUSE, argument_types=types)


@pytest.mark.parametrize(
    ("text", "content", "reasoning", "calls"),
    [
        (ANSWER, "Hi.", "", []),
        (f"{ANSWER}<|eot|>", "Hi.", "", []),
        ("<|message|>Hi.", "Hi.", "", []),
        ("Hi.", "Hi.", "", []),
        (f"{THOUGHT}{ANSWER}", "Hi.", "Well.", []),
        (f"{THOUGHT}{THOUGHT}{ANSWER}", "Hi.", "Well.\n\nWell.", []),
        (CALL, "", "", [MEANT]),
        (f"{THOUGHT}{CALL}<|eot|>", "", "Well.", [MEANT]),
        (f"{THOUGHT}{CALL}{NEXT}{CALL}", "", "Well.", [MEANT] * 2),
        (f"{ANSWER}{NEXT}{CALL}", "Hi.", "", [MEANT]),  # tell the user, then act
        (f"{ANSWER}{BODY}", f"Hi.{BODY}", "", []),  # told of, not called
        (f" to=self<|message|>{BODY}{NEXT}{ANSWER}", "Hi.", BODY, []),
        (" to=f<|message|>Hm.", " to=f<|message|>Hm.", "", []),
        (f" to=f<|message|>{BODY[:40]}", "", "", []),
        (" to=f", "", "", []),
        (" to=two words<|message|>Hi.", " to=two words<|message|>Hi.", "", []),
    ],
)
def test_a_reply_is_read(text: str, content: str, reasoning: str, calls: list[tuple[str, object]]) -> None:
    assert read(text, form_of()) == (content, reasoning, calls)


@pytest.mark.parametrize("text", [CALL, f"{THOUGHT}{CALL}", f"{CALL}{NEXT}{CALL}"])
def test_what_a_limit_leaves_of_a_header_or_a_call_is_no_content(text: str) -> None:
    for n_characters in range(len(text)):
        parser = ReplyParser(form_of())
        assert parser.feed(text[:n_characters]).content + parser.flush().content == "", text[:n_characters]


def test_a_prompt_may_have_begun_the_thought_and_without_tools_calls_are_content() -> None:
    begun = THOUGHT.removeprefix(" to=self<|message|>")
    assert read(f"{begun}{ANSWER}", form_of(is_thinking=True)) == ("Hi.", "Well.", [])
    assert read(CALL, form_of(has_tools=False)) == (CALL, "", [])


def test_several_calls_in_one_message_and_one_without_arguments_are_read() -> None:
    none = '<atem:invoke name="f">\n</atem:invoke>'
    text = f" to=f<|message|><atem:function_calls>{none}{none}</atem:function_calls> And?"
    assert read(text, form_of()) == (" And?", "", [("f", {}), ("f", {})])


def test_random_damage_breaks_nothing() -> None:
    drawn, text = random.Random(1), f"{THOUGHT}{CALL}{NEXT}{CALL}"
    for _ in range(60):
        start = drawn.randrange(len(text))
        damaged = text[:start] + drawn.choice(("", "x", "<", "\n", "<|eom|>")) + text[start + drawn.randrange(1, 9) :]
        for form in (form_of(), form_of(is_thinking=True)):
            replies = []
            for size in (1, 5, len(damaged)):
                parser, reply = ReplyParser(form), Reply()
                for place in range(0, len(damaged), size):
                    reply.add(parser.feed(damaged[place : place + size]))
                reply.add(parser.flush())
                replies.append((reply.content, reply.reasoning, [call.arguments for call in reply.calls]))
            assert replies[0] == replies[1] == replies[2]


@pytest.mark.parametrize("special", [MARKS, ()])
@pytest.mark.parametrize("is_thinking", [False, True])
def test_the_grammar_has_messages_in_their_order(special: tuple[str, ...], is_thinking: bool) -> None:
    walker = Walker(special)

    def takes(choice: ToolChoice, text: str) -> bool:
        lark = tool_lark(
            [TOOL, Tool("self_test", "", "{}")],
            choice,
            FORM,
            prepare=lambda tool: json.loads(tool.parameters),
            special=walker.id,
            around=form_of(is_thinking=is_thinking),
        )
        return walker.takes(lark, f"{'<|start|>assistant' if is_thinking else ''}{text}")

    required, single = ToolChoice(required=True), ToolChoice(required=True, parallel=False)
    for thought in ("", THOUGHT, f"{THOUGHT}{THOUGHT}"):
        for text in (CALL, f"{CALL}{NEXT}{CALL}"):
            assert takes(ToolChoice(), f"{thought}{text}")
            assert takes(required, f"{thought}{text}")
            assert takes(single, f"{thought}{text}") == (text == CALL)
        for text in (ANSWER, f"{ANSWER}{NEXT}{CALL}", "<|message|>Hi."):
            assert takes(ToolChoice(), f"{thought}{text}")
            assert not takes(required, f"{thought}{text}")
        for wrong in (CALL.replace(">3<", ">x<"), CALL.replace('"f"', '"g"'), CALL.replace("to=f", "to=g"), "Hi."):
            assert not takes(ToolChoice(), f"{thought}{wrong}")
    assert takes(required, CALL.replace("to=f", "to=self_test").replace('"f"', '"self_test"'))


def test_a_schema_holds_for_the_message_to_the_user() -> None:
    walker = Walker(MARKS)
    lark = f'start: answer_head "{{}}"\n{answer_lark(walker.id, form_of())}'
    assert walker.takes(lark, f"{THOUGHT} to=user<|message|>{{}}")
    assert walker.takes(lark, " to=user<|message|>{}")
    assert not walker.takes(lark, "{}")


def test_a_prompt_shows_calls_and_thoughts_and_is_answered_in_this_form() -> None:
    chat = Chat(ChatTemplate(real_templates()["muse-glimmer"], bos="", eos=""))
    call = ToolCall("call_1", "f", '{"a": " 3\\n", "n": 3}')
    said = Message("assistant", None, tool_calls=(call, call), reasoning_content="Well.")
    turns = (Message("user", "Hi."), said, Message("tool", "7", tool_call_id="call_1"))
    text, form = chat.render(ChatPrompt(turns, tools=(TOOL,)))
    assert f"<|start|>assistant{THOUGHT}{CALL}{NEXT}{CALL}<|eot|>" in text
    assert text.endswith("<|start|>assistant")
    assert form == form_of()
    continued = ChatPrompt(
        (Message("user", "Hi."), Message("assistant", "", reasoning_content="Well")), False, continue_final_message=True
    )
    text, form = chat.render(continued)
    assert text.endswith("to=self<|message|>Well")
    assert form.is_thinking
