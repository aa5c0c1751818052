"""What is recognised of the templates that models really have, and of those nobody would want."""

import json
from dataclasses import replace

import pytest

from shimmy.engine.chat import detect_tool_format
from shimmy.engine.chat.detect_tool_format import GENERIC, Tooling, marks, may_be_several, recognise, written
from shimmy.engine.chat.render import Chat
from shimmy.engine.chat.template import ChatTemplate
from shimmy.errors import TemplateFailed
from shimmy.messages.reply import ArgumentSyntax, Beside, Channels, ReplyFormat, ToolFormat
from shimmy.messages.request import ChatPrompt, Message, Tool, ToolCall
from shimmy.text.reply_parser import Reply, ReplyParser
from shimmy.text.speech import functionary, gemma, harmony, kimi, kimi_k3, minicpm, minimax, muse, pythonic, solar
from tests.real_templates import PHI_4_MINI, real_templates
from tests.text.speech.whole_and_cut import replies

USER = Message("user", "What is the weather in Genève?")
CALLS = (
    ToolCall("abcdefgh1", "get_weather", '{"city": "Genève", "days": [1, {"a": null}], "note": "\\"}</tool_call>"}'),
    ToolCall("abcdefgh2", "now", "{}"),
)
TOOLS = (Tool("get_weather", "The weather.", '{"type": "object", "properties": {}}'), Tool("now", "The time."))


def wide(text: str) -> str:
    """DeepSeek's marks have letters of their own for bars and spaces."""
    return text.replace("|", "\uff5c").replace("_", "\u2581")


MISTRAL = ToolFormat(call_start="[TOOL_CALLS]", separator="[ARGS]")
TOOL_CALLS_TAG = ToolFormat(section_start="<tool_calls>[", between=", ", section_end="]</tool_calls>")
DEEPSEEK = ToolFormat(
    section_start=wide("<|tool_calls_begin|>"),
    call_start=wide("<|tool_call_begin|>function<|tool_sep|>"),
    call_end=wide("\n```<|tool_call_end|>"),
    between="\n",
    section_end=wide("<|tool_calls_end|>"),
    separator="\n```json\n",
)
QWEN_CODER = ToolFormat(
    call_start="<tool_call>\n<function=",
    call_end="\n</function>\n</tool_call>",
    between="\n",
    separator=">",
    syntax=ArgumentSyntax.TAGGED,
    key_start="\n<parameter=",
    key_end=">\n",
    value_end="\n</parameter>",
)
GLM = ToolFormat(
    call_start="<tool_call>",
    call_end="\n</tool_call>",
    between="\n",
    separator="",
    syntax=ArgumentSyntax.TAGGED,
    key_start="\n<arg_key>",
    key_end="</arg_key>\n<arg_value>",
    value_end="</arg_value>",
)
GLM_IN_ONE_LINE = replace(
    GLM, call_end="</tool_call>", between="", key_start="<arg_key>", key_end="</arg_key><arg_value>"
)
DSML = ToolFormat(
    section_start="<\uff5cDSML\uff5cfunction_calls>",
    call_start='\n<\uff5cDSML\uff5cinvoke name="',
    call_end="\n</\uff5cDSML\uff5cinvoke>",
    section_end="\n</\uff5cDSML\uff5cfunction_calls>",
    separator='">',
    syntax=ArgumentSyntax.TAGGED,
    key_start='\n<\uff5cDSML\uff5cparameter name="',
    key_end='" string="',
    value_end="</\uff5cDSML\uff5cparameter>",
    text_mark='true">',
    json_mark='false">',
)
DSML_V4 = replace(DSML, section_start="<\uff5cDSML\uff5ctool_calls>", section_end="\n</\uff5cDSML\uff5ctool_calls>")
COMMAND = ToolFormat(
    section_start="<|START_ACTION|>[",
    call_start="\n    ",
    between=",",
    section_end="\n]<|END_ACTION|>",
    name_key="tool_name",
    arguments_key="parameters",
    number_key="tool_call_id",
)
SHOWS_ALL = Tooling(shows_tools=True, shows_calls=True, shows_results=True)
SHOWS_NO_TOOLS = Tooling(shows_calls=True, shows_results=True)


def tooling(format: ToolFormat, like: Tooling = SHOWS_ALL, **others: bool) -> Tooling:  # noqa: A002
    flags = {name: getattr(like, name) for name in ("shows_tools", "shows_calls", "shows_results")}
    return Tooling(format, **(flags | others))


