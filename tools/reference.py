"""Writes docs/reference.md from the tables the program itself uses: options, routes, metrics, errors.

Run by `make docs`; a test compares the file with what this makes. Needs the project's environment.
"""

import sys
from pathlib import Path

from shimmy.api.routes import ROUTES
from shimmy.config import OPTIONS
from shimmy.errors import BY_CODE
from shimmy.metrics import Metrics
from shimmy.option_kinds import Bind, Option

FILE = Path(__file__).parent.parent / "docs" / "reference.md"

_HEAD = """# Reference

Made by `make docs` from the tables in the code. Do not edit.
"""


def reference() -> str:
    """The whole page."""
    parts = [_HEAD, _options(), _routes(), _errors(), _metrics()]
    return "\n".join(parts)


def _options() -> str:
    lines = [
        "## Options of `shimmy serve`",
        "",
        "A flag beats its environment variable, which beats the key in the file of `--config` (TOML; the long name",
        "with `_` for `-`), which beats the default. Repeatable options take a list in a file.",
        "",
        "| flag | variables | default | what it does |",
        "|---|---|---|---|",
    ]
    for option in OPTIONS:
        variables = ", ".join(f"`{name}`" for name in (option.variable, *option.variables))
        lines.append(f"| {_flag(option)} | {variables} | {_default(option)} | {option.help} |")
    return "\n".join([*lines, ""])


def _flag(option: Option) -> str:
    if option.is_switch:
        return f"`{option.flag}`, `{option.flag.replace('--', '--no-', 1)}`"
    return f"`{option.flag} {option.metavar}`".replace("|", "\\|")


def _default(option: Option) -> str:
    value = option.default
    if value is None or value == ():
        return ""
    if isinstance(value, Bind):
        return "`auto`"
    return f"`{str(value).lower() if option.is_switch else value}`"


def _routes() -> str:
    lines = ["## Routes", "", "| method | path |", "|---|---|"]
    lines += [f"| {method} | `{path.replace('{rest:path}', '{id}')}` |" for method, path, _ in ROUTES]
    return "\n".join([*lines, ""])


def _errors() -> str:
    lines = [
        "## Errors",
        "",
        'Every error body is `{"error": {"message", "type", "param", "code"}}`. In a stream that has begun, the same',
        "object is the last event.",
        "",
        "| status | code | type |",
        "|---|---|---|",
    ]
    rows = sorted({(error.status, error.code, error.type) for error in BY_CODE.values()})
    lines += [f"| {status} | `{code}` | `{type_name}` |" for status, code, type_name in rows]
    return "\n".join([*lines, ""])


def _metrics() -> str:
    lines = ["## Metrics", "", "| name | type | labels | what it counts |", "|---|---|---|---|"]
    for metric in vars(Metrics()).values():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.help_text} |")
    return "\n".join([*lines, ""])


def main() -> int:
    FILE.write_text(reference(), encoding="utf-8")
    print(f"wrote {FILE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
