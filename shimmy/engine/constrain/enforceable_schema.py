"""The part of a JSON Schema that can be enforced, and the places of what was dropped, for schemas that are not strict.

Knows the keywords that llguidance cannot honour, and asks it, through a function, about all others. A keyword is only
dropped where the schema then allows more.
"""

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from shimmy.engine.constrain.json_schema import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_PROPERTIES,
    STYLE,
    UNSUPPORTED,
    bounds_too_close_to_zero,
    costly_multiples,
    depth,
    has_loose_minimum,
    read,
    references_in_rings,
    standalone,
    target,
)
from shimmy.engine.constrain.simpler_schema import Schema, children, each_child, parts, simplify
from shimmy.engine.deep_thread import processor_s
from shimmy.errors import BadRequest

# Whether llguidance accepts a schema; it is called hundreds of times for a schema with many faults.
Takes = Callable[[Schema], bool]
_MENDING_S = 0.25  # of the processor
# For all schemas that one request has searched for parts without a value.
_SEARCHED_CHARACTERS = MAX_CHARACTERS
_SEARCHING_S = 1.0  # of the processor
_PLACE_CHARACTERS = 160
_COERCED = {**STYLE, "coerce_one_of": True}
# Assertions about what stands before or behind: without them, a pattern allows more.
_LOOK = re.compile(r"\(\?<?[=!]")
_WORD_BORDERS = ("\\b", "\\B")


class _TooLong(Exception):
    """Finding the keywords at fault takes too long."""


def enforceable(text: str, takes: Takes) -> tuple[Schema, tuple[str, ...]]:
    """A schema that llguidance takes and that allows all that the one in `text` does, and what it lost, in words.

    Raises BadRequest for text that is no JSON object.
    """
    if len(text) > MAX_CHARACTERS:
        return {"x-guidance": STYLE}, (f"the schema of {len(text)} characters",)
    try:
        schema = read(text)
        json.dumps(schema, allow_nan=False)
        return _Relaxing(schema, takes).result()
    except RecursionError:
        return {"x-guidance": STYLE}, ("the schema, which is nested too deeply",)
    except ValueError as exc:
        raise BadRequest(f"the schema is no JSON: {exc}") from exc


class SearchBudget:
    """What is left for searching the schemas of one request, by one thread: characters of parts, and processor time."""

    def __init__(self) -> None:
        self.is_spent = False  # parts were left out
        self._n_left = _SEARCHED_CHARACTERS
        self._left_s = _SEARCHING_S
        self._last_s = 0.0

    def begin(self) -> None:
        """From here to `is_left` is a search."""
        self._last_s = processor_s()

    def is_left(self) -> bool:
        now_s = processor_s()
        self._left_s -= now_s - self._last_s
        self._last_s = now_s
        self.is_spent = self.is_spent or self._n_left <= 0 or self._left_s <= 0
        return not self.is_spent

    def spend(self, part: Schema) -> None:
        self._n_left -= len(json.dumps(part))


def without_impossible(schema: Schema, is_impossible: Takes, budget: SearchBudget) -> Schema:
    """A copy of a schema that values follow, with `false` in the place of each part that none can follow.

    `is_impossible` is asked of each part while there is something left of `budget`; other parts stay as they are.
    """
    budget.begin()

    def changed(child: Any) -> Any:
        if isinstance(child, dict) and budget.is_left():
            part = standalone(child, schema)
            budget.spend(part)
            if is_impossible(part):
                return False
            each_child(child, changed)
        return child

    whole: Schema = json.loads(json.dumps(schema))
    each_child(whole, changed)
    return whole


