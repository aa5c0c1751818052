"""How much text a grammar may force at once: an upper bound for what llguidance would build and tokenize in one call.

Knows JSON Schemas and the Lark dialect of llguidance by their shape alone; the bound may be too high, never too low.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from shimmy.engine.constrain.json_schema import target

# Of a regular expression or a grammar: at least so many times.
_TIMES = re.compile(r"\{([0-9]{1,9})")
_RULE = re.compile(r"^[ \t]*+([?!]?[A-Za-z_]\w*+)(?:\[[^\]\n]*+\])?+[ \t]*+:", re.MULTILINE)
_NAME = re.compile(r"@?[A-Za-z_]\w*")
_CHOICE_OF_NAMES = re.compile(r"[\w@|\s]*")
_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*+"?+')  # also one without an end, so that a text is searched once
_JSON = "%json"
_ENDLESS = 1 << 40


def longest(grammars: Sequence[Mapping[str, Any]]) -> int:
    """An upper bound of the characters that one of these grammars may force in a row."""
    try:
        named = {f"@{grammar['name']}": grammar for grammar in grammars if "name" in grammar}
        sizes: dict[str, int] = {}
        for name, grammar in [*named.items(), ("", grammars[0])]:
            sizes[name] = (
                _Schema(grammar["json_schema"]).size
                if "json_schema" in grammar
                else _Rules(grammar["lark_grammar"], sizes).size
            )
    except RecursionError:
        return _ENDLESS
    return sizes[""]


class _Schema:
    """The length of a schema's names, constants and patterns, each as often as it has to come."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._known: dict[str, int] = {}  # by reference; 0 while it is computed: a recursion has to end somewhere
        self.size = self._of(root)

    def _of(self, value: object) -> int:
        if isinstance(value, list):
            return min(_ENDLESS, sum(map(self._of, value)))
        if not isinstance(value, dict):
            return 0
        total = 0
        for key, part in value.items():
            if key in {"$defs", "definitions", "description", "title", "examples", "default"}:
                continue  # counted where it is referred to
            if key in {"const", "enum"}:
                total += len(json.dumps(part, ensure_ascii=False))
            elif key == "pattern" and isinstance(part, str):
                total += _repeated(part)
            elif key == "$ref" and isinstance(part, str):
                total += self._target(part)
            else:
                total += self._of(part) + (sum(map(len, part)) if key == "properties" and isinstance(part, dict) else 0)
        at_least = value.get("minItems")
        n_times = at_least if isinstance(at_least, int) and at_least > 1 else 1
        return min(_ENDLESS, total * n_times)

    def _target(self, reference: str) -> int:
        if reference not in self._known:
            self._known[reference] = 0
            self._known[reference] = self._of(target(dict(self._root), reference))
        return self._known[reference]


class _Rules:
    """The rules of a grammar, each as long as what it refers to; of several names one."""

    def __init__(self, lark: str, others: Mapping[str, int]) -> None:
        starts = list(_RULE.finditer(lark))
        ends = [*(start.start() for start in starts[1:]), len(lark)]
        self._bodies: dict[str, str] = {}
        for start, end in zip(starts, ends, strict=False):  # without a rule there is an end alone
            name = start[1].lstrip("?!")
            self._bodies[name] = f"{self._bodies.get(name, '')} {lark[start.end() : end]}"
        self._known = dict(others)
        self.size = self._of("start") if "start" in self._bodies else len(lark)

    def _of(self, name: str) -> int:
        if name not in self._known:
            self._known[name] = 0
            self._known[name] = self._of_body(self._bodies.get(name, ""))
        return self._known[name]

    def _of_body(self, body: str) -> int:
        if _CHOICE_OF_NAMES.fullmatch(body):
            return max((sum(map(self._of, _NAME.findall(option))) for option in body.split("|")), default=0)
        if body.lstrip().startswith(_JSON):
            return _Schema(_first_json(body.partition(_JSON)[2])).size
        names = sum(self._of(name) for name in _NAME.findall(_LITERAL.sub(" ", body)) if name in self._bodies)
        return min(_ENDLESS, names * _n_times(body) + _repeated(body))


def _first_json(text: str) -> dict[str, Any]:
    try:
        value, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except ValueError:
        return {"const": text}
    return value if isinstance(value, dict) else {}


def _repeated(text: str) -> int:
    return min(_ENDLESS, len(text) * _n_times(text))


def _n_times(text: str) -> int:
    """An upper bound of how many times a part of `text` has to come, however its repetitions are nested."""
    result = 1
    for found in _TIMES.finditer(text):
        result = min(_ENDLESS, result * max(1, int(found[1])))
    return result
