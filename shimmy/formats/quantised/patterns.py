"""Names of modules that a configuration gives by regular expressions, which are not trusted to end.

Knows the little of regular expressions that tools write; anything else is refused, since it could take for ever.
"""

import re
from functools import lru_cache

from shimmy.formats.format_errors import Unconvertible
from shimmy.formats.safetensors.checkpoint import shown

MAX_PATTERNS = 256
_MAX_CHARACTERS = 256
_MAX_REPEATS = 3  # of `*`, `+` and braces in one expression: time grows with the power of it
# Characters, classes and groups without repetition of a group, look-around and back-references.
_SAFE = re.compile(
    r"(?:[\w\-/^$.|, ]|\\[.d\-w]|\[[\w\-^]+\]|\((?:\?:)?|\)(?![*+{?])|[*+](?![*+?{])|\{\d{1,2}(?:,\d{0,2})?\})*"
)
_REPEAT = re.compile(r"[*+{]")


def matches(pattern: str, name: str) -> bool:
    """Whether `name` begins with what `pattern` matches, as `re.match` does it. Raises Unconvertible."""
    return _compiled(pattern).match(name) is not None


@lru_cache(maxsize=MAX_PATTERNS)
def _compiled(pattern: str) -> re.Pattern[str]:
    reason = Unconvertible(f"its quantisation has the expression `{shown(pattern)}`, which is too complex")
    if len(pattern) > _MAX_CHARACTERS or not _SAFE.fullmatch(pattern) or len(_REPEAT.findall(pattern)) > _MAX_REPEATS:
        raise reason
    try:
        return re.compile(pattern)
    except re.error as exc:
        raise reason from exc
