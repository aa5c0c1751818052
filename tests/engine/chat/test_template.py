"""What a chat template is given, what happens when it refuses, and that it ends."""

import _thread
import time

import pytest

from shimmy.engine.chat.template import RESERVED, ChatTemplate
from shimmy.engine.chat.time_limit import within
from shimmy.errors import BadRequest, TemplateFailed
from shimmy.messages.request import ChatPrompt, Message, Tool, ToolCall
from tests.real_templates import PHI_4_MINI

SYSTEM = Message("system", "Be kind.")
HELLO = Message("user", "Hello")
CALL = ToolCall("call_1", "weather", '{"city": "Genève", "days": [1, 2]}')


def render(source: str | None, *messages: Message, add_generation_prompt: bool = True) -> str:
    template = ChatTemplate(source, bos="<s>", eos="</s>")
    return template.render(ChatPrompt(messages or (HELLO,), add_generation_prompt))


def test_a_model_without_a_template_gets_chatml() -> None:
    assert render(None, SYSTEM, HELLO) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(None, HELLO, add_generation_prompt=False) == "<|im_start|>user\nHello<|im_end|>\n"


def test_blocks_are_trimmed_as_hugging_face_does() -> None:
    source = """
    {% for message in messages %}
    {{ message.role }}: {{ message.content }}
    {% endfor %}
    {%- if add_generation_prompt %}
assistant:{% endif %}"""
    assert render(source, SYSTEM, HELLO) == "\n    system: Be kind.\n    user: Hello\nassistant:"


def test_a_real_style_of_template() -> None:
    source = (
        "{{ bos_token }}{%- for message in messages -%}"
        "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
        "{{ raise_exception('roles must alternate') }}{%- endif -%}"
        "{%- if message.role == 'assistant' -%}{%- generation -%}"
        "{{ message.content | trim ~ eos_token }}{%- endgeneration -%}"
        "{%- else -%}{{ '[INST] ' + message['content'] + ' [/INST]' }}{%- endif -%}{%- endfor -%}"
    )
    reply = Message("assistant", " Hi! ")
    assert render(source, HELLO, reply, HELLO) == "<s>[INST] Hello [/INST]Hi!</s>[INST] Hello [/INST]"


def test_only_keys_that_are_set_are_there_and_content_always_is() -> None:
    source = "{% for message in messages %}{{ message.keys() | join(',') }};{% endfor %}"
    assistant = Message("assistant", None, tool_calls=(CALL,), reasoning_content="hm")
    tool = Message("tool", "sunny", name="weather", tool_call_id="call_1")
    assert render(source, HELLO, assistant, tool) == (
        "role,content;role,content,reasoning_content,tool_calls;role,content,name,tool_call_id;"
    )
    assert render("{{ messages[0].content is string }}", assistant) == "True"


def test_tools_are_in_the_shape_of_openai_with_all_keys() -> None:
    template = ChatTemplate("{{ tools | tojson }}", bos="", eos="")
    schema = '{"type": "object", "properties": {"é": {"type": "integer"}}}'
    prompt = ChatPrompt((HELLO,), tools=(Tool("f", "Does f.", schema), Tool("g")))
    assert template.render(prompt) == (
        '[{"type": "function", "function": {"name": "f", "description": "Does f.", "parameters": ' + schema + "}}, "
        '{"type": "function", "function": {"name": "g", "description": "", '
        '"parameters": {"type": "object", "properties": {}}}}]'
    )


def test_a_template_that_reads_tools_from_the_system_message_finds_them_there() -> None:
    template = ChatTemplate(PHI_4_MINI, bos="", eos="")
    shown = '<|tool|>[{"name": "f", "description": "", "parameters": {"type": "object"}}]<|/tool|>'
    tools = (Tool("f", parameters='{"type": "object"}'),)
    assert template.render(ChatPrompt((SYSTEM, HELLO), tools=tools)) == (
        f"<|system|>Be kind.{shown}<|end|><|user|>Hello<|end|><|assistant|>"
    )
    assert template.render(ChatPrompt((HELLO,), tools=tools)) == (
        f"<|system|>{shown}<|end|><|user|>Hello<|end|><|assistant|>"
    )
    assert "<|tool|>" not in template.render(ChatPrompt((SYSTEM, HELLO)))


