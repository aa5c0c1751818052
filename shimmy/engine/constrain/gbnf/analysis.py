"""What a grammar's rules can begin with, end with and be followed by, and how large each would be as one terminal.

Sets of characters are bit masks, as `parser.mask_of` makes them. Knows nodes; nothing of GBNF's text or of Lark.
"""

import functools
import math
from collections.abc import Iterator
from operator import or_
from typing import Any

from shimmy.engine.constrain.gbnf.parser import (
    Alternatives,
    Characters,
    Concatenation,
    Node,
    Repetition,
    RuleReference,
)
from shimmy.errors import BadRequest

MAX_TERMINAL_SIZE = 2_000  # of a terminal, in literals and classes, when all it refers to is written out
_MAX_STEPS = 1_000_000  # nodes that are looked at, a microsecond each


class GrammarAnalysis:
    """What the rules of a grammar can begin with, end with, and be followed by, as masks of characters."""

    def __init__(self, rules: dict[str, Node]) -> None:
        self.rules = rules
        self._sizes: dict[str, float] = {}
        self._extensions: dict[str, int] = {}
        self._alphabets: dict[str, int] = {}
        self._firsts = dict.fromkeys(rules, (0, False))
        self.follows = dict.fromkeys(rules, 0)
        n_nodes = sum(map(_n_nodes, rules.values()))
        for _ in _until_stable(self._firsts, n_nodes):
            for name, node in rules.items():
                self._firsts[name] = self.first(node)
        for _ in _until_stable(self.follows, n_nodes):
            for name, node in rules.items():
                self._spread(node, self.follows[name])

    def first(self, node: Node) -> tuple[int, bool]:
        """The characters that a node may begin with, and whether it may be empty."""
        match node:
            case Characters():
                return node.first, not node.first
            case RuleReference():
                return self._firsts[node.name]
            case Repetition():
                mask, is_nullable = self.first(node.item)
                return mask, is_nullable or node.at_least == 0
            case Concatenation():
                return self.first_of(node.items)
            case Alternatives():
                firsts = [self.first(option) for option in node.options]
                return functools.reduce(or_, (mask for mask, _ in firsts)), any(nullable for _, nullable in firsts)

    def first_of(self, items: list[Node]) -> tuple[int, bool]:
        """The same for a sequence of nodes."""
        found = 0
        for item in items:
            mask, is_nullable = self.first(item)
            found |= mask
            if not is_nullable:
                return found, False
        return found, True

    def behind(self, items: list[Node], follow: int) -> list[int]:
        """The characters that may follow each of `items`, where `follow` may follow the last."""
        found: list[int] = []
        for item in reversed(items):
            found.append(follow)
            mask, is_nullable = self.first(item)
            follow = mask | follow if is_nullable else mask
        return found[::-1]

    def _spread(self, node: Node, follow: int) -> None:
        match node:
            case RuleReference():
                self.follows[node.name] |= follow
            case Repetition():
                self._spread(node.item, self.inside(node, follow))
            case Concatenation():
                for item, behind in zip(node.items, self.behind(node.items, follow), strict=True):
                    self._spread(item, behind)
            case Alternatives():
                for option in node.options:
                    self._spread(option, follow)

    def inside(self, node: Repetition, follow: int) -> int:
        """The characters that may follow an item of a repetition, where `follow` may follow the repetition."""
        return follow | (self.first(node.item)[0] if node.at_most != 1 else 0)

    def extension(self, node: Node) -> int:
        """The characters with which a complete text of this node may go on and still be a text of this node."""
        match node:
            case Characters():
                return 0
            case RuleReference(name):
                if name not in self._extensions:
                    self._extensions[name] = self.extension(self.rules[name])
                return self._extensions[name]
            case Repetition():
                return self.extension(node.item) | self.inside(node, 0)
            case Concatenation():
                found = 0
                for item in reversed(node.items):
                    found |= self.extension(item)
                    mask, is_nullable = self.first(item)
                    if not is_nullable:
                        break
                    found |= mask
                return found
            case Alternatives():
                found, firsts = 0, 0
                for option in node.options:
                    found |= self.extension(option)
                    mask = self.first(option)[0]
                    if mask & firsts:  # one may be the beginning of another
                        return functools.reduce(or_, map(self._characters, node.options))
                    firsts |= mask
                return found

    def _characters(self, node: Node) -> int:
        match node:
            case Characters():
                return node.characters
            case RuleReference(name):
                if name not in self._alphabets:
                    self._alphabets[name] = self._characters(self.rules[name])
                return self._alphabets[name]
            case Repetition():
                return self._characters(node.item)
            case Concatenation(nodes) | Alternatives(nodes):
                return functools.reduce(or_, map(self._characters, nodes), 0)

    def size(self, node: Node) -> float:
        """The size of a node as a terminal, with references written out; infinite where it refers to itself."""
        match node:
            case Characters():
                return 1 + len(node.lark) / 32
            case RuleReference():
                return self._size_of_rule(node.name)
            case Repetition():
                return 1 + self.size(node.item)
            case Concatenation(nodes) | Alternatives(nodes):
                return 1 + sum(map(self.size, nodes))

    def _size_of_rule(self, name: str) -> float:
        if name not in self._sizes:
            self._sizes[name] = math.inf  # while it is computed: a rule that refers to itself
            size = self.size(self.rules[name])
            self._sizes[name] = size if size <= MAX_TERMINAL_SIZE else math.inf
        return self._sizes[name]


def _until_stable(facts: dict[str, Any], n_nodes: int) -> Iterator[None]:
    """Yields once for each pass over all rules, until a pass leaves `facts` unchanged."""
    before = None
    n_seen = 0
    while before != facts:
        before = dict(facts)
        n_seen += n_nodes
        if n_seen > _MAX_STEPS:
            raise BadRequest("grammar: it is too large")
        yield


def _n_nodes(node: Node) -> int:
    match node:
        case Repetition(item):
            return 1 + _n_nodes(item)
        case Concatenation(nodes) | Alternatives(nodes):
            return 1 + sum(map(_n_nodes, nodes))
    return 1
