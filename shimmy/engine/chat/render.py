"""Renders a conversation as the model expects it, and finds the format of the model's reply.

Renders with the model's template, and writes tools, calls and results that the template does not show into messages.
`tool_format` and `thinking` find the format, which `constrain` forces and `text.reply_parser` reads.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from itertools import takewhile

from shimmy.engine.chat import thinking
from shimmy.engine.chat.control_tokens import ControlTokens, Guarded
from shimmy.engine.chat.detect_tool_format import GENERIC, Tooling, may_be_several, quoted, recognise, written
from shimmy.engine.chat.template import ChatTemplate, described, parsed
from shimmy.errors import TemplateFailed
from shimmy.messages.reply import Channels, ReplyFormat, ToolFormat
from shimmy.messages.request import ChatPrompt, Message, Tool, ToolCall
from shimmy.text.speech import command, functionary, harmony, kimi, kimi_k3, muse, solar

_NO_ARGUMENTS = ("", "null")
_WORD = re.compile(r"[^\W_]{1,64}")
_ID_LENGTH = 9  # of the ids of calls that Mistral's templates take


class Chat:
    """A chat template and what is known of its model's replies. It belongs to one thread.

    The template is probed when a prompt first needs that: for reasoning with the first prompt, for tools with the first
    prompt that has tools, or calls and results in its history. These prompts are rendered with `tool_use` where the
    model has a template of its own for them.
    """

    def __init__(
        self, template: ChatTemplate, tool_use: ChatTemplate | None = None, control: ControlTokens | None = None
    ) -> None:
        """`control` are the tokens that texts of callers must not become; None for none."""
        self._template = template
        self._tool_use = tool_use or template
        self._control = control or ControlTokens(())

    @cached_property
    def tooling(self) -> Tooling:
        """What the template shows of tools, and the format of calls."""
        return recognise(self._tool_use)

    @cached_property
    def _channels(self) -> Channels | None:
        if harmony.is_taught(self._template.source):
            return Channels.HARMONY
        return Channels.MUSE if muse.is_taught(self._template.source) else None

    @cached_property
    def thinking(self) -> tuple[str, str] | None:
        """What begins and what ends the model's reasoning."""
        return thinking.tags(self._template)

    def render(self, prompt: ChatPrompt) -> tuple[str, ReplyFormat]:
        """The text of a prompt and the format of its reply. Raises TemplateFailed and BadRequest, as the template."""
        parts, reply_format = self.parts(prompt)
        return "".join(parts), reply_format

    def parts(self, prompt: ChatPrompt) -> tuple[list[str], ReplyFormat]:
        """The same in parts: more than one where a caller has written the text of a control token.

        The tokenizer takes each part by itself, so that it finds the control tokens that the template has written, and
        no others.
        """
        tools = self.tooling.format if prompt.tools else None
        prompt = _with_arguments(prompt)
        if prompt.parse_special:
            guarded = Guarded(prompt, {})
        else:
            kept = () if self._channels else self.thinking or ()
            guarded = self._control.guard(prompt, kept, self._template.source + self._tool_use.source)
        try:
            text = self._filled(guarded.prompt)
            if not _is_shown(guarded.prompt, text):
                raise TemplateFailed(
                    "the chat template leaves out what the user says last: the model would answer something else; "
                    "`--chat-template-file` names another template",
                    param="messages",
                )
            parts = self._control.parts(text, guarded)
        except TemplateFailed as error:
            error.message = error.message.translate(guarded.characters)
            raise
        begun = self.thinking is not None and thinking.is_begun(prompt, "".join(parts), self.thinking)
        if self._channels and prompt.continue_final_message and not begun:
            return parts, ReplyFormat()  # within the final message, which nothing follows
        answer = next((one.ANSWER for one in (kimi_k3, solar) if one.is_taught(self._template.source)), None)
        answer = answer or command.answer_marks(self._template.source)
        opening = ""
        if not prompt.continue_final_message:
            opening = functionary.opening(self._template.source, parts[-1])
        return parts, ReplyFormat(self.thinking, begun, tools, answer=answer, opening=opening, channels=self._channels)

    def _filled(self, prompt: ChatPrompt) -> str:
        if prompt.tools or any(turn.tool_calls or turn.role == "tool" for turn in prompt.messages):
            prompt = _adapted(prompt, self.tooling)
            return self._tool_use.render(prompt, calls_lack_content=self.tooling.calls_lack_content)
        return self._template.render(prompt)


def _with_arguments(prompt: ChatPrompt) -> ChatPrompt:
    """The same with `{}` where a call has no arguments: models and clients may write an empty text for that."""
    if all(call.arguments.strip() not in _NO_ARGUMENTS for turn in prompt.messages for call in turn.tool_calls):
        return prompt
    return replace(prompt, messages=tuple(map(_with_arguments_of, prompt.messages)))


def _with_arguments_of(turn: Message) -> Message:
    calls = [
        replace(call, arguments="{}") if call.arguments.strip() in _NO_ARGUMENTS else call for call in turn.tool_calls
    ]
    return replace(turn, tool_calls=tuple(calls))


