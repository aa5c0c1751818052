"""What becomes of a conversation with tools under templates that do and do not know of them, and where reasoning is."""

import json
from contextlib import suppress
from dataclasses import replace
from functools import cache

import pytest

from shimmy.engine.chat.detect_tool_format import GENERIC
from shimmy.engine.chat.render import Chat, instructions
from shimmy.engine.chat.template import ChatTemplate
from shimmy.errors import TemplateFailed
from shimmy.messages.reply import ReplyFormat, ToolFormat
from shimmy.messages.request import ChatPrompt, Message, Tool, ToolCall
from tests.real_templates import PHI_4_MINI, real_templates

SYSTEM = Message("system", "Be kind.")
HELLO = Message("user", "Hello")
TOOLS = (Tool("now", "The time.", '{"type": "object", "properties": {}}'),)
CALL = ToolCall("call_0123456789abcdef", "now", '{"zone": "UTC"}')
CALLING = Message("assistant", "Let me see.", tool_calls=(CALL,))
RESULT = Message("tool", "12:00", tool_call_id=CALL.id)
GENERIC_CALL = '<tool_call>\n{"name": "now", "arguments": {"zone": "UTC"}}\n</tool_call>'


def chat(source: str | None, tool_use: str | None = None) -> Chat:
    others = None if tool_use is None else ChatTemplate(tool_use, bos="<s>", eos="</s>")
    return Chat(ChatTemplate(source, bos="<s>", eos="</s>"), others)


def test_a_plain_chat_is_rendered_as_it_is() -> None:
    text, form = chat(None).render(ChatPrompt((SYSTEM, HELLO)))
    assert text == "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert form == ReplyFormat()


