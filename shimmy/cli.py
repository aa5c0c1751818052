"""The command line. `serve`, `list`, `probe`, `generate`, `bench`, `convert` and `version` work by themselves; `ps`,
`load`, `unload` and `discover` ask a server.

Data goes to stdout, everything else to stderr. Exit codes: 0 fine, 1 failed, 2 wrong usage, 3 could not start. Knows
the sub-commands and how their results look; what they do is elsewhere, imported only by the command that needs it.
"""

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shimmy import __version__, log
from shimmy.config import DEFAULT_HOST, DEFAULT_PORT, OPTIONS, Config, ConfigError, load
from shimmy.errors import NotFound, ShimmyError
from shimmy.frozen import Home
from shimmy.messages import ChatPrompt, Finished, GenerateRequest, Message, TextPrompt

if TYPE_CHECKING:
    from shimmy.events import Events
    from shimmy.generate import Services
    from shimmy.registry import Catalog, Model

# What a model is to us, and nothing that a person asked for.
_INNER_FIELDS = {
    "files", "defaults", "needs_adapters", "n_vocab", "n_embd", "n_ff", "n_kv", "n_state", "is_causal", "pooling",
}  # fmt: skip
_SERVER = f"SHIMMY_BIND, or {DEFAULT_HOST}:{DEFAULT_PORT}"
_MAX_SEQUENCES = 256  # llama.cpp's LLAMA_MAX_SEQ
EXIT_FAILED, EXIT_USAGE, EXIT_START = 1, 2, 3

# The options that make sense without a server.
_MODEL_OPTIONS = ("model_path", "model_dirs", "cache_dir", "log_level", "log_format")
_ENGINE_OPTIONS = (
    *_MODEL_OPTIONS, "ctx_size", "batch_size", "threads", "speculation", "chat_template", "chat_template_file",
    "lora", "cpu_variant",
)  # fmt: skip
_BENCH_OPTIONS = (*_MODEL_OPTIONS, "ctx_size", "batch_size", "threads", "lora", "cpu_variant")


@dataclass(frozen=True, slots=True)
class Call:
    """One run of a command: what the person typed, and what it means."""

    config: Config
    options: argparse.Namespace
    home: Home


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.command is None:
        _parser().print_help(sys.stderr)
        return EXIT_USAGE
    home = Home()
    try:
        config = load(vars(options), file=_config_file(options))
        is_quiet = options.command != "serve" and not (options.log_level or os.environ.get("SHIMMY_LOG_LEVEL"))
        level = "warning" if is_quiet else config.log_level
        log.set_up(level, config.log_format)
        code: int = options.run(Call(config, options, home))
        return code
    except ConfigError as error:
        return _complain(error, EXIT_USAGE)
    except ShimmyError as error:
        return _complain(error, EXIT_FAILED)
    except BrokenPipeError:
        # Whoever read our output has seen enough; keep the interpreter from complaining at its end as well.
        sys.stdout = None
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_FAILED
    finally:
        home.leave()


def _complain(error: Exception, code: int) -> int:
    print(f"shimmy: {error}", file=sys.stderr)
    return code


# -- the commands ----------------------------------------------------------------------------------------------------


def _serve(call: Call) -> int:
    gc.disable()  # what a start makes is there to stay; the server looks for garbage once it runs
    from shimmy.server import BindError, serve

    try:
        serve(call.config, call.home)
    except BindError as error:
        return _complain(error, EXIT_START)
    return 0


def _catalog(config: Config) -> "Catalog":
    from shimmy.discovery import report, scan
    from shimmy.headers import Headers

    headers = Headers(config.cache_dir)
    catalog = scan(config, headers)
    report(catalog.rejected)
    headers.save()
    return catalog


