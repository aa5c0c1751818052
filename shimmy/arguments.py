"""What can be typed behind `shimmy`: the sub-commands and what each takes.

Options that commands share with `serve` come from the table in `config`. Knows nothing of what a command does.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from shimmy import __version__
from shimmy.config import OPTIONS
from shimmy.option_kinds import DEFAULT_HOST, DEFAULT_PORT, Bind, ConfigError, n_bytes, one_of, seconds
from shimmy.rpc.address import DEFAULT_PORT as RPC_PORT
from shimmy.text.near_names import did_you_mean
from shimmy.wire.worker_options import MAX_SEQUENCES, SAFETENSORS_TYPES

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

    from shimmy.rpc.networks import Network

Value = TypeVar("Value")

_SERVER = f"as for `serve`: SHIMMY_BIND, or {DEFAULT_HOST}:{DEFAULT_PORT}"

# What other programs call commands that are ours by another name.
_COMMANDS_ELSEWHERE = {
    "chat": "run", "repl": "run", "ls": "list", "models": "list", "show": "probe", "info": "probe", "start": "serve",
    "server": "serve", "download": "pull", "fetch": "pull", "get": "pull", "remove": "rm", "delete": "rm",
    "benchmark": "bench", "quantize": "convert --type", "status": "ps", "kill": "stop",
}  # fmt: skip
# What other programs call options that are ours by another name.
_ELSEWHERE = {
    **dict.fromkeys(("--host", "--port"), "--bind"),
    **dict.fromkeys(("-m", "--model"), "--model-path"),
    **dict.fromkeys(("-ngl", "--n-gpu-layers"), "--gpu-layers"),
    "-c": "--ctx-size",
    "-t": "--threads",
    "-np": "--parallel",
    "--temperature": "--temp",
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What was typed; `command` is None where nothing was. Ends the program, as argparse does, for wrong usage and
    for those who ask for help."""
    parser = argument_parser(arguments[0] if arguments else None)
    _check_command(parser, arguments[0] if arguments else None)
    options, rest = parser.parse_known_args(arguments)
    if options.command == "help":
        _check_command(parser, options.topic)
        argument_parser().parse_args([*([options.topic] if options.topic else []), "--help"])
    _take_text(parser, options, rest)
    return options


def serving_files(arguments: Sequence[str]) -> Sequence[str]:
    """`FILE.gguf ...` as `serve --model-path FILE.gguf ...`; no command has a name like that of a file.

    Raises ConfigError for a file that is not there.
    """
    files = list(
        takewhile(lambda text: not text.startswith("-") and ("/" in text or text.endswith(".gguf")), arguments)
    )
    if not files:
        return arguments
    for file in files:
        if not Path(file).exists():
            raise ConfigError(f"there is no file `{file}`")
    return ["serve", *(part for file in files for part in ("--model-path", file)), *arguments[len(files) :]]