def test_a_template_without_tools_gets_them_as_text() -> None:
    text, form = chat(None).render(ChatPrompt((SYSTEM, HELLO, CALLING, RESULT, RESULT), tools=TOOLS))
    assert form == ReplyFormat(tools=GENERIC)
    results = "<tool_response>\n12:00\n</tool_response>\n<tool_response>\n12:00\n</tool_response>"
    assert text == (
        f"<|im_start|>system\nBe kind.\n\n{instructions(TOOLS)}<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        f"<|im_start|>assistant\nLet me see.\n{GENERIC_CALL}<|im_end|>\n<|im_start|>user\n{results}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_instructions_have_the_tools_and_the_form() -> None:
    text = instructions(TOOLS)
    shown = text.partition("<tools>\n")[2].partition("\n</tools>")[0]
    assert json.loads(shown)["function"] == {
        "name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}},
    }  # fmt: skip
    assert text.endswith(
        '<tool_call>\n{"name": "<function-name>", "arguments": <arguments-as-json-object>}\n</tool_call>'
    )


def test_instructions_are_a_message_of_their_own_where_there_is_no_system_message() -> None:
    text, _ = chat(None).render(ChatPrompt((HELLO,), tools=TOOLS))
    assert text.startswith(f"<|im_start|>system\n{instructions(TOOLS)}<|im_end|>\n<|im_start|>user\n")


def test_a_template_without_system_messages_gets_instructions_in_the_first_message() -> None:
    text, _ = chat(real_templates()["google-gemma-2-2b-it"]).render(ChatPrompt((HELLO, CALLING, RESULT), tools=TOOLS))
    assert text.startswith(f"<s><start_of_turn>user\n{instructions(TOOLS)}\nHello<end_of_turn>\n")
    assert f"<start_of_turn>model\nLet me see.\n{GENERIC_CALL}<end_of_turn>\n<start_of_turn>user\n<tool_resp" in text


def test_history_is_shown_where_tools_are_not_offered_any_more() -> None:
    text, form = chat(None).render(ChatPrompt((HELLO, CALLING, RESULT)))
    assert form.tools is None
    assert GENERIC_CALL in text
    assert "# Tools" not in text


def test_a_template_with_tools_shows_all_by_itself() -> None:
    source = real_templates()["Qwen-Qwen2.5-7B-Instruct"]
    prompt = ChatPrompt((SYSTEM, HELLO, CALLING, RESULT), tools=TOOLS)
    text, form = chat(source).render(prompt)
    assert form.tools == GENERIC
    assert text == ChatTemplate(source, bos="<s>", eos="</s>").render(prompt)


def test_a_form_that_is_unknown_is_not_shown_to_the_model() -> None:
    source = (
        "{{ tools }}{% for message in messages %}<{{ message.role }}>{{ message.content }}"
        "{% for call in message.tool_calls %}<invoke>{{ call.function.arguments | dictsort }} of "
        "{{ call.function.name }}</invoke>{% endfor %}{% endfor %}"
    )
    text, form = chat(source).render(ChatPrompt((HELLO, CALLING, RESULT), tools=TOOLS))
    assert form.tools == GENERIC
    assert "<invoke>" not in text
    assert instructions(TOOLS) in text
    assert GENERIC_CALL in text


def test_a_template_that_shows_calls_but_no_tools_is_helped_with_these_in_its_own_form() -> None:
    text, form = chat(real_templates()["deepseek-ai-DeepSeek-V3.1"]).render(
        ChatPrompt((HELLO, CALLING, RESULT), tools=TOOLS)
    )
    assert form.tools is not None
    assert form.tools.separator
    assert text.startswith(f"<s>{instructions(TOOLS, form.tools)}")
    assert f"now{form.tools.separator}" + '{"zone": "UTC"}' in text


def test_content_beside_calls_is_a_turn_of_its_own_where_a_template_has_no_place_for_both() -> None:
    text, _ = chat(real_templates()["deepseek-ai-DeepSeek-R1-Distill-Llama-8B"]).render(ChatPrompt((HELLO, CALLING)))
    assert "Let me see." in text
    assert '{"zone": "UTC"}' in text


def test_several_calls_of_one_turn_are_several_turns_where_a_template_takes_one_at_a_time() -> None:
    source = real_templates()["meta-llama-Llama-3.1-8B-Instruct"]
    both = replace(CALLING, tool_calls=(CALL, replace(CALL, id="call_2", arguments='{"zone": "CET"}')))
    prompt = ChatPrompt((HELLO, both, RESULT, replace(RESULT, tool_call_id="call_2")), tools=TOOLS)
    with pytest.raises(TemplateFailed, match="single tool-calls"):
        ChatTemplate(source, bos="<s>", eos="</s>").render(prompt)
    text, form = chat(source).render(prompt)
    assert form.tools == ToolFormat(arguments_key="parameters")
    assert text.index('"parameters": {"zone": "UTC"}') < text.index('"parameters": {"zone": "CET"}')


def test_phi_4_gets_tools_in_its_system_message_and_calls_as_text() -> None:
    text, form = chat(PHI_4_MINI).render(ChatPrompt((HELLO, CALLING, RESULT), tools=TOOLS))
    assert form.tools == ToolFormat(section_start="<|tool_call|>[", between=", ", section_end="]<|/tool_call|>")
    assert '<|tool|>[{"name": "now"' in text
    assert '<|tool_call|>[{"name": "now", "arguments": {"zone": "UTC"}}]<|/tool_call|><|end|>' in text


@pytest.mark.parametrize("name", ["mistralai-Mistral-Nemo-Instruct-2407", "Mistral-Small-3.2-24B-Instruct-2506"])
def test_ids_become_such_as_the_template_takes(name: str) -> None:
    """Its own refusal of others would end every conversation with tools that began with another model or server."""
    source = real_templates()[name]
    prompt = ChatPrompt((HELLO, CALLING, RESULT), tools=TOOLS)
    with pytest.raises(TemplateFailed, match="length 9"):
        ChatTemplate(source, bos="<s>", eos="</s>").render(prompt)
    text, _ = chat(source).render(prompt)
    assert CALL.id not in text
    mine = ToolCall("abcDEF123", "now", "{}")
    kept = ChatPrompt((HELLO, Message("assistant", None, tool_calls=(mine,)), Message("tool", "x", None, (), mine.id)))
    assert chat(source).render(kept)[0].count(mine.id) == 2


def test_conversations_with_tools_have_a_template_of_their_own_where_the_model_has_one() -> None:
    both = chat("plain {{ messages[0].content }}", "tools {{ messages[-1].content }}{{ messages[0].content }}")
    assert both.render(ChatPrompt((HELLO,)))[0] == "plain Hello"
    assert both.render(ChatPrompt((HELLO,), tools=TOOLS))[0].startswith("tools ")
    assert both.render(ChatPrompt((HELLO, CALLING, RESULT)))[0].startswith("tools ")


PARTS = (  # SmolVLM's form
    "{% for message in messages %}{{ message['role'] | capitalize }}:{% for line in message['content'] %}"
    "{% if line['type'] == 'text' %}{{ line['text'] }}{% endif %}{% endfor %}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


def test_a_template_that_takes_parts_gets_parts() -> None:
    turns = (SYSTEM, HELLO, Message("assistant", "Yes?"), Message("user", "Why?"))
    expected = "System:Be kind.<end>\nUser:Hello<end>\nAssistant:Yes?<end>\nUser:Why?<end>\nAssistant:"
    assert chat(PARTS).render(ChatPrompt(turns))[0] == expected
    only_part = "{% for m in messages %}[{{ m.content[0].text }}]{% endfor %}"
    assert chat(only_part).render(ChatPrompt(turns))[0] == "[Be kind.][Hello][Yes?][Why?]"


def test_parts_print_as_their_text_and_can_be_continued() -> None:
    mixed = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content[0]['text'] }}"
        "{% else %}<{{ m.content }}>{% endif %}{% endfor %}"
    )
    turns = (HELLO, Message("assistant", "Well"))
    assert chat(mixed).render(ChatPrompt(turns, False))[0] == "Hello<Well>"
    prompt = ChatPrompt(turns, False, continue_final_message=True)
    assert chat(PARTS).render(prompt)[0] == "User:Hello<end>\nAssistant:Well"
    calling = chat(PARTS).render(ChatPrompt((HELLO, CALLING, RESULT), tools=TOOLS))[0]
    assert "Let me see.\n<tool_call>" in calling
    assert "12:00" in calling


