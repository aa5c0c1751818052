"""No regular expression takes more time than its text is long: texts come from callers, models and their files.

All patterns of the package are tried with texts that slow ones go back and forth in: runs of what they look for, which
end in something else.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from re import _parser as sre  # type: ignore[attr-defined]
from time import thread_time
from typing import Any

import pytest

import shimmy

PACKAGE = Path(shimmy.__file__).parent
N_CHARACTERS = 30_000
# A thousandfold of what the slowest linear one takes; a square takes nine seconds.
MAX_S = 1.0
FAST_S = 0.001  # with texts that take less, four times the length comes next
OF_OUR_OWN_TEXTS = {"api/page/squeeze.py"}  # it reads the page's modules, nothing else
# Each is a test, so that the patterns need not be looked for while tests are collected, which takes seconds.
N_PARTS = 16
METHODS = frozenset(("search", "match", "fullmatch", "sub", "subn", "split", "findall", "finditer"))


@cache
def trees() -> list[tuple[str, ast.Module]]:
    return [(str(path.relative_to(PACKAGE)), ast.parse(path.read_text())) for path in sorted(PACKAGE.rglob("*.py"))]


def uses(tree: ast.Module) -> dict[str, set[str]]:
    """The methods that a module calls of each name."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            found.setdefault(of, set()).add(node.attr)
    return found


def patterns_of_globals() -> Iterator[tuple[str, int, frozenset[str]]]:
    """Each pattern that a module has under a name, and what is done with it; all where that is not to be seen."""
    for place, tree in trees():
        if place in OF_OUR_OWN_TEXTS:
            continue
        name = "shimmy." + place.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        if name.endswith("__main__"):
            continue
        used = uses(tree)
        for key, value in vars(importlib.import_module(name)).items():
            for pattern in patterns_in(value):
                yield pattern.pattern, pattern.flags, METHODS & used.get(key, METHODS) or METHODS


def patterns_in(value: object) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from patterns_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from patterns_in(each)


def patterns_in_calls() -> Iterator[tuple[str, str | None, frozenset[str]]]:
    """Where a function gives `re` a pattern, the pattern, None where it is no constant, and what is done with it."""
    for place, tree in trees():
        named = {id(node) for each in tree.body if isinstance(each, ast.Assign) for node in ast.walk(each)}
        for node in ast.walk(tree):
            if id(node) in named:
                continue  # `patterns_of_globals` has it
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            is_re = isinstance(node.func.value, ast.Name) and node.func.value.id == "re"
            if is_re and node.func.attr in {*METHODS, "compile"}:
                first = node.args[0]
                text = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
                yield place, text, frozenset({node.func.attr} & METHODS or METHODS)


@cache
def all_patterns() -> list[tuple[re.Pattern[str], frozenset[str]]]:
    found: dict[tuple[str, int], frozenset[str]] = {}
    for text, flags, methods in patterns_of_globals():
        key = text, flags
        found[key] = found.get(key, frozenset()) | methods
    known = {text for text, _ in found}
    for _, given, methods in patterns_in_calls():
        if given is not None and given not in known:
            key = given, int(re.UNICODE)
            found[key] = found.get(key, frozenset()) | methods
    return [(re.compile(text, flags & ~re.UNICODE), methods) for (text, flags), methods in sorted(found.items())]


def characters_of(node: Any) -> Iterator[str]:
    """Characters that stand for what a parsed pattern looks for."""
    for code, argument in node:
        if code in {sre.LITERAL, sre.NOT_LITERAL}:
            yield chr(argument)
        elif code is sre.RANGE:
            yield from (chr(argument[0]), chr(argument[1]))
        elif code is sre.CATEGORY:
            name = str(argument)
            yield "1" if "DIGIT" in name else " " if "SPACE" in name else "a"
        elif code is sre.IN:
            yield from characters_of(argument)
        elif code is sre.ANY:
            yield "x"
        else:
            yield from characters_inside(argument)


def characters_inside(argument: Any) -> Iterator[str]:
    if isinstance(argument, sre.SubPattern):
        yield from characters_of(argument)
    elif isinstance(argument, list | tuple):
        for part in argument:
            yield from characters_inside(part)


def hostile_texts(pattern: re.Pattern[str]) -> Iterator[str]:
    characters = list(dict.fromkeys(characters_of(sre.parse(pattern.pattern, pattern.flags))))
    words = ["".join(characters[start : start + 3]) for start in range(0, min(12, len(characters)), 3)]
    some = [*characters[:10], *characters[-2:]]
    units = dict.fromkeys([*some, *("".join(pair) for pair in product(some[:6], repeat=2)), *words])
    for unit in units:
        yield unit
        yield f"{characters[0] if characters else ''}{unit}"


def seconds(pattern: re.Pattern[str], methods: frozenset[str], text: str) -> float:
    begun_s = thread_time()  # which does not count what others have of the processor
    if methods & {"match", "fullmatch"}:
        pattern.match(text)
        pattern.fullmatch(text)
    if methods - {"match", "fullmatch"}:
        for _ in pattern.finditer(text):
            pass
    return thread_time() - begun_s


def check(pattern: re.Pattern[str], methods: frozenset[str]) -> None:
    for unit in hostile_texts(pattern):
        for tail in ("", "\x01"):
            n_characters, taken_s = 8, 0.0
            while n_characters < N_CHARACTERS:  # in steps: one that doubles its time with each would never be done
                n_characters += 2 if n_characters < 40 else n_characters if taken_s > FAST_S else 3 * n_characters
                text = unit * (n_characters // len(unit)) + tail
                taken_s = seconds(pattern, methods, text)
                assert taken_s < MAX_S, f"{pattern.pattern!r} takes {taken_s:.1f} s for {n_characters} of {unit!r}"


@pytest.mark.thorough
@pytest.mark.parametrize("part", range(N_PARTS))
def test_a_pattern_takes_each_character_a_few_times(part: int) -> None:
    for pattern, methods in all_patterns()[part::N_PARTS]:
        check(pattern, methods)


def test_the_patterns_are_found() -> None:
    texts = {each.pattern for each, _ in all_patterns()}
    assert any("[diouxXeEfFgGcrsa%]" in text for text in texts)
    assert len(texts) > 20


@pytest.mark.parametrize("text", [r"(?:a|aa)*b", r"[a-z]+[0-9]*[a-z]+!", r"(?:%\w*\d{0,3})*x", r"\s+$"])
def test_slow_patterns_are_found_out(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.test_patterns.MAX_S", 0.2)
    with pytest.raises(AssertionError, match="takes"):
        check(re.compile(text), METHODS)


def test_what_is_no_constant_is_looked_at_by_hand() -> None:
    """Patterns put together from the texts of vocabularies, templates or options: literals, in a tree or one after the
    other; in `quantised/patterns.py` what stands for one character, in `charsmap.py` kinds of characters. Those of
    `words.py` are tried by its own tests."""
    assert {place for place, text, _ in patterns_in_calls() if text is None} <= {
        "api/web_origins.py", "commands/terminal/shell_completion.py", "engine/chat/control_tokens.py",
        "engine/chat/thinking.py", "engine/llama/text_slices.py", "formats/quantised/patterns.py",
        "formats/tokenizer/charsmap.py", "formats/tokenizer/normalizer.py", "formats/tokenizer/words.py",
        "hub/choose_files.py", "text/call_reader.py", "text/reply_parser.py", "text/speech/harmony.py",
        "text/speech/tagged.py",
    }  # fmt: skip