EXPECTED = {
    # Hermes, and who does as it does
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": SHOWS_ALL,
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": SHOWS_ALL,
    "Qwen-Qwen2.5-7B-Instruct": SHOWS_ALL,
    "Qwen-Qwen3-0.6B": SHOWS_ALL,
    "Qwen-QwQ-32B": SHOWS_ALL,
    "ibm-granite-granite-4.0": SHOWS_ALL,
    "ibm-granite-granite-4.1": SHOWS_ALL,
    "Bielik-11B-v3.0-Instruct": SHOWS_ALL,
    "MiMo-VL": SHOWS_ALL,
    "Reka-Edge": tooling(replace(GENERIC, between="")),
    # JSON without a mark, one call
    "meta-llama-Llama-3.1-8B-Instruct": tooling(ToolFormat(arguments_key="parameters")),
    "meta-llama-Llama-3.2-3B-Instruct": tooling(ToolFormat(arguments_key="parameters")),
    "meta-llama-Llama-3.3-70B-Instruct": tooling(ToolFormat(arguments_key="parameters")),
    # Mistral
    "mistralai-Mistral-Nemo-Instruct-2407": tooling(
        ToolFormat(section_start="[TOOL_CALLS][", between=", ", section_end="]", id_key="id"), has_short_ids=True
    ),
    "Mistral-Small-3.2-24B-Instruct-2506": tooling(
        ToolFormat(call_start="[TOOL_CALLS]", id_key="[CALL_ID]", separator="[ARGS]"), has_short_ids=True
    ),
    "unsloth-mistral-Devstral-Small-2507": tooling(MISTRAL),
    "mistralai-Ministral-3-14B-Reasoning-2512": tooling(MISTRAL),
    # the function tag
    "meetkai-functionary-medium-v3.1": tooling(
        ToolFormat(call_start="<function=", call_end="</function>", separator=">")
    ),
    # messages with receivers
    "meetkai-functionary-medium-v3.2": tooling(functionary.FORM),
    # ids in front of names
    "upstage-Solar-Open-100B": tooling(solar.FORM),
    # DeepSeek
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": tooling(DEEPSEEK, SHOWS_NO_TOOLS, calls_lack_content=True),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": tooling(DEEPSEEK, SHOWS_NO_TOOLS),
    "llama-cpp-deepseek-r1": tooling(DEEPSEEK, SHOWS_NO_TOOLS),
    "deepseek-ai-DeepSeek-V3.1": tooling(
        ToolFormat(
            section_start=wide("<|tool_calls_begin|>"),
            call_start=wide("<|tool_call_begin|>"),
            call_end=wide("<|tool_call_end|>"),
            section_end=wide("<|tool_calls_end|>"),
            separator=wide("<|tool_sep|>"),
        ),
        SHOWS_NO_TOOLS,
    ),
    # a list of calls in a tag
    "ibm-granite-granite-3.3-2B-Instruct": Tooling(
        ToolFormat(section_start="<|tool_call|>[", between=", ", section_end="]"), shows_tools=True, shows_results=True
    ),
    "unsloth-Apriel-1.5": tooling(TOOL_CALLS_TAG),
    "Apriel-1.6-15b-Thinker-fixed": tooling(TOOL_CALLS_TAG),
    "NVIDIA-Nemotron-Nano-v2": tooling(
        ToolFormat(section_start="<TOOLCALL>[", between=", ", section_end="]</TOOLCALL>")
    ),
    "MiniMax-M1": tooling(ToolFormat(section_start="<tool_calls>", call_start="\n", section_end="\n</tool_calls>")),
    # others that need no knowledge of ours
    "Apertus-8B-Instruct": tooling(
        ToolFormat(
            section_start="<|tools_prefix|>[",
            call_start='{"',
            call_end="}",
            between=", ",
            section_end="]<|tools_suffix|>",
            separator='": ',
        )
    ),
    "GigaChat3-10B-A1.8B": tooling(ToolFormat(section_start="<|message_sep|>\n\nfunction call<|role_sep|>\n")),
    "GigaChat3.1-10B-A1.8B": tooling(ToolFormat(section_start="<|function_call|>")),
    # arguments as bare texts between marks
    "Qwen3-Coder": tooling(QWEN_CODER),
    "Qwen3.5-4B": tooling(QWEN_CODER),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": tooling(QWEN_CODER),
    "StepFun3.5-Flash": tooling(replace(QWEN_CODER, between="")),
    "ByteDance-Seed-OSS": tooling(
        replace(
            QWEN_CODER,
            call_start="<seed:tool_call>\n<function=",
            call_end="\n</function>\n</seed:tool_call>",
            key_end=">",
            value_end="</parameter>",
        )
    ),
    "GLM-4.6": tooling(GLM),
    "GLM-4.7-Flash": tooling(GLM_IN_ONE_LINE),
    "Spark2.5": tooling(GLM_IN_ONE_LINE),
    "poolside-Laguna-S-2.1": tooling(GLM_IN_ONE_LINE),
    "tencent-Hy3": tooling(
        ToolFormat(
            section_start="<tool_calls:opensource>",
            call_start="\n<tool_call:opensource>",
            call_end="\n</tool_call:opensource>",
            section_end="\n</tool_calls:opensource>",
            separator="<tool_sep:opensource>",
            syntax=ArgumentSyntax.TAGGED,
            key_start="\n<arg_key:opensource>",
            key_end="</arg_key:opensource>\n<arg_value:opensource>",
            value_end="</arg_value:opensource>",
        )
    ),
    "poolside-Laguna-XS.2": tooling(GLM),
    "poolside-Laguna-XS-2.1": tooling(GLM),
    "inclusionai-ling-3.0-flash": tooling(replace(GLM, separator="\n", key_start="<arg_key>")),
    "MiniMax-M2": tooling(
        ToolFormat(
            section_start="<minimax:tool_call>",
            call_start='\n<invoke name="',
            call_end="\n</invoke>",
            section_end="\n</minimax:tool_call>",
            separator='">',
            syntax=ArgumentSyntax.TAGGED,
            key_start='\n<parameter name="',
            key_end='">',
            value_end="</parameter>",
        )
    ),
    "deepseek-ai-DeepSeek-V3.2": tooling(DSML),
    "deepseek-ai-DeepSeek-V4": tooling(DSML_V4),
    "deepseek-ai-DeepSeek-V4-Flash-0731": tooling(DSML_V4),
    # arguments with CDATA in them
    "openbmb-MiniCPM5-1B": tooling(minicpm.FORM),
    # numbers of calls in front of their names, or none
    "CohereForAI-c4ai-command-r-plus-tool_use": tooling(
        replace(COMMAND, section_start="Action:\n```json\n[", section_end="\n]```", number_key="")
    ),
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": tooling(COMMAND),
    "Cohere2MoE": tooling(COMMAND),
    # ids with names and numbers in them
    "moonshotai-Kimi-K2": tooling(kimi.FORM),
    "Kimi-K2-Instruct": tooling(kimi.FORM),
    "Kimi-K2-Thinking": tooling(kimi.FORM),
    # bare keys, and marks around strings
    "google-gemma-4-31B-it": tooling(gemma.FORM),
    "google-gemma-4-31B-it-interleaved": tooling(gemma.FORM),
    # a list of calls in Python; two of the templates show none
    "LFM2.5-8B-A1B": tooling(pythonic.FORM),
    "LFM2-8B-A1B": Tooling(pythonic.FORM, shows_tools=True, shows_results=True),
    "LFM2.5-Instruct": Tooling(pythonic.FORM, shows_tools=True, shows_results=True),
    # messages in channels
    "openai-gpt-oss-120b": tooling(harmony.FORM),
    # values that are elements
    "MiniMax-M3": tooling(minimax.FORM),
    # sections with attributes in them
    "Kimi-K3": tooling(kimi_k3.FORM),
    # messages to recipients
    "muse-glimmer": tooling(muse.FORM),
    # no tools at all, or not by the name of `tools`
    "google-gemma-2-2b-it": Tooling(),
    "microsoft-Phi-3.5-mini-instruct": Tooling(),
    "HuggingFaceTB-SmolLM3-3B": Tooling(),
    "llama-cpp-rwkv-world": Tooling(),
    # which shows tools as a text, and the day
    "fireworks-ai-llama-3-firefunction-v2": tooling(
        ToolFormat(section_start="functools[", between=", ", section_end="]")
    ),
}