class _Relaxing:
    """One schema that is being changed into one that llguidance accepts."""

    def __init__(self, schema: Schema, takes: Takes) -> None:
        self._schema = schema
        self._llguidance_takes = takes
        self._options: dict[str, Any] = STYLE
        self._lost: dict[str, None] = {}
        self._in_rings: set[int] = set()
        self._anchors: set[str] = set()
        self._end_s = processor_s() + _MENDING_S

    def result(self) -> tuple[Schema, tuple[str, ...]]:
        if depth(self._schema) > MAX_DEPTH:
            self._cut("#", self._schema, MAX_DEPTH)
        simplify(self._schema)
        self._inline_names()
        self._in_rings = references_in_rings(self._schema)
        self._anchors = {f"#{part.get('$anchor')}" for _, part in parts(self._schema)}
        for place, part in parts(self._schema):
            self._relax(place, part)
        for place, part in costly_multiples(self._schema):
            self._drop("multipleOf", place, part)
        for place, keyword in bounds_too_close_to_zero(self._schema):
            self._lose(keyword, place)  # 0 itself passes, and nothing beyond it
        try:
            # A schema that is accepted as it is needs no changes, however busy the machine is.
            if not self._llguidance_takes({**self._schema, "x-guidance": self._options}):
                self._end_s = processor_s() + _MENDING_S
                self._coerce()
                self._mend_keywords()
                self._mend("#", self._schema)
        except _TooLong:
            self._schema, self._lost = {}, {"the schema, which is at fault in too many places": None}
        return {**self._schema, "x-guidance": self._options}, tuple(self._lost)

    def _lose(self, keyword: str, place: str) -> None:
        self._lost[f"`{keyword}` at `{place[:_PLACE_CHARACTERS]}`"] = None

    def _drop(self, keyword: str, place: str, part: Schema) -> None:
        del part[keyword]
        self._lose(keyword, place)

    def _takes(self, schema: Schema, options: dict[str, Any] | None = None) -> bool:
        if processor_s() > self._end_s:
            raise _TooLong
        return self._llguidance_takes({**schema, "x-guidance": options or self._options})

    # -- what is known beforehand --------------------------------------------------------------------------------------

    def _cut(self, place: str, part: Schema, n_levels: int) -> None:
        """Drop all schemas that are nested deeper in `part` than `n_levels`."""
        for step, child in children(part):
            n_left = n_levels - step.count("/")
            if not isinstance(child, dict) or depth(child) <= n_left:
                continue
            if n_left > MAX_DEPTH // 4:
                self._cut(place + step, child, n_left)
            if depth(child) > n_left:
                child.clear()
                self._lost[f"what lies below `{(place + step)[:_PLACE_CHARACTERS]}`"] = None

    def _relax(self, place: str, part: Schema) -> None:
        for step, child in children(part):
            if not isinstance(child, dict | bool):
                above, _, name = step.rpartition("/")
                self._lose(name, place + above)
        each_child(part, lambda child: child if isinstance(child, dict | bool) else True)
        for keyword in UNSUPPORTED:
            if keyword in part:
                self._drop(keyword, place, part)
        properties = part.get("properties")
        if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
            self._drop("properties", place, part)
            for keyword in ("required", "additionalProperties", "patternProperties"):
                part.pop(keyword, None)
        if has_loose_minimum(part):
            self._drop("minProperties", place, part)
        self._relax_reference(place, part)
        self._relax_patterns(place, part)

    def _relax_reference(self, place: str, part: Schema) -> None:
        """Drop a reference to another document, to nothing, or back to itself."""
        if "$ref" not in part:
            return
        reference = part["$ref"]
        is_known = _is_pointer(reference) and isinstance(target(self._schema, reference), dict | bool)
        is_known = is_known or (isinstance(reference, str) and reference in self._anchors)
        if not is_known or id(part) in self._in_rings:
            self._drop("$ref", place, part)

    def _inline_names(self) -> None:
        """Write references by the name of the document as references within it."""
        base = self._schema.pop("$id", None)
        for _, part in parts(self._schema):
            reference = part.get("$ref")
            if isinstance(base, str) and isinstance(reference, str) and reference.startswith(f"{base}#"):
                part["$ref"] = reference.removeprefix(base)

    def _relax_patterns(self, place: str, part: Schema) -> None:
        pattern = part.get("pattern")
        if isinstance(pattern, str) and (plain := _without_assertions(pattern)) != pattern:
            part["pattern"] = plain
            self._lose("pattern", place)
        by_pattern = part.get("patternProperties")
        if not isinstance(by_pattern, dict):
            return
        # A pattern that fits more names constrains more: these have to go, and must be allowed then.
        for name in [name for name in by_pattern if _without_assertions(name) != name]:
            del by_pattern[name]
            part.pop("additionalProperties", None)
            self._lose(name, f"{place}/patternProperties")

    # -- what llguidance has to be asked about -------------------------------------------------------------------------

    def _coerce(self) -> None:
        """Make `oneOf` an `anyOf` where llguidance cannot tell that only one of the cases is possible."""
        for place, part in parts(self._schema):
            if "oneOf" in part and not self._takes_part(place) and self._takes_part(place, _COERCED):
                self._options = _COERCED
                self._lose("oneOf", place)
        if any("oneOf" in part for _, part in parts(self._schema)):
            self._options = _COERCED

    def _takes_part(self, place: str, options: dict[str, Any] | None = None) -> bool:
        """The same for the part at a place, inside the whole schema, so that its references are known."""
        whole = json.loads(json.dumps(self._schema))
        for _, part in parts(whole):
            if _is_pointer(part.get("$ref")):
                part["$ref"] = f"#/$defs/whole{part['$ref'][1:]}"
        return self._takes({"$ref": f"#/$defs/whole{quote(place[1:])}", "$defs": {"whole": whole}}, options)

    def _mend_keywords(self) -> None:
        """Drop keywords that are wrong by themselves: unknown types, broken patterns, numbers out of range."""
        for place, part in parts(self._schema):
            alone = _alone(part)
            if self._takes(alone):
                continue
            for keyword in [name for name in alone if not self._takes({name: alone[name]})]:
                self._drop(keyword, place, part)
                del alone[keyword]
            if not self._takes(alone):
                self._drop_one(place, part, alone)

    def _drop_one(self, place: str, part: Schema, alone: Schema) -> None:
        """Drop the keyword that contradicts the others, such as a type that no listed value has."""
        for keyword in _least_first(alone):
            if self._takes({name: value for name, value in alone.items() if name != keyword}):
                self._drop(keyword, place, part)
                return
        self._drop_all(place, part)

    def _mend(self, place: str, part: Schema) -> None:
        """Drop as few keywords as possible of a part that contradicts itself, the innermost first."""
        if self._takes_part(place):
            return
        for step, child in children(part):
            if isinstance(child, dict):
                self._mend(place + step, child)
        if self._takes_part(place):
            return
        for keyword in _least_first(part):
            value = part.pop(keyword)
            if self._takes_part(place):
                self._lose(keyword, place)
                return
            part[keyword] = value
        self._drop_all(place, part)

    def _drop_all(self, place: str, part: Schema) -> None:
        part.clear()
        self._lost[f"the schema at `{place[:_PLACE_CHARACTERS]}`"] = None