def test_the_result_of_a_call_has_the_name_of_its_call() -> None:
    source = "{% for message in messages %}{{ message.name | default('-') }};{% endfor %}"
    assistant = Message("assistant", None, tool_calls=(CALL,))
    results = [Message("tool", "x", tool_call_id=call_id) for call_id in ("call_1", "unknown")]
    named = Message("tool", "x", name="mine", tool_call_id="call_1")
    assert render(source, HELLO, assistant, *results, named) == "-;-;weather;-;mine;"


def test_content_beside_calls_may_be_none() -> None:
    template = ChatTemplate("{{ messages | map(attribute='content') | list }}", bos="", eos="")
    calling = Message("assistant", "", tool_calls=(CALL,))
    prompt = ChatPrompt((Message("assistant", ""), calling, Message("assistant", "text", tool_calls=(CALL,))))
    assert template.render(prompt, calls_lack_content=True) == "['', None, 'text']"
    assert template.render(prompt) == "['', '', 'text']"


def test_template_arguments_are_variables() -> None:
    template = ChatTemplate("{{ enable_thinking }} {{ documents[0].title }}", bos="", eos="")
    prompt = ChatPrompt((HELLO,), template_arguments='{"enable_thinking": false, "documents": [{"title": "T"}]}')
    assert template.render(prompt) == "False T"


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_template_arguments_replace_nothing_that_is_said_elsewhere(name: str) -> None:
    prompt = ChatPrompt((HELLO,), template_arguments='{"%s": 1}' % name)  # noqa: UP031 - braces
    with pytest.raises(BadRequest, match=f"`{name}` cannot be set here") as caught:
        ChatTemplate("", bos="", eos="").render(prompt)
    assert caught.value.param == "chat_template_kwargs"


@pytest.mark.parametrize("text", ["", "[]", "1", "{", '{"a": ' + "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_template_arguments_that_are_no_object_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="chat_template_kwargs"):
        ChatTemplate("", bos="", eos="").render(ChatPrompt((HELLO,), template_arguments=text))


CHATML_THAT_TRIMS = (
    "{% for message in messages %}<{{ message.role }}>"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content | trim }}</think>{% endif %}"
    "{{ message.content | trim }}</{{ message.role }}>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (Message("assistant", "Well, "), "<user>Hello</user><assistant>Well, "),
        (Message("assistant", ""), "<user>Hello</user><assistant>"),
        (Message("assistant", "So", reasoning_content="hm"), "<user>Hello</user><assistant><think>hm</think>So"),
        (Message("assistant", "", reasoning_content="hm, "), "<user>Hello</user><assistant><think>hm, "),
        (Message("assistant", "SHIMMY_CONTINUES_HERE!"), "<user>Hello</user><assistant>SHIMMY_CONTINUES_HERE!"),
    ],
)
def test_a_message_is_continued_where_it_ends(last: Message, expected: str) -> None:
    template = ChatTemplate(CHATML_THAT_TRIMS, bos="", eos="")
    assert template.render(ChatPrompt((HELLO, last), continue_final_message=True)) == expected


@pytest.mark.parametrize("messages", [(), (HELLO,), (HELLO, Message("assistant", "x", tool_calls=(CALL,)))])
def test_only_text_of_the_assistant_can_be_continued(messages: tuple[Message, ...]) -> None:
    with pytest.raises(BadRequest, match="continue_final_message"):
        ChatTemplate(CHATML_THAT_TRIMS, bos="", eos="").render(ChatPrompt(messages, continue_final_message=True))


def test_a_message_that_the_template_does_not_show_cannot_be_continued() -> None:
    last = Message("assistant", "", reasoning_content="hm")
    with pytest.raises(TemplateFailed, match="does not show the end of the last message"):
        ChatTemplate(None, bos="", eos="").render(ChatPrompt((HELLO, last), continue_final_message=True))


