"""Names of modules that a configuration gives by regular expressions, whose time does not depend on what they say.

Knows the little of regular expressions that tools write, and goes through a name with all ways of matching at once.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.safetensors.checkpoint import shown

MAX_PATTERNS = 256
MAX_STEPS = 10_000_000  # for all names and expressions of a checkpoint; real ones take hundreds for each module
_MAX_CHARACTERS = 256
_MAX_GROUPS = 16
_MAX_NAME = 1024
_TOKEN = re.compile(
    r"(?P<mark>[|^$)]|\((?:\?:)?)"
    r"|(?P<one>\\[.d\-w]|\[(?:[\w\-^.]|\\[.d\-w])+\]|[\w\-/., ])"
    r"(?:(?P<any>[*+?])|\{(?P<low>\d{1,2})(?P<to>,(?P<high>\d{1,2})?)?\})?"
    r"(?![*+?{])"
)


@dataclass(frozen=True, slots=True)
class _Repeated:
    """So many characters of one kind."""

    kind: re.Pattern[str]
    low: int = 1
    high: int | None = 1


@dataclass(slots=True)
class _Group:
    """Ways to match, each a sequence."""

    ways: "list[list[_Item]]"


_Item: TypeAlias = "_Repeated | _Group | str"  # `^` or `$`


class ModuleNames:
    """What the expressions of one checkpoint match, in a limited number of steps for all of them."""

    def __init__(self) -> None:
        self._left = MAX_STEPS
        self._name = ""
        self._masks: dict[Any, int] = {}

    def match(self, pattern: str, name: str) -> bool:
        """Whether `name` begins with what `pattern` matches, as `re.match` does it. Raises Unconvertible."""
        group = _parsed(pattern)
        if name != self._name:
            if len(name) > _MAX_NAME:
                raise Unconvertible(f"the name of its module `{shown(name)}` is too long")
            self._name, self._masks = name, {}
            for i, character in enumerate(name):
                self._masks[character] = self._masks.get(character, 0) | 1 << i
        return self._after(group, 1) != 0

    def _after(self, group: _Group, starts: int) -> int:
        """Bit i of `starts`, and of what is returned: the match may have come to in front of character i."""
        ends = 0
        for way in group.ways:
            at = starts
            for item in way:
                self._spend(1)
                if not at:
                    break
                if isinstance(item, _Group):
                    at = self._after(item, at)
                elif isinstance(item, _Repeated):
                    at = self._repeated(item, at)
                else:
                    at &= 1 if item == "^" else 1 << len(self._name)
            ends |= at
        return ends

    def _repeated(self, item: _Repeated, at: int) -> int:
        mask = self._mask(item.kind)
        self._spend(item.high or item.low)
        for _ in range(item.low):
            at = (at & mask) << 1
        if item.high is None:
            return at | ((at & mask) + mask ^ mask)  # the sum carries from where one may be to the end of each run
        for _ in range(item.high - item.low):
            at |= (at & mask) << 1
        return at

    def _mask(self, kind: re.Pattern[str]) -> int:
        """Where the name has characters of this kind."""
        found = self._masks.get(kind)
        if found is None:
            characters = [key for key in self._masks if isinstance(key, str)]
            self._spend(len(characters))
            found = sum(self._masks[character] for character in characters if kind.match(character))
            self._masks[kind] = found
        return found

    def _spend(self, n_steps: int) -> None:
        self._left -= n_steps
        if self._left < 0:
            raise Unconvertible(
                "the expressions of its quantisation are too complex for as many modules "
                f"(its module `{shown(self._name)}` is one)"
            )


@lru_cache(maxsize=MAX_PATTERNS)
def _parsed(pattern: str) -> _Group:
    reason = Unconvertible(f"its quantisation has the expression `{shown(pattern)}`, which is too complex")
    if len(pattern) > _MAX_CHARACTERS or pattern.count("(") > _MAX_GROUPS:
        raise reason
    open_groups, end = [_Group([[]])], 0
    while end < len(pattern):
        token = _TOKEN.match(pattern, end)
        if token is None:
            raise reason
        end = token.end()
        sequence = open_groups[-1].ways[-1]
        match token["mark"]:
            case None:
                try:
                    sequence.append(_Repeated(re.compile(token["one"]), *_times(token)))
                except re.error as exc:
                    raise reason from exc
            case "^" | "$" as mark:
                sequence.append(mark)
            case "|":
                open_groups[-1].ways.append([])
            case ")" if len(open_groups) > 1:
                open_groups.pop()
            case ")":
                raise reason
            case _:
                open_groups.append(_Group([[]]))
                sequence.append(open_groups[-1])
    if len(open_groups) > 1:
        raise reason
    return open_groups[0]


def _times(token: re.Match[str]) -> tuple[int, int | None]:
    if token["any"]:
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[token["any"]]
    if not token["low"]:
        return 1, 1
    low = int(token["low"])
    high = int(token["high"]) if token["high"] else None if token["to"] else low
    if high is not None and high < low:
        raise re.error("there are more than there may be")
    return low, high
