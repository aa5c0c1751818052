"""Writes docs/reference.md from the tables the program itself uses: options, routes, metrics, errors.

Run by `make docs`; a test compares the file with what this makes. Needs the project's environment.
"""

import argparse
import sys
from pathlib import Path

from shimmy.api.routes import ROUTES
from shimmy.arguments import argument_parser
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
    parts = [_HEAD, _commands(), _options(), _routes(), _errors(), _metrics()]
    return "\n".join(parts)


def _commands() -> str:
    lines = ["## Commands", "", "| command | what it does |", "|---|---|"]
    own_options: dict[tuple[str, str], list[str]] = {}  # flags and text, and the commands that have them
    (action,) = (action for action in argument_parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in action.choices.items():
        arguments = [argument for argument in command._actions if argument.dest != "help"]
        places = "".join(f" {argument.metavar}" for argument in arguments if not argument.option_strings)
        lines.append(f"| `shimmy {name}{places}` | {str(command.description).removesuffix('.')} |")
        for argument in arguments:
            if argument.option_strings and not _is_row(argument):
                own_options.setdefault((_flags(argument), str(argument.help)), []).append(f"`{name}`")
    lines += [
        "",
        "Their own options, beside those that they share with `serve`; `--help` lists all of a command:",
        "",
        "| flag | of | what it does |",
        "|---|---|---|",
    ]
    lines += [f"| {flags} | {', '.join(names)} | {text} |" for (flags, text), names in own_options.items()]
    return "\n".join([*lines, ""])


def _flags(action: argparse.Action) -> str:
    metavar = f" {action.metavar}" if action.metavar else ""
    return ", ".join(f"`{flag}{metavar}`" for flag in action.option_strings)


def _is_row(action: argparse.Action) -> bool:
    """Whether an option of a command is a row of the table of options, with its text."""
    return any(action.help in {option.help, f"do not {option.help}"} for option in OPTIONS)


def _options() -> str:
    lines = [
        "## Options of `shimmy serve`",
        "",
        "A flag beats its environment variable, which beats the key in the file of `--config` (TOML; the long name",
        "with `_` for `-`), which beats the default. Repeatable options take a list in a file.",
        "",
        "| flag | variables | default | what it does | also of |",
        "|---|---|---|---|---|",
    ]
    for option in OPTIONS:
        variables = ", ".join(f"`{name}`" for name in (option.variable, *option.variables))
        also = ", ".join(f"`{name}`" for name in option.also)
        lines.append(f"| {_flag(option)} | {variables} | {_default(option)} | {option.help} | {also} |")
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
