"""What makes bash, zsh and fish complete our commands: scripts made from the parser and the table of options.

The shells ask the program for one thing only: the names of the models, which `list` prints.
"""

import argparse
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shimmy.config import OPTIONS
from shimmy.option_kinds import Choice

_FILES = {"FILE", "DIR", "FILE_OR_DIR", "FOLDER", "A:B", "PATH[=SCALE]"}
_MODEL, _COMMAND, _SHELL = "NAME", "COMMAND", "SHELL"
# What `NAME` stands for where it is no model.
_NOT_MODELS = {"cpu_variant", "allowed_hosts", "alias"}
_WORDS = {option.name: tuple(option.parse.words) for option in OPTIONS if isinstance(option.parse, Choice)}


@dataclass(frozen=True, slots=True)
class CompletedOption:
    """An option with its flags, and what may follow it."""

    flags: tuple[str, ...]
    text: str
    takes_value: bool
    is_file: bool
    is_model: bool
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CompletedCommand:
    """A command; `argument` is the metavar of what it takes first, empty where that is nothing."""

    name: str
    text: str
    argument: str
    options: tuple[CompletedOption, ...]


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The script for a shell, which is `bash`, `zsh` or `fish`."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](list(_commands(parser)))


def _commands(parser: argparse.ArgumentParser) -> Iterator[CompletedCommand]:
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    texts = {choice.dest: str(choice.help) for choice in action._choices_actions}
    for name, command in action.choices.items():
        arguments = [str(each.metavar) for each in command._actions if not each.option_strings]
        options = tuple(_option(each) for each in command._actions if each.option_strings)
        yield CompletedCommand(name, texts[name], arguments[0] if arguments else "", options)


def _option(action: argparse.Action) -> CompletedOption:
    metavar, takes_value = str(action.metavar), action.nargs != 0
    return CompletedOption(
        flags=tuple(action.option_strings),
        text=str(action.help or "").partition(" (")[0],
        takes_value=takes_value,
        is_file=metavar in _FILES,
        is_model=metavar == _MODEL and action.dest not in _NOT_MODELS,
        words=_WORDS.get(action.dest, ()) if takes_value else (),
    )


def _words(command: CompletedCommand, commands: Sequence[CompletedCommand]) -> str:
    """Those that an argument may be, where they are known."""
    if command.argument == _COMMAND:
        return " ".join(other.name for other in commands)
    return "bash zsh fish" if command.argument == _SHELL else ""


# -- bash ------------------------------------------------------------------------------------------------------------

# Names of models and files may hold anything, and `compgen -W` would run what stands in `$(...)`: the script compares.
_BASH = """\
# Completes shimmy's commands in bash: source <(shimmy completion bash)
_shimmy_lines() {
    local line
    while IFS= read -r line; do [[ "$line" == "$cur"* ]] && COMPREPLY+=("$line"); done
}
_shimmy_words() { _shimmy_lines < <(printf '%s\\n' "$@"); }
_shimmy_models() { _shimmy_lines < <(shimmy list 2>/dev/null | awk 'NR > 1 && NF && $1 != "ALIAS" { print $1 }'); }
_shimmy_files() { _shimmy_lines < <(compgen -f "$@" -- "$cur"); }
_shimmy() {
    local cur="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" command="" index
    COMPREPLY=()
    for ((index = 1; index < COMP_CWORD; index++)); do
        if [[ "${COMP_WORDS[index]}" != -* ]]; then command="${COMP_WORDS[index]}"; break; fi
    done
    case "$command $previous" in
VALUES
    esac
    if [[ -n "$command" && "$cur" == -* ]]; then
        case "$command" in
OPTIONS
        esac
        return
    fi
    case "$command" in
        "") _shimmy_words COMMANDS --help --version; _shimmy_files -X '!*.gguf' ;;
ARGUMENTS
        *) _shimmy_files ;;
    esac
}
complete -o filenames -o bashdefault -F _shimmy shimmy
"""


def _bash(commands: Sequence[CompletedCommand]) -> str:
    values, options, arguments = [], [], []
    for command in commands:
        flags = " ".join(flag for option in command.options for flag in option.flags)
        options.append(f"            {command.name}) _shimmy_words {flags} ;;")
        for option in command.options:
            if option.takes_value:
                patterns = "|".join(f'"{command.name} {flag}"' for flag in option.flags)
                values.append(f"        {patterns}) {_bash_value(option)}; return ;;")
        words = _words(command, commands)
        if command.argument == _MODEL:
            arguments.append(f"        {command.name}) _shimmy_models; _shimmy_files ;;")
        elif words:
            arguments.append(f"        {command.name}) _shimmy_words {words} ;;")
    parts = {
        "VALUES": "\n".join(values),
        "OPTIONS": "\n".join(options),
        "COMMANDS": " ".join(command.name for command in commands),
        "ARGUMENTS": "\n".join(arguments),
    }
    return _filled(_BASH, parts)


