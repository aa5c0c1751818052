"""Grammars on the real llguidance, with the tokens of SmolLM2 and of a tiny SentencePiece model."""

import json
import lzma
import os
import random
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any
from unittest.mock import Mock

import pytest

from shimmy.engine.constrain import guides
from shimmy.engine.constrain.guides import GrammarGuide, Grammars
from shimmy.engine.cpu_variants import variants
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.engine.llama.unpack_libraries import GRAMMAR_ARCHIVE
from shimmy.errors import BadRequest
from shimmy.messages.request import Grammar, GrammarKind
from tests.models import demo_model
from tools.engine_sources import source_package
from tools.steps import ROOT

SCHEMAS = Path(os.environ.get("SHIMMY_SHARED_DATA", ROOT.parent / "shared" / "data")) / "json_schemas.jsonl"
# Refused: uses of oneOf that llguidance does not know, `not`, and `dependencies`.
N_SCHEMAS, N_REFUSED = 372, 10
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"enum": ["Paris", "London"]}},
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}


class Subject:
    """A model's grammars, and what a test asks of them."""

    def __init__(self, path: Path, cpu: CpuBackend) -> None:
        self.model = LlamaModel(path, cpu)
        self.grammars = Grammars(self.model.vocab)
        self.ends = self.model.vocab.end_tokens()

    def tokens(self, text: str, *, special: bool = False) -> list[int]:
        tokens = self.model.vocab.tokenize(text, add_special=False, parse_special=special)
        if special or self.text(tokens) == text:
            return tokens
        # This tokenizer puts a space before a text.
        tokens = self.model.vocab.tokenize(f"\n{text}", add_special=False, parse_special=False)
        return tokens[[self.text([token]) for token in tokens].index("\n") + 1 :]

    def text(self, tokens: Sequence[int]) -> str:
        return b"".join(self.model.vocab.token_bytes(token, special=False) for token in tokens).decode(
            "utf-8", "replace"
        )

    def guide(self, kind: str, text: object, **more: str | None) -> GrammarGuide:
        source = text if isinstance(text, str) else json.dumps(text)
        return self.grammars.guide(Grammar(GrammarKind(kind), source), more.get("lark"), more.get("thinking_end"))

    def accepts(self, guide: GrammarGuide, tokens: Sequence[int]) -> bool:
        """Whether a reply may consist of these tokens; looks at masks as well for short ones."""
        for token in tokens:
            allowed = guide.allows(token)
            if len(tokens) < 20 and not guide.is_over:
                # Where text is forced, a mask has only the token that its tokenizer makes of it.
                is_in_mask = guide.allowed()[token >> 3] >> (token & 7) & 1
                assert allowed if is_in_mask else not allowed or guide.forced() != [token]
            if guide.is_over or not allowed:
                return False
            guide.accept(token)
        return guide.is_over or all(guide.allows(end) for end in self.ends)

    def takes(self, kind: str, text: object, reply: str) -> bool:
        return self.accepts(self.guide(kind, text), self.tokens(reply))

    def written(self, guide: GrammarGuide, chance: random.Random, n_max: int = 400) -> tuple[str, int, int]:
        """A reply by chance, with the numbers of its tokens and of those that were forced."""
        tokens: list[int] = []
        n_forced = 0
        while not guide.is_over and len(tokens) < n_max:
            forced = guide.forced()
            for token in forced:
                assert guide.allows(token)
                guide.accept(token)
            tokens += forced
            n_forced += len(forced)
            if guide.is_over:
                break
            mask = guide.allowed()
            bits = [(index * 8, byte) for index, byte in enumerate(mask) if byte]
            allowed = [first + bit for first, byte in bits for bit in range(8) if byte >> bit & 1]
            ends = [token for token in self.ends if token in allowed]
            some = chance.sample(allowed, min(len(allowed), 100))
            closing = [token for token in some if self.text([token])[:1] in {'"', "}", "]"}]
            token = chance.choice(ends or (closing if closing and chance.random() < 0.5 else some))
            guide.accept(token)
            if token in ends:
                break
            tokens.append(token)
        return self.text(tokens), len(tokens), n_forced


@pytest.fixture(scope="module")
def cpu() -> CpuBackend:
    return CpuBackend(variants.libraries(LIBRARY_FOLDER, None))


@pytest.fixture(scope="module")
def real(cpu: CpuBackend) -> Subject:
    return Subject(demo_model(), cpu)