def calls_in(form: ToolFormat) -> tuple[ToolCall, ...]:
    calls = CALLS if may_be_several(form) else CALLS[:1]
    (turn,) = kimi.with_ids([Message("assistant", None, tool_calls=calls)])
    return turn.tool_calls if form.id_prefix else calls


def template(source: str | None) -> ChatTemplate:
    return ChatTemplate(source, bos="<s>", eos="</s>")


@pytest.mark.parametrize("name", EXPECTED)
def test_the_format_of_a_real_template(name: str) -> None:
    assert recognise(template(real_templates()[name])) == EXPECTED[name]


def test_phi_4_shows_tools_and_says_nothing_of_calls() -> None:
    form = ToolFormat(section_start="<|tool_call|>[", between=", ", section_end="]<|/tool_call|>")
    assert recognise(template(PHI_4_MINI)) == Tooling(form, shows_tools=True, shows_results=True)


def test_nothing_is_known_of_a_model_without_a_template() -> None:
    assert recognise(template(None)) == Tooling()


def test_each_real_template_was_looked_at() -> None:
    assert EXPECTED.keys() == real_templates().keys()


# Lists, objects and `None` as Python prints them; JSON in several lines; the recipient in the other place of a header;
# escaped letters; an empty line where a call has no arguments.
OTHERWISE = (
    *(
        "LFM2.5-8B-A1B",
        "ByteDance-Seed-OSS",
        "google-gemma-4-31B-it",
        "google-gemma-4-31B-it-interleaved",
        "openai-gpt-oss-120b",
        "openbmb-MiniCPM5-1B",
        "Reka-Edge",
        "deepseek-ai-DeepSeek-V4",
        "deepseek-ai-DeepSeek-V4-Flash-0731",
        "CohereForAI-c4ai-command-r-plus-tool_use",
    ),
)


