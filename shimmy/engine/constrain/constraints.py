"""Makes the guide of a job: the grammar, the tool calls and the end of reasoning that its reply has to obey.

Puts together `tool_grammar` (how calls look), `guides` (how grammars are followed) and `thinking_budget`. Knows the
model's vocabulary.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shimmy.engine.chat.detect_tool_format import marks
from shimmy.engine.constrain.thinking_budget import ThinkingBudget
from shimmy.engine.deep_thread import processor_s
from shimmy.engine.llama.vocab import LlamaVocab
from shimmy.engine.schedule.task import Guide
from shimmy.errors import BadRequest
from shimmy.messages.reply import PYTHON_TAG, ArgumentSyntax, ReplyFormat
from shimmy.messages.request import ChatPrompt, GenerateRequest, Tool
from shimmy.text.printable import shortened
from shimmy.text.speech import gemma, minimax, pythonic, tagged
from shimmy.text.speech.argument_types import lists_misfits

if TYPE_CHECKING:
    from shimmy.engine.constrain.enforceable_schema import SearchBudget
    from shimmy.engine.constrain.guides import Grammars

_ANY_OBJECT = '{"type":"object"}'
_NOT_OF_AN_OBJECT = "the schema, which is not one of an object,"  # not enforced at all
_NOT_SEARCHED = "the schema, which is too large to find the arguments that can have no value,"  # the same
# Of the processor, for the schemas of all tools of a job; large ones that come later are not enforced.
_LOOKING_S = 1.0
# Schemas of the first tools with no more characters than this are always enforced, however busy the machine is.
_N_SURE, _SURE_CHARACTERS = 64, 4096
_N_WARNINGS = 16  # of one job
_WARNING_CHARACTERS = 200
_N_TOLD = 256  # warnings that are in the log already
# What strings without quotes cannot be held to.
_UNENFORCED = {
    ArgumentSyntax.TAGGED: tagged.unenforced,
    ArgumentSyntax.GEMMA: gemma.unenforced,
    ArgumentSyntax.PYTHON: pythonic.unenforced,
    ArgumentSyntax.ELEMENTS: minimax.unenforced,
}
_EMPTY_CHOICE = re.compile(r'"(?:anyOf|oneOf|enum|type)"\s*:\s*\[\s*\]')  # which no value follows
_AS_THEY_ARE = (
    ArgumentSyntax.TAGGED,
    ArgumentSyntax.GEMMA,
    ArgumentSyntax.ELEMENTS,
)  # strings in these are not escaped

logger = logging.getLogger(__name__)


class _Looks:
    """What was found in the schemas of one job's tools, and what may be spent on further ones."""

    def __init__(self) -> None:
        from shimmy.engine.constrain.enforceable_schema import SearchBudget  # few jobs have tools

        # By text, whether the caller insists, and whether parts without a value were searched for.
        self.found: dict[tuple[str, bool, bool], tuple[dict[str, Any], tuple[str, ...]]] = {}
        self.end_s = processor_s() + _LOOKING_S
        self.searching: SearchBudget = SearchBudget()


