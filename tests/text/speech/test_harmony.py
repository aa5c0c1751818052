"""Replies of gpt-oss: what is reasoning, content and call, whatever is wrong with a header and wherever it is cut."""

import random

import pytest

from shimmy.messages.reply import Channels, ReplyFormat
from shimmy.text.reply_parser import Reply, ReplyParser
from shimmy.text.speech.harmony import FORM, THINKING

Read = tuple[str, str, list[tuple[str, str]]]
ANALYSIS = "<|channel|>analysis<|message|>Think.<|end|>"
NEXT = "<|start|>assistant"
FINAL = "<|channel|>final<|message|>"
CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"


def read(text: str, *, has_tools: bool = True, is_thinking: bool = False, splits: bool = True) -> Read:
    """Reasoning, content and calls, the same however the text is cut."""
    form = ReplyFormat(THINKING, is_thinking, FORM if has_tools else None, channels=Channels.HARMONY)
    results = []
    for size in (1, 2, 5, len(text) or 1):
        parser, reply = ReplyParser(form, split_reasoning=splits), Reply()
        for start in range(0, len(text), size):
            reply.add(parser.feed(text[start : start + size]))
        reply.add(parser.flush())
        results.append((reply.reasoning, reply.content, [(call.name, call.arguments) for call in reply.calls]))
    assert all(result == results[0] for result in results)
    return results[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{FINAL}Hello.", ("", "Hello.", [])),
        (f"{ANALYSIS}{NEXT}{FINAL}Hello.\n\n<|x|>", ("Think.", "Hello.\n\n<|x|>", [])),
        (f'{ANALYSIS}{NEXT}{CALL}{{"a": 1}}', ("Think.", "", [("f", '{"a": 1}')])),
        (f'{CALL}{{"a": "<|end|>"}}<|call|>', ("", "", [("f", '{"a": "<|end|>"}')])),
        # the recipient beside the role; no word of JSON; another channel; another space
        (f"{ANALYSIS}{NEXT} to=functions.f<|channel|>commentary json<|message|>{{}}", ("Think.", "", [("f", "{}")])),
        (' to=functions.f<|channel|>commentary<|message|>{"a": 1}', ("", "", [("f", '{"a": 1}')])),
        ('<|channel|>analysis to=functions.f code<|message|>{"a": 1}', ("", "", [("f", '{"a": 1}')])),
        ('<|channel|>commentary to=functions.f<|constrain|>json<|message|>{"a": 1}', ("", "", [("f", '{"a": 1}')])),
        # a preamble, and more than one of everything
        (f"<|channel|>commentary<|message|>Wait.<|end|>{NEXT}{CALL}{{}}", ("", "Wait.", [("f", "{}")])),
        (f"{ANALYSIS}{NEXT}{ANALYSIS}{NEXT}{FINAL}A<|end|>{NEXT}{FINAL}B", ("Think.\n\nThink.", "A\n\nB", [])),
        (f"{CALL}{{}}<|end|>{NEXT}{CALL}{{}}", ("", "", [("f", "{}"), ("f", "{}")])),
        # arguments that are no JSON, and none at all
        (f"{CALL}print(1)", ("", "", [("f", "print(1)")])),
        (f"{CALL}<|end|>", ("", "", [("f", "{}")])),
        (f'{CALL}{{"a": 1}} and more\n', ("", " and more\n", [("f", '{"a": 1}')])),
        # ends in the middle
        ("", ("", "", [])),
        ("<|chan", ("", "", [])),
        ("<|channel|>ana", ("", "", [])),
        (f"{ANALYSIS}{NEXT}<|channel|>final<|mess", ("Think.", "", [])),
        ("<|channel|>analysis<|message|>Thin", ("Thin", "", [])),
        ("<|channel|>commentary to=functi", ("", "", [])),
        (f'{CALL}{{"a": "x', ("", "", [("f", '{"a": "x')])),
        # headers that are none are text
        ("Hello.", ("", "Hello.", [])),
        ("<|channel|>finalHello", ("", "<|channel|>finalHello", [])),
        ("<|channel|>final Hello, you <|message|>x", ("", "<|channel|>final Hello, you <|message|>x", [])),
        (f"<|channel|>{'x' * 400}", ("", f"<|channel|>{'x' * 400}", [])),
        ("<|channel|>nonsense<|message|>x", ("", "<|channel|>nonsense<|message|>x", [])),
        ("<|channel|>commentary to=python<|message|>1", ("", "<|channel|>commentary to=python<|message|>1", [])),
        ("<|channel|>final to=functions.<|message|>1", ("", "<|channel|>final to=functions.<|message|>1", [])),
        ("<|message|>Hello.", ("", "Hello.", [])),
        (f"{ANALYSIS}Hello.", ("Think.", "Hello.", [])),
        (f"{ANALYSIS}{FINAL}Hello.", ("Think.", "Hello.", [])),
        (f"<|channel|>analysis<|message|>Think.{NEXT}{FINAL}Hello.", ("Think.", "Hello.", [])),
        # reasoning without its end, and with a recipient that is no function
        (f"<|channel|>analysis<|message|>Think.{FINAL}Hello.", ("Think.", "Hello.", [])),
        (f"<|channel|>analysis<|message|>Think.{CALL}{{}}", ("Think.", "", [("f", "{}")])),
        ("<|channel|>analysis<|message|>A <|channel|>x<|end|>", ("A <|channel|>x", "", [])),
        (f"<|channel|>analysis to=python code<|message|>1 + 1<|end|>{NEXT}{FINAL}2", ("1 + 1", "2", [])),
    ],
)  # fmt: skip
def test_a_reply(text: str, expected: Read) -> None:
    assert read(text) == expected


