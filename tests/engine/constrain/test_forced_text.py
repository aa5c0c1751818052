"""How much text grammars may force at once: never less than they do, and little for those that people write."""

import json
from typing import Any

import pytest

from shimmy.engine.constrain.forced_text import longest
from shimmy.engine.constrain.guides import GrammarGuide, Grammars
from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.messages.request import Grammar, GrammarKind
from tests.tiny_models import write_tiny_bpe


def nested(depth: int) -> dict[str, Any]:
    """A value of few words that is written out 2 to the power of `depth` times."""
    two = {"type": "array", "minItems": 2, "maxItems": 2, "items": False}
    levels: dict[str, Any] = {
        f"d{level}": {**two, "prefixItems": [{"$ref": f"#/$defs/d{level + 1}"}] * 2} for level in range(depth)
    }
    return {"$defs": {**levels, f"d{depth}": {"const": "hello"}}, "$ref": "#/$defs/d0"}


DOUBLING = "start: a0\n" + "\n".join(f"a{n}: a{n + 1} a{n + 1}" for n in range(15)) + '\na15: "hello"\n'

SCHEMAS = {
    "a constant": ({"const": "A" * 30_000}, 30_000),
    "constants": ({"type": "array", "items": {"const": "hello"}, "minItems": 5000}, 35_000),
    "a nest": (nested(13), 50_000),
    "a pattern": ({"type": "string", "pattern": "^(A{200}){200}$"}, 40_000),
}
LARKS = {"rules": (DOUBLING, 160_000), "a repeat": ("start: /(A{300}){300}/\n", 90_000)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    path = write_tiny_bpe(tmp_path_factory.mktemp("models"), pre="gpt-4o")
    return LlamaModel(path, CpuBackend(variants.libraries(LIBRARY_FOLDER, None)))


def guide_of(model: LlamaModel, kind: GrammarKind, text: str) -> GrammarGuide:
    return Grammars(model.vocab).guide(Grammar(kind, text), None, None)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_that_forces_much_forces_nothing(name: str, model: LlamaModel) -> None:
    """`{"const": "AAA…"}` ended the worker: the pre-tokenizer recursed over the stack of the thread that decodes."""
    schema, at_least = SCHEMAS[name]
    assert longest([{"json_schema": schema}]) >= at_least
    guide = guide_of(model, GrammarKind.JSON_SCHEMA, json.dumps(schema))
    assert guide.forced() == []
    assert any(guide.allowed())


@pytest.mark.parametrize("name", LARKS)
def test_a_grammar_that_forces_much_forces_nothing(name: str, model: LlamaModel) -> None:
    lark, at_least = LARKS[name]
    assert longest([{"lark_grammar": lark}]) >= at_least
    guide = guide_of(model, GrammarKind.LARK, lark)
    assert guide.forced() == []
    assert any(guide.allowed())


def test_regular_expressions_and_gbnf_too(model: LlamaModel) -> None:
    gbnf = "root ::= a0\n" + "\n".join(f"a{n} ::= a{n + 1} a{n + 1}" for n in range(15)) + '\na15 ::= "hello"\n'
    for kind, text in ((GrammarKind.REGEX, "(A{1000}){1000}"), (GrammarKind.GBNF, gbnf)):
        assert guide_of(model, kind, text).forced() == []


def test_what_people_write_is_forced(model: LlamaModel) -> None:
    properties = {f"property_{number}": {"type": "string", "description": "x" * 500} for number in range(100)}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    assert longest([{"json_schema": schema}]) < 4000
    assert guide_of(model, GrammarKind.JSON_SCHEMA, json.dumps(schema)).forced()
    assert guide_of(model, GrammarKind.REGEX, "hello (world|you)").forced()


def test_of_many_tools_one_counts() -> None:
    tool = json.dumps({"type": "object", "properties": {f"argument_{n}": {} for n in range(50)}})
    bodies = "".join(f'body_{n}: "call" arguments_{n}\narguments_{n}: %json {tool}\n' for n in range(200))
    lark = f"start: call\ncall: {' | '.join(f'body_{n}' for n in range(200))}\n{bodies}"
    assert 500 < longest([{"lark_grammar": lark}]) < 2000


def test_parts_are_reckoned_where_they_are_named() -> None:
    parts: list[dict[str, Any]] = [{"lark_grammar": "start: @part0 | @part1\n"}]
    parts.append({"name": "part0", "json_schema": {"const": "x" * 100}})
    parts.append({"name": "part1", "lark_grammar": 'start: "y" "z"\n'})
    assert 100 <= longest(parts) < 150
    assert longest([{"lark_grammar": "start: start start\n"}]) == 0


def test_what_is_no_grammar_is_as_long_as_it_is() -> None:
    assert longest([{"lark_grammar": "x"}]) == 1
    assert longest([{"lark_grammar": ""}]) == 0
