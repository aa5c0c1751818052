"""The page as one HTML text, put together from plain files. Knows how they import and export, not what they do.

In the frozen file a module takes this one's place that has the result (shimmy.spec).
"""

import base64
import gzip
import hashlib
import re
from graphlib import TopologicalSorter
from pathlib import Path

from shimmy.api.page.squeeze import squeezed

FOLDER = Path(__file__).parent
_IMPORT = re.compile(r"""^import\s*(?:\{([^}]*)\}|([\w$]+))\s*from\s*["']([^"']+)["'];""", re.MULTILINE)
_EXPORT_LIST = re.compile(r"\bexport\s*\{([^}]*)\};?\s*$")
_EXPORT_DEFAULT = re.compile(r"\bexport default (?=function\b)")
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function\*?|const|class) ([\w$]+))", re.MULTILINE)


def page() -> tuple[bytes, bytes]:
    """The page, compressed with gzip, and its Content-Security-Policy."""
    style, script = _style(), _script()
    html = (FOLDER / "page.html").read_text().replace("STYLE", style, 1).replace("SCRIPT", script, 1)
    return gzip.compress(html.encode(), 9, mtime=0), _policy(style, script).encode()


def _policy(style: str, script: str) -> str:
    """Nothing runs but the script that stands in the page, and it speaks with its own server only."""
    return "; ".join([
        "default-src 'none'", f"script-src '{_digest(script)}'", f"style-src '{_digest(style)}'", "connect-src 'self'",
        "img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
        "require-trusted-types-for 'script'", "trusted-types 'none'",
    ])  # fmt: skip


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _style() -> str:
    one_line = " ".join((FOLDER / "style.css").read_text().split())
    return re.sub(r"(?<=[{};:,]) | (?=[{}])", "", one_line).replace(";}", "}")


def _script() -> str:
    """All modules as one: each is a function that returns what it exports, after those that it imports."""
    sources = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*/*.js"))}
    own = {path.stem for path in FOLDER.glob("modules/*.js")}
    needs = {name: [_target(place) for _, _, place in _IMPORT.findall(text)] for name, text in sources.items()}
    order = TopologicalSorter(needs).static_order()
    bodies = {name: _as_function(sources[name]) for name in order}
    parts = [f"{_place(n)} = (() => {{{squeezed(body) if n in own else body}}})();" for n, body in bodies.items()]
    return "\n".join(['"use strict";', "const $m = {};", *parts])


def _target(place: str) -> str:
    """The name of the module that is imported from `place`, a path or the name of a package."""
    return place.rpartition("/")[2].removesuffix(".js")


def _as_function(source: str) -> str:
    """The body of a function that does what the module does, and returns its exports by their names."""
    exports: list[str] = []
    if listed := _EXPORT_LIST.search(source):
        source = source[: listed.start()] + "\n"
        for item in filter(None, map(str.strip, listed[1].split(","))):
            name, _, alias = item.partition(" as ")
            exports.append(f"{alias or name}: {name}")
    if _EXPORT_DEFAULT.search(source):
        source = _EXPORT_DEFAULT.sub("const its_default = ", source)
        exports.append("default: its_default")
    exports += _EXPORT.findall(source)
    imports = [_as_constant(*each) for each in _IMPORT.findall(source)]
    source = _IMPORT.sub("", _EXPORT.sub("", source))
    beginning = f"const {', '.join(imports)};\n" if imports else ""
    return f"{beginning}{source}\nreturn {{ {', '.join(exports)} }};"


def _as_constant(names: str, default: str, place: str) -> str:
    left = f"{{ default: {default} }}" if default else f"{{ {names.strip().replace(' as ', ': ')} }}"
    return f"{left} = {_place(_target(place))}"


def _place(name: str) -> str:
    """Where a module's exports are: each name is written dozens of times, so `$m` is short."""
    return f"$m.{name}" if name.isidentifier() else f"$m[{name!r}]"
