"""Keeps what callers write from becoming control tokens: these come from a model's chat template alone.

Knows the texts of a model's control tokens; nothing of token ids, nor how a text is tokenized. Where such a text occurs
in a caller's message, one of its characters is replaced by a stand-in (a private-use character) before the template
sees the message, one for one, so that a template may trim, cut, quote or compare the text. Afterwards the stand-ins
show where the prompt has to be cut so that no control token is found across a cut.
"""

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from unicodedata import normalize

from shimmy.errors import BadRequest
from shimmy.formats.tokenizer.normalizer import Form
from shimmy.messages.request import ChatPrompt, Message, Tool, ToolCall

# So many first characters of a control token are searched for in a text; a match is then compared in full.
_MAX_SOUGHT = 64
_WINDOW = 1 << 16  # characters that are looked through at once
# Different beginnings that are searched for; where a vocabulary has more, only their first two characters are.
_MAX_FORMS = 8_192
# Reserved tokens differ in their number alone.
_NUMBER = re.compile(r"[0-9]+")
_ANY_NUMBER = "0"
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")
_STAND_INS = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))  # private use

_Tree = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Guarded:
    """A prompt without control tokens in its callers' texts, and the characters that its stand-ins replace."""

    prompt: ChatPrompt
    characters: dict[int, str]  # of each stand-in, by its code point: a table for `str.translate`


