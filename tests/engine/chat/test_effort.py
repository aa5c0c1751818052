"""How much to think, as templates name it: the real ones and Mistral's, which lists what it takes."""

import json
from typing import Any

import pytest

from shimmy.engine.chat.effort import in_words_of
from shimmy.engine.chat.template import ChatTemplate
from shimmy.messages.request import ChatPrompt, Message, Tool, ToolChoice
from tests.real_templates import real_templates

# As `mistral-common` 1.13 writes the templates of its newest tokenizers.
MISTRAL = (
    "{%- if reasoning_effort not in ['none', 'high'] %}{{- raise_exception('no') }}{%- endif %}{{ reasoning_effort }}"
)
# As GLM 5.3's template has it.
GLM = "{%- set effort = reasoning_effort if reasoning_effort in ['low', 'high'] else 'max' -%}"
OFF, ON = {"enable_thinking": False}, {"enable_thinking": True}


def effort(value: str) -> dict[str, Any]:
    return {"reasoning_effort": value}


@pytest.mark.parametrize(
    ("source", "arguments", "expected"),
    [
        (MISTRAL, effort("low"), effort("high")),
        (MISTRAL, effort("max"), effort("high")),
        (MISTRAL, OFF, OFF | effort("none")),
        (MISTRAL, ON, ON | effort("high")),
        (MISTRAL, {}, {}),
        (MISTRAL, {"reasoning_effort": 3}, {"reasoning_effort": 3}),
        (MISTRAL, effort("unheard-of"), effort("unheard-of")),
        (GLM, effort("medium"), effort("high")),
        (GLM, effort("xhigh"), effort("max")),
        ("tencent-Hy3", effort("medium"), effort("high")),
        ("tencent-Hy3", OFF, OFF | effort("no_think")),
        ("Kimi-K3", effort("minimal"), effort("minimal") | {"thinking_effort": "low"}),
        ("Kimi-K3", effort("xhigh"), effort("xhigh") | {"thinking_effort": "max"}),
        ("Kimi-K3", OFF, OFF | {"thinking": False}),
        ("Kimi-K3", OFF | {"thinking": True}, OFF | {"thinking": True}),
        ("MiniMax-M3", OFF, OFF | {"thinking_mode": "disabled"}),
        ("MiniMax-M3", ON, ON | {"thinking_mode": "enabled"}),
        ("muse-glimmer", effort("low"), effort("low") | {"reasoning_strength": "low"}),
        ("Cohere2MoE", OFF, OFF | effort("none")),
        ("openai-gpt-oss-120b", OFF, OFF),
        ("openai-gpt-oss-120b", effort("low"), effort("low")),
        ("Qwen-Qwen3-0.6B", OFF, OFF),
        ("deepseek-ai-DeepSeek-V3.1", OFF, OFF),
    ],
)
def test_variables_in_the_words_of_a_template(source: str, arguments: dict[str, Any], expected: dict[str, Any]) -> None:
    assert in_words_of(real_templates().get(source, source), arguments) == expected


@pytest.mark.parametrize("value", ["none", "minimal", "low", "medium", "high", "xhigh", "max"])
@pytest.mark.parametrize("name", ["Kimi-K3", "tencent-Hy3", "MiniMax-M3", "upstage-Solar-Open-100B", "muse-glimmer"])
def test_each_effort_is_rendered(name: str, value: str) -> None:
    arguments = OFF if value == "none" else effort(value)
    prompt = ChatPrompt((Message("user", "Hi."),), template_arguments=json.dumps(arguments))
    assert "Hi." in ChatTemplate(real_templates()[name], bos="", eos="").render(prompt)


def test_kimi_k3_is_told_that_a_call_is_required() -> None:
    template = ChatTemplate(real_templates()["Kimi-K3"], bos="", eos="")
    said = [
        "tool_choice=required"
        in template.render(ChatPrompt((Message("user", "Hi."),), tools=tools, tool_choice=choice))
        for tools in ((), (Tool("f"),))
        for choice in (ToolChoice(), ToolChoice(required=True))
    ]
    assert said == [False, False, False, True]


def test_firefunction_is_given_its_tools_and_the_day() -> None:
    template = ChatTemplate(real_templates()["fireworks-ai-llama-3-firefunction-v2"], bos="", eos="")
    for tools in ((), (Tool("f", "Does it."),)):
        text = template.render(ChatPrompt((Message("user", "Hi."),), tools=tools))
        assert ("Does it." in text) == bool(tools)
        assert "Today is 2" in text


def test_a_template_that_asks_for_descriptions_gets_empty_ones() -> None:
    template = ChatTemplate(real_templates()["CohereForAI-c4ai-command-r-plus-tool_use"], bos="", eos="")
    tool = Tool("f", "Does it.", '{"type": "object", "properties": {"a": {"type": "string"}, "b": true}}')
    assert "Does it." in template.render(ChatPrompt((Message("user", "Hi."),), tools=(tool,)))
