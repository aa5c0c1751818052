"""Strict tools whose schemas list values of all types: refused, or each call that the grammar allows follows them."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from shimmy.engine.constrain import constraints
from shimmy.engine.constrain.constraints import GuideFactory
from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.errors import BadRequest
from shimmy.messages.reply import ReplyFormat
from shimmy.messages.request import ChatPrompt, GenerateRequest, Message, Tool, ToolCall, ToolChoice
from tests.engine.constrain.test_forced_calls import GEMMA, HARMONY, LFM, channels_of, exits, form_of, read, written
from tests.engine.constrain.walker import Walker

N_SCHEMAS, N_CALLS = 60, 3
FAMILIES = (GEMMA, LFM, HARMONY, "openbmb-MiniCPM5-1B", "Qwen3-Coder", "deepseek-ai-DeepSeek-V3.2", "Qwen-Qwen3-0.6B")
VALUES: tuple[Any, ...] = (
    *(1, 2.5, "1", "a", "", None, True, [], ["a"], {}, {"k": 1}, "a < b", "null", [{"a": "<b>"}, None]),
)
TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")


def drawn_part(drawn: random.Random, depth: int = 0) -> dict[str, Any]:
    kind = drawn.random()
    if kind < 0.6 or depth == 2:
        values = drawn.sample(VALUES, drawn.randrange(4))
        part: dict[str, Any] = {"const": drawn.choice(VALUES)} if drawn.random() < 0.1 else {"enum": values}
        if drawn.random() < 0.75:
            part["type"] = drawn.choice(TYPES) if drawn.random() < 0.6 else drawn.sample(TYPES, 2)
        return part
    if kind < 0.75:
        return {drawn.choice(("anyOf", "oneOf")): [drawn_part(drawn, depth + 1) for _ in range(drawn.choice((1, 2)))]}
    if kind < 0.85:
        return {"type": "array", "items": drawn_part(drawn, depth + 1), "maxItems": 2}
    if kind < 0.95:
        return {"type": "object", "properties": {"p": drawn_part(drawn, depth + 1)}, "additionalProperties": False}
    return {"$ref": "#/$defs/d"}


def drawn_tool(seed: int) -> Tool:
    drawn = random.Random(seed)
    schema = {
        "type": "object",
        "properties": {name: drawn_part(drawn) for name in ("x", "y")},
        "required": ["x"] if drawn.random() < 0.3 else [],
        "additionalProperties": False,
        "$defs": {"d": drawn_part(drawn, 2)},
    }
    return Tool("f", "", json.dumps(schema), strict=True)


@pytest.fixture(scope="module")
def factory(tiny_model: Path) -> Iterator[GuideFactory]:
    model = LlamaModel(tiny_model, CpuBackend(variants.libraries(LIBRARY_FOLDER, None)))
    yield GuideFactory(model.vocab)
    model.close()


def grammar_of(tool: Tool, family: str, factory: GuideFactory) -> str:
    """The grammar of one call or several to a tool. Raises BadRequest."""
    form = form_of(family)
    reply = ReplyFormat(tools=form, channels=channels_of(form))
    prompt = ChatPrompt((Message("user", "hi"),), tools=(tool,), tool_choice=ToolChoice(required=True))
    request = GenerateRequest("tiny", prompt)
    factory.guide(request, reply)  # which compiles it
    return factory._lark(request, reply, (tool,), {tool}, constraints._Looks(), list, find_impossible=False)[0]


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_calls_have_the_values_that_their_schema_lists(family: str, factory: GuideFactory) -> None:
    form, walker = form_of(family), Walker()
    n_refused = n_drawn = 0
    for seed in range(N_SCHEMAS):
        tool = drawn_tool(seed)
        try:
            lark = grammar_of(tool, family, factory)
        except BadRequest:
            n_refused += 1
            continue
        for draw in range(N_CALLS):
            text = walker.reply(lark, draw, exits(form))
            calls = read(text, form, tools=(tool,)).calls
            assert calls, (seed, text)
            for call in calls:
                Draft202012Validator(json.loads(tool.parameters)).validate(json.loads(call.arguments))
            n_drawn += 1
    assert n_drawn > N_SCHEMAS
    assert n_refused < N_SCHEMAS * 3 // 4


@pytest.mark.parametrize(
    ("family", "part", "right", "wrong"),
    [
        (GEMMA, {"enum": [[], ["a"], {"k": 1}]}, ([], ["a"], {"k": 1}), ([1], {}, {"k": 2}, "a")),
        (GEMMA, {"type": ["array", "string"], "enum": [["a"], {}, "b"]}, (["a"], "b"), ({}, [], ["b"])),
        (GEMMA, {"enum": ['a<|"|>', "b"]}, ("b",), ('a<|"|>',)),
        ("Qwen3-Coder", {"enum": ["a\n</parameter>", "b"]}, ("b",), ("a\n</parameter>",)),
        (LFM, {"oneOf": [{"enum": [1, ""], "type": ["number", "boolean"]}]}, (1,), (True, False, None)),
        (LFM, {"anyOf": [{"const": True}, {"type": "string"}]}, (True, "a"), (False, None)),
        (LFM, {"$ref": "#/$defs/d"}, (None,), (True, False)),
        ("Qwen3-Coder", {"enum": ["1", 2.5, "a"]}, (2.5, "a"), ("1", 1)),
        ("Qwen3-Coder", {"type": ["string", "integer"], "enum": ["1", "a"]}, ("1", "a"), (1.5, 2)),
        ("openbmb-MiniCPM5-1B", {"anyOf": [{"enum": [2.5], "type": "integer"}, {"const": "1"}]}, ("1",), ("2.5", 2)),
    ],
    ids=str,
)
def test_listed_values_alone_are_taken(
    family: str, part: dict[str, Any], right: tuple[Any, ...], wrong: tuple[Any, ...], factory: GuideFactory
) -> None:
    schema = {"type": "object", "properties": {"x": part}, "required": ["x"], "additionalProperties": False}
    tool = Tool("f", "", json.dumps({**schema, "$defs": {"d": {"const": None}}}), strict=True)
    form, walker, lark = form_of(family), Walker(), grammar_of(tool, family, factory)
    for value, is_right in (*((value, True) for value in right), *((value, False) for value in wrong)):
        text = written((ToolCall("", "f", json.dumps({"x": value})),), form)
        assert walker.takes(lark, text) == is_right, value
        if is_right:
            assert json.loads(read(text, form, tools=(tool,)).calls[0].arguments) == {"x": value}