@pytest.fixture(scope="module")
def tiny(tiny_model: Path, cpu: CpuBackend) -> Subject:
    return Subject(tiny_model, cpu)


@pytest.fixture(scope="module", params=["real", "tiny"])
def subject(request: pytest.FixtureRequest) -> Subject:
    found: Subject = request.getfixturevalue(request.param)
    return found


# -- a guide ---------------------------------------------------------------------------------------------------------


def test_text_that_the_tokenizer_takes_for_another_is_forced_all_the_same(subject: Subject) -> None:
    """A vocabulary of SentencePiece has no token for its sign of a space: a reply ended with an error there."""
    closed = {"required": ["a"], "additionalProperties": False}
    schema = {"type": "object", "properties": {"a": {"const": "x\u2581y"}}, **closed}
    for kind, grammar in (("json_schema", schema), ("lark", 'start: "{\\"a\\": \\"x\u2581y\\"}"')):
        text, _, _ = subject.written(subject.guide(kind, grammar), random.Random(1))
        assert json.loads(text) == {"a": "x\u2581y"}


def test_what_is_forced_is_what_the_tokenizer_would_write(subject: Subject) -> None:
    reply = '{"name": "Anna Maria", "age": 41, "city": "London"}'
    tokens = subject.tokens(reply)
    guide = subject.guide("json_schema", PERSON)
    at = n_forced = 0
    while at < len(tokens):
        forced = guide.forced() or [tokens[at]]
        n_forced += len(guide.forced())
        assert tokens[at : at + len(forced)] == forced, subject.text(tokens[:at])
        for token in forced:
            assert guide.allows(token)
            guide.accept(token)
        at += len(forced)
    assert guide.is_over
    assert n_forced >= len(tokens) * 0.4


def test_replies_by_the_same_schema_know_nothing_of_each_other(tiny: Subject) -> None:
    whole = tiny.tokens('{"name": "Anna Maria", "age": 41, "city": "London"}')
    first = tiny.guide("json_schema", PERSON)
    for token in whole[:-3]:
        first.accept(token)
    assert tiny.accepts(tiny.guide("json_schema", PERSON), whole)
    for number in range(20):  # more than are remembered
        assert tiny.takes("choice", [f"number {number}"], f"number {number}")
    assert tiny.accepts(tiny.guide("json_schema", PERSON), whole)
    assert tiny.accepts(first, whole[-3:])


