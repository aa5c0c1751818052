"""Writes a GBNF grammar in the dialect of Lark that llguidance reads.

llguidance reads text in two stages: terminals are regular expressions, rules put terminals together. A terminal takes
the longest text that fits, without regard to what follows. So the writer makes terminals as large as it can (they are
fast), but only of parts that do not refer to themselves, stay small, and cannot go on with a character that might
follow the terminal as well.

llguidance has a converter of its own (`llguidance.gbnf_to_lark`), which does not serve here: each rule that does not
refer to itself becomes a terminal, so `root ::= a "1"` with `a ::= [a-z0-9]*` refuses the reply `a1`; `\\u00e9`
becomes `\\ue9`, a line break inside a literal stays one, and `[\\-]` is refused; `fooBar` and `foo-bar` collide; errors
are plain exceptions, and neither the size nor the depth of a grammar has a limit.
"""

from collections.abc import Iterator

from shimmy.engine.constrain.gbnf.analysis import MAX_TERMINAL_SIZE, GrammarAnalysis
from shimmy.engine.constrain.gbnf.parser import (
    Alternatives,
    Characters,
    Concatenation,
    GbnfParser,
    Node,
    Repetition,
    RuleReference,
)
from shimmy.errors import BadRequest

MAX_GRAMMAR_CHARACTERS = 1 << 15
_MAX_GROUP = 8  # neighbours in a rule that are made into one terminal
_MAX_SIZE = 100_000  # of all terminals together


def to_lark(source: str) -> str:
    """The GBNF grammar `source` in Lark, with `start` for `root`; raises BadRequest."""
    if len(source) > MAX_GRAMMAR_CHARACTERS:
        raise BadRequest(f"grammar: it has {len(source)} characters, {MAX_GRAMMAR_CHARACTERS} are allowed")
    try:
        return _LarkWriter(GbnfParser(source).rules()).text()
    except RecursionError as exc:
        raise BadRequest("grammar: its rules are nested too deeply") from exc


class _LarkWriter:
    """Writes rules for llguidance: `r1` is a rule, `T1` a rule as a terminal, `G1` a part of a rule as a terminal."""

    def __init__(self, rules: dict[str, Node]) -> None:
        _check_names(rules)
        self._rules = rules
        self._facts = GrammarAnalysis(rules)
        self._numbers = {name: index for index, name in enumerate(rules)}
        self._lines: dict[str, str] = {}
        self._total: float = 0
        self._n_groups = 0

    def text(self) -> str:
        start = self._reference("root", 0)
        return "\n".join([f"start: {start}", *(f"{name}: {body}" for name, body in self._lines.items())])

    def _reference(self, name: str, follow: int) -> str:
        """The name of a rule: of a terminal where neither `follow` nor what follows the rule elsewhere forbids that."""
        if self._is_terminal([RuleReference(name)], follow | self._facts.follows[name]):
            return self._terminal(name)
        written = f"r{self._numbers[name]}"
        if written not in self._lines:
            self._lines[written] = ""  # it may refer to itself
            self._lines[written] = self._rule(self._rules[name], self._facts.follows[name])
        return written

    def _terminal(self, name: str) -> str:
        written = f"T{self._numbers[name]}"
        if written not in self._lines:
            self._grow(self._facts.size(self._rules[name]))
            self._lines[written] = self._regex(self._rules[name])
        return written

    def _is_terminal(self, items: list[Node], follow: int) -> bool:
        sequence = Concatenation(items)
        if self._facts.size(sequence) > MAX_TERMINAL_SIZE:
            return False
        return not self._facts.extension(sequence) & follow

    def _rule(self, node: Node, follow: int) -> str:
        match node:
            case Characters():
                return node.lark
            case RuleReference():
                return self._reference(node.name, follow)
            case Repetition():
                return f"({self._rule(node.item, self._facts.inside(node, follow))}){node.suffix}"
            case Concatenation():
                return " ".join(self._grouped(node.items, follow)) or '""'
            case Alternatives():
                return f"({' | '.join(self._rule(option, follow) for option in node.options)})"

    def _grouped(self, items: list[Node], follow: int) -> Iterator[str]:
        """The items of a sequence in a rule, joined to terminals where that is possible."""
        behind = self._facts.behind(items, follow)
        at = 0
        while at < len(items):
            ends = range(min(len(items), at + _MAX_GROUP), at + 1, -1)
            end = next((end for end in ends if self._is_terminal(items[at:end], behind[end - 1])), at + 1)
            yield self._group(items[at:end]) if end > at + 1 else self._rule(items[at], behind[at])
            at = end

    def _group(self, items: list[Node]) -> str:
        self._n_groups += 1
        self._grow(self._facts.size(Concatenation(items)))
        self._lines[f"G{self._n_groups}"] = self._regex(Concatenation(items))
        return f"G{self._n_groups}"

    def _regex(self, node: Node) -> str:
        match node:
            case Characters():
                return node.lark
            case RuleReference():
                return self._terminal(node.name)
            case Repetition():
                return f"({self._regex(node.item)}){node.suffix}"
            case Concatenation():
                return " ".join(map(self._regex, node.items)) or '""'
            case Alternatives():
                return f"({' | '.join(map(self._regex, node.options))})"

    def _grow(self, size: float) -> None:
        self._total += size
        if self._total > _MAX_SIZE:
            raise BadRequest("grammar: it is too large")


def _check_names(rules: dict[str, Node]) -> None:
    if "root" not in rules:
        raise BadRequest("grammar: it has no rule `root`, where a reply begins")
    waiting = [*rules.values()]
    while waiting:
        match waiting.pop():
            case RuleReference(name) if name not in rules:
                raise BadRequest(f"grammar: it has no rule `{name}`")
            case Repetition(item):
                waiting.append(item)
            case Concatenation(nodes) | Alternatives(nodes):
                waiting += nodes