def test_tools_and_documents_are_none_and_unknown_names_undefined() -> None:
    assert render("{{ tools is none }} {{ documents is none }} {{ enable_thinking is defined }}") == "True True False"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("call.arguments is mapping", "True"),
        ("call.arguments.city", "Genève"),
        ("call.arguments | tojson", '{"city": "Genève", "days": [1, 2]}'),
        ("call.arguments | items | map('first') | join(' ')", "city days"),
        # As text it is what the model wrote, to the letter.
        ("call.arguments", CALL.arguments),
        ("'<' + call.arguments + '>'", f"<{CALL.arguments}>"),
        ("'<' ~ call.arguments ~ '>'", f"<{CALL.arguments}>"),
        ("call.arguments | string | trim", CALL.arguments),
    ],
)
def test_tool_arguments_are_a_mapping_that_prints_as_its_json(expression: str, expected: str) -> None:
    source = "{% set call = messages[0].tool_calls[0].function %}{{ " + expression + " }}"
    assert render(source, Message("assistant", None, tool_calls=(CALL,))) == expected


@pytest.mark.parametrize(
    "arguments", ["not json", "[1, 2]", "", '"text"', '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}']
)
def test_arguments_that_are_no_object_stay_text(arguments: str) -> None:
    message = Message("assistant", None, tool_calls=(ToolCall("1", "f", arguments),))
    source = "{{ messages[0].tool_calls[0].function.arguments is string }}"
    assert render(source, message) == "True"
    assert render(source.replace(" is string", ""), message) == arguments


def test_the_template_s_own_refusal_reaches_the_caller() -> None:
    with pytest.raises(TemplateFailed, match=r"^the chat template refused the messages: only one turn!$") as caught:
        render("{% if messages | length > 1 %}{{ raise_exception('only one turn!') }}{% endif %}", HELLO, HELLO)
    assert caught.value.param == "messages"
    assert caught.value.status == 400


def test_a_system_message_that_is_refused_joins_the_next_message() -> None:
    source = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for message in messages %}[{{ message.role }}|{{ message.content }}]{% endfor %}"
    )
    assert render(source, SYSTEM, HELLO, HELLO) == "[user|Be kind.\nHello][user|Hello]"
    with pytest.raises(TemplateFailed, match="no system"):
        render(source, SYSTEM)


def test_a_template_that_always_wants_tools_gets_an_empty_list() -> None:
    """Such as the `tool_use` templates of Hermes 2 Pro and Command R."""
    assert render("{% for tool in tools %}{{ tool }}{% endfor %}{{ messages[0].content }}", HELLO) == "Hello"


def test_when_merging_does_not_help_the_first_refusal_counts() -> None:
    with pytest.raises(TemplateFailed, match="2 messages"):
        render("{{ raise_exception(messages | length ~ ' messages') }}", SYSTEM, HELLO)


def test_a_developer_is_a_system_unless_the_template_knows_developers() -> None:
    developer = Message("developer", "x")
    assert render("{{ messages[0].role }}", developer) == "system"
    assert render("{# developer #}{{ messages[0].role }}", developer) == "developer"


def test_a_template_that_does_not_compile_fails_at_construction() -> None:
    with pytest.raises(TemplateFailed, match=r"does not compile.*line 2"):
        ChatTemplate("\n{% for x in %}", bos="", eos="")


def test_an_endless_template_ends_at_the_deadline_and_its_thread_with_it() -> None:
    n_threads = _thread._count()
    template = ChatTemplate(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", bos="", eos=""
    )
    with pytest.raises(TemplateFailed, match=r"did not end within 0\.05 s"):
        template.render(ChatPrompt((HELLO,)), deadline_s=0.05)
    while _thread._count() > n_threads:  # the test's own time limit ends a wait without end
        time.sleep(0)


def test_code_that_swallows_the_deadline_is_asked_again() -> None:
    interruptions: list[BaseException] = []

    def stubborn() -> None:
        while len(interruptions) < 3:
            try:
                while True:
                    pass
            except SystemExit as exc:
                interruptions.append(exc)

    with pytest.raises(TemplateFailed, match="did not end"):
        within(0.01, stubborn)
    assert len(interruptions) == 3


def test_a_render_after_a_failed_one_is_untouched_by_it() -> None:
    template = ChatTemplate(
        "{% if messages | length > 1 %}{% for a in range(999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        "{% endif %}fine",
        bos="",
        eos="",
    )
    with pytest.raises(TemplateFailed):
        template.render(ChatPrompt((HELLO, HELLO)), deadline_s=0.02)
    assert template.render(ChatPrompt((HELLO,))) == "fine"