def test_a_schema_is_read_once_for_the_replies_that_follow(tiny: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = PERSON | {"title": "read once"}
    tiny.guide("json_schema", schema)
    monkeypatch.setattr(guides, "prepared", Mock(side_effect=AssertionError("it is read again")))
    tiny.guide("json_schema", schema)
    with pytest.raises(AssertionError, match="read again"):
        tiny.guide("json_schema", schema, thinking_end="</think>")


def test_random_replies_satisfy_their_schema(tiny: Subject) -> None:
    chance = random.Random(1)
    finished = 0
    for _ in range(20):
        text, n_tokens, n_forced = tiny.written(tiny.guide("json_schema", PERSON), chance)
        assert n_forced > 0
        if n_tokens < 400:
            person = json.loads(text)
            assert list(person) == ["name", "age", "city"]
            assert isinstance(person["age"], int)
            assert person["city"] in {"Paris", "London"}
            finished += 1
    assert finished > 5


def test_every_end_of_generation_is_allowed_where_a_reply_may_end_and_nowhere_else(subject: Subject) -> None:
    guide = subject.guide("regex", "a+")
    ends = subject.ends
    assert len(ends) > 1
    assert not any(map(guide.allows, ends))
    guide.accept(subject.tokens("a")[0])
    assert all(map(guide.allows, ends))
    assert not guide.is_over
    guide.accept(ends[-1])
    assert guide.is_over


def test_a_special_token_is_never_taken_for_its_text(real: Subject) -> None:
    guide = real.guide("regex", "(?s:.*)")
    (special,) = real.tokens("<|im_start|>", special=True)
    assert not guide.allows(special)
    assert real.accepts(guide, real.tokens("<|im_start|>"))


def test_the_mask_has_a_bit_for_each_token(subject: Subject) -> None:
    guide = subject.guide("choice", ["a", "b"])
    assert len(guide.allowed()) * 8 >= subject.model.vocab.n_vocab
    assert not any(
        guide.allows(token) for token in range(subject.model.vocab.n_vocab) if guide.allowed()[token >> 3] == 0
    )


# -- kinds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "source", "good", "bad"),
    [
        ("json_schema", "true", ["[1, true]", '"a"', "null"], ["[1,", "nul"]),
        ("json_schema", {"type": "object"}, ["{}", '{"a": {"b": [1.5, null]}}'], ["[]", "{", "{\n}", '{"a":1}']),
        ("json_schema", {"type": "string", "format": "password"}, ['"x"'], ["1"]),
        ("json_schema", {"type": "array", "uniqueItems": False}, ["[1, 1]"], ["1"]),
        ("json_schema", {"type": "number", "exclusiveMinimum": 0}, ["1.5", "2"], ["0", "-1", "0.0"]),
        ("json_schema", {"type": "object", "x-guidance": {"lenient": True}}, ["{}"], ["{ }"]),
        ("regex", r"\d{3}-\d{4}", ["555-1234"], ["5551234", "555-123"]),
        ("regex", "^a/b$", ["a/b"], ["a"]),
        ("regex", "a\nb|", ["a\nb", ""], ["a"]),
        ("choice", ["yes", "no", 'q"/\\\n', "é😀"], ["yes", "no", 'q"/\\\n', "é😀"], ["y", "", "yesno"]),
        ("gbnf", 'root ::= ("a" | "ab") "bc"', ["abc", "abbc"], ["ab"]),
        ("gbnf", 'root ::= "(" root ")" | [0-9]{2,3} # x\n', ["((12))", "123"], ["1", "((1)", "(12"]),
        ("gbnf", 'root ::= "\\x41\\u00e9\\U0001F600\\n/" [a-z\\]/\\-]+ [^a]', ["Aé😀\n/a]/-x"], ["A"]),
        ("gbnf", 'root ::= n root? "\\n"\nn ::= [0-9]+ s\ns ::= [ \\n]*', ["1\n", "1 \n\n", "1 2\n\n"], ["1", "\n"]),
        ("lark", 'start: "a" | "b"', ["a", "b"], ["c", "ab"]),
        ("lark", 'start: x ("," x)* // a list\nx: /[a-z]+/ | NUMBER\n%import common.NUMBER', ["a,1.5,b"], ["a,", ",a"]),
        ("gbnf", 'root ::= a-b | \n  "x"\na-b ::=\n [0-9] ( "+"\n [0-9] )*', ["1+2", "x"], ["1+", ""]),
    ],
)
def test_a_kind_of_grammar(subject: Subject, kind: str, source: object, good: list[str], bad: list[str]) -> None:
    for reply in good:
        assert subject.takes(kind, source, reply), reply
    for reply in bad:
        assert not subject.takes(kind, source, reply), reply


@cache
def grammars() -> dict[str, str]:
    """The grammars of llama.cpp's sources by the name of their file without its ending."""
    found = {}
    with tarfile.open(source_package()) as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            file = archive.extractfile(member) if path.match("vendor/llama.cpp/grammars/*.gbnf") else None
            if file is not None:
                found[path.stem] = file.read().decode()
    return found


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("json", ['{"a": [1, 2.5e3, true, null, "x\\n"]}', "{}", '{"a":{"b":[]}}'], ["{", '{"a":}', "[1]", ""]),
        ("json_arr", ['[\n{"a":1}]', "[\n1,\n2]"], ["{}", "[1,"]),
        ("arithmetic", ["1+2 = 3\n", "(3*y)-12 = z\n", "a=b\n1=2\n"], ["1+", "1+2\n"]),
        ("chess", ["1. e4 e5\n2. Nf3 Nc6\n", "1. e4 e5\n2. O-O Qxe7+\n"], ["1. z9 e5\n"]),
        ("list", ["- a\n- b c\n"], ["a\n", "- a"]),
        ("japanese", ["こんにちは", "カナ"], ["abc"]),
        ("english", ["It's a dog.", "Hello world!"], ["é"]),
        ("c", ["int main(){return 1;}", "int f(int a){int x = a+1;if(x==1){return x;}}"], ["int main( {", "hello"]),
    ],
)
def test_the_grammars_that_come_with_llama_cpp(real: Subject, name: str, good: list[str], bad: list[str]) -> None:
    for reply in good:
        assert real.takes("gbnf", grammars()[name], reply), reply
    for reply in bad:
        assert not real.takes("gbnf", grammars()[name], reply), reply