@pytest.mark.parametrize(
    "name", [name for name, found in EXPECTED.items() if found.shows_calls and name not in OTHERWISE]
)
def test_what_we_write_as_a_call_is_what_the_template_writes(name: str) -> None:
    source = template(real_templates()[name])
    found = EXPECTED[name]
    calls = calls_in(found.format)
    conversation = (USER, Message("assistant", None, tool_calls=calls))
    prompt = ChatPrompt(conversation, False, TOOLS if found.shows_tools else ())
    text = source.render(prompt, calls_lack_content=found.calls_lack_content)
    assert written(calls, found.format) in text


CHANNELS = {"openai-gpt-oss-120b": Channels.HARMONY, "muse-glimmer": Channels.MUSE}
LOSES_NULLS = ("MiniMax-M3",)


@pytest.mark.parametrize("name", [name for name in EXPECTED if name not in LOSES_NULLS])
def test_a_call_of_the_template_is_read_back_however_it_is_cut(name: str) -> None:
    found = EXPECTED[name]
    calls = calls_in(found.format)
    reply = written(calls, found.format)  # to the letter what the template writes, as the test above shows
    for size in (1, 2, 7, len(reply)):
        channels = CHANNELS.get(name)
        parser, whole = ReplyParser(ReplyFormat(tools=found.format, channels=channels)), Reply()
        for start in range(0, len(reply), size):
            whole.add(parser.feed(reply[start : start + size]))
        whole.add(parser.flush())
        assert not whole.content
        expected = [(call.name, json.loads(call.arguments)) for call in calls]
        assert [(call.name, json.loads(call.arguments)) for call in whole.calls] == expected
        if found.format.separator is not None and found.format.id_key:  # an id behind the arguments comes too late
            assert [call.id for call in whole.calls] == [call.id for call in calls]


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_limit_leaves_of_calls_is_their_beginning_and_no_content(name: str) -> None:
    form = ReplyFormat(tools=EXPECTED[name].format, channels=CHANNELS.get(name), beside=Beside.NOTHING)
    calls = calls_in(EXPECTED[name].format)
    reply = written(calls, EXPECTED[name].format)
    whole = replies(reply, form)[-1].calls
    for n_characters in range(1, len(reply)):
        (cut,) = replies(reply[:n_characters], form, ())
        assert not cut.content.strip(), reply[:n_characters]
        for part, call in zip(cut.calls, whole, strict=False):
            assert part.name == call.name
            assert call.arguments.startswith(part.arguments), reply[:n_characters]


@pytest.mark.parametrize("name", EXPECTED)
def test_blanks_between_a_thought_and_calls_are_no_content(name: str) -> None:
    """Families with marks around answers gave the white space between these, and so content that says nothing."""
    _, form = Chat(template(real_templates()[name])).render(ChatPrompt((USER,), tools=TOOLS))
    assert form.tools is not None
    calls = calls_in(form.tools)
    starts, ends = form.thinking or ("", "")
    thought = f"{'' if form.is_thinking else starts}Well.{ends}" if form.thinking else ""
    begins, closes, *_ = form.answer or ("", "")
    if form.channels is not None:
        header = "<|channel|>final" if form.channels is Channels.HARMONY else " to=user"
        begins, closes = f"<|start|>assistant{header}<|message|>", f"{ends}<|start|>assistant"
    for blank in ("", " \n", "\n\n"):
        between = begins + blank + closes if form.channels else blank + begins + blank + closes + blank
        for reply in replies(f"{thought}{form.opening}{between}{written(calls, form.tools)}", form):
            assert (reply.content, reply.reasoning) == ("", "Well." if thought else "")
            assert len(reply.calls) == len(calls)