def _bash_value(option: CompletedOption) -> str:
    if option.words:
        return f"_shimmy_words {' '.join(option.words)}"
    if option.is_model:
        return "_shimmy_models"
    return "_shimmy_files" if option.is_file else ":"


def _filled(template: str, parts: Mapping[str, str]) -> str:
    """`template` with each upper-case word that `parts` names replaced."""
    return re.sub("|".join(parts), lambda found: parts[found[0]], template)


# -- zsh -------------------------------------------------------------------------------------------------------------

_ZSH = """\
#compdef shimmy
# Completes shimmy's commands in zsh: source <(shimmy completion zsh), or as the file _shimmy in a folder of $fpath
_shimmy_models() {
    local -a names
    names=(${(f)"$(shimmy list 2>/dev/null | awk 'NR > 1 && NF && $1 != "ALIAS" { print $1 }')"})
    compadd -a names
}
_shimmy_models_and_files() { _shimmy_models; _files }
_shimmy() {
    local -a commands
    commands=(
COMMANDS
    )
    if (( CURRENT == 2 )); then
        _describe -t commands command commands
        _files -g '*.gguf'
        return
    fi
    local command="$words[2]"
    shift words
    (( CURRENT-- ))
    case "$command" in
CASES
        *) _files ;;
    esac
}
if [[ "$funcstack[1]" == _shimmy ]]; then _shimmy "$@"; else compdef _shimmy shimmy; fi
"""


def _zsh(commands: Sequence[CompletedCommand]) -> str:
    listed = "\n".join(f"        {shlex.quote(f'{command.name}:{_zsh_text(command.text)}')}" for command in commands)
    cases = []
    for command in commands:
        specs = [_zsh_spec(flag, option) for option in command.options for flag in option.flags]
        words = _words(command, commands)
        if command.argument == _MODEL:
            specs.append("'1:model:_shimmy_models_and_files'")
        elif words:
            specs.append(f"'1:{command.argument.lower()}:({words})'")
        specs.append("'*:file:_files'")
        cases.append(f"        {command.name}) _arguments {' '.join(specs)} ;;")
    return _filled(_ZSH, {"COMMANDS": listed, "CASES": "\n".join(cases)})


def _zsh_spec(flag: str, option: CompletedOption) -> str:
    spec = f"*{flag}[{_zsh_text(option.text)}]"
    if option.takes_value:
        action = "_shimmy_models" if option.is_model else "_files" if option.is_file else " "
        words = " ".join(option.words)
        spec += f":value:({words})" if words else f":value:{action}"
    return shlex.quote(spec)


def _zsh_text(text: str) -> str:
    for character in "\\[]:":
        text = text.replace(character, f"\\{character}")
    return text


# -- fish ------------------------------------------------------------------------------------------------------------

_FISH = """\
# Completes shimmy's commands in fish: shimmy completion fish | source
function __shimmy_models
    shimmy list 2>/dev/null | awk 'NR > 1 && NF && $1 != "ALIAS" { print $1 }'
end
complete -c shimmy -f
complete -c shimmy -n __fish_use_subcommand -l version -d 'print the version'
complete -c shimmy -n __fish_use_subcommand -a '(__fish_complete_suffix .gguf)'
"""


def _fish(commands: Sequence[CompletedCommand]) -> str:
    lines = [_FISH]
    for command in commands:
        after = f"complete -c shimmy -n '__fish_seen_subcommand_from {command.name}'"
        name, text = shlex.quote(command.name), _fish_text(command.text)
        lines.append(f"complete -c shimmy -n __fish_use_subcommand -a {name} -d {text}\n")
        words = _words(command, commands)
        if command.argument == _MODEL:
            lines.append(f"{after} -F -a '(__shimmy_models)'\n")
        elif words:
            lines.append(f"{after} -a {shlex.quote(words)}\n")
        elif command.argument:
            lines.append(f"{after} -F\n")
        lines += [f"{after} {_fish_spec(option)}\n" for option in command.options]
    return "".join(lines)


def _fish_spec(option: CompletedOption) -> str:
    flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
    spec = f"{flags} -d {_fish_text(option.text)}"
    if not option.takes_value:
        return spec
    if option.words:
        return f"{spec} -x -a {shlex.quote(' '.join(option.words))}"
    if option.is_model:
        return f"{spec} -x -a '(__shimmy_models)'"
    return f"{spec} -r -F" if option.is_file else f"{spec} -x"


def _fish_text(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