# -- compositions ----------------------------------------------------------------------------------------------------

CALLS = 'start: "<tool_call>" %json {"type": "object"} "</tool_call>"'


def test_thoughts_come_first_and_end_with_their_text(subject: Subject) -> None:
    def guide() -> GrammarGuide:
        return subject.guide("choice", ["yes"], thinking_end="</think>")

    assert subject.accepts(guide(), subject.tokens('Is it {"so"}? yes\n</think>yes'))
    assert not subject.accepts(guide(), subject.tokens("yes"))
    assert not subject.accepts(guide(), subject.tokens("no</think>no"))
    assert not subject.accepts(guide(), subject.tokens("no</think>"))


def test_thoughts_may_end_with_a_token_that_text_does_not_show(real: Subject) -> None:
    guide = real.guide("json_schema", PERSON, thinking_end="\n<|im_start|>")
    assert not guide.allows(real.ends[0])
    for token in real.tokens("so <b>it is</b>\n<|im_start|>", special=True):
        assert guide.allows(token)
        guide.accept(token)
    assert real.text(guide.forced()).startswith('{"name":')


def test_calls_or_what_the_grammar_says(subject: Subject) -> None:
    for reply, is_good in (('<tool_call>{"a": 1}</tool_call>', True), ("yes", True), ("no", False), ("<tool", False)):
        assert subject.accepts(subject.guide("choice", ["yes"], lark=CALLS), subject.tokens(reply)) == is_good


def test_calls_alone_behind_thoughts(subject: Subject) -> None:
    guide = subject.grammars.guide(None, CALLS, "</think>")
    assert subject.accepts(guide, subject.tokens("hm</think><tool_call>{}</tool_call>"))


# -- refusals --------------------------------------------------------------------------------------------------------


def nested(part: str, n: int, end: str = "{}") -> str:
    return part * n + end + "}" * part.count("{") * n


