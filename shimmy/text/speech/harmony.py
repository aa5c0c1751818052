"""Messages in channels, as gpt-oss writes its replies: analysis, commentary with calls, final.

https://github.com/openai/harmony. All that is known of this way of writing: recognising its template, the grammar of a
reply and reading it back. A header has the recipient of a call in one of two places; models damage some headers, and
these are given as text. Knows no tokens.
"""

import re

from shimmy.messages.reply import ArgumentSyntax, ToolFormat
from shimmy.text.channel_reader import ChannelReader
from shimmy.text.incremental_reader import Reading, Unexpected
from shimmy.text.speech.grammar_writer import GrammarWriter
from shimmy.text.string_matcher import StringMatcher

MARKS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
THINKING = ("<|channel|>analysis<|message|>", "<|end|>")
FORM = ToolFormat(
    call_start="<|channel|>commentary to=functions.",
    separator=" <|constrain|>json<|message|>",
    syntax=ArgumentSyntax.HARMONY,
)
_NEXT = "<|start|>assistant"
_BODY = "<|message|>"
_FUNCTIONS = "functions."


def is_taught(template: str) -> bool:
    """Whether a template writes messages in channels."""
    return all(
        mark in template for mark in ("<|start|>assistant", "<|channel|>analysis<|message|>", "<|channel|>final")
    )


# -- forcing it


def call_rule(grammar: GrammarWriter, name: str, arguments: str) -> str:
    """A whole message that calls `name`; `arguments` is the rule of its arguments."""
    channel = f"{_channel(grammar, 'commentary')} | {_channel(grammar, 'analysis')}"
    recipient = grammar.text(f" to={_FUNCTIONS}{name}")
    return f"(({channel}) {recipient} | {recipient} ({channel})) {_kind(grammar)} {grammar.text(_BODY)} {arguments}"


def reply_rule(grammar: GrammarWriter, *, is_required: bool, is_thinking: bool) -> str:
    """A reply of reasoning, and of one `call` or, where that is not required, an answer.

    `is_thinking`: what came before ends behind the end of reasoning.
    """
    if is_required:
        return f"{_head(grammar, is_thinking=is_thinking)} call"
    grammar.rule("preamble", f"{_channel(grammar, 'commentary')} {_rest(grammar, 'preamble')}")
    final = f"{_final(grammar)} TEXT"
    return f"{_head(grammar, 'preamble', is_thinking=is_thinking)} (call | {final})"


def answer_head(grammar: GrammarWriter, *, is_thinking: bool) -> str:
    """What stands in front of an answer: reasoning, and the header of the final message."""
    return f"{_head(grammar, is_thinking=is_thinking)} {_final(grammar)}"


def _head(grammar: GrammarWriter, *others: str, is_thinking: bool) -> str:
    grammar.rule("analysis", f"{_channel(grammar, 'analysis')} {_rest(grammar, 'analysis')}")
    grammar.rule("TEXT", r"/(.|\n)*/")
    opening = f"{grammar.text(_NEXT)} " if is_thinking else ""
    return f"{opening}({' | '.join(('analysis', *others))})*"


def _rest(grammar: GrammarWriter, name: str) -> str:
    return f"{grammar.text(_BODY)} {grammar.until(THINKING[1], f'{name}_body')} {grammar.text(_NEXT)}"


def _channel(grammar: GrammarWriter, name: str) -> str:
    """In two parts: a lexer that has begun a longer one does not come back to a shorter one."""
    return f'{grammar.text("<|channel|>")} "{name}"'


def _final(grammar: GrammarWriter) -> str:
    return f"{_channel(grammar, 'final')} {_kind(grammar)} {grammar.text(_BODY)}"


def _kind(grammar: GrammarWriter) -> str:
    """How the body is written, which models say or leave out."""
    return f'(" "? {grammar.text("<|constrain|>")} "json" | " json")?'


# -- reading it

_HEADER_CHARACTERS = 256
_HEADER = re.compile(
    r"(?P<role>\w*+)(?P<to_role>\s++to=\S*?)?(?:<\|channel\|>\s*+(?P<channel>\w*+)(?P<to_channel>\s++to=\S*?)?)?"
    r"(?:\s*+<\|constrain\|>\s*+[\w-]*+|\s++[\w-]*+)?\s*+"
)
_NAME = re.compile(r"[\w.:/-]+")
_CUT_MARK = re.compile(r"<\|?\w*\|?$")
_CHANNELS = ("analysis", "commentary", "final")
# With which a reply, or what follows a message, begins where it has a header.
_OPENINGS = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", " to=functions.")
# What ends a message. `<|call|>` and `<|return|>` end a reply, and the engine ends the text there.
_ENDS = StringMatcher("<|end|>", _NEXT)
_ENDS_OF_REASONING = StringMatcher("<|end|>", _NEXT, *(f"<|channel|>{channel}" for channel in _CHANNELS))
_ENDS_OF_CALL = StringMatcher("<|end|>", "<|call|>", _NEXT)


class HarmonyReader(ChannelReader):
    """Reads a whole reply, from behind `<|start|>assistant` on."""

    openings = _OPENINGS
    heads = (_NEXT, "<|channel|>")
    ends = _ENDS
    ends_of_reasoning = _ENDS_OF_REASONING

    def _read_message(self) -> Reading[bool]:
        reader = self._reader
        yield from reader.expect("<|start|>")
        try:
            header = yield from reader.before(re.compile(re.escape(_BODY)), _HEADER_CHARACTERS)
        except Unexpected:
            if reader.is_last and _is_header(_CUT_MARK.sub("", reader.ahead)):
                reader.ahead = ""
                reader.unsaid.clear()
            header = None
        raw = "".join(reader.unsaid)
        reader.unsaid.clear()
        found = None if header is None else _HEADER.fullmatch(header)
        if found is None or not _is_known(found):
            self._listener.content(raw)
            return (yield from self._read_body(self._listener.content))
        recipient = (found["to_role"] or found["to_channel"] or "").strip().removeprefix("to=")
        name = recipient.removeprefix(_FUNCTIONS)
        if recipient.startswith(_FUNCTIONS) and self._has_tools and _NAME.fullmatch(name):
            self._listener.begin_call(name, None)
            return (yield from self._read_arguments())
        if found["channel"] == "analysis" and not recipient.startswith(_FUNCTIONS):
            return (yield from self._read_reasoning(raw))
        if recipient not in {"", "assistant", "user"}:
            self._listener.content(raw)
        return (yield from self._read_body(self._spaced("content", self._listener.content)))

    def _read_arguments(self) -> Reading[bool]:
        """The arguments: JSON, in which the texts of marks are no marks, or else whatever the body is."""
        reader = self._reader
        self.is_in_call = True
        yield from reader.space()
        reader.unsaid.clear()
        first = yield from reader.peek()
        say = self._listener.arguments
        if first == "{":
            yield from reader.value(say)
            say = self._behind_arguments()
        elif reader.ahead.startswith("<"):
            say("{}")  # what a model means that writes none
            say = self._behind_arguments()
        has_end = yield from self._read_body(say, ends=_ENDS_OF_CALL)
        self.is_in_call = False
        return has_end


def _is_header(text: str) -> bool:
    found = _HEADER.fullmatch(text)
    return found is not None and any(name.startswith(found["channel"] or "") for name in _CHANNELS)


def _is_known(found: re.Match[str]) -> bool:
    return found["role"] in {"", "assistant"} and found["channel"] in {None, "", *_CHANNELS}