class ControlTokens:
    """The control tokens of one model, by their texts.

    `normal` is the form that its tokenizer gives a text before anything else; '' for none.
    """

    def __init__(self, texts: Iterable[str], normal: Form = "") -> None:
        self._normal = normal
        self._texts = frozenset(text for text in texts if len(text) > 1)
        self._lengths = sorted(set(map(len, self._texts)), reverse=True)
        forms = {_form(text[:_MAX_SOUGHT]) for text in self._texts}
        if len(forms) > _MAX_FORMS:
            forms = {form[:2] for form in forms}
        self._begins = _tree(forms)
        self._ends = _tree({_form(text[-_MAX_SOUGHT:])[::-1] for text in self._texts} if self._begins else ())
        self._first = frozenset(_cases(self._begins))
        self._last = frozenset(_cases(self._ends))
        # Upper and lower case alike: a template may change it. Matches one character, as tokens may overlap.
        begins = (f"{_pattern(first)}(?={_alternatives(rest)})" for first, rest in self._begins.items())
        self._pattern = re.compile("|".join(begins) or "(?!)", re.IGNORECASE)

    def guard(self, prompt: ChatPrompt, marks: tuple[str, ...] = (), template: str = "") -> Guarded:
        """`prompt` with stand-ins in all texts of callers. They occur nowhere else in the prompt, nor in `template`.

        Messages of the assistant keep `marks`, the marks of reasoning: templates look for them.
        """
        texts = list(_texts_of(prompt))
        if not self._texts or not any(map(self._is_suspect, texts)):
            return Guarded(prompt, {})
        stand_ins = _StandIns([*texts, template])
        return Guarded(_changed(prompt, self._guards(stand_ins, ()), self._guards(stand_ins, marks)), stand_ins.known)

    def parts(self, text: str, guarded: Guarded) -> list[str]:
        """The parts of a rendered `text`, without stand-ins: each part is searched for control tokens by itself."""
        if not guarded.characters:
            return [text]
        stand_ins = "".join(map(chr, guarded.characters))
        for stand_in in stand_ins:  # as JSON in ASCII, or Python, writes it
            text = text.replace(ascii(stand_in)[1:-1], stand_in)
        places = [match.start() for match in re.finditer(f"[{stand_ins}]", text)]
        text = "".join(text[at : at + _WINDOW].translate(guarded.characters) for at in range(0, len(text), _WINDOW))
        cuts = sorted(set(self._cuts(text, places)))
        return [text[start:end] for start, end in zip((0, *cuts), (*cuts, len(text)), strict=True)]

    def _cuts(self, text: str, places: list[int]) -> Iterator[int]:
        """Where to cut `text` so that no control token has one of the characters at `places` in it."""
        for start in self._places(text):
            index = bisect_left(places, start)
            if index < len(places) and (place := places[index]) < start + self._length_at(text, start):
                yield place if place > start else place + 1

    def _length_at(self, text: str, start: int) -> int:
        """The length of the longest control token in `text` at `start`; 0 where there is none."""
        return next((n for n in self._lengths if text[start : start + n] in self._texts), 0)

    def _is_suspect(self, text: str) -> bool:
        return (
            next(self._places(self._as_tokenized(text)), None) is not None
            or next(self._border_places(text), None) is not None
            or ("\\" in text and any(map(self._is_suspect, _strings_of_json(text))))
        )

    def _as_tokenized(self, text: str) -> str:
        """`text` in its normal form, where that makes control tokens of it."""
        if not self._normal or text.isascii():
            return text
        normal = normalize(self._normal, text)
        return text if next(self._places(normal), None) is None else normal

    def _places(self, text: str) -> Iterator[int]:
        """Where control tokens, or texts like one, begin in `text`. Python's lock is not held for long at once."""
        for first in range(0, len(text), _WINDOW):
            for match in self._pattern.finditer(text, first, first + _WINDOW + _MAX_SOUGHT**2):
                if match.start() >= first + _WINDOW:
                    break  # in the next window too
                yield match.start()

    def _border_places(self, text: str) -> Iterator[int]:
        """Places at the beginning or the end of `text` that may be part of a control token with the text around it."""
        stripped = text.strip()
        end = len(text.rstrip())
        tail = stripped[-_MAX_SOUGHT:]
        if not self._first.isdisjoint(tail):
            for place, character in enumerate(tail):
                if character in self._first and _goes_on(self._begins, tail[place:]):
                    yield end - len(tail) + place
        head = stripped[:_MAX_SOUGHT]
        if not self._last.isdisjoint(head):
            for place, character in enumerate(head):
                if character in self._last and _goes_on(self._ends, head[place::-1]):
                    yield len(text) - len(text.lstrip()) + place

    def _guards(self, stand_ins: "_StandIns", marks: tuple[str, ...]) -> Callable[[str], str]:
        def guard(text: str) -> str:
            text = self._as_tokenized(text)
            places = set(self._places(text))
            places.update(self._border_places(text))
            if not places:
                return text
            pieces: list[str] = []
            end = 0
            for place in sorted(places):
                if not any(text.startswith(mark, place) for mark in marks):
                    pieces += (text[end:place], stand_ins.of(text[place]))
                    end = place + 1
            return "".join([*pieces, text[end:]])

        return guard


