"""What transformers renders of a conversation with the templates of models, and what each template has to be given.

The oracle for prompts: knows templates by the names of their files, and nothing of how Shimmy renders.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import Template
from jinja2.exceptions import TemplateError
from jinja2.ext import LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from shimmy.engine.chat.detect_tool_format import recognise, written
from shimmy.engine.chat.render import instructions
from shimmy.engine.chat.template import ChatTemplate
from shimmy.messages.reply import ToolFormat
from shimmy.messages.request import ChatPrompt
from shimmy.text.speech import kimi, solar
from tests.conversations import as_template_gets
from tests.real_templates import real_templates

Turns = list[dict[str, Any]]
Given = tuple[Turns, Turns]  # messages and tools

# Templates that take conversations as callers send them.
FAMILIES = (
    *("Qwen3-Coder", "Qwen3.5-4B", "Qwen-Qwen3-0.6B", "GLM-4.6", "GLM-4.7-Flash", "MiniMax-M2", "StepFun3.5-Flash"),
    *("deepseek-ai-DeepSeek-V3.2", "deepseek-ai-DeepSeek-V4", "ByteDance-Seed-OSS", "inclusionai-ling-3.0-flash"),
    *("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "google-gemma-4-31B-it", "ibm-granite-granite-4.0"),
    *("ibm-granite-granite-4.1", "mistralai-Ministral-3-14B-Reasoning-2512", "Mistral-Small-3.2-24B-Instruct-2506"),
    *("CohereForAI-c4ai-command-r7b-12-2024-tool_use", "Cohere2MoE", "openbmb-MiniCPM5-1B"),
    *("LFM2.5-8B-A1B", "mistralai-Mistral-Nemo-Instruct-2407", "unsloth-mistral-Devstral-Small-2507"),
    *("deepseek-ai-DeepSeek-V4-Flash-0731", "google-gemma-4-31B-it-interleaved", "tencent-Hy3", "Spark2.5"),
    *("muse-glimmer", "MiniMax-M3", "Kimi-K3", "poolside-Laguna-S-2.1", "poolside-Laguna-XS-2.1", "Reka-Edge"),
    *("Apertus-8B-Instruct", "Apriel-1.6-15b-Thinker-fixed", "NVIDIA-Nemotron-Nano-v2", "MiniMax-M1"),
    *("Bielik-11B-v3.0-Instruct", "CohereForAI-c4ai-command-r-plus-tool_use"),
    *("Qwen-Qwen2.5-7B-Instruct", "Qwen-QwQ-32B", "poolside-Laguna-XS.2", "unsloth-Apriel-1.5"),
    *("NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use"),
    *("meetkai-functionary-medium-v3.1", "MiMo-VL"),
)  # fmt: skip
# Beside a template for conversations without tools.
NEEDS_TOOLS = (
    *("CohereForAI-c4ai-command-r-plus-tool_use", "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use"),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
)
HARMONY = ("openai-gpt-oss-120b",)
ONE_CALL_A_TURN = (
    *("meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct", "meta-llama-Llama-3.3-70B-Instruct"),
    *("GigaChat3-10B-A1.8B", "GigaChat3.1-10B-A1.8B"),
)
TEXT_ARGUMENTS = ("meetkai-functionary-medium-v3.2",)
SOLAR = ("upstage-Solar-Open-100B",)
KIMI = ("moonshotai-Kimi-K2", "Kimi-K2-Instruct", "Kimi-K2-Thinking")
WITHOUT_TOOLS = ("deepseek-ai-DeepSeek-V3.1", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "llama-cpp-deepseek-r1")
WITHOUT_CONTENT_BESIDE_CALLS = ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B",)
WITHOUT_CALLS = ("LFM2-8B-A1B", "LFM2.5-Instruct", "ibm-granite-granite-3.3-2B-Instruct")
WITHOUT_TOOLS_AND_CALLS = ("HuggingFaceTB-SmolLM3-3B", "microsoft-Phi-3.5-mini-instruct", "llama-cpp-rwkv-world")


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


def reference(source: str, messages: Turns, tools: Turns | None) -> str | None:
    """None where the template refuses the conversation."""
    source = re.sub(r"{%-? (end)?generation -?%}", "", source)  # a tag of transformers
    # Of Functionary 3.1: what is added to a text that is `safe`, jinja2 escapes for HTML, and no model was taught that.
    source = source.replace('"|safe +', '" +')
    if "message.thinking" in source:
        names = {"reasoning_content": "thinking"}
        messages = [{names.get(key, key): value for key, value in message.items()} for message in messages]
    variables = {"messages": messages, "tools": tools, "documents": None, "bos_token": "<s>", "eos_token": "</s>"}
    try:
        return compiled(source).render(**variables, add_generation_prompt=True)
    except TemplateError:
        return None


def rendered(family: str, prompt: ChatPrompt) -> str | None:
    """The prompt of a conversation for a model with this template; None where the template refuses it."""
    messages, tools = given(family, prompt)
    return reference(real_templates()[family], messages, tools or None)


def given(family: str, prompt: ChatPrompt) -> Given:
    """What the template has to be given of a conversation: its messages and tools."""
    for families, way in _WAYS:
        if family in families:
            return way(family, prompt)
    assert family in FAMILIES, family
    return as_template_gets(prompt)


def _one_call_a_turn(_family: str, prompt: ChatPrompt) -> Given:
    messages, tools = as_template_gets(prompt)
    return list(_each_with_its_result(messages)), tools


def _each_with_its_result(messages: Turns) -> Iterator[dict[str, Any]]:
    results = {message["tool_call_id"]: message for message in messages if message["role"] == "tool"}
    for message in messages:
        calls = message.get("tool_calls", [])
        for index, call in enumerate(calls):
            yield {**(message if not index else {"role": "assistant", "content": ""}), "tool_calls": [call]}
            yield results[call["id"]]
        if message["role"] != "tool" and not calls:
            yield message


def _of_harmony(family: str, prompt: ChatPrompt) -> Given:
    """As the template's comments ask for: reasoning under another name, each call with its result."""
    messages, tools = _one_call_a_turn(family, prompt)
    for message in messages:
        said = message.pop("reasoning_content", None)
        if said is not None:
            calls = message.get("tool_calls")
            message["thinking"] = "\n\n".join(filter(None, (said, message["content"]))) if calls else said
            message["content"] = "" if calls else message["content"]
    return messages, tools


