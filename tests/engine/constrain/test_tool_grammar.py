"""Which replies the grammars of tools take and which they refuse, told by llguidance token by token."""

import json
from functools import partial
from typing import Any

import pytest

from shimmy.engine.chat.detect_tool_format import GENERIC, written
from shimmy.engine.constrain import tool_grammar
from shimmy.engine.constrain.json_schema import STYLE
from shimmy.errors import BadRequest
from shimmy.messages.reply import ReplyFormat, ToolFormat
from shimmy.messages.request import Tool, ToolCall, ToolChoice

llguidance = pytest.importorskip("llguidance")


def as_written(tool: Tool) -> dict[str, Any]:
    """The schema of a tool as it is; raises BadRequest for one that is no object."""
    try:
        parsed = json.loads(tool.parameters)
    except (ValueError, RecursionError) as exc:
        raise BadRequest(f"no JSON: {exc}") from exc
    if not isinstance(parsed, dict):
        raise BadRequest("the schema has to be an object")
    return {**parsed, "x-guidance": STYLE}


tool_lark = partial(tool_grammar.tool_lark, prepare=as_written)

CITY = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/name"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"name": {"type": "string"}},
}
TOOLS = (
    Tool("get_weather", "", json.dumps(CITY)),
    Tool("now", "", '{"type": "object", "properties": {}, "additionalProperties": false}'),
)
WEATHER = ToolCall("abcdefgh1", "get_weather", '{"city": "Genève </tool_call> {\\"}", "days": 3}')
NOW = ToolCall("abcdefgh2", "now", "{}")
UNKNOWN = ToolCall("abcdefgh3", "other", "{}")
BAD = ToolCall("abcdefgh4", "get_weather", '{"city": 1}')

AUTO = ToolChoice()
REQUIRED = ToolChoice(required=True)
ONE = ToolChoice(required=True, parallel=False)
NAMED = ToolChoice(required=True, name="now")

LLAMA = ToolFormat(arguments_key="parameters")
NEMO = ToolFormat(section_start="[TOOL_CALLS][", between=", ", section_end="]", id_key="id")
MISTRAL = ToolFormat(call_start="[TOOL_CALLS]", separator="[ARGS]")
MISTRAL_WITH_IDS = ToolFormat(call_start="[TOOL_CALLS]", id_key="[CALL_ID]", separator="[ARGS]")
FUNCTION_TAG = ToolFormat(call_start="<function=", call_end="</function>", separator=">")
PHI = ToolFormat(section_start="<|tool_call|>[", between=", ", section_end="]<|/tool_call|>")
BARE_LIST = ToolFormat(section_start="[", between=", ", section_end="]")
DEEPSEEK = ToolFormat(
    section_start="<\uff5ctool\u2581calls\u2581begin\uff5c>",
    call_start="<\uff5ctool\u2581call\u2581begin\uff5c>function<\uff5ctool\u2581sep\uff5c>",
    call_end="\n```<\uff5ctool\u2581call\u2581end\uff5c>",
    between="\n",
    section_end="<\uff5ctool\u2581calls\u2581end\uff5c>",
    separator="\n```json\n",
)
FORMATS = {
    "generic": GENERIC,
    "nemo": NEMO,
    "mistral": MISTRAL,
    "mistral with ids": MISTRAL_WITH_IDS,
    "function tag": FUNCTION_TAG,
    "phi": PHI,
    "list": BARE_LIST,
    "deepseek": DEEPSEEK,
}
ALL_FORMATS = FORMATS | {"llama": LLAMA}
THINK = ("<think>", "</think>")
THINK_TOKENS = ("[THINK]", "[/THINK]")