def test_a_call_without_tools_is_text() -> None:
    assert read(f"{CALL}{{}}", has_tools=False) == ("", f"{CALL}{{}}", [])


def test_reasoning_that_the_prompt_has_begun_goes_on() -> None:
    assert read(f"more.<|end|>{NEXT}{FINAL}Hello.", is_thinking=True) == ("more.", "Hello.", [])
    assert read("more", is_thinking=True) == ("more", "", [])


def test_reasoning_is_content_with_its_marks_where_it_is_not_to_be_split() -> None:
    text = "<|channel|>analysis<|message|>Think.<|end|>"
    assert read(f"{text}{NEXT}{FINAL}Hello.", splits=False) == ("", f"{text}Hello.", [])


def test_stop_strings_count_in_the_answer_alone() -> None:
    form = ReplyFormat(THINKING, tools=FORM, channels=Channels.HARMONY, stop=("STOP",))
    parser = ReplyParser(form)
    delta = parser.feed(f"<|channel|>analysis<|message|>STOP<|end|>{NEXT}{FINAL}Hello. STOP more")
    assert (delta.reasoning, delta.content, parser.stopped_by) == ("STOP", "Hello. ", "STOP")


def test_a_stream_says_all_but_the_beginnings_of_marks() -> None:
    parser = ReplyParser(ReplyFormat(THINKING, channels=Channels.HARMONY))
    assert not parser.feed("<|channel|>analysis<|mess")
    assert parser.feed("age|>Once upon").reasoning == "Once upon"
    assert parser.feed(" a time<|en").reasoning == " a time"
    assert not parser.feed("d|><|start|>assistant<|channel|>final")
    assert parser.feed("<|message|>Hello").content == "Hello"


def test_random_damage_breaks_nothing() -> None:
    drawn = random.Random(3)
    preamble = "<|channel|>commentary<|message|>Wait.<|end|>"
    text = f'{ANALYSIS}{NEXT}{preamble}{NEXT}{CALL}{{"a": [1, "x"]}}<|end|>{NEXT}{FINAL}Hi.'
    for _ in range(150):
        start = drawn.randrange(len(text))
        read(
            text[:start]
            + drawn.choice(("", "<|start|>", "<|end|>", "x", " ", "{"))
            + text[start + drawn.randrange(9) :]
        )