def _with_text_arguments(_family: str, prompt: ChatPrompt) -> Given:
    messages, tools = as_template_gets(prompt)
    return _as_sent(prompt, messages), tools


def _as_sent(prompt: ChatPrompt, messages: Turns) -> Turns:
    """With arguments as clients of OpenAI's API send them: some templates do not take objects."""
    texts = {call.id: call.arguments for turn in prompt.messages for call in turn.tool_calls}
    for call in (call for message in messages for call in message.get("tool_calls", [])):
        call["function"]["arguments"] = texts[call["id"]]
    return messages


def _with_ids_in_front(_family: str, prompt: ChatPrompt) -> Given:
    messages, tools = as_template_gets(replace(prompt, messages=tuple(solar.with_ids(prompt.messages))))
    return [{**message, "reasoning": message.get("reasoning_content")} for message in messages], tools


def _with_ids_of_kimi(_family: str, prompt: ChatPrompt) -> Given:
    return as_template_gets(replace(prompt, messages=tuple(kimi.with_ids(prompt.messages))))


def _with_tools_in_the_system_message(family: str, prompt: ChatPrompt) -> Given:
    messages, _ = as_template_gets(prompt)
    if not prompt.tools:
        return messages, []
    told = instructions(prompt.tools, _format(family))
    if messages[0]["role"] == "system":
        messages[0]["content"] += f"\n\n{told}"
    else:
        messages.insert(0, {"role": "system", "content": told})
    return messages, []


def _with_content_in_front(family: str, prompt: ChatPrompt) -> Given:
    messages, _ = _with_tools_in_the_system_message(family, prompt)
    turns: Turns = []
    for message in _as_sent(prompt, messages):
        if message.get("tool_calls") and message["content"]:
            turns.append({key: value for key, value in message.items() if key != "tool_calls"})
            message = {"role": "assistant", "content": None, "tool_calls": message["tool_calls"]}  # noqa: PLW2901
        elif message.get("tool_calls"):
            message["content"] = None
        turns.append(message)
    return turns, []


def _in_words(family: str, prompt: ChatPrompt) -> Given:
    """Tools, calls and results as texts, in the generic form."""
    messages, _ = _with_tools_in_the_system_message(family, prompt)
    told = len(messages) - len(prompt.messages)
    turns = messages[:told]
    for message, turn in zip(messages[told:], prompt.messages, strict=True):
        if message.pop("tool_calls", None):
            message["content"] = "\n".join(filter(None, (turn.content, written(turn.tool_calls, _format(family)))))
        if turn.role == "tool":
            text = f"<tool_response>\n{turn.content}\n</tool_response>"
            if turns[-1]["role"] == "user" and turns[-1]["content"].endswith("</tool_response>"):
                turns[-1]["content"] += f"\n{text}"
                continue
            message = {"role": "user", "content": text}  # noqa: PLW2901 - the same turn
        turns.append(message)
    return turns, []


def _with_calls_as_text(family: str, prompt: ChatPrompt) -> Given:
    messages, tools = as_template_gets(prompt)
    for message, turn in zip(messages, prompt.messages, strict=True):
        if message.pop("tool_calls", None):
            calls = written(turn.tool_calls, _format(family))
            message["content"] = "\n".join(filter(None, (turn.content, calls)))
    return messages, tools


@cache
def _format(family: str) -> ToolFormat:
    return recognise(ChatTemplate(real_templates()[family], bos="<s>", eos="</s>")).format


_WAYS: tuple[tuple[tuple[str, ...], Callable[[str, ChatPrompt], Given]], ...] = (
    (HARMONY, _of_harmony),
    (ONE_CALL_A_TURN, _one_call_a_turn),
    (TEXT_ARGUMENTS, _with_text_arguments),
    (SOLAR, _with_ids_in_front),
    (KIMI, _with_ids_of_kimi),
    (WITHOUT_TOOLS, _with_tools_in_the_system_message),
    (WITHOUT_CONTENT_BESIDE_CALLS, _with_content_in_front),
    (WITHOUT_CALLS, _with_calls_as_text),
    (WITHOUT_TOOLS_AND_CALLS, _in_words),
)
ALL = tuple(dict.fromkeys((*FAMILIES, *(family for families, _ in _WAYS for family in families))))