class _StandIns:
    """Gives each character a stand-in that occurs in none of some texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        used: set[str] = set()
        for text in texts:
            for at in range(0, len(text), _WINDOW):
                used.update(text[at : at + _WINDOW])
            used.update(chr(int(code, 16)) for code in _ESCAPE.findall(text))
        self._free = (chr(code) for codes in _STAND_INS for code in codes if chr(code) not in used)
        self._given: dict[str, str] = {}
        self.known: dict[int, str] = {}

    def of(self, character: str) -> str:
        if character not in self._given:
            stand_in = next(self._free, None)
            if stand_in is None:
                raise BadRequest("the messages use every private-use character there is", param="messages")
            self._given[character], self.known[ord(stand_in)] = stand_in, character
        return self._given[character]


# -- what callers write in a prompt


def _texts_of(prompt: ChatPrompt) -> Iterator[str]:
    for turn in prompt.messages:
        yield from filter(None, (turn.content, turn.reasoning_content, turn.name, turn.tool_call_id))
        for call in turn.tool_calls:
            yield from (call.id, call.name, call.arguments)
    for tool in prompt.tools:
        yield from (tool.name, tool.description, tool.parameters)
    yield prompt.template_arguments


def _changed(prompt: ChatPrompt, guard: Callable[[str], str], guard_reply: Callable[[str], str]) -> ChatPrompt:
    def optional(text: str | None, change: Callable[[str], str] = guard) -> str | None:
        return None if text is None else change(text)

    def call(given: ToolCall) -> ToolCall:
        return ToolCall(guard(given.id), guard(given.name), _changed_json(given.arguments, guard))

    def turn(given: Message) -> Message:
        return replace(
            given,
            content=optional(given.content, guard_reply if given.role == "assistant" else guard),
            reasoning_content=optional(given.reasoning_content),
            name=optional(given.name),
            tool_call_id=optional(given.tool_call_id),
            tool_calls=tuple(map(call, given.tool_calls)),
        )

    def tool(given: Tool) -> Tool:
        return replace(
            given,
            name=guard(given.name),
            description=guard(given.description),
            parameters=_changed_json(given.parameters, guard),
        )

    return replace(
        prompt,
        messages=tuple(map(turn, prompt.messages)),
        tools=tuple(map(tool, prompt.tools)),
        template_arguments=_changed_json(prompt.template_arguments, guard),
    )


def _changed_json(text: str, guard: Callable[[str], str]) -> str:
    """JSON text with its strings changed, spelled as it was where nothing hides behind an escape."""
    if "\\" in text and any(guard(string) != string for string in _strings_of_json(text)):
        with suppress(RecursionError):
            return json.dumps(_changed_value(json.loads(text), guard), ensure_ascii=False)
    return guard(text)


def _changed_value(value: Any, guard: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return guard(value)
    if isinstance(value, list):
        return [_changed_value(item, guard) for item in value]
    if isinstance(value, dict):
        return {guard(key): _changed_value(item, guard) for key, item in value.items()}
    return value


def _strings_of_json(text: str) -> list[str]:
    """All strings in JSON text, keys too; none for text that is no JSON, which a template gets as it is."""
    try:
        waiting = [json.loads(text)]
    except (ValueError, RecursionError):
        return []
    found: list[str] = []
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            found += value
            waiting += value.values()
    return found


# -- looking for many texts at once, in time that their number does not change


def _form(text: str) -> str:
    return _NUMBER.sub(_ANY_NUMBER, "".join(map(_lower, text)))


def _lower(character: str) -> str:
    lower = character.lower()
    return lower if len(lower) == 1 else character


def _cases(tree: _Tree) -> Iterator[str]:
    for character in tree:
        yield from "0123456789" if character == _ANY_NUMBER else (character, character.upper())


def _tree(forms: Iterable[str]) -> _Tree:
    """`forms` by their characters; an empty key says that one ends there."""
    root: _Tree = {}
    for form in forms:
        node = root
        for character in form:
            node = node.setdefault(character, {})
        node[""] = {}
    return root


def _alternatives(node: _Tree) -> str:
    """A pattern for the shortest of the forms in a tree that stands at a place."""
    written = ""
    while "" not in node:
        if len(node) != 1:
            return f"{written}(?:{'|'.join(_pattern(first) + _alternatives(rest) for first, rest in node.items())})"
        (first, node), *_ = node.items()
        written += _pattern(first)
    return written


def _pattern(character: str) -> str:
    return f"[0-9]{{1,{_MAX_SOUGHT}}}" if character == _ANY_NUMBER else re.escape(character)


def _goes_on(tree: _Tree, text: str) -> bool:
    """Whether `text` to its end is the beginning of a form, or more."""
    node: _Tree | None = tree
    place = 0
    while node is not None and place < len(text):
        if "" in node:
            return False  # a whole one, which stands for itself
        number = _NUMBER.match(text, place)
        node = node.get(_ANY_NUMBER if number else _lower(text[place]))
        place = number.end() if number else place + 1
    return node is not None and "" not in node
