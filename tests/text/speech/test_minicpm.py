"""Calls of MiniCPM 5: texts with and without CDATA around them, whole, cut and broken."""

import json

import pytest

from shimmy.messages.reply import ReplyFormat
from shimmy.messages.request import Tool
from shimmy.text.speech.argument_types import argument_types
from shimmy.text.speech.minicpm import FORM
from shimmy.text.speech.tagged import written
from tests.text.speech import whole_and_cut

TOOL = Tool("f", "", json.dumps({"properties": {"text": {"type": "string"}, "n": {"type": "integer"}, "any": {}}}))


def read(text: str) -> tuple[list[tuple[str, str]], str]:
    return whole_and_cut.read(text, ReplyFormat(tools=FORM, argument_types=argument_types([TOOL])))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", {}),
        ('<param name="text">3</param><param name="n">3</param>', {"text": "3", "n": 3}),
        ('<param name="text"><![CDATA[a < b</param>\n]] ]>]]></param>', {"text": "a < b</param>\n]] ]>"}),
        ('<param name="text"><![CDATA[]]></param>', {"text": ""}),
        ('<param name="text"><!CDATA</param>', {"text": "<!CDATA"}),
        ('<param name="n"><![CDATA[3]]></param>', {"n": 3}),
        ('<param name="any">True</param>', {"any": "True"}),
        ('\n<param name="text">a</param>\n<param name="n">1</param>\n', {"text": "a", "n": 1}),
    ],
)
def test_arguments(arguments: str, expected: object) -> None:
    calls, content = read(f'Wait.\n<function name="f">{arguments}</function>')
    assert [(name, json.loads(text)) for name, text in calls] == [("f", expected)]
    assert content == "Wait.\n"


def test_texts_with_characters_of_xml_are_written_in_cdata() -> None:
    for text in ("<", "&", "\n", "</param>"):
        assert written(json.dumps({"text": text}), FORM) == f'<param name="text"><![CDATA[{text}]]></param>'
    assert written('{"text": "a > b", "n": 1}', FORM) == '<param name="text">a > b</param><param name="n">1</param>'


def test_calls_follow_each_other() -> None:
    call = '<function name="f"><param name="n">1</param></function>'
    for between in ("", "\n", "\n\n"):
        assert read(f"{call}{between}{call}") == ([("f", '{"n": 1}')] * 2, "")


def test_what_is_cut_or_broken_is_no_error() -> None:
    whole = '<function name="f"><param name="text"><![CDATA[a]]></param></function>'
    for end in range(1, len(whole)):
        calls, content = read(whole[:end])
        assert not content or not calls
    assert read('<function name="f">x') == ([], '<function name="f">x')
    assert read("<function names are words") == ([], "<function names are words")