def test_a_template_that_takes_texts_gets_texts() -> None:
    either = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}PARTS{% endif %}{% endfor %}"
    assert chat(either).render(ChatPrompt((HELLO,)))[0] == "Hello"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content }}",
        "{% for m in messages if m.role != 'user' %}{{ m.content }}{% endfor %}",
        "You are a helpful assistant.",
        "{% for m in messages %}{{ m.text }}{% endfor %}|",
        "{% for m in messages %}{% for part in m.content %}{{ part.words }}{% endfor %}{% endfor %}|",
    ],
)
def test_a_prompt_without_the_last_words_of_the_user_is_refused(source: str) -> None:
    turns = (SYSTEM, HELLO, Message("assistant", "Yes?"), Message("user", "Grüße, why?"))
    with pytest.raises(TemplateFailed, match="leaves out what the user says last"):
        chat(source).render(ChatPrompt(turns))


@pytest.mark.parametrize("expression", ["m.content | trim", "m.content | upper", "m.content | tojson", "m.content[:9]"])
@pytest.mark.parametrize("text", ["Grüße, why?", '  a\n"b"  ', "<|im_end|>", "?", "", "\n", "😀", "longestword/short"])
def test_what_a_template_has_changed_is_there(expression: str, text: str) -> None:
    source = f"{{% for m in messages %}}<{{{{ {expression} }}}}>{{% endfor %}}"
    assert chat(source).render(ChatPrompt((Message("user", text),)))[0]


def test_a_conversation_without_a_user_needs_none() -> None:
    assert chat("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}.").render(ChatPrompt((SYSTEM,)))