@pytest.mark.parametrize(
    ("kind", "source", "words"),
    [
        ("json_schema", {"type": "array", "uniqueItems": True}, "`uniqueItems` at `#`"),
        ("json_schema", {"properties": {"a/b": {"not": {"type": "null"}}}}, "`not` at `#/properties/a~1b`"),
        ("json_schema", {"if": {}, "then": {"type": "string"}}, "`if`"),
        ("json_schema", {"oneOf": [{"minLength": 1}, {"maxLength": 3}]}, "oneOf"),
        ("json_schema", {"type": "object", "minProperties": 2}, "`minProperties`"),
        ("json_schema", {"allOf": [{"exclusiveMinimum": 0}, {"type": "number", "maximum": 0.1}]}, "`exclusiveMinimum`"),
        ("json_schema", {"type": "string", "pattern": "^(?!x)"}, "look"),
        ("json_schema", {"$ref": "http://localhost/x.json"}, "http://localhost/x.json"),
        ("json_schema", {"$ref": "#"}, "`$ref` at `#`"),
        ("json_schema", {"properties": {"a": {"$ref": "#/properties/a"}}}, "`$ref` at `#/properties/a`"),
        ("json_schema", {"type": "object", "required": ["a"], "additionalProperties": False}, "Unsatisfiable"),
        ("json_schema", "{", "no JSON"),
        ("json_schema", "[]", "object"),
        ("json_schema", '{"minimum": NaN}', "NaN"),
        ("json_schema", '{"minimum": 1e999}', "JSON"),
        ("json_schema", '{"const": "\\ud800"}', "surrogate"),
        ("regex", "(", "unclosed"),
        ("regex", "(?=a)b", "look"),
        ("regex", "\ud800", "surrogate"),
        ("choice", ["\ud800"], "surrogate"),
        ("gbnf", "root ::= x", "no rule `x`"),
        ("gbnf", 'x ::= "a"', "no rule `root`"),
        ("gbnf", 'root ::= "a\nb', "line 2"),
        ("gbnf", 'root ::= "a" )', "line 1: expected the end"),
        ("gbnf", "root ::= [z-a]", "range"),
        ("gbnf", 'root ::= "\\q"', "escape"),
        ("gbnf", "root ::= <think>", "tokens"),
        ("gbnf", 'root ::= "a"{3000}', "repetitions"),
        ("lark", "start: x", "x"),
        ("lark", 'begin: "a"', "start"),
        ("lark", 'start: "a', "lexer"),
        # What would take too much time, memory or stack.
        ("lark", "start: " + "(" * 5000 + '"a"' + ")" * 5000, "nested"),
        ("lark", "start: " + "(" * 950 + '"a"' + ")" * 950, "nested"),
        ("lark", 'start: "a"\n' + "// x\n" * 10_000, "too large"),
        ("json_schema", nested('{"properties":{"a":', 10_000), "deep"),
        ("json_schema", nested('{"items":', 101), "deep"),
        ("json_schema", {"enum": ["x" * 300_000]}, "too large"),
        ("json_schema", {"properties": {f"p{i}": {} for i in range(3000)}}, "`properties`"),
        ("json_schema", {"allOf": [{"anyOf": [{"required": [f"{k}{i}"]} for k in "ab"]} for i in range(30)]}, "large"),
        ("json_schema", {"type": "integer", "multipleOf": 1_000_003}, "`multipleOf` 1000003 at `#`"),
        ("json_schema", {"allOf": [{"type": "integer", "multipleOf": 997}, {"multipleOf": 991}]}, "`multipleOf` 997"),
        ("json_schema", {"prefixItems": [{"multipleOf": 1003 + 2 * i} for i in range(100)]}, "`multipleOf`"),
        ("regex", "(a*)*" * 1000, "limits"),
        ("regex", "(" * 5000 + ")" * 5000, "invalid regex"),
        ("gbnf", "root ::= " + "(" * 5000 + '"a"' + ")" * 5000, "deep"),
        ("gbnf", "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(1500)), "no rule `r1500`"),
        ("gbnf", 'root ::= r0\nr1000 ::= "a"\n' + "".join(f"r{i} ::= r{i + 1}\n" for i in range(1000)), "too large"),
    ],
)
def test_a_refusal_says_what_is_wrong(real: Subject, kind: str, source: object, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        real.guide(kind, source)
    assert words in caught.value.message
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        # Chains that would run out of a common stack, and numbers that are large only when written out.
        ("json_schema", {"$ref": "#/$defs/a0", "$defs": {f"a{i}": {"properties": {"p": {"$ref": f"#/$defs/a{i + 1}"}}}
                                                          for i in range(2000)} | {"a2000": {}}}),
        ("json_schema", {"type": "string", "minLength": 10**6, "maxLength": 10**9}),
        ("json_schema", {"type": "number", "multipleOf": 10**9}),
        ("json_schema", {"type": "number", "multipleOf": 0.25}),
        ("json_schema", {"type": "array", "minItems": 10**6, "maxItems": 10**9}),
        ("json_schema", {"enum": [f"v{i}" for i in range(10_000)]}),
        ("regex", r"(a|b)*a(a|b){500}"),
        ("regex", "((a{1,1000}){1,1000}){1,1000}"),
        ("gbnf", 'root ::= r0 | "(" root ")"\nr60 ::= "a"\n'
                 + "".join(f'r{i} ::= r{i + 1} | "a" r{i + 1}\n' for i in range(60))),
    ],
)  # fmt: skip
def test_large_grammars_are_followed_within_limits(real: Subject, kind: str, source: object) -> None:
    guide = real.guide(kind, source)
    text, n_tokens, _ = real.written(guide, random.Random(2), n_max=20)
    assert text
    assert n_tokens


def test_mutated_grammars_are_taken_or_refused(tiny: Subject) -> None:
    chance = random.Random(3)
    sources = [
        ("json_schema", json.dumps(PERSON)),
        (
            "json_schema",
            '{"anyOf": [{"type": "string", "pattern": "^a+$"}, {"$ref": "#/$defs/x"}], "$defs": {"x": {}}}',
        ),
        ("regex", r"^(a|b)*[^x-z]{2,5}\d+|[\w-]+@\p{L}\.(com|org)$"),
        ("gbnf", 'root ::= "{" (pair ("," pair)*)? "}"\npair ::= [a-z]+ ":" (root | "\\"" [^"\\x00]* "\\"")\n'),
    ]
    outcomes: Counter[str] = Counter()
    for _ in range(400):
        kind, source = chance.choice(sources)
        for _ in range(chance.randint(1, 4)):
            at, other = chance.randrange(len(source)), chance.randrange(len(source))
            inserted = chance.choice([*'{}"\\(]|', "-1", '{"$ref":"#"}', "1e999", source[at:other]])
            source = source[:at] + inserted + source[at + chance.randint(0, 3) :]
        try:
            tiny.written(tiny.guide(kind, source), chance, n_max=10)
            outcomes["followed"] += 1
        except BadRequest:
            outcomes["refused"] += 1
    assert min(outcomes["followed"], outcomes["refused"]) > 20


