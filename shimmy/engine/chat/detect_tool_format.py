"""How a model writes tool calls, found out by rendering some with its chat template.

A template renders a conversation as the model was trained to see it, so a call in the history looks like a call that
the model writes. Knows templates and the shapes of `ToolFormat`; knows no model by name, and nothing of tokens.
This is the first of three steps: the ToolFormat found here is forced on the reply by `constrain.tool_grammar`, and read
back from the reply by `text.reply_parser`. Reasoning goes the same way: `thinking` finds its marks, `thinking_budget`
forces its end, and `text.reply_parser` splits it off.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from time import monotonic

from shimmy.engine.chat.template import ChatTemplate
from shimmy.errors import ShimmyError
from shimmy.messages.reply import ArgumentSyntax, Channels, ReplyFormat, ToolFormat
from shimmy.messages.request import ChatPrompt, Message, Tool, ToolCall
from shimmy.text.speech import (
    functionary,
    gemma,
    harmony,
    kimi,
    kimi_k3,
    minicpm,
    minimax,
    muse,
    pythonic,
    solar,
    tagged,
)

PROBE_DEADLINE_S = 4.0  # of all renderings together: about ten, once for each model, of some milliseconds
MAX_PROBE_CHARACTERS = 64 * 1024  # of one rendering; the longest of templates in use have 10,000
MAX_CALL_CHARACTERS = 4096  # of what is written around two short calls; the longest in use has 200
MAX_MARK_CHARACTERS = 256  # of one mark; the longest in use have 50

# For models whose own form is unknown or is no JSON: what most models have seen, first written down for Hermes 2 Pro.
GENERIC = ToolFormat(call_start="<tool_call>\n", call_end="\n</tool_call>", between="\n")
# Templates that show tools, but have no place for calls: the form is in the text of the template or in no file at all.
# Sources: the model cards of Phi-4-mini and of Granite 3.
_NOT_SHOWN = (
    ("<|/tool|>", ToolFormat(section_start="<|tool_call|>[", between=", ", section_end="]<|/tool_call|>")),
    (
        "<|tool_call|> followed by a JSON list",
        ToolFormat(section_start="<|tool_call|>[", between=", ", section_end="]"),
    ),
)


@dataclass(frozen=True, slots=True)
class Tooling:
    """What a template shows of tools, calls and results; what it does not show is written into messages as text."""

    format: ToolFormat = GENERIC
    shows_tools: bool = False
    shows_calls: bool = False
    shows_results: bool = False
    has_short_ids: bool = False  # accepts only ids of nine letters and digits
    calls_lack_content: bool = False  # shows no calls beside content


_MARKS: dict[Channels | None, tuple[str, ...]] = {Channels.HARMONY: harmony.MARKS, Channels.MUSE: muse.MARKS}


def marks(format: ReplyFormat) -> tuple[str, ...]:  # noqa: A002 - the name of the field of `Accepted`
    """The marks between the parts of a reply, each once: control tokens in them have to reach ReplyParser as text."""
    found = [*(format.thinking or ()), *(format.answer or ()), *_MARKS.get(format.channels, ())]
    if format.tools is not None:
        tools = format.tools
        found += [tools.section_start, tools.call_start, tools.call_end, tools.between, tools.section_end]
        if tools.separator is not None:
            found += [tools.separator, tools.id_key, tools.id_end]
        found += [
            tools.name_again,
            tools.key_start,
            tools.key_end,
            tools.type_end,
            tools.value_end,
            tools.text_mark,
            tools.json_mark,
        ]
    return tuple(dict.fromkeys(mark for mark in found if mark.strip()))


def may_be_several(format: ToolFormat) -> bool:  # noqa: A002
    """Whether a reply may have more than one call."""
    return bool(format.call_start or format.between) and format.syntax is not ArgumentSyntax.HARMONY


def written(calls: Sequence[ToolCall], format: ToolFormat) -> str:  # noqa: A002
    """Calls as a model with this format writes them."""
    texts = [f"{format.call_start}{_body(call, number, format)}{format.call_end}" for number, call in enumerate(calls)]
    return f"{format.section_start}{format.between.join(texts)}{format.section_end}"


def _body(call: ToolCall, number: int, format: ToolFormat) -> str:  # noqa: A002
    if format.separator is not None:
        call_id = call.id.rpartition(format.id_key)[2] if format.id_prefix else call.id
        call_id = f"{format.id_key}{call_id}" if format.id_key else ""
        before = f"{call.id}{format.id_end}" if format.id_end else ""
        counted = f"{format.number_key}{number + 1}" if format.number_key else ""
        again = f"{format.name_again}{call.name}" if format.name_again else ""
        return f"{before}{call.name}{again}{counted}{call_id}{format.separator}{_arguments(call, format)}"
    call_id = f", {quoted(format.id_key)}: {quoted(call.id)}" if format.id_key else ""
    counted = f"{quoted(format.number_key)}: {quoted(str(number))}, " if format.number_key else ""
    head = f"{counted}{quoted(format.name_key)}: {quoted(call.name)}, {quoted(format.arguments_key)}: "
    return f"{{{head}{call.arguments}{call_id}}}"


def _arguments(call: ToolCall, format: ToolFormat) -> str:  # noqa: A002
    if format.syntax is ArgumentSyntax.TAGGED:
        return tagged.written(call.arguments, format)
    if format.syntax is ArgumentSyntax.PYTHON:
        return pythonic.written(call.arguments)
    if format.syntax is ArgumentSyntax.ELEMENTS:
        return minimax.written(call.arguments)
    return gemma.written(call.arguments) if format.syntax is ArgumentSyntax.GEMMA else call.arguments


def quoted(value: object) -> str:
    """The value as JSON, spaced as templates space it."""
    return json.dumps(value, ensure_ascii=False)


# The conversations that are rendered. Their ids suit the strictest templates.
_USER = Message("user", "Hi.")
_CONTENT = "Probecontent"
_RESULT = "Proberesult"
_TOOLS = tuple(
    Tool(name, "Probetool.", '{"type": "object", "properties": {"probe": {"type": "string"}}}')
    for name in ("probe_one", "probe_two")
)
_CALLS = (
    ToolCall("probeid01", "probe_one", '{"probe": "value one", "probe_n": 17}'),
    ToolCall("probeid02", "probe_two", '{"probe": "value two", "probe_n": 18}'),
)
_LONG_ID = replace(_CALLS[0], id="call_probe_id_of_any_length")


def recognise(template: ChatTemplate) -> Tooling:
    """What the template shows of tools; the generic format where that cannot be found out. Raises nothing."""
    probe = _Probe(template)
    shows_tools = _TOOLS[0].name in (probe.render(_USER) or "")
    if not shows_tools:
        probe.tools = ()
    if harmony.is_taught(template.source):
        return Tooling(harmony.FORM, shows_tools, shows_calls=True, shows_results=True)
    for family in (gemma, pythonic):
        if family.is_taught(template.source):
            result = Message("tool", _RESULT, tool_call_id=_CALLS[0].id)
            shown = probe.render(_USER, _calling(_CALLS[0]), result) or ""
            shows_calls = f"{_CALLS[0].name}{family.FORM.separator}" in shown
            return Tooling(family.FORM, shows_tools, shows_calls, shows_results=_RESULT in shown)
    for listed in (kimi, kimi_k3, minicpm, minimax, muse, functionary, solar):
        if listed.is_taught(template.source):
            return Tooling(listed.FORM, shows_tools, shows_calls=True, shows_results=True)
    for probe.calls_lack_content in (False, True):
        found = _format_of_calls(probe)
        if found is not None:
            result = Message("tool", _RESULT, tool_call_id=_CALLS[0].id)
            return Tooling(
                found,
                shows_tools,
                shows_calls=True,
                shows_results=_RESULT in (probe.render(_USER, _calling(_CALLS[0]), result) or ""),
                has_short_ids=probe.render(_USER, _calling(_LONG_ID)) is None,
                calls_lack_content=probe.calls_lack_content,
            )
    for words, form in _NOT_SHOWN:
        if shows_tools and words in template.source:
            return Tooling(form, shows_tools, shows_results=True)
    return Tooling()


class _Probe:
    """Renders conversations; None where the template refuses them, fails or takes too much time or space."""

    def __init__(self, template: ChatTemplate) -> None:
        self.tools = _TOOLS
        self.calls_lack_content = False
        self._template = template
        self._end_s = monotonic() + PROBE_DEADLINE_S

    def render(self, *messages: Message, begins_reply: bool = False) -> str | None:
        prompt = ChatPrompt(messages, begins_reply, self.tools)
        left_s = self._end_s - monotonic()
        if left_s > 0:
            with suppress(ShimmyError):
                text = self._template.render(prompt, deadline_s=left_s, calls_lack_content=self.calls_lack_content)
                return text if len(text) <= MAX_PROBE_CHARACTERS else None
        return None


def _calling(*calls: ToolCall) -> Message:
    return Message("assistant", None, tool_calls=calls)


@dataclass(frozen=True, slots=True)
class _Found:
    """Where the body of a call begins and ends in a text, and the format as far as the body shows it."""

    start: int
    end: int
    form: ToolFormat


def _format_of_calls(probe: _Probe) -> ToolFormat | None:
    """The format, from renderings of one call and of two; None where the template shows none, or an unknown form."""
    begun = probe.render(_USER, begins_reply=True) or ""
    plain = probe.render(_USER, Message("assistant", _CONTENT)) or ""
    turn_end = plain.rpartition(_CONTENT)[2].strip()
    if not turn_end:  # what a template shows only in front of another turn
        followed = probe.render(_USER, Message("assistant", _CONTENT), _USER) or ""
        turn_end = "".join(_atoms(followed.partition(_CONTENT)[2])[:1]).strip()
        turn_end = turn_end if turn_end.startswith("<") else ""
    one, two = (_reply(probe.render(_USER, _calling(*_CALLS[:count])), begun, plain) for count in (1, 2))
    found = _found(one, _CALLS[0], 0)
    if found is None:
        return None
    before, after = one[: found.start].lstrip(), _within_turn(one[found.end :], turn_end)
    form = replace(found.form, section_start=before, section_end=after)
    first = _found(two, _CALLS[0], 0)
    second = first and _found(two, _CALLS[1], first.end)
    if first and second and first.form == second.form == found.form:
        after = _within_turn(two[second.end :], turn_end)
        form = _divided(replace(form, section_end=after), two[first.end : second.start])
    if not form.section_start:
        form = replace(form, section_end="")  # this text ends the turn, and no section
    return form if _is_usable(form) else None


def _within_turn(text: str, turn_end: str) -> str:
    """The part of a text in front of the end of a turn; `turn_end` may have the end of an answer in front of that."""
    if turn_end and turn_end not in text:
        ends, atoms = _atoms(turn_end)[::-1], _atoms(text.rstrip())[::-1]
        return "".join(atoms[_n_common(ends, atoms) :][::-1]).rstrip()
    return (text.partition(turn_end)[0] if turn_end else text).rstrip()


def _reply(text: str | None, begun: str, plain: str) -> str:
    """The part of a rendered conversation that the model would write: from where it differs from the other two."""
    atoms = _atoms(text or "")
    n_common = max(_n_common(atoms, _atoms(other)) for other in (begun, plain))
    return "".join(atoms[n_common:])[:MAX_CALL_CHARACTERS]


def _found(text: str, call: ToolCall, start: int) -> _Found | None:
    json_found = _found_json(text, call, start)
    if json_found is not None:
        return json_found
    tagged_found = tagged.found(text, call, start)
    return None if tagged_found is None else _Found(*tagged_found)


def _found_json(text: str, call: ToolCall, start: int) -> _Found | None:
    arguments = json.loads(call.arguments)
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", text[start:]):
        at = start + match.start()
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            continue
        if value == arguments:
            return _found_bare(text, call, (start, at, end))
        match list(value.items()):
            case [(name_key, call.name), (arguments_key, found)] if found == arguments:
                return _Found(at, end, ToolFormat(name_key=name_key, arguments_key=arguments_key))
            case [(number_key, ("0" | "1")), (name_key, call.name), (arguments_key, found)] if found == arguments:
                return _Found(
                    at, end, ToolFormat(name_key=name_key, arguments_key=arguments_key, number_key=number_key)
                )
            case [(name_key, call.name), (arguments_key, found), (id_key, call.id)] if found == arguments:
                return _Found(at, end, ToolFormat(name_key=name_key, arguments_key=arguments_key, id_key=id_key))
    return None


def _found_bare(text: str, call: ToolCall, places: tuple[int, int, int]) -> _Found | None:
    """The call as a bare name, somewhere behind places[0], and arguments, which stand at places[1:]."""
    start, at, end = places
    name_at = text.rfind(call.name, start, at)
    if name_at < 0:
        return None
    id_key, has_id, separator = text[name_at + len(call.name) : at].rpartition(call.id)
    return _Found(name_at, end, ToolFormat(separator=separator, id_key=id_key if has_id else ""))


def _divided(form: ToolFormat, middle: str) -> ToolFormat:
    """Tells the marks of each call from those of the whole section, by the text between two calls."""
    before, inside, after = _atoms(form.section_start), _atoms(middle), _atoms(form.section_end)
    n_start = _n_common(before[::-1], inside[::-1])
    inside, call_start = inside[: len(inside) - n_start], inside[len(inside) - n_start :]
    n_end = _n_common(inside, after)
    return replace(
        form,
        section_start="".join(before[: len(before) - n_start]),
        call_start="".join(call_start),
        call_end="".join(inside[:n_end]),
        between="".join(inside[n_end:]),
        section_end="".join(after[n_end:]),
    )


def _is_usable(form: ToolFormat) -> bool:
    """Whether the format tells a call from text, has nothing of the probe's own texts, and no half characters."""
    opening = form.section_start + form.call_start
    if form.separator is not None and not ((form.separator or form.key_start) and opening[:1] in {"<", "["}):
        return False
    texts = [opening, form.call_end, form.between, form.section_end, form.separator or "", form.id_key]
    if any(len(text) > MAX_MARK_CHARACTERS for text in texts):
        return False
    texts += [form.key_start, form.key_end, form.value_end, form.text_mark, form.json_mark]
    if any(re.search(r"probe|[\ud800-\udfff]", text) for text in texts):
        return False
    # Digits outside of marks number the calls.
    return not any(re.search(r"\d", re.sub(r"<[^<>\s]*>", "", text)) for text in texts)


_ATOM = re.compile(r"<[^<>\s]*>|\[[^\[\]\s]*\]|.", re.DOTALL)


def _atoms(text: str) -> list[str]:
    """The characters of a text, but `<marks>` and `[MARKS]` in one piece: they are likely to be one token."""
    return _ATOM.findall(text)


def _n_common(left: list[str], right: list[str]) -> int:
    """How many first items of two lists are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))