SPECIAL = (
    *("<end>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "<|tool_call|>", "<|/tool_call|>"),
    *("<|python_tag|>", DEEPSEEK.section_start, DEEPSEEK.section_end),
    *(
        "<\uff5ctool\u2581call\u2581begin\uff5c>",
        "<\uff5ctool\u2581sep\uff5c>",
        "<\uff5ctool\u2581call\u2581end\uff5c>",
    ),
)
PLAIN = ('{"', '": "', '"}', "}}", "}\n", "<tool", "_call>", '>\n{"', " hello", ", ", '": {"', "think>", "\n\n", ">{")


class Vocabulary:
    """Control tokens, a few tokens of several characters that cross the borders of marks and JSON, and all bytes."""

    def __init__(self) -> None:
        plain = [text.encode() for text in PLAIN] + [bytes([byte]) for byte in range(256)]
        self.eos_token_id = 0
        self.bos_token_id = None
        self.special_token_ids = tuple(range(len(SPECIAL)))
        self.tokens = [b"\xff" + text.encode() for text in SPECIAL] + plain
        self._plain = {data: len(SPECIAL) + index for index, data in enumerate(plain)}

    def __call__(self, data: bytes) -> list[int]:
        """The longest plain token at each place."""
        found, place = [], 0
        while place < len(data):
            length = next(length for length in range(8, 0, -1) if data[place : place + length] in self._plain)
            found.append(self._plain[data[place : place + length]])
            place += length
        return found


VOCABULARY = Vocabulary()
TOKENIZER = llguidance.LLTokenizer(llguidance.TokenizerWrapper(VOCABULARY))


def special(mark: str) -> int | None:
    return SPECIAL.index(mark) if mark in SPECIAL else None


def nothing_special(mark: str) -> int | None:  # noqa: ARG001 - of the same shape
    return None


def tokens(text: str, *, with_special: bool) -> list[int]:
    found = []
    while text:
        places = [(text.find(mark), mark) for mark in SPECIAL if mark in text] if with_special else []
        place, mark = min(places, default=(len(text), ""))
        found += VOCABULARY(text[:place].encode())
        if mark:
            found.append(SPECIAL.index(mark))
        text = text[place + len(mark) :]
    return found


class Replies:
    """Asks llguidance about replies, with marks that are control tokens or with marks that are text."""

    def __init__(self, lark: str, *, with_special: bool = False) -> None:
        self._matcher = llguidance.LLMatcher(TOKENIZER, lark, log_level=0)
        self._with_special = with_special
        assert not self._matcher.is_error(), f"{self._matcher.get_error()}\n{lark}"

    def takes(self, text: str, *, to_its_end: bool = True) -> bool:
        matcher = self._matcher.deep_copy()
        for token in tokens(text, with_special=self._with_special):
            if not matcher.compute_bitmask()[token // 8] >> token % 8 & 1:
                return False
            assert matcher.consume_token(token), matcher.get_error()
        return bool(matcher.is_accepting()) or not to_its_end

    def forced(self, text: str) -> str:
        """What can only follow a text."""
        matcher = self._matcher.deep_copy()
        assert matcher.consume_tokens(tokens(text, with_special=self._with_special))
        return bytes(matcher.compute_ff_bytes()).decode()


def replies(
    form: ToolFormat, choice: ToolChoice, *, with_special: bool = False, thinking: tuple[str, str] | None = None
) -> Replies:
    lookup = special if with_special else nothing_special
    return Replies(
        tool_lark(TOOLS, choice, form, special=lookup, around=ReplyFormat(thinking)), with_special=with_special
    )


@pytest.mark.parametrize("with_special", [False, True])
@pytest.mark.parametrize("name", ALL_FORMATS)
def test_required_takes_calls_alone(name: str, with_special: bool) -> None:
    form = ALL_FORMATS[name]
    required = replies(form, REQUIRED, with_special=with_special)
    for call in (WEATHER, NOW):
        assert required.takes(written((call,), form))
    for refused in ("", "Hello", written((UNKNOWN,), form), written((BAD,), form), "Hi " + written((NOW,), form)):
        assert not required.takes(refused)
    assert not required.takes(written((NOW,), form) + "Hi")
    assert not required.takes(written((NOW,), form)[:-1])


@pytest.mark.parametrize("with_special", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_several_calls_where_they_are_allowed(name: str, with_special: bool) -> None:
    form = FORMATS[name]
    both = written((WEATHER, NOW, WEATHER), form)
    for choice in (AUTO, REQUIRED):
        assert replies(form, choice, with_special=with_special).takes(both)
    for choice in (ToolChoice(parallel=False), ONE):
        assert not replies(form, choice, with_special=with_special).takes(both)
        assert replies(form, choice, with_special=with_special).takes(written((WEATHER,), form))


def test_there_is_nothing_to_stand_between_calls_of_llama() -> None:
    one = written((NOW,), LLAMA)
    for choice in (AUTO, REQUIRED):
        for between in ("", ", ", "\n", ";"):
            assert not replies(LLAMA, choice).takes(one + between + one)


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_a_named_tool_is_called_once_and_no_other(name: str) -> None:
    form = ALL_FORMATS[name]
    named = replies(form, NAMED)
    assert named.takes(written((NOW,), form))
    assert not named.takes(written((WEATHER,), form))
    assert not named.takes(written((NOW, NOW), form))


@pytest.mark.parametrize("with_special", [False, True])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "list"])
def test_auto_lets_text_through_and_holds_calls_to_their_schemas(name: str, with_special: bool) -> None:
    form = FORMATS[name]
    auto = replies(form, AUTO, with_special=with_special)
    for text in ("", "Hello", " \n", '{"name": "now"}', "1 < 2 [x] <b>", "Genève\n\n\U0001f642", "<think>hm</think>"):
        assert auto.takes(text)
        for call in (WEATHER, NOW):
            assert auto.takes(text + written((call,), form))
            assert auto.takes(text + written((call,), form) + "\n")
        for call in (UNKNOWN, BAD):
            assert not auto.takes(text + written((call,), form))
    assert not auto.takes(written((NOW,), form) + "Hello")
    assert not auto.takes(written((NOW,), form)[:-1])


@pytest.mark.parametrize("form", [NEMO, MISTRAL, PHI, DEEPSEEK])
def test_a_token_that_is_spelled_out_is_a_mark_all_the_same(form: ToolFormat) -> None:
    lark = tool_lark(TOOLS, AUTO, form, special=special)
    opening = form.section_start + form.call_start
    assert not Replies(lark, with_special=False).takes(f"Hi {opening} there", to_its_end=False)


@pytest.mark.parametrize("form", [LLAMA, BARE_LIST])
def test_without_a_mark_a_reply_is_text_or_a_call_from_its_first_letter_on(form: ToolFormat) -> None:
    auto = replies(form, AUTO)
    one = written((NOW,), form)
    for text in ("", "Hello", f"Hello {one}", "\n Hello {[", "Genève"):
        assert auto.takes(text)
    assert auto.takes(one)
    for text in (one[0], f"{one[0]} Hello", written((UNKNOWN,), form), written((BAD,), form), f" {one[0]}x", one + "x"):
        assert not auto.takes(text)


def test_llama_may_begin_with_its_token_for_tools() -> None:
    for choice in (AUTO, REQUIRED):
        llama = replies(LLAMA, choice, with_special=True)
        assert llama.takes("<|python_tag|>" + written((NOW,), LLAMA))
        assert llama.takes(written((NOW,), LLAMA))
        assert not llama.takes("<|python_tag|>Hello")
        assert not replies(GENERIC, choice, with_special=True).takes("<|python_tag|>" + written((NOW,), GENERIC))


def test_ids_of_the_model_have_the_length_that_its_template_wants() -> None:
    for form in (NEMO, MISTRAL_WITH_IDS):
        required = replies(form, REQUIRED)
        text = written((NOW,), form)
        assert required.takes(text)
        assert not required.takes(text.replace(NOW.id, "short"))
        assert not required.takes(text.replace(NOW.id, "abc-+/123"))


def test_json_is_spaced_as_templates_space_it() -> None:
    required = replies(GENERIC, REQUIRED)
    text = written((ToolCall("", "get_weather", '{"city": "x", "days": 1}'),), GENERIC)
    assert required.takes(text)
    for changed in (text.replace('", ', '",'), text.replace('": ', '":'), text.replace("1}", "1 }")):
        assert changed != text
        assert not required.takes(changed)


def test_what_only_can_follow_is_forced() -> None:
    assert replies(GENERIC, NAMED).forced("") == '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert replies(GENERIC, AUTO).forced("Hi <tool_call>") == '\n{"name": "'
    assert replies(GENERIC, REQUIRED).forced('<tool_call>\n{"name": "g') == 'et_weather", "arguments": {"city": "'


@pytest.mark.parametrize(("thinking", "with_special"), [(THINK, False), (THINK, True), (THINK_TOKENS, True)])
@pytest.mark.parametrize("name", ALL_FORMATS)
def test_reasoning_may_come_first(name: str, thinking: tuple[str, str], with_special: bool) -> None:
    form = ALL_FORMATS[name]
    begins, ends = thinking
    # What it says of calls is no call.
    thought = f"{begins}\nI may <tool_call>, <function=x> or {{. \n{ends}"
    one, wrong = written((NOW,), form), written((UNKNOWN,), form)
    required = replies(form, REQUIRED, thinking=thinking, with_special=with_special)
    auto = replies(form, AUTO, thinking=thinking, with_special=with_special)
    for either in (required, auto):
        assert either.takes(one)
        assert either.takes(thought + one)
        assert either.takes(f"{thought}\n\n{one}")
        assert not either.takes(wrong)
        assert not either.takes(f"{thought}\n\n{wrong}")
        assert not either.takes(thought[:-3] + one)
    assert not required.takes(thought)
    assert not required.takes(f"{thought}\n\nHello")
    for text in ("Hello", thought, f"{thought}\n\nHello"):
        assert auto.takes(text)
    assert not replies(form, REQUIRED, with_special=with_special).takes(thought + one)


def test_names_and_texts_of_any_kind_are_written_as_they_are() -> None:
    name = 'a"b\\c/é\u2028\n'
    schema = '{"type": "object", "properties": {"é\\n%json": {"const": "/\\\\\\u2028"}}, "required": ["é\\n%json"]}'
    form = ToolFormat(call_start="«/call»\t", call_end='"\\»', name_key='n"', arguments_key="ä")
    call = ToolCall("", name, '{"é\\n%json": "/\\\\\u2028"}')
    lark = tool_lark((Tool(name, "", schema),), REQUIRED, form)
    text = f'{form.call_start}{{"n\\"": {json.dumps(name)}, "\\u00e4": {call.arguments}}}{form.call_end}'
    assert Replies(lark).takes(text)


def test_arguments_are_an_object_even_if_the_schema_does_not_say_so() -> None:
    for schema in ("{}", '{"type": ["null", "object"]}', '{"anyOf": [{"type": "integer"}, {"type": "object"}]}'):
        required = Replies(tool_lark((Tool("f", "", schema),), REQUIRED, GENERIC))
        assert required.takes(written((ToolCall("", "f", '{"a": [1, null]}'),), GENERIC))
        for arguments in ("1", "null"):
            assert not required.takes(written((ToolCall("", "f", arguments),), GENERIC))


@pytest.mark.parametrize("parameters", ['{"type": "array"}', "[]", "true", "{", '{"a": ' + "[" * 100_000])
def test_parameters_that_are_no_object_are_refused_by_the_name_of_their_tool(parameters: str) -> None:
    with pytest.raises(BadRequest, match="the parameters of `bad`") as caught:
        tool_lark((*TOOLS, Tool("bad", "", parameters)), AUTO, GENERIC)
    assert caught.value.param == "tools"


def test_a_schema_that_is_refused_is_refused_by_the_name_of_its_tool() -> None:
    def prepare(tool: Tool) -> dict[str, Any]:
        if "patternProperties" in tool.parameters:
            raise BadRequest("`patternProperties` is not supported")
        return as_written(tool)

    bad = Tool("bad", "", '{"type": "object", "patternProperties": {}}')
    with pytest.raises(BadRequest, match="the parameters of `bad`: `patternProperties` is not supported"):
        tool_lark((*TOOLS, bad), AUTO, GENERIC, prepare=prepare)
    assert Replies(tool_lark(TOOLS, AUTO, GENERIC, prepare=prepare)).takes("Hello")


def test_a_choice_names_a_tool() -> None:
    with pytest.raises(BadRequest, match="there is no tool `other`") as caught:
        tool_lark(TOOLS, ToolChoice(required=True, name="other"), GENERIC)
    assert caught.value.param == "tool_choice"


def test_a_hundred_tools_make_one_grammar() -> None:
    tools = tuple(Tool(f"tool_{index}", "", json.dumps(CITY)) for index in range(100))
    auto = Replies(tool_lark(tools, AUTO, GENERIC))
    assert auto.takes(written((ToolCall("", "tool_99", '{"city": "x"}'),), GENERIC))
    assert not auto.takes(written((ToolCall("", "tool_100", '{"city": "x"}'),), GENERIC))