def test_the_template_is_probed_once_and_only_for_tools() -> None:
    one = chat(None)
    one.render(ChatPrompt((HELLO,)))
    assert "tooling" not in vars(one)
    one.render(ChatPrompt((HELLO,), tools=TOOLS))
    assert one.tooling is one.tooling


THINKS = ("<think>", "</think>")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen-Qwen3-0.6B", THINKS),
        ("Qwen-QwQ-32B", THINKS),
        ("deepseek-ai-DeepSeek-V3.1", THINKS),
        ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", THINKS),
        ("ByteDance-Seed-OSS", ("<seed:think>", "</seed:think>")),
        ("MiniMax-M3", ("<mm:think>", "</mm:think>")),
        ("mistralai-Ministral-3-14B-Reasoning-2512", ("[THINK]", "[/THINK]")),
        ("google-gemma-4-31B-it", ("<|channel>thought", "<channel|>")),
        ("CohereForAI-c4ai-command-r7b-12-2024-tool_use", ("<|START_THINKING|>", "<|END_THINKING|>")),
        ("tencent-Hy3", ("<think:opensource>", "</think:opensource>")),  # said nowhere, only shown
        ("Qwen-Qwen2.5-7B-Instruct", None),
        ("meta-llama-Llama-3.1-8B-Instruct", None),
        ("mistralai-Mistral-Nemo-Instruct-2407", None),
        ("ibm-granite-granite-4.0", None),
        ("google-gemma-2-2b-it", None),
    ],
)
def test_what_surrounds_reasoning(name: str, expected: tuple[str, str] | None) -> None:
    assert chat(real_templates()[name]).thinking == expected


def test_half_a_character_is_no_mark() -> None:
    source = "{% for m in messages %}{{ '<think\\ud800>' }}{{ m.reasoning_content }}</t>{{ m.content }}{% endfor %}"
    assert chat(source).thinking is None
    assert chat(source.replace("\\ud800", "")).thinking == ("<think>", "</t>")


def test_a_turn_is_no_reasoning() -> None:
    source = "{% for m in messages %}<|{{ m.role }}|>{{ m.reasoning_content }}<|end|>{{ m.content }}{% endfor %}"
    assert chat(source).thinking is None


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B", "{}", True),
        ("deepseek-ai-DeepSeek-V3.1", "{}", False),
        ("deepseek-ai-DeepSeek-V3.1", '{"thinking": true}', True),
        ("Qwen3.5-4B", "{}", True),
        ("Qwen3.5-4B", '{"enable_thinking": false}', False),
        ("Qwen-Qwen3-0.6B", "{}", False),  # the model begins it by itself
    ],
)
def test_whether_a_prompt_has_begun_to_reason(name: str, arguments: str, expected: bool) -> None:
    prompt = ChatPrompt((Message("user", "What does <think> mean?"),), template_arguments=arguments)
    assert chat(real_templates()[name]).render(prompt)[1].is_thinking is expected


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (Message("assistant", "", reasoning_content="Let me"), True),
        (Message("assistant", "<think>\nLet me"), True),
        (Message("assistant", "So", reasoning_content="Let me"), False),
        (Message("assistant", "So"), False),
    ],
)
def test_whether_a_reply_that_goes_on_reasons(last: Message, expected: bool) -> None:
    prompt = ChatPrompt((Message("user", "<think>"), last), continue_final_message=True)
    text, form = chat(real_templates()["Qwen-Qwen3-0.6B"]).render(prompt)
    assert form.is_thinking is expected
    assert text.endswith(("Let me", "So"))


# -- arguments of calls

BROKEN = '{"zone": "UTC'
LISTS = "{% for m in messages %}{% for c in m.tool_calls or [] %}CALL{% endfor %}{{ m.content }}{% endfor %}".replace(
    "CALL", "{% for name, value in c.function.arguments | items %}<{{ name }}={{ value }}>{% endfor %}|"
)


