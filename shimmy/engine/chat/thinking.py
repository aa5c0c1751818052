"""What begins and what ends a model's reasoning, read from its chat template. Knows nothing of tokens.

`constrain.thinking_budget` forces the end found here after so many tokens, `constrain.guides` keeps grammars from
applying before it, and `text.reply_parser` splits the reasoning off. `tool_format` does the same for tool calls.
"""

import re
from contextlib import suppress

from shimmy.engine.chat.template import ChatTemplate
from shimmy.errors import ShimmyError
from shimmy.messages.request import ChatPrompt, Message
from shimmy.text.speech import harmony, kimi_k3, muse, solar

PROBE_DEADLINE_S = 2.0
MAX_PROBE_CHARACTERS = 64 * 1024

# Templates rarely write reasoning, but name what ends it, to cut it off earlier replies.
_ENDS_TAG = re.compile(r"</((?:\w{1,20}:)?think(?:ing)?)>")
_PAIRS = (
    ("[THINK]", "[/THINK]"),  # Mistral's reasoning models
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command
    ("<|channel>thought", "<channel|>"),  # Gemma 4
)
_REASONING = "Probereasoning"
_TAG = r"(<[^<>\s\ud800-\udfff]{1,40}>|\[[^\[\]\s\ud800-\udfff]{1,40}\])"  # without half characters
_SHOWN = re.compile(rf"{_TAG}\s*{_REASONING}\s*{_TAG}")


def tags(template: ChatTemplate) -> tuple[str, str] | None:
    """What begins and what ends reasoning; None where the template knows of none. Raises nothing."""
    if harmony.is_taught(template.source):
        return harmony.THINKING
    if muse.is_taught(template.source):
        return muse.THINKING
    if kimi_k3.is_taught(template.source):
        return kimi_k3.THINKING
    if solar.is_taught(template.source):
        return solar.THINKING
    for pair in _PAIRS:
        if pair[0] in template.source and pair[1] in template.source:
            return pair
    named = _ENDS_TAG.search(template.source)
    if named is not None:
        return f"<{named[1]}>", named[0]
    return _shown(template) if "reasoning_content" in template.source else None


def _shown(template: ChatTemplate) -> tuple[str, str] | None:
    reply = Message("assistant", "Probecontent", reasoning_content=_REASONING)
    with suppress(ShimmyError):
        text = template.render(ChatPrompt((Message("user", "Hi."), reply), False), deadline_s=PROBE_DEADLINE_S)
        shown = _SHOWN.search(text[-MAX_PROBE_CHARACTERS:])
        # A template may as well put reasoning between the marks of a turn.
        if shown is not None and "think" in shown[1].lower():
            return shown[1], shown[2]
    return None


def is_begun(prompt: ChatPrompt, text: str, pair: tuple[str, str]) -> bool:
    """Whether `text`, the rendered prompt, ends inside reasoning.

    Only the end of the text counts, and where a reply is continued, the reply's own text: users may write such tags.
    """
    begins, ends = pair
    if prompt.continue_final_message:
        last = prompt.messages[-1]
        content = last.content or ""
        return (not content and bool(last.reasoning_content)) or content.rfind(begins) > content.rfind(ends)
    return text[-256:].rstrip().endswith(begins)  # longer than any of the marks
