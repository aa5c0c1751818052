"""The grammar of replies that may or must call tools, in the Lark dialect of llguidance.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md. Writes the text of a grammar, which `guides` runs.
Knows nothing of templates: `chat.tool_format` has found the ToolFormat that this grammar forces, and
`text.reply_parser` reads the calls back from the reply. `thinking_budget` ends reasoning before the calls.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from shimmy.engine.chat.detect_tool_format import may_be_several
from shimmy.engine.constrain.json_schema import MAX_CHARACTERS, standalone
from shimmy.errors import BadRequest
from shimmy.messages.reply import PYTHON_TAG, TEXT_ONLY, ArgumentSyntax, Channels, ReplyFormat, ToolFormat
from shimmy.messages.request import TEXT_ARGUMENT, Tool, ToolChoice
from shimmy.text.speech import gemma, harmony, minimax, muse, pythonic, tagged

MAX_TEXT = 2 * MAX_CHARACTERS  # of all grammars of a reply together
_MAX_WRITTEN = 32 * MAX_TEXT  # of what turns out to be the same and is dropped, too: half a second
_END_OF_TEXT = '"}'
# A text that is likely to be one token; MiniMax has such with brackets turned outwards.
_SECTION = re.compile(r"<[^<>\s]*>\w+<[^<>\s]*>")  # marks that several kinds of sections share, and the kind
_MARK = re.compile(r"\]<\][^<>\[\]\s]*\[>\[|<[^<>\s]*>|\[[^\[\]\s]*\]")


def tool_lark(
    tools: Sequence[Tool],
    choice: ToolChoice,
    format: ToolFormat,  # noqa: A002 - as in `Accepted`
    *,
    prepare: Callable[[Tool], dict[str, Any]],
    special: Callable[[str], int | None] = lambda _: None,
    around: ReplyFormat = TEXT_ONLY,
    texts: Mapping[str, str] = MappingProxyType({}),
    pause: Callable[[], object] = lambda: None,
) -> str:
    """A grammar whose start rule is the whole reply of a job with `tools`, at least one.

    A reply may have free text first. The text that begins a call in `format` has to be followed by a call to one of the
    tools, with arguments that the tool's schema allows; calls end the reply. Where `format` has no mark that begins a
    call, free text must not begin like a call. A choice that is `required` allows calls alone, and one with a name a
    single call.

    `special` returns the id of a text that is one control token, None for other texts. `around` has the marks of
    reasoning that may come first and of answers; where the prompt has begun reasoning, the grammar is that of what
    follows it. `prepare` returns the schema of a tool for llguidance; a BadRequest from it gets the tool's name.
    `texts` are the grammars of those tools, by name, whose one argument is a text, as it stands between quotes. `pause`
    is called before each tool. Raises BadRequest for a choice that names no tool, and for parameters of no object.
    """
    offered = [tool for tool in tools if choice.name is None or tool.name == choice.name]
    if not offered:
        raise BadRequest(f"tool_choice: there is no tool `{choice.name}`", param="tool_choice")
    lark = _Lark(format, special, around.answer, around.opening)
    for index, tool in enumerate(offered):
        pause()
        lark.rule(f"body_{index}", lark.body(tool.name, f"arguments_{index}"))
        schema = _schema(tool, prepare)
        lark.rule(f"arguments_{index}", _arguments(lark, f"arguments_{index}", schema, format, texts.get(tool.name)))
    lark.rule("call", " | ".join(f"body_{index}" for index in range(len(offered))))
    if messages := _messages(lark, choice, format, is_thinking=around.is_thinking):
        lark.rule("start", messages)
        return str(lark)
    lark.rule("calls", lark.calls(choice.parallel and choice.name is None))
    thinking = None if around.is_thinking else around.thinking
    if choice.required:
        replies = [lark.called]
        if thinking is not None:
            replies.append(f"thought GAP? {lark.called}")
    else:
        lark.rule("TEXT_WITHOUT_CALL", lark.free())
        replies = lark.free_replies("TEXT_WITHOUT_CALL", "begun")
        if thinking is not None:
            after = [f"thought {reply}" for reply in replies] + [f"thought GAP {lark.called}"]
            if not lark.text(thinking[0]).startswith("<["):
                # Otherwise the start of reasoning would be free text, and a call inside it would count as a call.
                lark.rule("THOUGHT", f"{lark.text(thinking[0])} TEXT")
                lark.rule("TEXT_WITHOUT_THOUGHT", "TEXT_WITHOUT_CALL & ~THOUGHT")
                replies = lark.free_replies("TEXT_WITHOUT_THOUGHT", "begun_at_once")
            replies += after
    if thinking is not None:
        lark.rule("thought", lark.thought(*thinking))
    lark.rule("TEXT", r"/(.|\n)*/")
    lark.rule("GAP", r"/\n{1,2}/")
    lark.rule("start", " | ".join(replies))
    return str(lark)


def _messages(lark: "_Lark", choice: ToolChoice, format: ToolFormat, *, is_thinking: bool) -> str:  # noqa: A002
    """The rule of a reply that is messages with headers; empty for other families."""
    if format.syntax is ArgumentSyntax.HARMONY:
        return harmony.reply_rule(lark, is_required=choice.required, is_thinking=is_thinking)
    if not format.name_again:
        return ""
    is_parallel = choice.parallel and choice.name is None
    return muse.reply_rule(lark, is_required=choice.required, is_thinking=is_thinking, is_parallel=is_parallel)


def answer_lark(special: Callable[[str], int | None], form: ReplyFormat) -> str:
    """A grammar with the rule `answer_head` of what stands in front of an answer; empty where nothing does."""
    lark = _Lark(harmony.FORM, special)
    head = lark.optional(form.answer[0]) if form.answer else ""
    if form.opening:
        head = json.dumps(form.opening)
    if form.channels:
        family = harmony if form.channels is Channels.HARMONY else muse
        head = family.answer_head(lark, is_thinking=form.is_thinking)
    if head:
        lark.rule("answer_head", head)
    return str(lark).strip()


def _arguments(lark: "_Lark", rule: str, schema: dict[str, Any], form: ToolFormat, text: str | None) -> str:
    """The body of `rule`, the arguments of a tool: those of `schema`, or one text with a grammar of its own."""
    if form.syntax is ArgumentSyntax.TAGGED:
        if text is not None:
            return tagged.text_rule(lark, TEXT_ARGUMENT, text, form)
        return tagged.arguments_rule(lark, rule, schema, form)
    if form.syntax is ArgumentSyntax.ELEMENTS:
        if text is not None:
            return minimax.text_rule(lark, TEXT_ARGUMENT, text)
        return minimax.arguments_rule(lark, rule, schema)
    if form.syntax is ArgumentSyntax.GEMMA:
        if text is not None:
            return gemma.text_rule(lark, TEXT_ARGUMENT, text)
        return gemma.arguments_rule(lark, rule, schema)
    if form.syntax is ArgumentSyntax.PYTHON:
        if text is not None:
            return f'"{TEXT_ARGUMENT}=\\"" %lark {{\n{text}\n}} "\\""'
        return pythonic.arguments_rule(lark, rule, schema)
    return f"%json {json.dumps(schema)}" if text is None else _one_text(text)


def _one_text(grammar: str) -> str:
    """The arguments of a tool that takes one text, which `grammar` describes."""
    head = json.dumps(f'{{{json.dumps(TEXT_ARGUMENT)}: "')
    return f"{head} %lark {{\n{grammar}\n}} {json.dumps(_END_OF_TEXT)}"


def _schema(tool: Tool, prepare: Callable[[Tool], dict[str, Any]]) -> dict[str, Any]:
    try:
        schema = prepare(tool)
    except BadRequest as error:
        raise BadRequest(f"tools: the parameters of `{tool.name}`: {error.message}", param="tools") from error
    if not may_be_object(schema):
        raise BadRequest(f"tools: the parameters of `{tool.name}` are not those of an object", param="tools")
    return of_object(schema)


def may_be_object(schema: Mapping[str, Any]) -> bool:
    """Whether a schema names the type `object`, or no type."""
    kind = schema.get("type", "object")
    return kind == "object" or (isinstance(kind, list) and "object" in kind)


def of_object(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema`, limited to objects."""
    return {**schema, "type": "object"}


