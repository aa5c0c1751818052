"""`list`, `probe`, `generate`: the models on the disk, and one of them used without a server."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shimmy import log
from shimmy.catalog.alias_file import AliasFile
from shimmy.catalog.assign_names import Names
from shimmy.catalog.catalog import Catalog, Model, Registry, shown
from shimmy.catalog.header_cache import Headers
from shimmy.catalog.scan import report, scan
from shimmy.commands.console import NO_MODEL, CommandCall, hint, print_facts, print_table
from shimmy.commands.terminal.amounts import ago, count, size
from shimmy.commands.terminal.load_line import show_loads
from shimmy.commands.terminal.screen_text import safe, safe_line
from shimmy.commands.terminal.style import is_terminal
from shimmy.config import Config
from shimmy.errors import ModelNotFound, NotFound
from shimmy.formats.safetensors import huggingface
from shimmy.messages.event import Finished, Piece
from shimmy.messages.request import ChatPrompt, GenerateRequest, Message, TextPrompt
from shimmy.text.plural import plural
from shimmy.text.printable import printable

if TYPE_CHECKING:
    from shimmy.generation import Services
    from shimmy.messages.model_info import ModelFacts

# What a model is to us, and nothing that a person asked for.
_INNER_FIELDS = {
    *("files", "defaults", "needs_adapters", "places", "other_names", "is_causal", "pooling"),
    *("n_vocab", "n_layers", "n_embd", "n_ff", "n_expert_params", "n_heads", "n_kv", "n_state"),
}  # fmt: skip


def list_models(call: CommandCall) -> int:
    """Fails where --model-path names something that is no model, or is not there; what else there is, is listed."""
    kept = AliasFile(call.config.alias_file)
    registry = Registry(call.config.aliases, kept=kept)
    registry.publish(catalog := find_models(call.config))
    models, aliases = catalog.models, registry.aliases()
    refused = {entry.path for entry in catalog.rejected}
    paths = call.config.model_paths
    code = int(any(path in refused or not os.path.exists(path) for path in paths))  # noqa: PTH110 - this never raises
    if call.options.json:
        names: dict[str, list[str]] = {model.name: [] for model in models}
        for alias, model in aliases:
            names[model.name].append(alias)
        print(json.dumps([model_fields(model) | {"aliases": sorted(names[model.name])} for model in models], indent=2))
        return code
    print_models(models)
    rows = [(alias, model.name) for alias, model in aliases]
    rows += [(alias, f"{name} (not there)") for alias, name in kept.pairs() if catalog.model(name) is None]
    if rows:
        print()
        print_table(("ALIAS", "MODEL"), sorted(rows))
    if models:
        hint("`shimmy run NAME` talks to a model, `shimmy probe NAME` says more about it.")
    else:
        hint(NO_MODEL)
    return code


def print_models(models: Sequence[Model]) -> None:
    """A table for people."""
    now_s = time.time()
    head = ("NAME", "ARCHITECTURE", "TYPE", "PARAMETERS", "SIZE", "CONTEXT", "CHANGED")
    rows = [
        (
            model.name,
            model.architecture,
            model.quantization,
            count(model.n_params),
            size(model.size_bytes),
            f"{model.n_ctx_train:,}",
            ago(now_s - model.mtime_ns / 1e9),
        )
        for model in models
    ]
    spare = ("CHANGED", "CONTEXT", "ARCHITECTURE", "PARAMETERS", "TYPE")
    print_table(head, rows, numbers=("PARAMETERS", "SIZE", "CONTEXT"), spare=spare)


def probe(call: CommandCall) -> int:
    """Load a model in a worker, so that the answer is the engine's."""

    async def facts_of(services: "Services", model: Model) -> "tuple[Model, ModelFacts]":
        return model, (await services.pool.ensure_ready(model)).facts

    model, facts = with_model(call.config, call.options.name, facts_of)
    if call.options.json:
        print(json.dumps(model_fields(model) | asdict(facts), indent=2))
    else:
        print_facts(_described(model, facts))
        for notice in model.notices:
            print(f"shimmy: {safe_line(notice)}", file=sys.stderr)
    return 0


def _described(model: Model, facts: "ModelFacts") -> dict[str, str]:
    """What a person wants to know of a model that was loaded."""
    file = f"{shown(model.path)}, {size(model.size_bytes)}, changed {ago(time.time() - model.mtime_ns / 1e9)}"
    kind = ", ".join(filter(None, (model.architecture, f"{count(facts.n_params)} parameters", model.quantization)))
    trained = "" if facts.n_ctx == facts.n_ctx_train else f", trained for {facts.n_ctx_train:,}"
    sequences = plural(facts.n_sequences, "sequence")
    template = "with its own template"
    if not facts.has_chat_template:
        template = "without a template: chats get a generic one, `generate` completes texts"
    if facts.template_error:
        template = f"its template does not work: {facts.template_error}"
    adapters = ", ".join(f"`{printable(each.path)}` at {each.scale:g}" for each in facts.adapters)
    beside = ", ".join(shown(path) for path in model.adapters)
    return {
        "Name": model.name,
        "File": file,
        "Model": kind,
        "Context": f"{plural(facts.n_ctx, 'token')}{trained}, shared by up to {sequences}",
        "Vocabulary": plural(facts.n_vocab, "token"),
        "Chat": template,
        "Embeddings": "made for them" if model.is_embedding else "",
        "Adapters": adapters or (f"none loaded; beside it: {beside}" if beside else "none"),
        "Projector": shown(model.projector) if model.projector else "",
        "Engine": f"CPU variant {facts.cpu_variant}, loaded in {facts.load_s:.1f} s",
        "Passed over": facts.cpu_variant_note,
        "Layers": facts.place,
    }


