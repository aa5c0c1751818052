"""What a reply has to look like, as a Guide of its tokens, which llguidance makes.

Knows how grammars are put together and what they may cost. Knows no scheduler and no llama.cpp: a Vocabulary has the
model's tokens. JSON Schemas are checked in `json_schema` and loosened in `enforceable_schema`; GBNF is read in `gbnf`.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from shimmy.engine import deep_thread
from shimmy.engine.constrain import forced_text, llguidance_module
from shimmy.engine.constrain.enforceable_schema import SearchBudget, enforceable, without_impossible
from shimmy.engine.constrain.gbnf.lark import MAX_GRAMMAR_CHARACTERS, to_lark
from shimmy.engine.constrain.json_schema import MAX_CHARACTERS, keyword_at_fault, prepared
from shimmy.engine.constrain.lark_in_json import NotInJson, lark_in_json
from shimmy.engine.constrain.simpler_schema import Schema
from shimmy.errors import BadRequest, Internal
from shimmy.messages.request import Grammar, GrammarKind
from shimmy.text.surrogates import has_lone_surrogate

# Stands before the bytes of a token that text does not show; no text in UTF-8 has this byte.
_HIDDEN = b"\xff"
# llguidance computes the mask of these texts beforehand, and makes the mask of a string from it. One such slice adds a
# third to the time of making the tokenizer, and saves most of what several would save.
_SLICES = ['[^"\\\\\\x00-\\x1F\\x7F]{1,30}']
# llguidance recurses over references: 9 KB of stack for 22 characters was the worst that was found.
_STACK_BYTES = 16 << 20
_STACK_BYTES_FOR_EACH = 1 << 10
# Symbols of a grammar (a schema of 200 properties has 2,000), and how many of its rules may apply at one place: four
# for each property that may come next.
_MAX_GRAMMAR_SIZE = 60_000
_MAX_ITEMS = 20_000
# Applications send the same few schemas again and again; a large one takes milliseconds to read and tens of
# milliseconds to compile.
_N_KNOWN = 8
# Forced text is built and tokenized in one call, by the thread that decodes, on an ordinary stack, with Python's lock.
# Where it may have more characters than this, each of its tokens is sampled instead.
_MAX_FORCED = 16_384
_NOTHING_FORCED = '%llguidance {"no_forcing": true}\nstart: @unforced\n'
_SPACE = "\u2581"  # as SentencePiece writes a space: its vocabularies take one for the other
_N_SCHEMAS_KNOWN = 256  # of tools
_Asked = tuple[Grammar | None, str | None, str | None, str]  # the arguments of `Grammars.guide`
_COMPILE_DEADLINE_S = 5.0
Key = TypeVar("Key")
Value = TypeVar("Value")
_MAX_TEXT = 2 * MAX_CHARACTERS  # of all grammars of a reply together
_MAX_REASON = 300  # characters
_IMPOSSIBLE = "Unsatisfiable schema"  # so llguidance says it


class Vocabulary(Protocol):
    """What a guide needs to know of a model's tokens: `llama.LlamaVocab`."""

    n_vocab: int

    def token_bytes(self, token: int, *, special: bool) -> bytes: ...  # without `special`, as text shows it
    def end_tokens(self) -> list[int]: ...
    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...
    # Of llama.cpp's vocabulary, and of a function as llama_tokenize.
    def tokenizer_addresses(self) -> tuple[int, int]: ...


class GrammarGuide:
    """Follows the tokens of one reply, and knows which may come next. One thread at a time may use it.

    Its methods raise BadRequest when the grammar outgrows its limits, or allows nothing in an unfinished reply. `lost`
    names the parts of the schema that are not enforced, in words.
    """

    def __init__(self, matcher: Any, lost: tuple[str, ...] = ()) -> None:
        self._matcher = matcher
        self.lost = lost

    @property
    def is_over(self) -> bool:
        """Whether no token may follow."""
        if not self._matcher.is_stopped():
            return False
        self._check()
        return True

    def allows(self, token: int) -> bool:
        """Whether `token` may come next; takes some microseconds, where `allowed` takes up to milliseconds."""
        if self._matcher.is_stopped():
            self._check()
        return bool(self._matcher.validate_tokens([token]))

    def allowed(self) -> bytes:
        """A bit for each token of the vocabulary, the lowest of a byte first; further bits mean nothing."""
        mask: bytes = self._matcher.compute_bitmask()
        self._check()
        return mask

    def accept(self, token: int) -> None:
        """Go on with `token`, which has to be allowed."""
        if not self._matcher.consume_token(token):
            self._check()
            raise Internal(f"token {token} is not what the grammar allows")

    def forced(self) -> list[int]:
        """The tokens that have to come next, as the model's tokenizer makes them; none where there is a choice."""
        tokens: list[int] = self._matcher.compute_ff_tokens()
        self._check()
        return tokens

    def _check(self) -> None:
        if self._matcher.is_error():
            raise BadRequest(f"the grammar cannot be followed any further: {_reason(self._matcher)}")
        if self._matcher.is_stopped() and not self._matcher.is_accepting():
            raise BadRequest("the grammar leads to a place where nothing can follow")