class TooLarge(BadRequest):
    """The grammar of all tools together is too long to be written."""


def _check_size(n_characters: int, n_most: int) -> None:
    if n_characters > n_most:
        raise TooLarge(f"the tools are too large together: more than {n_most} characters of grammar")


class _Lark:
    """The rules of one grammar, and the pieces of a format as parts of rules."""

    def __init__(
        self,
        form: ToolFormat,
        special: Callable[[str], int | None],
        answer: tuple[str, ...] | None = None,
        opens_text: str = "",
    ) -> None:
        self._form = form
        self._special = special
        self._answer_marks = tuple(map(self.optional, answer)) if answer else ("", "")
        self._rules: dict[str, None] = {}  # each once
        self._n_characters = 0  # of these
        self._of_json: dict[str, str] = {}  # the names of rules, by their texts
        self._n_written = 0  # characters of these, each time that one was written
        self._root: Mapping[str, Any] = {}
        self._parts: dict[str, str] = {}  # the names of rules, by the parts of `_root` that they stand for
        opening = form.section_start + form.call_start
        first_mark = _SECTION.match(opening) or _MARK.match(opening) or re.match(r"\S*", opening)
        assert first_mark is not None
        self._trigger = first_mark[0]
        self._rest = opening[len(self._trigger) :]
        self._short = tagged.short_start(form) if form.syntax is ArgumentSyntax.TAGGED else ""
        self._has_mark = len(self._trigger) > 2 or any(character.isalpha() for character in self._trigger)
        start = special(PYTHON_TAG) if not opening else None
        optional = "" if start is None else f"<[{start}]>? "
        # Where texts have an opening, the mark of a call that begins a reply is in the prompt.
        self._opening = json.dumps(opens_text) if opens_text else ""
        if answer and _SECTION.match(opening):  # Kimi K3: an answer that says nothing stands in front of calls
            optional = f"({' '.join(filter(None, map(self.text, answer[:2])))})? "
        self._tail = " ".join(["GAP?", *(f"({self.text(mark)})?" for mark in (answer or ())[2:])])
        self.called = f"calls {self._tail}"
        if not opens_text:
            self.called = f"{optional}{self.text(self._trigger)} {self.called}"

    def __str__(self) -> str:
        return "\n".join([*self._rules, ""])

    def rule(self, name: str, text: str) -> None:
        rule = f"{name}: {text}"
        if rule not in self._rules:
            self._rules[rule] = None
            self._n_characters += len(rule)
            _check_size(self._n_characters, MAX_TEXT)

    def json(self, schema: Mapping[str, Any], root: Mapping[str, Any]) -> str:
        if root is not self._root:
            self._root, self._parts = root, {}
        part = json.dumps(schema)
        if part not in self._parts:
            text = f"%json {json.dumps(standalone(dict(schema), dict(root)))}"
            self._n_written += len(text)
            _check_size(self._n_written, _MAX_WRITTEN)
            self._parts[part] = self._of_json.setdefault(text, f"json_{len(self._of_json)}")
            self.rule(self._parts[part], text)
        return self._parts[part]

    def optional(self, mark: str) -> str:
        """A mark that may be there; one without control tokens is free text."""
        text = self.text(mark)
        return f"({text})?" if "<[" in text else ""

    def text(self, text: str) -> str:
        """A text as a sequence of control tokens and literals in Lark."""
        parts: list[str | int] = [""]
        place = 0
        for mark in _MARK.finditer(text):
            token = self._special(mark[0])
            if token is not None:
                parts += [text[place : mark.start()], token]
                place = mark.end()
        parts.append(text[place:])
        return " ".join(f"<[{part}]>" if isinstance(part, int) else json.dumps(part) for part in parts if part != "")

    def until(self, text: str, name: str) -> str:
        """Any text up to the first occurrence of `text`, which is included; `name` is for a rule that this may need."""
        for mark in _MARK.finditer(text):  # what stands in front of a control token counts as text
            token = self._special(mark[0])
            if token is not None:
                return f"TEXT <[{token}]> {self.text(text[mark.end() :])}".rstrip()
        self._rules[f"{name}[lazy]: TEXT {json.dumps(text)}"] = None
        return name

    def body(self, name: str, arguments: str) -> str:
        """A call from behind `call_start` to `call_end`; `arguments` is the name of the rule for its arguments."""
        form = self._form
        if form.syntax is ArgumentSyntax.HARMONY:
            return harmony.call_rule(self, name, arguments)
        if form.separator is not None:
            call_id = f"{self.text(form.id_key)} ID " if form.id_key else ""
            if form.number_key:
                self.rule("NUMBER", "/[1-9][0-9]{0,3}/")
                call_id = f"{self.text(form.number_key)} NUMBER "
            before = f"ID_IN_FRONT {self.text(form.id_end)} " if form.id_end else ""
            again = f"{self.text(form.name_again)} {self.text(name)} " if form.name_again else ""
            head = f"{before}{self.text(name)} {again}{call_id}{self.text(form.separator)}"
            tail = self.text(form.call_end)
        else:
            name_key, arguments_key = json.dumps(form.name_key), json.dumps(form.arguments_key)
            number = ""
            if form.number_key:
                self.rule("NUMBER", r"/[0-9]{1,4}/")
                number = f'{self.text(f"{{{json.dumps(form.number_key)}: ")} "\\"" NUMBER "\\", "'
            head = self.text(f"{'' if number else '{'}{name_key}: {json.dumps(name)}, {arguments_key}: ")
            head = f"{number} {head}"
            call_id = f"{self.text(f', {json.dumps(form.id_key)}: ')} ID_IN_QUOTES " if form.id_key else ""
            tail = call_id + self.text("}" + form.call_end)
        return f"{head} {arguments} {tail}".rstrip()

    def calls(self, parallel: bool) -> str:
        """The calls of a reply, from behind the trigger on."""
        form = self._form
        if form.id_key:
            # Only Mistral's and Kimi's models write ids in calls.
            self.rule("ID", "/[0-9]{1,9}/" if form.id_prefix else "/[a-zA-Z0-9]{9}/")
            self.rule("ID_IN_QUOTES", '"\\"" ID "\\""')
        if form.id_end:
            self.rule("ID_IN_FRONT", "/[a-z0-9]{10}/")
        more = ""
        if parallel and may_be_several(form):
            more = f"({self.text(form.between + form.call_start)} call)*"
        if self._short:
            self.rule("calls_from_short", f"call {more}")
        return " ".join(filter(None, (self.text(self._rest), "call", more, self.text(form.section_end))))

    def thought(self, begins: str, ends: str) -> str:
        """Reasoning between its marks, or the end of one alone: so MiniMax M3 begins a reply without a thought."""
        return f"{self.text(begins)} {self.until(ends, 'thought_through')} | {self.text(ends)}"

    def free(self) -> str:
        """Free text. Without a mark that begins a call, the first character tells free text from a call."""
        if self._has_mark:
            return r"/(.|\n)*/"
        first = ord((self._trigger or "{")[0])
        return rf"/(\s*[^\s\x{{{first:x}}}](.|\n)*)?/"

    def free_replies(self, text: str, name: str) -> list[str]:
        """Replies of free text, or of free text and calls; `name` is for a rule that this may need."""
        begins, ends, *last = self._answer_marks
        answer = " ".join(filter(None, (begins, text, ends)))
        whole = " ".join((answer, *last))
        if not self._has_mark:
            return [whole, self.called]
        # A mark that is a token may be spelled out too; ReplyParser sees no difference.
        self._rules[f"{name}[lazy]: {text} {json.dumps(self._trigger)}"] = None
        replies = [whole, f"{begins} {name} calls {self._tail}".strip()]
        if self._short:
            self._rules[f"{name}_short[lazy]: {text} {json.dumps(self._short)}"] = None
            replies.append(f"{begins} {name}_short calls_from_short {self._tail}".strip())
        if self._opening:
            return [*(f"{self._opening} {reply}" for reply in replies), self.called]
        trigger = self.text(self._trigger)
        return [*replies, f"{answer} {trigger} calls {self._tail}"] if trigger.startswith("<[") else replies