def generate(call: CommandCall) -> int:
    """Ctrl-C keeps what was said until then: as it came, or in the object of `--json`."""
    prompt_text = sys.stdin.read() if call.options.prompt == "-" else call.options.prompt
    readable = safe if is_terminal(sys.stdout) else str
    texts: list[str] = []

    async def generate_text(services: "Services", model: Model) -> int:
        from shimmy.generation import generate

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
        async for event in generation:
            if isinstance(event, Finished):
                _print_end(call, model, "".join(texts), event)
            elif isinstance(event, Piece):
                texts.append(event.text)
                if not call.options.json:
                    print(readable(event.text), end="", flush=True)
        if not (is_chat or call.options.raw):
            hint(f"{safe_line(model.name)} has no chat template: the text was completed, and not answered.")
        return 0

    try:
        code: int = with_model(call.config, call.options.name, generate_text)
    except KeyboardInterrupt:
        if texts and call.options.json:
            print(json.dumps({"text": "".join(texts), "finish_reason": "interrupted"}))
        elif texts:
            print()
        raise
    return code


def _print_end(call: CommandCall, model: Model, text: str, finished: Finished) -> None:
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


def with_model(config: Config, name: str, use: Callable[["Services", Model], Any]) -> Any:
    """Run `use` with the services of a server but no server; `name` is a model's name or a file's path."""
    from shimmy.generation import Services, no_discovery
    from shimmy.metrics import Metrics
    from shimmy.model_events import ModelEvents
    from shimmy.pool.pool import Pool

    config, registry, model = located(config, name)

    async def run() -> Any:
        metrics, events = Metrics(), ModelEvents()
        pool = Pool(config, metrics, events)
        services = Services(config, registry, pool, metrics, events, no_discovery, ready=True)
        watching = asyncio.create_task(show_loads(events, _show_at_once))
        try:
            return await use(services, model)
        finally:
            watching.cancel()
            await services.pool.close()

    return asyncio.run(run())


def located(config: Config, name: str) -> tuple[Config, Registry, Model]:
    """The model that `name` means, which is a name, or the path of a file or folder; with what else there is.

    The Config is one with which a server has the model: where `name` is a path, it has no other. Raises NotFound.
    """
    path = Path(name)
    if is_place(path):
        config = replace(config, model_paths=(path,), model_dirs=(), usual_dirs=())
    catalog = find_models(config, is_told=not is_place(path))
    registry = Registry(kept=AliasFile(config.alias_file))
    registry.publish(catalog)
    if not is_place(path):
        try:
            return config, registry, registry.resolve(name)
        except ModelNotFound:
            check_is_no_path(name)
            raise
    if not catalog.models:
        raise NotFound(f"`{name}` cannot be served: {_absence(path, catalog)}")
    return config, registry, catalog.models[0]


def _absence(path: Path, catalog: Catalog) -> str:
    """Why nothing in `catalog`, which is of `path` alone, can be served."""
    if catalog.rejected:
        return catalog.rejected[0].reason
    return huggingface.without_weights([file.name for file in path.iterdir()]) if path.is_dir() else "it is not a model"


def is_place(path: Path) -> bool:
    """Whether a GGUF, or a model in SafeTensors, may lie there."""
    return path.is_file() or any((path / name).is_file() for name in ("config.json", "params.json"))


def check_is_no_path(name: str) -> None:
    """Raises NotFound for what would be the path of a model, and is none."""
    if name.endswith(".gguf") or name.startswith((".", "/", "~")):
        raise NotFound(f"there is no file `{name}`")


def model_fields(model: Model) -> dict[str, Any]:
    """The fields of a model for `--json`."""
    fields = {name: getattr(model, name) for name in type(model).__slots__ if name not in _INNER_FIELDS}
    adapters = [shown(path) for path in model.adapters]
    projector = shown(model.projector) if model.projector else None
    return fields | {"path": shown(model.path), "adapters": adapters, "projector": projector}


def find_models(config: Config, *, is_told: bool = True) -> Catalog:
    """What lies in the folders of models now. What is no model is logged, if it `is_told`."""
    headers = Headers(config.cache_dir)
    catalog = scan(config, headers, names=Names(config.cache_dir, config.roots))
    if is_told:
        report(catalog.rejected, config.model_paths)
    headers.save()
    return catalog


def _show_at_once(text: str) -> None:
    """Below the log; it is gone before anything else is printed."""
    log.show(text)
    if not text:
        log.flush()


COMMANDS: Mapping[str, Callable[[CommandCall], int]] = {"list": list_models, "probe": probe, "generate": generate}
