"""What a job's reply has to obey beyond its sampling: grammars, calls of tools, an end to reasoning.

Puts together what others know: how calls look, how grammars are followed. Knows the tokens of the model.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shimmy.engine.llama import LlamaModel
from shimmy.engine.task import Guide
from shimmy.engine.thinking_budget import ThinkingBudget
from shimmy.engine.tool_format import marks
from shimmy.errors import BadRequest
from shimmy.messages import ChatPrompt, Job, ReplyFormat

if TYPE_CHECKING:
    from shimmy.engine.grammar import Grammars

# May stand before a call in a format without marks; templates do not show it (see tool_grammar.py).
_PYTHON_TAG = "<|python_tag|>"


class Rules:
    """Makes the guides of one model's jobs, on the thread that prepares them."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self._grammars: Grammars | None = None
        self._marks: dict[ReplyFormat, Mapping[int, bytes]] = {}

    def guide(self, job: Job, form: ReplyFormat) -> Guide | None:
        """None where the job may say anything; raises BadRequest for what cannot be enforced."""
        lark = self._lark_of_tools(job, form)
        guide: Guide | None = None
        if lark is not None or job.grammar is not None:
            thinking_end = form.thinking[1] if form.thinking and form.is_thinking else None
            guide = self._loaded().guide(job.grammar, lark, thinking_end)
        if form.thinking is None or job.n_thinking is None:
            return guide
        start, end = form.thinking
        return ThinkingBudget(
            guide,
            marks=(start.encode(), end.encode()),
            end_tokens=self._model.tokenize(f"\n{end}", add_special=False, parse_special=True),
            spelled=self._model.spelled,
            n_max=job.n_thinking,
            is_thinking=form.is_thinking,
        )

    def _lark_of_tools(self, job: Job, form: ReplyFormat) -> str | None:
        if not isinstance(job.prompt, ChatPrompt) or not job.prompt.tools or form.tools is None:
            return None
        from shimmy.engine.tool_grammar import tool_lark  # few jobs have tools

        choice = job.prompt.tool_choice
        if job.grammar is not None:  # the reply is calls, or what the other grammar says, and never free text
            choice = replace(choice, required=True)
        return tool_lark(
            job.prompt.tools,
            choice,
            form.tools,
            special=self._hidden_token,
            thinking=None if form.is_thinking else form.thinking,
            prepare=_enforceable,
        )

    def marks(self, form: ReplyFormat) -> Mapping[int, bytes]:
        """The control tokens that stand for parts of a reply, which its reader has to see."""
        known = self._marks.get(form)
        if known is None:
            texts = marks(form)
            if form.tools is not None:
                texts = (*texts, _PYTHON_TAG)
            tokens = {
                token
                for text in texts
                for token in self._model.tokenize(text, add_special=False, parse_special=True)
                if not self._model.piece(token)
            }
            known = self._marks[form] = {token: self._model.spelled(token) for token in tokens}
        return known

    def _hidden_token(self, text: str) -> int | None:
        tokens = self._model.tokenize(text, add_special=False, parse_special=True)
        return tokens[0] if len(tokens) == 1 and not self._model.piece(tokens[0]) else None

    def _loaded(self) -> "Grammars":
        if self._grammars is None:
            from shimmy.engine.grammar import Grammars  # its library is large, and most workers need none

            self._grammars = Grammars(self._model)
        return self._grammars


def _enforceable(text: str) -> dict[str, Any]:
    """The schema of a tool's arguments as llguidance is given it; raises BadRequest for what it would not enforce."""
    from shimmy.engine.schema import keyword_at_fault, prepared

    schema = prepared(text)
    if fault := keyword_at_fault(schema):
        raise BadRequest(fault)
    return schema