def _least_first(part: Schema) -> list[str]:
    """The keywords of a part, the most important ones last."""
    return sorted(part, key=lambda name: (name in ("properties", "items"), name == "type"))


def _is_pointer(reference: object) -> bool:
    return isinstance(reference, str) and (reference == "#" or reference.startswith("#/"))


def _alone(part: Schema) -> Schema:
    """The keywords of one schema, where the schemas in it allow anything."""
    alone = {name: value for name, value in part.items() if name not in ("$ref", "$defs", "definitions")}
    each_child(alone, lambda _: True)
    if isinstance(cases := alone.get("oneOf"), list) and cases:
        del alone["oneOf"]
    return alone


def _without_assertions(pattern: str) -> str:
    """A regular expression that fits all texts that `pattern` does: without what it says of the text around a place."""
    kept, at = [], 0
    is_class = False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            if is_class or pattern[at : at + 2] not in _WORD_BORDERS:
                kept.append(pattern[at : at + 2])
            at += 2
            continue
        if not is_class and (look := _LOOK.match(pattern, at)):
            at = _end_of_group(pattern, look.end())
            if pattern[at : at + 1] in {"?", "*", "+"}:
                at += 1
            continue
        is_class = char == "[" or (is_class and char != "]")
        kept.append(char)
        at += 1
    return "".join(kept)


def _end_of_group(pattern: str, at: int) -> int:
    """Where a group ends whose content begins at a place."""
    n_open, is_class = 1, False
    while at < len(pattern) and n_open:
        char = pattern[at]
        if char == "\\":
            at += 1
        elif is_class or char == "[":
            is_class = char != "]"
        else:
            n_open += (char == "(") - (char == ")")
        at += 1
    return at
