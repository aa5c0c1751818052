"""Prompts of conversations with tools equal what transformers renders with the same template."""

import json
import re
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

import pytest
from jinja2 import Template
from jinja2.exceptions import TemplateError
from jinja2.ext import LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shimmy.engine.chat.detect_tool_format import written
from shimmy.engine.chat.render import Chat, instructions
from shimmy.engine.chat.template import ChatTemplate
from shimmy.messages.request import ChatPrompt
from shimmy.text.speech import solar
from tests.conversations import as_template_gets, conversations
from tests.real_templates import real_templates

FAMILIES = (
    *("Qwen3-Coder", "Qwen3.5-4B", "Qwen-Qwen3-0.6B", "GLM-4.6", "GLM-4.7-Flash", "MiniMax-M2", "StepFun3.5-Flash"),
    *("deepseek-ai-DeepSeek-V3.2", "deepseek-ai-DeepSeek-V4", "ByteDance-Seed-OSS", "inclusionai-ling-3.0-flash"),
    *("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "google-gemma-4-31B-it", "ibm-granite-granite-4.0"),
    *("ibm-granite-granite-4.1", "mistralai-Ministral-3-14B-Reasoning-2512", "Mistral-Small-3.2-24B-Instruct-2506"),
    *("CohereForAI-c4ai-command-r7b-12-2024-tool_use", "Cohere2MoE", "openbmb-MiniCPM5-1B"),
    *("LFM2.5-8B-A1B", "mistralai-Mistral-Nemo-Instruct-2407", "unsloth-mistral-Devstral-Small-2507"),
    *("deepseek-ai-DeepSeek-V4-Flash-0731", "google-gemma-4-31B-it-interleaved", "tencent-Hy3", "Spark2.5"),
    *(
        "muse-glimmer",
        "MiniMax-M3",
        "Kimi-K3",
        "poolside-Laguna-S-2.1",
        "poolside-Laguna-XS-2.1",
        "Reka-Edge",
        "MiMo-VL",
    ),
    *("Apertus-8B-Instruct", "Apriel-1.6-15b-Thinker-fixed", "NVIDIA-Nemotron-Nano-v2", "MiniMax-M1"),
    *("Bielik-11B-v3.0-Instruct", "CohereForAI-c4ai-command-r-plus-tool_use"),
)
NEEDS_TOOLS = ("CohereForAI-c4ai-command-r-plus-tool_use",)
N_CONVERSATIONS = 50


def tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> None:
    raise TemplateError(message)


class _Environment(ImmutableSandboxedEnvironment):
    """That of transformers, in which Kimi K2's templates may change their own list: there they fail."""

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        return (isinstance(obj, list) and attr in {"append", "pop"}) or super().is_safe_attribute(obj, attr, value)


@cache
def environment() -> ImmutableSandboxedEnvironment:
    """As in `_cached_compile_jinja_template` of transformers 5, but for the tag that marks generated text."""
    made = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # noqa: DTZ005 - as in transformers
    return made


@cache
def compiled(source: str) -> Template:
    return environment().from_string(source)


def reference(source: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str | None:
    """None where the template refuses the conversation."""
    source = re.sub(r"{%-? (end)?generation -?%}", "", source)  # a tag of transformers
    if "message.thinking" in source:
        names = {"reasoning_content": "thinking"}
        messages = [{names.get(key, key): value for key, value in message.items()} for message in messages]
    variables = {"messages": messages, "tools": tools, "documents": None, "bos_token": "<s>", "eos_token": "</s>"}
    try:
        return compiled(source).render(**variables, add_generation_prompt=True)
    except TemplateError:
        return None


@pytest.mark.parametrize(
    "n_conversations", [N_CONVERSATIONS // 2, pytest.param(2 * N_CONVERSATIONS, marks=pytest.mark.thorough)]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_is_what_transformers_renders(family: str, n_conversations: int) -> None:
    source = real_templates()[family]
    chat = Chat(ChatTemplate(source, bos="<s>", eos="</s>"))
    n_compared = 0
    for prompt in conversations(1, n_conversations):
        expected = reference(source, *as_template_gets(prompt))
        if expected is not None:
            assert chat.render(prompt)[0] == expected
            n_compared += 1
    assert n_compared >= n_conversations // 2


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in NEEDS_TOOLS])
def test_a_prompt_without_its_tools_is_what_transformers_renders_of_none(family: str) -> None:
    """As `tool_choice: "none"` asks for, in the middle of a conversation with calls."""
    source = real_templates()[family]
    chat = Chat(ChatTemplate(source, bos="<s>", eos="</s>"))
    n_compared = 0
    for prompt in conversations(8, 20):
        messages, _ = as_template_gets(prompt)
        expected = reference(source, messages, None)
        if expected is not None:
            text, reply = chat.render(replace(prompt, tools=()))
            assert text == expected
            assert reply.tools is None
            n_compared += 1
    assert n_compared >= 10


@pytest.mark.parametrize("family", ["openai-gpt-oss-120b"])
def test_a_prompt_in_channels_is_what_transformers_renders_of_one_call_at_a_time(family: str) -> None:
    source = real_templates()[family]
    chat = Chat(ChatTemplate(source, bos="<s>", eos="</s>"))
    for prompt in conversations(2, N_CONVERSATIONS):
        messages, tools = as_template_gets(prompt)
        assert chat.render(prompt)[0] == reference(source, _one_call_at_a_time(messages), tools)


def _one_call_at_a_time(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the template's comments ask for: reasoning under another name, each call with its result."""
    results = {message["tool_call_id"]: message for message in messages if message["role"] == "tool"}
    turns: list[dict[str, Any]] = []
    for message in messages:
        calls = message.get("tool_calls", [])
        if message["role"] == "tool":
            continue
        said = message.get("reasoning_content")
        turn = {key: value for key, value in message.items() if key not in {"reasoning_content", "tool_calls"}}
        if said is not None:
            turn["thinking"] = "\n\n".join(filter(None, (said, turn["content"]))) if calls else said
            turn["content"] = "" if calls else turn["content"]
        if not calls:
            turns.append(turn)
        for index, call in enumerate(calls):
            first = turn if not index else {"role": "assistant", "content": ""}
            turns += [{**first, "tool_calls": [call]}, results[call["id"]]]
    return turns


@pytest.mark.parametrize("family", ["meetkai-functionary-medium-v3.2"])
def test_a_prompt_with_arguments_as_text_is_what_transformers_renders(family: str) -> None:
    """As clients of OpenAI's API send them: these templates do not take objects."""
    source = real_templates()[family]
    chat = Chat(ChatTemplate(source, bos="<s>", eos="</s>"))
    for prompt in conversations(4, N_CONVERSATIONS):
        messages, tools = as_template_gets(prompt)
        texts = {call.id: call.arguments for turn in prompt.messages for call in turn.tool_calls}
        for call in (call for message in messages for call in message.get("tool_calls", [])):
            call["function"]["arguments"] = texts[call["id"]]
        assert chat.render(prompt)[0] == reference(source, messages, tools)


@pytest.mark.parametrize("family", ["upstage-Solar-Open-100B"])
def test_a_prompt_with_ids_in_front_is_what_transformers_renders(family: str) -> None:
    source = real_templates()[family]
    chat = Chat(ChatTemplate(source, bos="<s>", eos="</s>"))
    for prompt in conversations(5, N_CONVERSATIONS):
        named = ChatPrompt(tuple(solar.with_ids(prompt.messages)), tools=prompt.tools)
        messages, tools = as_template_gets(named)
        messages = [{**message, "reasoning": message.get("reasoning_content")} for message in messages]
        expected = reference(source, messages, tools)
        assert chat.render(named)[0] == expected == chat.render(prompt)[0]


@pytest.mark.parametrize("family", ["moonshotai-Kimi-K2", "Kimi-K2-Instruct", "Kimi-K2-Thinking"])
def test_a_prompt_with_ids_of_the_model_is_what_transformers_renders(family: str) -> None:
    from shimmy.text.speech.kimi import with_ids

    source = real_templates()[family]
    chat = Chat(ChatTemplate(source, bos="<s>", eos="</s>"))
    for prompt in conversations(3, N_CONVERSATIONS):
        named = ChatPrompt(tuple(with_ids(prompt.messages)), tools=prompt.tools)
        expected = reference(source, *as_template_gets(named))
        assert chat.render(named)[0] == expected == chat.render(prompt)[0]


@pytest.mark.parametrize("family", ["deepseek-ai-DeepSeek-V3.1"])
def test_a_prompt_whose_template_knows_no_tools_is_what_transformers_renders_with_them_in_the_system_message(
    family: str,
) -> None:
    source = real_templates()[family]
    chat = Chat(ChatTemplate(source, bos="<s>", eos="</s>"))
    for prompt in conversations(6, N_CONVERSATIONS):
        messages, _ = as_template_gets(prompt)
        told = instructions(prompt.tools, chat.tooling.format)
        if messages[0]["role"] == "system":
            messages[0]["content"] += f"\n\n{told}"
        else:
            messages.insert(0, {"role": "system", "content": told})
        expected = reference(source, messages, [])
        assert expected is not None
        assert chat.render(prompt)[0] == expected


@pytest.mark.parametrize("family", ["LFM2-8B-A1B", "LFM2.5-Instruct"])
def test_a_prompt_whose_template_knows_no_calls_is_what_transformers_renders_with_them_as_text(family: str) -> None:
    source = real_templates()[family]
    chat = Chat(ChatTemplate(source, bos="<s>", eos="</s>"))
    for prompt in conversations(7, N_CONVERSATIONS):
        messages, tools = as_template_gets(prompt)
        for message, turn in zip(messages, prompt.messages, strict=True):
            if message.pop("tool_calls", None):
                calls = written(turn.tool_calls, chat.tooling.format)
                message["content"] = "\n".join(filter(None, (turn.content, calls)))
        expected = reference(source, messages, tools)
        assert expected is not None
        assert chat.render(prompt)[0] == expected
