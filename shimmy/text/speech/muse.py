"""Messages to recipients, as Muse Glimmer writes its replies: to itself, to the user, to a tool, with tagged arguments.

All that is known of this way of writing: recognising its template, the grammar of a reply and reading it back. The
arguments are `tagged`'s. Knows no tokens.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

from shimmy.messages.reply import ArgumentSyntax, ToolFormat
from shimmy.text.channel_reader import ChannelListener, ChannelReader
from shimmy.text.incremental_reader import IncrementalReader, Reading, Unexpected
from shimmy.text.speech.grammar_writer import GrammarWriter
from shimmy.text.speech.tagged import TaggedReader
from shimmy.text.string_matcher import StringMatcher

_BODY, _END, _NEXT = "<|message|>", "<|eom|>", "<|start|>assistant"
MARKS = ("<|start|>", _BODY, _END, "<|eot|>")
THINKING = (f"to=self{_BODY}", _END)
_CALLS = "<atem:function_calls>"
_INVOKE, _INVOKED, _CALLED = '<atem:invoke name="', "</atem:invoke>", "</atem:function_calls>"
FORM = ToolFormat(
    call_start=" to=",
    call_end=f"\n{_INVOKED}\n{_CALLED}",
    between=f"{_END}{_NEXT}",
    name_again=f"{_BODY}{_CALLS}\n{_INVOKE}",
    separator='">',
    syntax=ArgumentSyntax.TAGGED,
    key_start='\n<atem:parameter name="',
    key_end='">',
    value_end="</atem:parameter>",
)


def is_taught(template: str) -> bool:
    """Whether a template writes messages of this form."""
    return _CALLS in template and "<|start|>assistant to=self<|message|>" in template


# -- forcing it


def reply_rule(grammar: GrammarWriter, *, is_required: bool, is_thinking: bool, is_parallel: bool) -> str:
    """A reply of reasoning, and then of an answer, which further `call`s may follow, or of calls alone.

    `is_thinking`: what came before ends behind the end of reasoning.
    """
    next_call = f'{grammar.text(FORM.between)} " to=" call'
    grammar.rule("all_calls", f"call ({next_call})*" if is_parallel else "call")
    options = [_thought(grammar, "message"), "all_calls"]
    if not is_required:
        then = f'{grammar.until(_END, "answer_through")} {grammar.text(_NEXT)} " to=" all_calls'
        grammar.rule("answer", f"{grammar.text(_BODY)} (TEXT | {then})")
        options.append('"user" answer')
    to_user = "" if is_required else " | answer"
    grammar.rule("message", f'" to=" ({" | ".join(options)}){to_user}')
    return f"{_opening(grammar, is_thinking=is_thinking)} message"


def answer_head(grammar: GrammarWriter, *, is_thinking: bool) -> str:
    """What stands in front of an answer: reasoning, and the header of the message to the user."""
    grammar.rule("to_user", f'" to=" ({_thought(grammar, "to_user")} | "user" {grammar.text(_BODY)})')
    return f"{_opening(grammar, is_thinking=is_thinking)} to_user"


def _thought(grammar: GrammarWriter, then: str) -> str:
    """In front of the rule `then`. What messages begin with alike is one literal: a lexer does not go back."""
    grammar.rule("TEXT", r"/(.|\n)*/")
    return f'"self" {grammar.text(_BODY)} {grammar.until(_END, "thought_through")} {grammar.text(_NEXT)} {then}'


def _opening(grammar: GrammarWriter, *, is_thinking: bool) -> str:
    return grammar.text(_NEXT) if is_thinking else ""


# -- reading it

_HEADER_CHARACTERS = 256
_HEADER = re.compile(r"\s*+(?:to=(?P<to>[\w.:/-]++)\s*+)?")
_CUT_HEADER = re.compile(r"\s*+(?:t|to|to=[\w.:/-]*+\s*+)?")
_BODY_BEGINS = re.compile(re.escape(_BODY))
_NAME_ENDS = re.compile(re.escape(FORM.separator or ""))
_NAME = re.compile(r"[\w.:/-]+")


class MuseReader(ChannelReader):
    """Reads a whole reply, from behind `<|start|>assistant` on."""

    openings = (_NEXT, " to=", "to=", _BODY)
    heads = (_NEXT,)
    ends = StringMatcher(_END, "<|eot|>", _NEXT)
    ends_of_reasoning = ends

    def __init__(
        self,
        reader: IncrementalReader,
        listener: ChannelListener,
        *,
        has_tools: bool,
        is_thinking: bool,
        argument_types: Mapping[str, Mapping[str, frozenset[str]]],
    ) -> None:
        super().__init__(reader, listener, has_tools=has_tools, is_thinking=is_thinking)
        self._argument_types = argument_types

    def _read_message(self) -> Reading[bool]:
        reader = self._reader
        yield from reader.expect(_NEXT)
        try:
            header = yield from reader.before(_BODY_BEGINS, _HEADER_CHARACTERS)
        except Unexpected:
            header = None
        raw = "".join(reader.unsaid)
        reader.unsaid.clear()
        found = None if header is None else _HEADER.fullmatch(header)
        if header is None and reader.is_last and _CUT_HEADER.fullmatch(reader.ahead.partition("<")[0]):
            reader.ahead = ""
            return False
        recipient = found and (found["to"] or "user")
        if recipient == "self":
            return (yield from self._read_reasoning(raw))
        if recipient == "user":
            return (yield from self._read_body(self._spaced("content", self._listener.content)))
        if recipient is not None and self._has_tools:
            return (yield from self._read_calls(raw))
        self._listener.content(raw)
        return (yield from self._read_body(self._listener.content))

    def _read_calls(self, raw: str) -> Reading[bool]:
        """The calls in a message to a tool; a message without any is content, header and all."""
        reader = self._reader
        self.is_in_call = True
        say = self._listener.content
        try:
            yield from reader.require(_CALLS)
            yield from reader.require(_INVOKE)
            while True:
                yield from self._read_call()
                say = self._behind_arguments()
                raw = ""
                yield from reader.space()
                if not (yield from reader.expect(_INVOKE)):
                    break
        except Unexpected:
            pass
        yield from reader.expect(_CALLED)
        self.is_in_call = False
        if raw and not reader.is_last:  # a call that was cut is dropped
            self._listener.content(raw + "".join(reader.unsaid))
        reader.unsaid.clear()
        return (yield from self._read_body(say))

    def _read_call(self) -> Reading[None]:
        reader = self._reader
        name = (yield from reader.before(_NAME_ENDS, _HEADER_CHARACTERS)).strip()
        form = replace(FORM, call_end=_INVOKED)
        arguments = TaggedReader(reader, form, self._argument_types.get(name, {}))
        yield from arguments.require_arguments()
        if not _NAME.fullmatch(name):
            raise Unexpected
        reader.unsaid.clear()
        self._listener.begin_call(name, None)
        yield from arguments.read(self._listener.arguments)
        yield from reader.space()
        yield from reader.expect(_INVOKED)
        reader.unsaid.clear()