def _list(call: Call) -> int:
    models = _catalog(call.config).models
    if call.options.json:
        print(json.dumps([_model_fields(model) for model in models], indent=2))
        return 0
    rows = [("NAME", "ARCHITECTURE", "TYPE", "PARAMETERS", "SIZE", "CONTEXT")]
    rows += [
        (m.name, m.architecture, m.quantization, _count(m.n_params), f"{m.size_bytes / 1e6:.0f} MB", str(m.n_ctx_train))
        for m in models
    ]
    _print_table(rows)
    return 0


def _ps(call: Call) -> int:
    """The models that the server has loaded, or is about to."""
    entries = _ask_server(call, "GET", "/api/models")["models"]
    return _print_entries(call, [entry for entry in entries if "jobs" in entry])


def _discover(call: Call) -> int:
    return _print_entries(call, _ask_server(call, "POST", "/api/models/discover")["models"])


def _load(call: Call) -> int:
    body = {} if call.options.keep_alive is None else {"keep_alive": call.options.keep_alive}
    path = f"/api/models/{_quoted(call.options.name)}/load"
    return _print_entries(call, [_ask_server(call, "POST", path, body)])


def _unload(call: Call) -> int:
    return _print_entries(call, [_ask_server(call, "POST", f"/api/models/{_quoted(call.options.name)}/unload")])


def _ask_server(call: Call, method: str, path: str, body: dict[str, str] | None = None) -> Any:
    from shimmy.remote import NoServer, ask

    keys = call.config.api_keys
    try:
        return ask(
            call.config.bind, keys[0] if keys else None, method, path, json.dumps(body).encode() if body else b""
        )
    except NoServer as error:
        raise NotFound(str(error)) from error


def _quoted(name: str) -> str:
    from urllib.parse import quote

    return quote(name)


def _print_entries(call: Call, entries: list[dict[str, Any]]) -> int:
    """Entries of `/api/models`."""
    if call.options.json:
        print(json.dumps(entries, indent=2))
        return 0
    rows: list[tuple[str, ...]] = [("NAME", "STATE", "MEMORY", "CONTEXT", "JOBS", "IDLE", "NOTE")]
    for entry in entries:
        idle_s = entry.get("idle_s")
        cells = (
            entry["name"],
            entry["state"],
            f"{entry['memory']['total_bytes'] / 1e6:.0f} MB" if entry.get("memory") else "",
            entry.get("n_ctx", ""),
            entry.get("jobs", ""),
            "" if idle_s is None else f"{idle_s:.0f} s",
            entry.get("error") or "",
        )
        rows.append(tuple(map(str, cells)))
    _print_table(rows)
    return 0


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _convert(call: Call) -> int:
    folder, file_type = Path(call.options.folder), call.config.safetensors_type
    target = Path(call.options.output or f"{folder.absolute().name}.gguf")
    bar = _ProgressBar(f"{folder.absolute().name} -> {target.name}")
    try:
        notices = _write_gguf(folder, target, file_type, call.config.n_threads, bar.show)
    finally:
        bar.end()
    for notice in notices:
        print(f"shimmy: {notice}", file=sys.stderr)
    print(target)
    return 0


def _write_gguf(
    folder: Path, target: Path, file_type: str | None, n_threads: int | None, on_progress: Callable[[float], None]
) -> tuple[str, ...]:
    """Write the GGUF of a SafeTensors folder, replacing `target` once it is whole; returns what a person has to know.

    Raises NotFound with what stands against it.
    """
    from shimmy.engine.machine import n_physical_cores
    from shimmy.formats.convert import convert
    from shimmy.formats.safetensors import InvalidSafetensors
    from shimmy.formats.unconvertible import Unconvertible

    lossless, part = (target.with_name(f"{target.name}.{suffix}") for suffix in ("lossless", "quantized"))
    try:
        if file_type is None:
            return convert(folder, target, on_progress).notices
        notices = convert(folder, lossless, lambda share: on_progress(share / 2)).notices
        _quantize(lossless, part, file_type, n_threads or n_physical_cores())
        part.replace(target)
        on_progress(1.0)
        return notices
    except (Unconvertible, InvalidSafetensors) as exc:
        raise NotFound(f"`{folder}` cannot be converted: {exc}") from exc
    except OSError as exc:
        raise NotFound(f"`{folder}` cannot be converted: {exc.strerror or exc}") from exc
    finally:
        for path in (lossless, part):
            path.unlink(missing_ok=True)


