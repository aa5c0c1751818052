"""One regular expression for many literals, in time that their number does not change. Knows not what they are."""

import re
from collections.abc import Iterable, Mapping
from typing import Any


def any_of(literals: Iterable[str]) -> str:
    """A pattern for the longest of `literals` at a place; '(?!)', which fits nowhere, for none.

    It is written as a tree of their characters: of alternatives in a row, each would be tried at each place.
    """
    tree: dict[str, Any] = {}
    for literal in filter(None, literals):
        node = tree
        for character in literal:
            node = node.setdefault(character, {})
        node[""] = {}
    return _written(tree) if tree else "(?!)"


def _written(tree: Mapping[str, Any]) -> str:
    """The pattern of a tree of characters, in which the empty one ends a literal."""
    head = ""
    while len(tree) == 1 and "" not in tree:
        ((character, tree),) = tree.items()
        head += re.escape(character)
    branches = [re.escape(character) + _written(node) for character, node in tree.items() if character]
    if not branches:
        return head
    return f"{head}(?:{'|'.join(branches)}){'?' if '' in tree else ''}"
