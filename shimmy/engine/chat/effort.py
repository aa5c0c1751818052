"""How much to think, in the words of a chat template: its own variables for `enable_thinking` and `reasoning_effort`.

Reads the template's source; renders nothing, and knows no model by name.
"""

import re
from typing import Any

_EFFORTS = ("reasoning_effort", "thinking_effort", "reasoning_strength")  # names of the variable
# Some templates list the values that they take: they refuse others (`not in`), or take one more for all others (GLM).
_LISTED = re.compile(
    rf"""\b({"|".join(_EFFORTS)})\s+(not\s+)?in\s+\[((?:\s*['"]\w+['"]\s*,?)+)\](?:\s*else\s*['"](\w+)['"])?"""
)
_KNOWS_NONE = re.compile(r"""\breasoning_effort\b[^%}]*==\s*(['"])none\1""")
_WORD = re.compile(r"\w+")
_SWITCH = re.compile(r"\bthinking is (?:not )?(?:un)?defined\b")
_ORDER = ("none", "no_think", "minimal", "low", "medium", "high", "xhigh", "max")
_NONE, _MUCH = frozenset(_ORDER[:2]), "high"


def in_words_of(source: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The variables `arguments` with those that the template in `source` has for the same; what they name counts."""
    is_on, effort = arguments.get("enable_thinking"), arguments.get("reasoning_effort")
    listed = {
        name: [*_WORD.findall(values), *filter(None, (other,))]
        for name, refuses, values, other in _LISTED.findall(source)
        if refuses or other
    }
    own: dict[str, Any] = {}
    if isinstance(is_on, bool) and "enable_thinking" not in source:
        if "thinking_mode" in source:
            own["thinking_mode"] = "enabled" if is_on else "disabled"
        if _SWITCH.search(source):
            own["thinking"] = is_on
        if effort is None and (_KNOWS_NONE.search(source) or not _NONE.isdisjoint(listed.get("reasoning_effort", ()))):
            effort = _MUCH if is_on else "none"
    if isinstance(effort, str):
        own |= {name: _nearest(effort, listed.get(name, [])) for name in _EFFORTS if name in source}
    return own | {name: value for name, value in arguments.items() if name != "reasoning_effort" or name not in own}


def _nearest(effort: str, allowed: list[str]) -> str:
    """As much effort as asked for, or else a little more, or the most that there is; `effort` where none is listed."""
    known = sorted(filter(_ORDER.__contains__, allowed), key=_ORDER.index)
    if effort in allowed or effort not in _ORDER or not known:
        return effort
    if effort in _NONE:
        return known[0]
    return next((value for value in known if _ORDER.index(value) > _ORDER.index(effort)), known[-1])