# -- many schemas ----------------------------------------------------------------------------------------------------


def written_by_us(value: Any, schema: Any) -> Any:
    """The same value with properties in the order of the schema, and whole numbers without a fraction."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [written_by_us(item, schema.get("items") if isinstance(schema, dict) else None) for item in value]
    if isinstance(value, dict):
        properties = schema.get("properties") if isinstance(schema, dict) else None
        properties = properties if isinstance(properties, dict) else {}
        names = [name for name in properties if name in value] + [name for name in value if name not in properties]
        return {name: written_by_us(value[name], properties.get(name)) for name in names}
    return value


@pytest.mark.skipif(not SCHEMAS.exists(), reason=f"the schemas are not at `{SCHEMAS}`")
def test_valid_instances_are_accepted_and_invalid_ones_refused(real: Subject) -> None:
    refusals: list[str] = []
    for case in map(json.loads, SCHEMAS.read_text().splitlines()):

        def takes(instance: Any, case: dict[str, Any] = case) -> bool:
            texts = {
                json.dumps(value, ensure_ascii=False) for value in (instance, written_by_us(instance, case["schema"]))
            }
            return any(real.takes("json_schema", case["schema"], text) for text in texts)

        try:
            real.guide("json_schema", case["schema"])
        except BadRequest as error:
            refusals.append(error.message)
            continue
        assert all(map(takes, case["valid"])), case["name"]
        assert not any(map(takes, case["invalid"])), case["name"]
    assert len(refusals) == N_REFUSED <= 0.05 * N_SCHEMAS
    assert all(any(word in text for word in ("oneOf", "`not`", "`dependencies`")) for text in refusals)


# -- the frozen file -------------------------------------------------------------------------------------------------


def test_the_frozen_file_unpacks_llguidance_when_it_is_needed(tmp_path: Path, tiny_model: Path) -> None:
    package = find_spec("llguidance")
    assert package is not None
    assert package.submodule_search_locations is not None
    (library,) = Path(package.submodule_search_locations[0]).glob("_lib*.so")
    (tmp_path / GRAMMAR_ARCHIVE).write_bytes(lzma.compress(library.read_bytes(), preset=0))
    code = f"""
import sys
from pathlib import Path
from shimmy.engine.cpu_variants import variants
from shimmy.engine.constrain.guides import Grammars
from shimmy.engine.llama.binding import LIBRARY_FOLDER
from shimmy.engine.llama.model import CpuBackend, LlamaModel
from shimmy.messages.request import Grammar, GrammarKind
sys._MEIPASS = {str(tmp_path)!r}
model = LlamaModel(Path({str(tiny_model)!r}), CpuBackend(variants.libraries(LIBRARY_FOLDER, None)))
guide = Grammars(model.vocab).guide(Grammar(GrammarKind.CHOICE, '["yes"]'), None, None)
assert "numpy" not in sys.modules and "importlib.metadata" not in sys.modules
print(b"".join(model.vocab.token_bytes(token, special=False) for token in guide.forced()).decode())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.stdout == "yes\n", result.stderr


def test_threads_that_ask_at_once_get_the_same_module() -> None:
    code = """
import threading
from shimmy.engine.constrain import llguidance_module
start = threading.Barrier(8)
modules = []
def ask():
    start.wait()
    modules.append(llguidance_module.loaded())
threads = [threading.Thread(target=ask) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(set(map(id, modules))), len(modules))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert result.stdout == "1 8\n", result.stderr


def test_what_takes_too_long_to_compile_is_refused(tiny: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()
    library = tiny.grammars._loaded()

    class Slow:
        LLParserLimits = library.LLParserLimits

        @staticmethod
        def LLMatcher(*_: object, **__: object) -> None:  # noqa: N802 - llguidance's name
            may_end.wait(20)

    monkeypatch.setattr(tiny.grammars, "_library", Slow)
    monkeypatch.setattr("shimmy.engine.constrain.guides._COMPILE_DEADLINE_S", 0.01)
    try:
        with pytest.raises(BadRequest, match="compiled within"):
            tiny.guide("gbnf", 'root ::= "never seen before"')
    finally:
        may_end.set()