def test_calls_are_written_in_all_forms() -> None:
    calls = (ToolCall("id1", 'say "é"', '{"a": 1}'), ToolCall("id2", "g", "{}"))
    assert written(calls, GENERIC) == (
        '<tool_call>\n{"name": "say \\"é\\"", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>'
    )
    bare = ToolFormat("<calls>", "<call>", "</call>", ";", "</calls>", id_key="#", separator=":")
    assert written(calls[1:], bare) == "<calls><call>g#id2:{}</call></calls>"
    keyed = ToolFormat(name_key="n", arguments_key="a", id_key="i")
    assert json.loads(written(calls[:1], keyed)) == {"n": 'say "é"', "a": {"a": 1}, "i": "id1"}


def test_marks_are_told_once_and_without_blanks() -> None:
    form = ToolFormat("<a>", "<b>", "</b>", "\n", "<a>", id_key="id")
    assert marks(ReplyFormat(("<think>", "</think>"), tools=form)) == ("<think>", "</think>", "<a>", "<b>", "</b>")
    assert marks(ReplyFormat(tools=MISTRAL)) == ("[TOOL_CALLS]", "[ARGS]")
    assert marks(ReplyFormat()) == ()


AROUND = (
    "{% for message in messages %}<{{ message.role }}>"
    "{% if message.tool_calls %}{% for call in message.tool_calls %}@{% endfor %}{% endif %}{{ message.content }}"
    "</{{ message.role }}>{% endfor %}"
)
BODY = '{{ "{" }}"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}{{ "}" }}'


def shape_of(call: str) -> Tooling:
    return recognise(template(AROUND.replace("@", call)))


def test_a_made_up_form_is_found() -> None:
    found = shape_of(f"«{BODY}»")
    assert found == tooling(ToolFormat(call_start="«", call_end="»"), SHOWS_NO_TOOLS)


def test_an_endless_template_costs_the_time_limit_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect_tool_format, "PROBE_DEADLINE_S", 0.2)
    endless = template("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    deadlines: list[float] = []
    render = endless.render

    def watched(prompt: ChatPrompt, *, deadline_s: float, calls_lack_content: bool) -> str:
        deadlines.append(deadline_s)
        return render(prompt, deadline_s=deadline_s, calls_lack_content=calls_lack_content)

    monkeypatch.setattr(endless, "render", watched)
    assert recognise(endless) == Tooling()
    assert len(deadlines) <= 2  # of about ten


@pytest.mark.parametrize(
    "call",
    [
        f"<{{{{ call.id }}}}>{BODY}",  # the id in front
        "<call {{ loop.index }}>{{ call.function.name }}:{{ call.function.arguments | tojson }}",  # numbered
        "{{ call.function.name }}:{{ call.function.arguments | tojson }}",  # begins with nothing but a name
        '{"arguments": {{ call.function.arguments | tojson }}, "name": "{{ call.function.name }}"}',  # name last
        '{"type": "x", "name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}',
        "<call>{{ call.function.name }} {{ call.function.arguments | dictsort }}</call>",  # no JSON
        "<call>{{ call.function.arguments | tojson }}</call>",  # no name
        "{{ '{' * 100000 }}" + BODY,  # far too much of it
        "{{ ('{\"a\":' * 10000) }}" + BODY,  # too deep for a parser
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}" + BODY,  # endless
        "{{ '<call \\ud800>' }}" + BODY,  # half a character
        "{{ raise_exception('no calls') }}",
        "{{ call.nothing.here }}",
    ],
)
def test_what_cannot_be_said_in_our_terms_gets_the_generic_form(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect_tool_format, "PROBE_DEADLINE_S", 0.5)
    assert shape_of(call).format == GENERIC


@pytest.mark.thorough
def test_mutated_templates_are_recognised_or_not_but_break_nothing() -> None:
    names = ("Qwen-Qwen3-0.6B", "mistralai-Mistral-Nemo-Instruct-2407", "deepseek-ai-DeepSeek-V3.1")
    n_recognised = 0
    for name in names:
        source = real_templates()[name]
        for start in range(0, len(source), len(source) // 15):
            for mutant in (source[:start] + source[start + 7 :], source[:start] + "{{ tools }}" + source[start:]):
                try:
                    compiled = template(mutant)
                except TemplateFailed:
                    continue
                n_recognised += recognise(compiled).shows_calls
    assert n_recognised > 10