class _Latest(Generic[Key, Value]):
    """The values of the few keys that were asked for last."""

    def __init__(self, n_max: int) -> None:
        self._n_max = n_max
        self._lock = threading.Lock()
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def add(self, key: Key, value: Value) -> Value:
        with self._lock:
            self._values[key] = value
            if len(self._values) > self._n_max:
                self._values.popitem(last=False)
        return value


class Grammars:
    """Makes the guides of one model. The first guide loads llguidance and its tokenizer. Any thread may use it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._hidden: set[int] = set()  # tokens that text does not show
        self._library: Any = None
        self._tokenizer: Any = None
        self._tokenizer_lock = threading.Lock()
        self._known: _Latest[_Asked, tuple[Any, tuple[str, ...]]] = _Latest(_N_KNOWN)  # matchers at the beginning
        self._known_schemas: _Latest[tuple[str, bool], tuple[Schema, tuple[str, ...]]] = _Latest(_N_SCHEMAS_KNOWN)
        self._known_texts: _Latest[str, tuple[str, str]] = _Latest(_N_KNOWN)

    def guide(
        self, grammar: Grammar | None, tool_lark: str | None, thinking_end: str | None, answer_lark: str = ""
    ) -> GrammarGuide:
        """A guide at the beginning of a reply; raises BadRequest for what cannot be enforced.

        `tool_lark` is a grammar of llguidance, with its `start`. With both grammars, the reply is what one of them
        allows: `tool_lark` should then allow calls only, as free text would make `grammar` void. With `thinking_end`
        the reply begins with free text that ends with `thinking_end`, and the grammars apply behind it. `answer_lark`
        has the rule `answer_head` of what stands in front of what `grammar` describes.
        """
        asked = grammar, tool_lark, thinking_end, answer_lark
        matcher, lost = self._known.get(asked) or self._known.add(asked, self._matcher(*asked))
        return GrammarGuide(matcher.deep_copy(), lost)

    def schema(self, text: str, *, strict: bool) -> tuple[Schema, tuple[str, ...]]:
        """The schema in `text` as llguidance can enforce it, and the parts that are not enforced, in words.

        Raises BadRequest for text that is no schema, and with `strict` where a part would not be enforced.
        """
        known = self._known_schemas.get((text, strict))
        if known is None:
            known = self._strict_schema(text) if strict else enforceable(text, self.takes)
            self._known_schemas.add((text, strict), known)
        return known

    def _strict_schema(self, text: str) -> tuple[Schema, tuple[str, ...]]:
        schema = prepared(text)
        fault = keyword_at_fault(schema)
        if not fault and not self.takes(schema):
            _, lost = enforceable(text, self.takes)
            fault = f"{lost[0] if lost else 'the schema'} cannot be enforced"
        if fault:
            raise BadRequest(fault)
        return schema, ()

    def text_in_json(self, lark: str) -> tuple[str, str]:
        """A Lark grammar of a text as a grammar of the same text inside a JSON string's quotes.

        Returns the grammar and an empty fault, or an empty grammar and why it cannot be written. Raises BadRequest for
        text that is no grammar in Lark."""
        known = self._known_texts.get(lark)
        if known is None:
            if fault := self.lark_fault(lark) if len(lark) <= MAX_GRAMMAR_CHARACTERS else "it is too large":
                raise BadRequest(fault)
            known = self._known_texts.add(lark, self._text_in_json(lark))
        return known

    def _text_in_json(self, lark: str) -> tuple[str, str]:
        try:
            written = to_lark(lark_in_json(lark))
        except NotInJson as exc:
            return "", str(exc)
        except BadRequest as exc:
            return "", exc.message
        fault = self.lark_fault(written)
        return ("", fault) if fault else (written, "")

    def takes(self, schema: Schema) -> bool:
        """Whether llguidance can enforce a schema as it is, and compiles it in time."""
        try:
            return not self._fault({"json_schema": schema})
        except BadRequest:
            return False

    def without_impossible(self, schema: Schema, budget: SearchBudget) -> Schema:
        """A copy of a schema that values follow, with `false` in the place of the parts that none can follow, as far
        as `budget` goes."""
        return without_impossible(schema, self._is_impossible, budget)

    def _is_impossible(self, schema: Schema) -> bool:
        """Whether llguidance finds that no value follows a schema."""
        try:
            return _IMPOSSIBLE in self._fault({"json_schema": schema})
        except BadRequest:
            return False

    def lark_fault(self, lark: str) -> str:
        """Why llguidance refuses a Lark grammar; empty where it accepts it."""
        return _first_words(self._fault({"lark_grammar": lark}))

    def _fault(self, grammar: dict[str, Any]) -> str:
        library = self._loaded()
        text = json.dumps({"grammars": [grammar]}, ensure_ascii=False)
        _check_characters(text)
        fault: str = _on_deep_stack(
            lambda: library.LLMatcher.validate_grammar(text, None, limits=_limits(library)), text
        )
        return fault

    def load(self) -> None:
        """Load the library now; otherwise the first grammar does."""
        self._loaded()

    def _loaded(self) -> Any:
        if self._library is None:
            self._library = llguidance_module.loaded()
        return self._library

    def _matcher(
        self, grammar: Grammar | None, tool_lark: str | None, thinking_end: str | None, answer_lark: str
    ) -> tuple[Any, tuple[str, ...]]:
        """The compiled grammar, to be copied for each reply; and the parts that are not enforced."""
        self._loaded()
        with self._tokenizer_lock:
            if self._tokenizer is None:
                self._tokenizer = self._new_tokenizer()
        parts: list[dict[str, Any]] = []
        lost: tuple[str, ...] = ()
        if tool_lark is not None:
            parts.append({"lark_grammar": tool_lark})
        if grammar is not None:
            part, lost = self._part(grammar)
            parts.append(part)
        if not parts:
            raise Internal("a guide needs a grammar")
        return self._compiled(self._joined(parts, thinking_end, answer_lark if grammar is not None else "")), lost

    def _joined(self, parts: list[dict[str, Any]], thinking_end: str | None, answer_lark: str) -> list[dict[str, Any]]:
        """The grammars of a reply that one of `parts` allows, behind reasoning where there is an end to it.

        The last part is that of an answer where `answer_lark` says what stands in front of one.
        """
        if len(parts) == 1 and thinking_end is None and not answer_lark:
            return parts
        named = [{"name": f"part{index}", **part} for index, part in enumerate(parts)]
        replies = [f"@{part['name']}" for part in named]
        if answer_lark:
            replies[-1] = f"answer_head {replies[-1]}"
        reply = " | ".join(replies)
        top = f"start: {reply}" if thinking_end is None else f"start: thinking reply\nreply: {reply}\n"
        return [{"lark_grammar": f"{top}\n{self._thinking(thinking_end)}\n{answer_lark}"}, *named]

    def _part(self, grammar: Grammar) -> tuple[dict[str, Any], tuple[str, ...]]:
        """A grammar in the form that llguidance takes, and the parts that are not enforced."""
        if len(grammar.text) > MAX_CHARACTERS:
            raise BadRequest(f"the grammar is too large: {len(grammar.text)} characters, {MAX_CHARACTERS} are allowed")
        _check_characters(grammar.text)
        if grammar.kind is GrammarKind.JSON_SCHEMA:
            schema, lost = (prepared(grammar.text), ()) if grammar.strict else self.schema(grammar.text, strict=False)
            return {"json_schema": schema}, lost
        return {"lark_grammar": self._lark(grammar)}, ()

    def _lark(self, grammar: Grammar) -> str:
        match grammar.kind:
            case GrammarKind.GBNF:
                return to_lark(grammar.text)
            case GrammarKind.CHOICE:
                choices = [json.dumps(text, ensure_ascii=False) for text in json.loads(grammar.text)]
                return f"start: CHOICE\nCHOICE: {' | '.join(choices)}"
            case GrammarKind.REGEX:
                pattern = self._library.regex_to_lark(grammar.text).replace("\n", "\\n")
                return f"start: TEXT\nTEXT: {f'/{pattern}/' if pattern else json.dumps('')}"
            case _:
                if (size := len(grammar.text)) > MAX_GRAMMAR_CHARACTERS:
                    allowed = f"{MAX_GRAMMAR_CHARACTERS} are allowed"
                    raise BadRequest(f"the grammar is too large: {size} characters, {allowed}")
                return grammar.text

    def _thinking(self, end: str | None) -> str:
        """The rule `thinking`: any text that ends with `end`, which may have control tokens in it."""
        if end is None:
            return ""
        tokens = self._vocabulary.tokenize(end, add_special=False, parse_special=True)
        first = next((index for index, token in enumerate(tokens) if token in self._hidden), None)
        if first is None:
            return f"thinking[suffix={json.dumps(end)}]: /(?s:.*)/"
        # Text of `end` before its first control token counts as reasoning.
        return f"thinking: THOUGHTS {' '.join(map(self._lark_of, tokens[first:]))}\nTHOUGHTS: /(?s:.*)/"

    def _lark_of(self, token: int) -> str:
        if token in self._hidden:
            return f"<[{token}]>"
        return json.dumps(self._vocabulary.token_bytes(token, special=False).decode("utf-8", "replace"))

    def _compiled(self, grammars: list[dict[str, Any]]) -> Any:
        text = _as_text(grammars)
        if forced_text.longest(grammars) > _MAX_FORCED or self._is_misspelled(text):
            first, *others = grammars
            grammars = [{"lark_grammar": _NOTHING_FORCED}, {"name": "unforced", **first}, *others]
            text = _as_text(grammars)
        if len(text) > _MAX_TEXT:
            raise BadRequest(f"the grammars are too large together: {len(text)} characters, {_MAX_TEXT} are allowed")
        _check_characters(text)
        library = self._library
        matcher = _on_deep_stack(
            lambda: library.LLMatcher(self._tokenizer, text, log_level=0, limits=_limits(library)), text
        )
        if matcher.is_error() or (matcher.is_stopped() and not matcher.is_accepting()):
            schemas: list[Schema] = [part["json_schema"] for part in grammars if "json_schema" in part]
            fault = next(filter(None, map(keyword_at_fault, schemas)), "") or _reason(matcher)
            raise BadRequest(f"the {'schema' if schemas else 'grammar'} cannot be enforced: {fault}")
        return matcher

    def _is_misspelled(self, text: str) -> bool:
        """Whether the tokens of what grammars with this text may force would be those of something else."""
        if _SPACE not in text and json.dumps(_SPACE)[1:-1] not in text:
            return False
        tokens = self._vocabulary.tokenize(_SPACE, add_special=False, parse_special=False)
        return _SPACE.encode() not in b"".join(self._vocabulary.token_bytes(token, special=False) for token in tokens)

    def _new_tokenizer(self) -> Any:
        tokens = []
        for token in range(self._vocabulary.n_vocab):
            data = self._vocabulary.token_bytes(token, special=False)
            if not data:
                self._hidden.add(token)
                name = self._vocabulary.token_bytes(token, special=True)
                data = _HIDDEN + name if name else b""  # llguidance never allows a token without bytes
            tokens.append(data)
        ends = self._vocabulary.end_tokens()
        if not ends:  # llguidance insists on one
            ends = [len(tokens)]
            tokens.append(_HIDDEN + b"end")
        vocabulary, tokenize = self._vocabulary.tokenizer_addresses()
        return self._library.LLTokenizer.from_llamacpp(
            tokens=tokens, vocab_ptr=vocabulary, tokenize_fptr=tokenize, eos_token=ends, slices=_SLICES
        )


def _as_text(grammars: list[dict[str, Any]]) -> str:
    return json.dumps({"grammars": grammars}, ensure_ascii=False)


def _check_characters(text: str) -> None:
    if has_lone_surrogate(text):
        raise BadRequest("the grammar has half a character (a lone surrogate)")


def _limits(library: Any) -> Any:
    return library.LLParserLimits(max_grammar_size=_MAX_GRAMMAR_SIZE, max_items_in_row=_MAX_ITEMS, verbose_errors=False)


def _reason(matcher: Any) -> str:
    return _first_words(str(matcher.get_error())) or "nothing satisfies it"


def _first_words(error: str) -> str:
    """The first sentence of an error of llguidance; the rest is for its developers."""
    text = " ".join(error.partition("<non-verbose/>")[0].split())
    return text.partition(". ")[0][:_MAX_REASON]


def _on_deep_stack(call: Callable[[], Any], text: str) -> Any:
    """The result of `call`, which reads `text`, on a thread with stack for its recursions; BadRequest when it takes
    too long, as a short text can describe a large grammar."""
    try:
        return deep_thread.call(call, _STACK_BYTES + len(text) * _STACK_BYTES_FOR_EACH, _COMPILE_DEADLINE_S)
    except deep_thread.TooLong as exc:
        raise BadRequest(f"the grammar cannot be compiled within {_COMPILE_DEADLINE_S:g} s: make it smaller") from exc