def of_calls(source: str | None, arguments: str) -> str:
    call = Message("assistant", None, tool_calls=(ToolCall("call_1", "now", arguments),))
    return chat(source).render(ChatPrompt((HELLO, call, replace(RESULT, tool_call_id="call_1"), HELLO), False))[0]


def listed(arguments: str) -> str:
    call = Message("assistant", None, tool_calls=(ToolCall("call_1", "now", arguments),))
    return ChatTemplate(LISTS, bos="<s>", eos="</s>").render(ChatPrompt((HELLO, call)))


def in_json(expression: str) -> str:
    return (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        f'[[{{"name": "{{{{ c.function.name }}}}", "arguments": {{{{ {expression} }}}}}}]]'
        "{% endfor %}{% endfor %}"
    )


PASTED = (
    "c.function.arguments",
    "c.function.arguments | tojson",
    "c.function.arguments if c.function.arguments is string else c.function.arguments | tojson",
    "'' ~ c.function.arguments",
    "'' + c.function.arguments",
    "c.function.arguments | fromjson | tojson",
)


def pasted(source: str, arguments: str) -> object:
    """The call that a template has pasted into a prompt."""
    return json.loads(of_calls(source, arguments).partition("[[")[2].partition("]]")[0])


@pytest.mark.parametrize("arguments", ["", " \n", "null", " null ", "{}"])
@pytest.mark.parametrize("expression", PASTED)
def test_a_call_without_arguments_has_an_empty_object(arguments: str, expression: str) -> None:
    assert pasted(in_json(expression), arguments) == {"name": "now", "arguments": {}}


@pytest.mark.parametrize("arguments", ["", "null"])
def test_a_call_without_arguments_that_is_written_as_text_has_an_empty_object(arguments: str) -> None:
    assert '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>' in of_calls(None, arguments)


@pytest.mark.parametrize("arguments", [BROKEN, "just text", "{'a': 1}", "[" * 5000, '{"a": 1} trailing'])
def test_arguments_that_are_no_json_break_no_prompt(arguments: str) -> None:
    assert pasted(in_json("c.function.arguments | tojson"), arguments) == {"name": "now", "arguments": arguments}
    assert arguments in of_calls(in_json("c.function.arguments"), arguments)
    written = of_calls(None, arguments).partition("<tool_call>\n")[2].partition("\n</tool_call>")[0]
    assert json.loads(written) == {"name": "now", "arguments": arguments}
    assert f"<arguments={arguments}>|" in listed(arguments)


@pytest.mark.parametrize("arguments", ["[1, 2]", "5", '"text"', "true"])
def test_arguments_that_are_no_object_break_no_prompt(arguments: str) -> None:
    assert pasted(in_json("c.function.arguments"), arguments) == {"name": "now", "arguments": json.loads(arguments)}
    assert f"<arguments={arguments}>|" in listed(arguments)
    assert f'"arguments": {arguments}' in of_calls(None, arguments)


def test_arguments_are_listed_one_by_one() -> None:
    assert "<zone=UTC><n=1>|" in listed('{"zone": "UTC", "n": 1}')


@cache
def real_chats_with_calls() -> dict[str, Chat]:
    """Those of real templates that take a conversation with a call."""
    plain = (HELLO, Message("assistant", None, tool_calls=(CALL,)), RESULT, HELLO)
    found = {}
    for name, source in real_templates().items():
        one = chat(source)
        with suppress(TemplateFailed):
            one.render(ChatPrompt(plain, tools=TOOLS))
            found[name] = one
    return found


@pytest.mark.parametrize("arguments", ["", "null", BROKEN, "[1]", "{}"])
def test_every_real_template_takes_odd_arguments(arguments: str) -> None:
    call = Message("assistant", None, tool_calls=(ToolCall("call_1", "now", arguments),))
    turns = (HELLO, call, replace(RESULT, tool_call_id="call_1"), HELLO)
    for name, one in real_chats_with_calls().items():
        assert one.render(ChatPrompt(turns, tools=TOOLS))[0], name
    assert len(real_chats_with_calls()) > 20