def _commands_of(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return action.choices


def _check_command(parser: argparse.ArgumentParser, word: str | None) -> None:
    """End the program where the first word is no command, and say which one was meant."""
    commands = _commands_of(parser)
    if word is None or word in commands:
        return
    if not word.startswith("-"):
        ours = f"did you mean `{_COMMANDS_ELSEWHERE[word]}`?" if word in _COMMANDS_ELSEWHERE else ""
        meant = ours or did_you_mean(word, commands) or "`shimmy help` lists them"
        parser.error(f"there is no command `{word}`: {meant}")
    if word.partition("=")[0] in {option.flag for option in OPTIONS}:
        parser.error(f"`{word}` stands behind a command, as in `shimmy serve {word}`")


def _about_unknown(parser: argparse.ArgumentParser, command: str | None, words: Sequence[str]) -> str:
    """What may have been meant by the first of `words`, or by the first option among them, which `command` or, where
    there is none, the program does not have; '' for no idea."""
    if command == "serve" and not words[0].startswith("-"):
        return f": did you mean `--model-path {words[0]}`?"
    flag = next((word.partition("=")[0] for word in words if word.startswith("-")), "")
    taker = parser if command is None else _commands_of(parser)[command]
    flags = [own for action in taker._actions for own in action.option_strings]
    if guess := did_you_mean(flag, flags):
        return f": {guess}"
    takers = next((("serve", *option.also) for option in OPTIONS if option.flag == flag), ())
    return f": `{flag}` is for {', '.join(f'`{taker}`' for taker in takers)}" if takers else ""


def _from_elsewhere(parser: argparse.ArgumentParser, command: str | None, words: Sequence[str]) -> str:
    """What another program's option, the first among `words`, is called by `command`; '' for none."""
    flag = next((word.partition("=")[0] for word in words if word.startswith("-")), "")
    own = next((option for option in OPTIONS if option.flag == _ELSEWHERE.get(flag)), None)
    if own is None or command is None or own.flag not in _commands_of(parser)[command]._option_string_actions:
        return ""
    return f": did you mean `{own.flag} {own.metavar}`?"


def _take_text(parser: argparse.ArgumentParser, options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Put the text of a command that takes one where it belongs; what is left over is wrong usage.

    argparse gives a positional argument that may be missing nothing, as soon as an option stands between it and NAME.
    """
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(options, "text", "") is None:
        options.text, rest = rest[0], ()
    if options.command == "run" and not any(word.startswith("-") for word in rest):
        options.text, rest = [*options.text, *rest], ()
    if rest:
        hint = _from_elsewhere(parser, options.command, rest) or _about_unknown(parser, options.command, rest)
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if options.command == "generate":
        if (options.text is None) == (options.prompt is None):
            parser.error("generate: give the prompt as TEXT (`-` reads it from stdin), or else with --prompt")
        options.prompt = options.text if options.prompt is None else options.prompt


class _Parser(argparse.ArgumentParser):
    """Takes whole names of options only, and does not pass over an error when it prints help.

    A beginning of a name could be that of another option than the one that is meant.
    """

    def __init__(self, **how: Any) -> None:
        super().__init__(allow_abbrev=False, **how)

    def print_help(self, file: "SupportsWrite[str] | None" = None) -> None:
        print(self.format_help(), end="", file=file)

    def print_usage(self, file: "SupportsWrite[str] | None" = None) -> None:
        """What stands above an error: without the options, of which a command has dozens."""
        formatter = self._get_formatter()
        formatter.add_usage(None, self._get_positional_actions(), ())
        print(formatter.format_help().replace(self.prog, f"{self.prog} [OPTIONS]", 1), end="", file=file)


@dataclass(frozen=True, slots=True)
class _Commands:
    """Where commands are added. Those beside `wanted`, if that is given, do without the options of the table."""

    action: Any
    wanted: str | None


def argument_parser(wanted: str | None = None) -> argparse.ArgumentParser:
    """Of all commands. If `wanted` is the one that was typed, a few milliseconds are saved at the others."""
    parser = _Parser(
        prog="shimmy",
        description="Serves language models over the OpenAI API. `shimmy FILE.gguf` serves that file.",
        epilog="`shimmy run OWNER/NAME` fetches a model from Hugging Face and talks to it. `shimmy help COMMAND` "
        "explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"shimmy {__version__}")
    commands = _Commands(parser.add_subparsers(dest="command", metavar="COMMAND", title="commands"), wanted)
    serve = _command(commands, "serve", "serve models over HTTP")
    serve.add_argument("--config", metavar="FILE", help="a TOML file with options, by their long names with `_`")
    serve.add_argument(
        "--background", action="store_true",
        help="start the server, print its base URL when it answers, and leave it running; `stop` ends it",
    )  # fmt: skip
    serve.add_argument(
        "--wait", type=_duration, metavar="TIME", help="with --background: how long it may take (default: 1m)"
    )
    serve.add_argument(
        "--log-file", metavar="FILE",
        help="with --background: append its log to this file (default: a private one, which is named)",
    )  # fmt: skip
    _command(commands, "list", "list the models that can be served", json=True)
    probe = _command(commands, "probe", "load a model and say what it is", json=True)
    probe.add_argument("name", metavar="NAME", help="a model's name, or a file or folder")
    generate = _command(commands, "generate", "answer one prompt without a server", json=True)
    generate.add_argument("name", metavar="NAME", help="a model's name, or a file or folder")
    generate.add_argument("text", nargs="?", metavar="TEXT", help="the prompt; `-` reads it from stdin")
    generate.add_argument("-p", "--prompt", metavar="TEXT", help="the prompt, in place of TEXT behind NAME")
    generate.add_argument("-n", "--max-tokens", type=_positive, metavar="N", help="limit of tokens to generate")
    generate.add_argument("--stop", action="append", metavar="TEXT", help="end before this text (repeatable)")
    generate.add_argument("--raw", action="store_true", help="complete the text; do not use the chat template")
    _add_run(commands)
    _add_file_commands(commands)
    bench = _command(commands, "bench", "measure how fast a model is on this machine", json=True)
    bench.add_argument("name", metavar="NAME", help="a model's name, or a file or folder")
    bench.add_argument(
        "-p", "--n-prompt", type=_natural, default=512, metavar="N", help="tokens of the prompt (default: 512; 0: none)"
    )
    bench.add_argument(
        "-n", "--n-gen", type=_natural, default=128, metavar="N", help="tokens to generate (default: 128; 0: none)"
    )
    bench.add_argument(
        "--sequences", type=_several, default=(1, 4, 8), metavar="N,...",
        help="how many sequences are generated at once (default: 1,4,8)",
    )  # fmt: skip
    bench.add_argument("-r", "--repetitions", type=_positive, default=5, metavar="N", help="of each test (default: 5)")
    bench.add_argument("--plot", metavar="FILE", help="draw the result into this SVG file, too")
    _add_convert(commands)
    _add_server_commands(commands)
    _add_device_commands(commands)
    _command(commands, "version", "print the version; as JSON, what is inside, too", json=True)
    completion = _command(commands, "completion", "print what makes a shell complete our commands")
    completion.add_argument("shell", metavar="SHELL", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
    explain = commands.action.add_parser("help", help="explain a command", description="Explain a command.")
    explain.add_argument("topic", nargs="?", metavar="COMMAND", help="the command (default: list them all)")
    return parser


def _add_file_commands(commands: _Commands) -> None:
    """What puts model files where they are found, and takes them away."""
    pull = _command(commands, "pull", "fetch a model from Hugging Face, Ollama's registry or a URL", json=True)
    pull.add_argument(
        "reference", metavar="REFERENCE",
        help="OWNER/NAME[:TAG] or hf.co/OWNER/NAME[:TAG], ollama:NAME[:TAG], or the URL of a GGUF file",
    )  # fmt: skip
    pull.add_argument(
        "--public-only", action="store_true", help="fetch URLs from public addresses only, not from this network"
    )
    remove = _command(commands, "rm", "delete a model's files, or an alias")
    remove.add_argument("names", nargs="+", metavar="NAME", help="a model's name, or an alias")
    remove.add_argument("-y", "--yes", action="store_true", help="do not ask")
    copy = _command(commands, "cp", "give a model one more name, which stays")
    copy.add_argument("name", metavar="NAME", help="a model's name")
    copy.add_argument("alias_name", metavar="ALIAS", help="its other name")


def _add_convert(commands: _Commands) -> None:
    convert = _command(commands, "convert", "make a GGUF file of a SafeTensors folder")
    convert.add_argument("folder", metavar="FOLDER", help="a folder as the Hugging Face hub ships it")
    convert.add_argument("-o", "--output", metavar="FILE", help="where to write it (default: FOLDER's name, here)")
    convert.add_argument("--force", action="store_true", help="replace what is there without asking")
    convert.add_argument(
        "--type", type=_type, dest="safetensors_type", metavar="TYPE", help="the same as --safetensors-type"
    )
    convert.add_argument(
        "--calibrate", metavar="FILE", help="with --type: quantise by an importance matrix computed over this text"
    )
    convert.add_argument(
        "--save-imatrix", metavar="FILE", help="with --calibrate: write the importance matrix here, too"
    )


def _add_run(commands: _Commands) -> None:
    run = _server_command(commands, "run", "chat with a model, or have it answer a text, in the terminal")
    run.add_argument("name", metavar="NAME", help="a model's name, or a file or folder")
    run.add_argument("text", nargs="*", default=(), metavar="TEXT", help="answer this, with what is piped in, and end")
    run.add_argument("-f", "--file", action="append", metavar="FILE", help="with the text of this file (repeatable)")
    run.add_argument("-n", "--max-tokens", type=_positive, metavar="N", help="limit of tokens to generate")
    run.add_argument("--system", metavar="TEXT", help="the system prompt")
    run.add_argument("--stats", action="store_true", help="say after each reply what it took")
    run.add_argument("--no-history", action="store_true", help="neither read nor write what was typed before")


def _add_server_commands(commands: _Commands) -> None:
    """What is asked of a server that runs."""
    health = _server_command(commands, "health", "say whether a server answers")
    health.add_argument("--model", metavar="NAME", help="have it load this model, too, and wait until it is ready")
    health.add_argument("--wait", type=_duration, metavar="TIME", help="try for so long: 30, 2m (default: once)")
    stop = _server_command(commands, "stop", "end a server that was started with `serve --background`")
    stop.add_argument("--all", action="store_true", help="end all that this user has started")
    stop.add_argument(
        "--wait", type=_duration, metavar="TIME", help="how long it may take, before it is killed (default: 30s)"
    )
    for name, text in (
        ("ps", "list the models that a running server has loaded"),
        ("discover", "look for models now: a running server, else this command"),
    ):
        _server_command(commands, name, text, json=True)
    load_model = _server_command(commands, "load", "have a running server load a model", json=True)
    load_model.add_argument("name", metavar="NAME", help="a model's name")
    load_model.add_argument("--keep-alive", metavar="TIME", help="how long it stays without a job; -1: for ever")
    unload = _server_command(commands, "unload", "have a running server unload a model", json=True)
    unload.add_argument("name", metavar="NAME", help="a model's name")


def _add_device_commands(commands: _Commands) -> None:
    """What computes beside the processor: here, and for others."""
    gpus = _command(commands, "gpu-info", "list the GPUs of this machine, and say why one is not used", json=True)
    gpus.add_argument("name", nargs="?", metavar="NAME", help="say where the layers of this model would go, too")
    worker = _command(commands, "rpc-worker", "compute parts of models for servers on other machines")
    worker.add_argument(
        "--bind", dest="listen", type=_listen, default=Bind(DEFAULT_HOST, RPC_PORT), metavar="HOST:PORT",
        help=f"where to listen (default: 127.0.0.1:{RPC_PORT}); other addresses than this machine's own need a key",
    )  # fmt: skip
    worker.add_argument(
        "--allow", action="extend", type=_networks, metavar="ADDRESS[/BITS],...",
        help="clients that may connect, such as 10.0.0.0/24 (repeatable; default: all that have the key)",
    )  # fmt: skip
    worker.add_argument(
        "--memory", type=_size, metavar="SIZE", help="what all clients together may have (default: what is free)"
    )
    worker.add_argument(
        "--max-clients", type=_positive, default=4, metavar="N",
        help="models of clients that are computed at once; a further client is told that it is busy (default: 4)",
    )  # fmt: skip
    worker.add_argument(
        "--weights-cache", type=_size_or_none, default=_size("20G"), metavar="SIZE",
        help="weights of up to this size stay in the cache folder, so that they travel once (default: 20G; 0: none)",
    )  # fmt: skip


def _server_command(commands: _Commands, name: str, text: str, *, json: bool = False) -> argparse.ArgumentParser:
    """A command for a server that runs; `commands.server_client` finds it."""
    parser = _command(commands, name, text, json=json)
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--bind", "--server", dest="bind", metavar="HOST:PORT", help=f"where it listens (default: {_SERVER})"
    )
    where.add_argument("--url", metavar="URL", help="its base URL, in place of --bind")
    parser.add_argument("--config", metavar="FILE", help="the configuration file of `serve`")
    parser.add_argument("--api-key", metavar="KEY", help="the key it asks for")
    return parser


def _by(kind: Callable[[str], Value]) -> Callable[[str], Value]:
    """A kind of options for argparse, which shows the reasons of its own errors alone."""

    def parse(text: str) -> Value:
        try:
            return kind(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc

    return parse


_duration, _size, _type = _by(seconds), _by(n_bytes), _by(one_of(tuple(SAFETENSORS_TYPES)))


@_by
def _listen(text: str) -> Bind:
    bind = Bind.parse(text)
    return Bind(bind.host, RPC_PORT) if bind.port is None else bind


@_by
def _networks(text: str) -> "list[Network]":
    from shimmy.rpc.networks import network

    return [network(part) for part in text.split(",")]


def _size_or_none(text: str) -> int:
    return 0 if text == "0" else _size(text)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least {least}")
    return value


_positive, _natural = partial(_whole, least=1), partial(_whole, least=0)


def _several(text: str) -> tuple[int, ...]:
    values = tuple(_positive(part) for part in text.split(","))
    if max(values) > MAX_SEQUENCES:
        raise argparse.ArgumentTypeError(f"must be at most {MAX_SEQUENCES}")
    return values


def _command(commands: _Commands, name: str, text: str, *, json: bool = False) -> argparse.ArgumentParser:
    """A command with the options that the table has for it."""
    parser: argparse.ArgumentParser = commands.action.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}."
    )
    parser.set_defaults(log_level=None)
    shared = parser if name == "serve" else parser.add_argument_group("options as for `serve`")
    for option in OPTIONS if commands.wanted in (None, name) else ():
        if name != "serve" and name not in option.also:
            continue
        if option.is_switch:
            no_flag = option.flag.replace("--", "--no-", 1)
            for flag, const, about in (option.flag, "true", option.help), (no_flag, "false", f"do not {option.help}"):
                shared.add_argument(flag, dest=option.name, action="store_const", const=const, help=about)
        else:
            action = "append" if option.separators else "store"
            shared.add_argument(option.flag, dest=option.name, action=action, metavar=option.metavar, help=option.help)
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