def _quantize(source: Path, target: Path, file_type: str, n_threads: int) -> None:
    """In a process of its own, which has the engine."""
    from shimmy.engine.client import own_program

    command = [*own_program(), "quantize", str(source), str(target), file_type, str(n_threads)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip() or f"the engine ended with {done.returncode}"
        raise NotFound(f"`{target.name}` could not be made: {reason}")


async def _show_conversion(events: "Events") -> None:
    """A bar while a SafeTensors folder is converted before it can be loaded."""
    bar = None
    async for event in events.listen():
        if event.kind == "converting":
            bar = bar or _ProgressBar(f"converting {event.model}")
            bar.show(float(str(event.details["percent"])) / 100)
        elif bar is not None:
            bar.end()
            bar = None


class _ProgressBar:
    """One line on stderr that grows; nothing where stderr is no terminal."""

    WIDTH = 40

    def __init__(self, label: str) -> None:
        self._label = label
        self._is_shown = sys.stderr.isatty()
        self._percent = -1

    def show(self, share: float) -> None:
        if self._is_shown and int(100 * share) != self._percent:
            self._percent = int(100 * share)
            bar = "#" * int(self.WIDTH * share)
            print(f"\r{self._label} [{bar:<{self.WIDTH}}] {self._percent:3} %", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._percent >= 0:
            print(file=sys.stderr)


def _probe(call: Call) -> int:
    """Load a model for real, so that the answer is the engine's."""

    async def probe(services: "Services", model: "Model") -> dict[str, Any]:
        facts = (await services.pool.ensure_ready(model)).facts
        return _model_fields(model) | asdict(facts)

    fields = _with_model(call.config, call.options.name, probe)
    if call.options.json:
        print(json.dumps(fields, indent=2))
    else:
        for name, value in fields.items():
            print(f"{name}: {value}")
    return 0


def _generate(call: Call) -> int:
    prompt_text = sys.stdin.read() if call.options.prompt == "-" else call.options.prompt

    async def generate_text(services: "Services", model: "Model") -> int:
        from shimmy.generate import generate

        worker = await services.pool.ensure_ready(model)
        is_chat = worker.facts.has_chat_template and not call.options.raw
        defaults = model.defaults
        chat = ChatPrompt((Message("user", prompt_text),)).with_system(defaults.system)
        request = GenerateRequest(
            model.name,
            chat if is_chat else TextPrompt(prompt_text),
            call.config.sampling_of(defaults),
            call.options.max_tokens or call.config.n_predict or defaults.n_predict,
            tuple(call.options.stop or defaults.stop),
        )
        generation = generate(services, request)
        texts: list[str] = []
        async for event in generation:
            if isinstance(event, Finished):
                _print_end(call, model, "".join(texts), event)
            else:
                texts.append(event.text)
                if not call.options.json:
                    print(event.text, end="", flush=True)
        return 0

    code: int = _with_model(call.config, call.options.name, generate_text)
    return code


def _print_end(call: Call, model: "Model", text: str, finished: Finished) -> None:
    if not call.options.json:
        print()
        return
    usage, timings = finished.usage, finished.timings
    fields = {
        "model": model.name,
        "text": text,
        "finish_reason": finished.reason.value,
        "prompt_tokens": usage.n_prompt,
        "completion_tokens": usage.n_completion,
        "prompt_ms": round(timings.prompt_ms, 2),
        "predicted_ms": round(timings.predicted_ms, 2),
    }
    print(json.dumps(fields))


def _bench(call: Call) -> int:
    from shimmy.bench import Result, measure, trials
    from shimmy.engine.machine import n_physical_cores

    options, config = call.options, call.config
    chosen = trials(options.n_prompt, options.n_gen, options.sequences)
    if not chosen:
        raise ConfigError("--n-prompt and --n-gen are both 0: there is nothing to measure")
    n_sequences = max(config.n_sequences, *options.sequences)
    # Guessing ahead would measure the text: what follows random tokens soon repeats itself.
    config = replace(config, speculate=False, n_sequences=n_sequences, n_threads=config.n_threads or n_physical_cores())
    bar = _ProgressBar("measuring")

    async def bench(services: "Services", model: "Model") -> tuple["Model", str, list[Result]]:
        worker = await services.pool.ensure_ready(model)
        try:
            return model, worker.facts.cpu_variant, await measure(worker, chosen, options.repetitions, bar.show)
        finally:
            bar.end()

    model, cpu_variant, results = _with_model(config, options.name, bench)
    if options.json:
        about = _model_fields(model) | {"cpu_variant": cpu_variant, "n_threads": config.n_threads}
        print(json.dumps(about | {"results": [result.fields() for result in results]}, indent=2))
        return 0
    print(f"{model.name}, {model.quantization}, {model.size_bytes / 1e6:.0f} MB, {_count(model.n_params)} parameters")
    print(f"{config.n_threads} threads, CPU variant {cpu_variant}\n")
    rows = [(result.trial.name, f"{result.mean:.2f} ± {result.deviation:.2f}") for result in results]
    _print_table([("TEST", "TOKENS/S"), *rows])
    return 0


def _version(call: Call) -> int:
    print(json.dumps({"version": __version__}) if call.options.json else f"shimmy {__version__}")
    return 0


# -- what they share -------------------------------------------------------------------------------------------------


def _with_model(config: Config, name: str, use: Callable[["Services", "Model"], Any]) -> Any:
    """Run `use` with the services of a server but no server; `name` is a model's name or a file's path."""
    from shimmy.events import Events
    from shimmy.generate import Services, no_discovery
    from shimmy.metrics import Metrics
    from shimmy.pool import Pool
    from shimmy.registry import Registry

    path = Path(name)
    is_place = path.is_file() or (path / "config.json").is_file()  # of a GGUF, or of a model in SafeTensors
    if is_place:
        config = replace(config, model_paths=(path,), model_dirs=(), usual_dirs=())
    catalog = _catalog(config)
    if is_place:
        if not catalog.models:
            reason = "".join(entry.reason for entry in catalog.rejected[:1]) or "it is not a model"
            raise NotFound(f"`{name}` cannot be served: {reason}")
        name = catalog.models[0].name
    model = catalog.resolve(name)

    async def run() -> Any:
        metrics, events, registry = Metrics(), Events(), Registry()
        pool = Pool(config, metrics, events)
        services = Services(config, registry, pool, metrics, events, no_discovery, ready=True)
        registry.publish(catalog)
        watching = asyncio.create_task(_show_conversion(events))
        try:
            return await use(services, model)
        finally:
            watching.cancel()
            await services.pool.close()

    return asyncio.run(run())


def _model_fields(model: "Model") -> dict[str, Any]:
    from shimmy.registry import shown

    fields = {name: getattr(model, name) for name in type(model).__slots__ if name not in _INNER_FIELDS}
    adapters = [shown(path) for path in model.adapters]
    projector = shown(model.projector) if model.projector else None
    return fields | {"path": shown(model.path), "adapters": adapters, "projector": projector}


def _count(number: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def _config_file(options: argparse.Namespace) -> dict[str, Any]:
    path: str | None = getattr(options, "config", None)
    if path is None:
        return {}
    import tomllib

    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"--config: cannot read `{path}`: {exc}") from exc


# -- the parser ------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shimmy", description="Serves language models over the OpenAI API.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    serve = _command(commands, "serve", _serve, "serve models over HTTP", [option.name for option in OPTIONS])
    serve.add_argument("--config", metavar="FILE", help="a TOML file with options, by their long names with `_`")
    _command(commands, "list", _list, "list the models that can be served", _MODEL_OPTIONS, json=True)
    probe = _command(commands, "probe", _probe, "load a model and say what it is", _ENGINE_OPTIONS, json=True)
    probe.add_argument("name", metavar="NAME", help="a model's name, or a file or folder")
    generate = _command(
        commands, "generate", _generate, "answer one prompt without a server",
        (*_ENGINE_OPTIONS, "temp", "seed"), json=True,
    )  # fmt: skip
    generate.add_argument("name", metavar="NAME", help="a model's name, or a file or folder")
    generate.add_argument("--prompt", required=True, metavar="TEXT", help="the prompt; `-` reads it from stdin")
    generate.add_argument("--max-tokens", type=_positive, metavar="N", help="limit of tokens to generate")
    generate.add_argument("--stop", action="append", metavar="TEXT", help="end before this text (repeatable)")
    generate.add_argument("--raw", action="store_true", help="complete the text; do not use the chat template")
    bench = _command(
        commands, "bench", _bench, "measure how fast a model is on this machine", _BENCH_OPTIONS, json=True
    )
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
    convert = _command(
        commands, "convert", _convert, "make a GGUF file of a SafeTensors folder",
        ("threads", "safetensors_type", "log_level", "log_format"),
    )  # fmt: skip
    convert.add_argument("folder", metavar="FOLDER", help="a folder as the Hugging Face hub ships it")
    convert.add_argument("-o", "--output", metavar="FILE", help="where to write it (default: FOLDER's name, here)")
    convert.add_argument("--type", dest="safetensors_type", metavar="TYPE", help="the same as --safetensors-type")
    _server_command(commands, "ps", _ps, "list the models that a running server has loaded")
    load_model = _server_command(commands, "load", _load, "have a running server load a model")
    load_model.add_argument("name", metavar="NAME", help="a model's name")
    load_model.add_argument("--keep-alive", metavar="TIME", help="how long it stays without a job; -1: for ever")
    unload = _server_command(commands, "unload", _unload, "have a running server unload a model")
    unload.add_argument("name", metavar="NAME", help="a model's name")
    _server_command(commands, "discover", _discover, "have a running server look for models now")
    _command(commands, "version", _version, "print the version", (), json=True)
    return parser


def _server_command(commands: Any, name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
    parser = _command(commands, name, run, text, (), json=True)
    parser.add_argument("--server", dest="bind", metavar="HOST:PORT", help=f"where it listens (default: {_SERVER})")
    parser.add_argument("--api-key", metavar="KEY", help="the key it asks for")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return value


def _several(text: str) -> tuple[int, ...]:
    values = tuple(_positive(part) for part in text.split(","))
    if max(values) > _MAX_SEQUENCES:
        raise argparse.ArgumentTypeError(f"must be at most {_MAX_SEQUENCES}")
    return values


def _command(
    commands: Any, name: str, run: Callable[..., int], text: str, options: Sequence[str], *, json: bool = False
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text.capitalize() + ".")
    parser.set_defaults(run=run, log_level=None)
    for option in OPTIONS:
        if option.name not in options:
            continue
        if option.is_switch:
            parser.add_argument(option.flag, dest=option.name, action="store_const", const="true", help=option.help)
            no_flag = option.flag.replace("--", "--no-", 1)
            parser.add_argument(
                no_flag, dest=option.name, action="store_const", const="false", help=f"do not {option.help}"
            )
        else:
            action = "append" if option.separators else "store"
            parser.add_argument(option.flag, dest=option.name, action=action, metavar=option.metavar, help=option.help)
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON")
    return parser