def _as_json(call: ToolCall) -> ToolCall:
    """The call with arguments that are JSON: other text becomes a JSON string."""
    try:
        parsed(call.arguments)
    except (ValueError, RecursionError):
        return replace(call, arguments=quoted(call.arguments))
    return call


def _is_shown(prompt: ChatPrompt, text: str) -> bool:
    """Whether the rendered `text` has the user's last message: as it is, or at least its longest word in any case, as a
    template may change the spacing and the case."""
    said = next((turn.content for turn in reversed(prompt.messages) if turn.role == "user"), None)
    if said is None or said in text or said.strip() in text:
        return True
    longest, text = max(_WORD.findall(said), key=len, default=""), text.casefold()
    return longest.casefold() in text or json.dumps(longest)[1:-1].casefold() in text


def _adapted(prompt: ChatPrompt, tooling: Tooling) -> ChatPrompt:
    """The same prompt with text messages for what the template cannot show."""
    turns: list[Message] = []
    if tooling.shows_calls and not may_be_several(tooling.format):
        prompt = replace(prompt, messages=tuple(_one_by_one(prompt.messages)))
    if tooling.format.id_prefix:
        prompt = replace(prompt, messages=tuple(kimi.with_ids(prompt.messages)))
    if tooling.format.id_end:
        prompt = replace(prompt, messages=tuple(solar.with_ids(prompt.messages)))
    for turn in prompt.messages:
        if tooling.has_short_ids:
            turn = _with_short_ids(turn)  # noqa: PLW2901 - the same turn
        if turn.tool_calls and not tooling.shows_calls:
            calls = written(tuple(map(_as_json, turn.tool_calls)), tooling.format)
            text = "\n".join(filter(None, (turn.content, calls)))
            turns.append(replace(turn, content=text, tool_calls=()))
        elif turn.tool_calls and turn.content and tooling.calls_lack_content:
            turns += [replace(turn, tool_calls=()), replace(turn, content=None, reasoning_content=None)]
        elif turn.role == "tool" and not tooling.shows_results:
            text = f"<tool_response>\n{turn.content or ''}\n</tool_response>"
            if turns and turns[-1].role == "tool":
                turns[-1] = replace(turns[-1], content=f"{turns[-1].content}\n{text}")
            else:
                turns.append(Message("tool", text))
        else:
            turns.append(turn)
    if not tooling.shows_results:
        turns = [replace(turn, role="user") if turn.role == "tool" else turn for turn in turns]
    if prompt.tools and not tooling.shows_tools:
        turns = _with_instructions(turns, instructions(prompt.tools, tooling.format))
        prompt = replace(prompt, tools=())
    return replace(prompt, messages=tuple(turns))


def _one_by_one(turns: tuple[Message, ...]) -> Iterator[Message]:
    """The same with one call in a turn and its results behind it: templates take a result for that of the last call."""
    results: list[Message] = []
    for place, turn in enumerate(turns):
        if turn.role == "tool" and turn in results:
            results.remove(turn)
            continue
        if len(turn.tool_calls) < 2:
            yield turn
            continue
        results = list(takewhile(lambda other: other.role == "tool", turns[place + 1 :]))
        for index, call in enumerate(turn.tool_calls):
            one = replace(turn, tool_calls=(call,))
            yield one if not index else replace(one, content=None, reasoning_content=None)
            yield from (result for result in results if result.tool_call_id == call.id)
        known = {call.id for call in turn.tool_calls}
        results = [result for result in results if result.tool_call_id in known]


def instructions(tools: tuple[Tool, ...], format: ToolFormat = GENERIC) -> str:  # noqa: A002 - as in ToolFormat's users
    """The text of a system message that describes the tools, for templates that do not show them."""
    shown = "\n".join(quoted(described(tool)) for tool in tools)
    call = ToolCall("<id>", "<function-name>", "<arguments-as-json-object>")
    return (
        "# Tools\n\nYou may call functions to answer the user. These are their names, what they do, and the JSON "
        f"Schemas of their arguments:\n<tools>\n{shown}\n</tools>\n\n"
        f"To call a function, write this and nothing after it:\n{written((call,), format)}"
    )


def _with_instructions(turns: list[Message], text: str) -> list[Message]:
    if turns and turns[0].role in {"system", "developer"}:
        said = f"{turns[0].content}\n\n{text}" if turns[0].content else text
        return [replace(turns[0], content=said), *turns[1:]]
    return [Message("system", text), *turns]


def _with_short_ids(turn: Message) -> Message:
    calls = tuple(replace(call, id=_short(call.id)) for call in turn.tool_calls)
    return replace(
        turn, tool_calls=calls, tool_call_id=None if turn.tool_call_id is None else _short(turn.tool_call_id)
    )


def _short(call_id: str) -> str:
    """An id of the length that the template accepts, derived from `call_id`."""
    if len(call_id) == _ID_LENGTH and call_id.isascii() and call_id.isalnum():
        return call_id
    return sha256(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:_ID_LENGTH]