class GuideFactory:
    """Makes the guides of one model's jobs, on the thread that prepares a job."""

    def __init__(self, vocab: LlamaVocab) -> None:
        self._vocab = vocab
        self._grammars: Grammars | None = None
        self._marks: dict[ReplyFormat, Mapping[int, bytes]] = {}
        self._told: set[str] = set()

    def guide(
        self, request: GenerateRequest, form: ReplyFormat, pause: Callable[[], object] = lambda: None
    ) -> tuple[Guide | None, tuple[str, ...]]:
        """The guide of a job, None where any reply is right; and warnings of constraints that are not enforced.

        Raises BadRequest for a strict constraint that cannot be enforced, and what `pause` raises, which is called
        before each tool.
        """
        tools = request.prompt.tools if isinstance(request.prompt, ChatPrompt) and form.tools is not None else ()
        guide: Guide | None = None
        warnings: tuple[str, ...] = ()
        if tools:
            guide, warnings = self._of_tools(request, form, tools, pause)
        elif request.grammar is not None:
            found = self._loaded().guide(request.grammar, None, _thinking_end(form), self._answer_lark(form))
            guide, warnings = found, tuple(f"the schema: {part} is not enforced" for part in found.lost)
        warnings = tuple(shortened(warning, _WARNING_CHARACTERS) for warning in warnings)
        self._tell(warnings)
        if len(warnings) > _N_WARNINGS:
            warnings = (*warnings[:_N_WARNINGS], f"and {len(warnings) - _N_WARNINGS} more")
        return self._within_budget(guide, request, form), warnings

    def _within_budget(self, guide: Guide | None, request: GenerateRequest, form: ReplyFormat) -> Guide | None:
        if form.thinking is None or request.n_thinking is None:
            return guide
        start, end = form.thinking
        return ThinkingBudget(
            guide,
            marks=(start.encode(), end.encode()),
            end_tokens=self._vocab.tokenize(f"\n{end}", add_special=False, parse_special=True),
            spelled=self._vocab.spelled,
            n_max=request.n_thinking,
            is_thinking=form.is_thinking,
        )

    def _of_tools(
        self, request: GenerateRequest, form: ReplyFormat, tools: tuple[Tool, ...], pause: Callable[[], object]
    ) -> tuple[Guide, tuple[str, ...]]:
        from shimmy.engine.constrain.tool_grammar import TooLarge  # few jobs have tools

        grammars = self._loaded()
        grammars.load()  # which takes long the first time, and is no fault of the tools
        looks = _Looks()
        kept = set(tools)  # those whose schemas are enforced
        find_impossible = False
        while True:
            lark = ""
            try:
                lark, warnings = self._lark(request, form, tools, kept, looks, pause, find_impossible=find_impossible)
                guide = grammars.guide(request.grammar, lark, _thinking_end(form), self._answer_lark(form))
            except BadRequest as error:
                if not lark and not isinstance(error, TooLarge):
                    raise
                if request.grammar is not None:
                    grammars.guide(request.grammar, None, _thinking_end(form))  # it may be at fault itself
                if not find_impossible and not isinstance(error, TooLarge):
                    find_impossible = True
                    continue
                # Each is taken by itself, so they are too large together.
                loose = sorted((tool for tool in kept if not tool.strict), key=lambda tool: len(tool.parameters))
                if not loose:
                    raise
                kept -= set(loose[len(loose) // 2 :])
            else:
                return guide, (*warnings, *(f"the schema: {part} is not enforced" for part in guide.lost))

    def _lark(
        self,
        request: GenerateRequest,
        form: ReplyFormat,
        tools: tuple[Tool, ...],
        kept: set[Tool],
        looks: _Looks,
        pause: Callable[[], object],
        *,
        find_impossible: bool,
    ) -> tuple[str, tuple[str, ...]]:
        """The grammar of a reply with `tools`, where the schemas of those that are `kept` are held to.

        Arguments that can have no value are no part of JSON's grammar; `find_impossible` leaves them out of others.
        """
        from shimmy.engine.constrain.tool_grammar import tool_lark  # few jobs have tools

        assert isinstance(request.prompt, ChatPrompt)
        assert form.tools is not None
        syntax = form.tools.syntax
        warnings: list[str] = []
        sure = {tool for tool in tools[:_N_SURE] if len(tool.parameters) <= _SURE_CHARACTERS}

        def arguments(tool: Tool) -> dict[str, Any]:
            is_searched = syntax in _UNENFORCED and (find_impossible or _lists_nothing(tool.parameters))
            asked = tool.parameters, tool.strict, is_searched
            is_late = tool not in sure and not tool.strict and asked not in looks.found and processor_s() > looks.end_s
            if tool not in kept or is_late:
                warnings.append(f"tools: `{tool.name}`: the schema is not enforced, they are too large together")
                asked = _ANY_OBJECT, tool.strict, False
            if asked not in looks.found:
                looks.found[asked] = self._schema(*asked, syntax, looks.searching)
            schema, lost = looks.found[asked]
            warnings.extend(f"tools: `{tool.name}`: {part} is not enforced" for part in lost)
            return schema

        texts: dict[str, str] = {}
        for tool in tools:
            if tool.lark:
                text, fault = self._text(tool)
                if syntax in _AS_THEY_ARE:
                    text, fault = tool.lark, ""  # which stands there as it is, and not in JSON
                if fault:
                    warnings.append(f"tools: `{tool.name}`: the grammar of its text is not enforced: {fault}")
                else:
                    texts[tool.name] = text
        choice = request.prompt.tool_choice
        if request.grammar is not None:  # the reply is calls, or what the other grammar says, and never free text
            choice = replace(choice, required=True)
        lark = tool_lark(
            tools,
            choice,
            form.tools,
            special=self._hidden_token,
            around=form,
            prepare=arguments,
            texts=texts,
            pause=pause,
        )
        return lark, tuple(warnings)

    def _schema(
        self, text: str, is_strict: bool, is_searched: bool, syntax: ArgumentSyntax, budget: "SearchBudget"
    ) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The schema of a tool's arguments as it can be enforced, and the parts that are not, in words."""
        schema, lost = self._loaded().schema(text, strict=is_strict)
        if not is_strict and not self._takes_objects(schema):
            schema, _ = self._loaded().schema(_ANY_OBJECT, strict=False)
            lost = (_NOT_OF_AN_OBJECT,)
        unenforced = _UNENFORCED.get(syntax)
        if unenforced is not None:
            if is_searched:
                schema = self._loaded().without_impossible(schema, budget)
                if budget.is_spent and _lists_nothing(json.dumps(schema)):  # which would be let through
                    if is_strict:
                        raise BadRequest(f"{_NOT_SEARCHED} cannot be enforced in this model's way of writing calls")
                    return self._loaded().schema(_ANY_OBJECT, strict=False)[0], (_NOT_SEARCHED,)
            more = unenforced(schema)
            if more and is_strict:
                lacking = shortened(more[0], _WARNING_CHARACTERS)
                raise BadRequest(f"{lacking} cannot be enforced in this model's way of writing calls")
            lost = (*lost, *more)
        return schema, lost

    def _answer_lark(self, form: ReplyFormat) -> str:
        if form.answer is None and not form.opening and not form.channels:
            return ""
        from shimmy.engine.constrain.tool_grammar import answer_lark

        return answer_lark(self._hidden_token, form)

    def _takes_objects(self, schema: dict[str, Any]) -> bool:
        """Whether there are objects among what a schema allows, as arguments are objects."""
        from shimmy.engine.constrain.tool_grammar import may_be_object, of_object

        return schema.get("type") == "object" or (may_be_object(schema) and self._loaded().takes(of_object(schema)))

    def _text(self, tool: Tool) -> tuple[str, str]:
        try:
            return self._loaded().text_in_json(tool.lark)
        except BadRequest as error:
            raise BadRequest(f"tools: the grammar of `{tool.name}`: {error.message}", param="tools") from error

    def _tell(self, warnings: tuple[str, ...]) -> None:
        """Log each warning once."""
        for warning in warnings:
            if warning not in self._told and len(self._told) < _N_TOLD:
                self._told.add(warning)
                logger.warning("%s", warning)

    def marks(self, form: ReplyFormat) -> Mapping[int, bytes]:
        """The control tokens that mark parts of a reply, with their bytes: ReplyParser has to see these as text."""
        known = self._marks.get(form)
        if known is None:
            texts = marks(form)
            if form.tools is not None:
                texts = (*texts, PYTHON_TAG)
            tokens = {
                token
                for text in texts
                for token in self._vocab.tokenize(text, add_special=False, parse_special=True)
                if not self._vocab.piece(token)
            }
            known = self._marks[form] = {token: self._vocab.spelled(token) for token in tokens}
        return known

    def _hidden_token(self, text: str) -> int | None:
        tokens = self._vocab.tokenize(text, add_special=False, parse_special=True)
        return tokens[0] if len(tokens) == 1 and not self._vocab.piece(tokens[0]) else None

    def _loaded(self) -> "Grammars":
        if self._grammars is None:
            from shimmy.engine.constrain.guides import Grammars  # its library is large, and most workers need none

            self._grammars = Grammars(self._vocab)
        return self._grammars


def _lists_nothing(schema: str) -> bool:
    """Whether a part of a schema lists no values, or only such as its types leave out."""
    return bool(_EMPTY_CHOICE.search(schema)) or lists_misfits(schema)


def _thinking_end(form: ReplyFormat) -> str | None:
    return form.thinking[1] if form.thinking and form.is_thinking else None
