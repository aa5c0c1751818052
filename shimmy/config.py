"""The ONE table of options, and the frozen Config that is made from it.

A row gives an option's flag, environment variables, TOML key, help text and field of Config. A flag beats the
environment, which beats the configuration file, which beats the default. Knows which values options have, and not what
the rest of the program does with them.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shimmy.messages.model_info import ModelDefaults
from shimmy.messages.request import SamplingParams
from shimmy.option_kinds import (
    ALL_LAYERS,
    DEFAULT_HOST,
    DEFAULT_PORT,
    LAST_AUTO_PORT,
    Bind,
    ConfigError,
    Option,
    Source,
    absolute_path,
    adapter,
    alias,
    api_key,
    deadline,
    decimal,
    device_names,
    file_keys,
    file_text,
    find,
    host_name,
    integer,
    layer_count,
    n_bytes,
    one_of,
    origin,
    seconds,
    switch,
)
from shimmy.rpc.address import Address
from shimmy.text.near_names import did_you_mean
from shimmy.text.plural import plural
from shimmy.wire.worker_options import KV_TYPES, MAX_SEQUENCES, SAFETENSORS_TYPES, USUAL_KV_TYPE

_LOG_LEVELS = ("debug", "info", "warning", "error")
_LOG_FORMATS = ("text", "json")
_WEIGHTS = ("auto", "mapped", "repacked")
POOLINGS = ("mean", "cls", "last")

# The commands beside `serve` that take an option.
_WITH_FILES = ("pull", "rm", "cp")
_WITH_MODELS = ("list", "probe", "generate", "bench", "run", "discover", "gpu-info")
_WITH_ENGINE = ("probe", "generate", "bench", "run")
_WITH_DEVICES = (*_WITH_ENGINE, "gpu-info")  # they decide where a model's layers go
_RPC_WORKER = "rpc-worker"
_AS_SERVED = ("probe", "generate", "run")  # and not with settings that a measurement needs

OPTIONS: tuple[Option, ...] = (
    Option("bind", Bind.parse, Bind(DEFAULT_HOST, None),
           f"address to listen on; `auto` is the first free port from {DEFAULT_PORT} to {LAST_AUTO_PORT} on "
           f"{DEFAULT_HOST}", "HOST:PORT|auto", ("SHIMMY_BIND_ADDRESS",)),
    Option("model_path", absolute_path, (), "a GGUF file, or a folder of models (repeatable)",
           "FILE_OR_DIR", ("SHIMMY_BASE_GGUF",), os.pathsep, field="model_paths",
           also=(*_WITH_MODELS, *_WITH_FILES)),
    Option("model_dirs", absolute_path, (),
           "folders to search for models (default, without --model-path either: ./models, ~/models, "
           "~/.local/share/shimmy/models, and the folders of Hugging Face, Ollama and LM Studio)",
           "A:B", ("SHIMMY_MODEL_PATHS",), ":;", ":", also=(*_WITH_MODELS, *_WITH_FILES)),
    Option("cache_dir", absolute_path, None,
           "cache folder (headers, converted models, tuning, prompts); safe to delete (default: ~/.cache/shimmy)",
           "DIR", also=(*_WITH_MODELS, *_WITH_FILES, _RPC_WORKER)),
    Option("ctx_size", integer(16, 2**24), None,
           "tokens of KV cache, shared by all sequences of a model (default: its training length, if memory allows)",
           "N", ("SHIMMY_MAX_CTX",), field="n_ctx", also=_WITH_DEVICES),
    Option("kv_type", one_of(tuple(KV_TYPES)), USUAL_KV_TYPE,
           f"what the KV cache is made of: {', '.join(KV_TYPES)}; q8_0 and q4_0 take half and a quarter of the memory, "
           "are less exact, and slower on the processor; f32 takes twice as much, rounds nothing, and is for "
           "comparisons with a reference", "TYPE", also=_WITH_DEVICES),
    Option("parallel", integer(1, MAX_SEQUENCES), 32, "jobs of a model that run at once; further jobs wait in a queue",
           "N", field="n_sequences"),
    Option("batch_size", integer(32, 8192), 512, "most tokens that one decode computes", "N", field="n_batch",
           also=_WITH_ENGINE),
    Option("threads", integer(1, 512), None,
           "threads of a worker (default: the physical cores, within the limits of a container)", "N",
           field="n_threads", also=(*_WITH_ENGINE, "convert", _RPC_WORKER)),
    Option("device", device_names, None,
           "where models are computed: `auto`: on discrete GPUs, as many layers of a model as fit, and the rest on the "
           "processor; `none`: on the processor; or names of devices, as `shimmy gpu-info` tells them",
           "auto|none|NAME,...", is_joined=True, field="devices", also=(*_WITH_DEVICES, _RPC_WORKER)),
    Option("gpu_layers", layer_count, None,
           "layers of a model that its devices get, of which its output is one: `all`, a number, or as many as fit "
           "(default: auto)", "auto|all|N", also=_WITH_DEVICES),
    Option("tensor_split", decimal(0, 1e6), (),
           "how the layers are divided among several devices, one number for each, such as 3,1 (default: by their free "
           "memory)", "N,...", (), ",", ",", also=_WITH_DEVICES),
    Option("n_cpu_moe", integer(0, ALL_LAYERS), 0,
           "of mixtures of experts: keep the experts of the first N layers on the processor, so that the other weights "
           "of these have room on a device", "N", also=_WITH_DEVICES),
    Option("device_required", switch, False,
           "refuse a model that cannot be computed on a device, rather than have the processor compute it",
           also=_WITH_ENGINE),
    Option("rpc", Address.parse, (),
           "machines that compute a part of each model, split by their free memory: each runs `shimmy rpc-worker` "
           "(repeatable)", "HOST:PORT,...", (), ",", ",", also=_WITH_ENGINE),
    Option("rpc_key_file", absolute_path, None, "the key that machines share, in a file; the same on each", "FILE",
           also=(*_WITH_ENGINE, _RPC_WORKER)),
    Option("rpc_timeout", deadline, 10.0,
           "after so much silence another machine is taken for lost: 10, 1m (default: 10)", "TIME",
           field="rpc_timeout_s", also=(*_WITH_ENGINE, _RPC_WORKER)),
    Option("weights", one_of(_WEIGHTS), "auto",
           "`mapped`: weights are pages of the file; `repacked`: a copy in the layout that suits the processor; "
           "`auto`: the faster of the two, which like the number of threads is measured while a model is idle, and "
           "used from its next load on", "KIND"),
    Option("speculation", switch, True, "use speculative decoding by prompt lookup, where it is faster",
           field="speculate", also=_AS_SERVED),
    Option("draft_model", absolute_path, None,
           "a small GGUF model that drafts tokens for models with the same vocabulary, where that is faster", "FILE",
           also=_AS_SERVED),
    Option("embeddings", switch, False,
           "allow embeddings from models that were not trained for them; each such model takes a second KV cache"),
    Option("pooling", one_of(POOLINGS), None,
           f"how the embeddings of all tokens become one: {', '.join(POOLINGS)} (default: as the model says; "
           "otherwise the mean for encoders, the last token for other models)", "TYPE"),
    Option("keep_alive", seconds, 300.0,
           "how long a model without jobs stays loaded: 90, 10m, 2h (default: 5m; negative: without end)", "TIME",
           field="keep_alive_s"),
    Option("max_memory", n_bytes, None,
           "memory of the server with all its models, such as 4G; idle models are unloaded to make room for others "
           "(default: what the system has)", "SIZE", field="max_memory_bytes"),
    Option("prompt_cache", n_bytes, None,
           "keep computed prompts in the cache folder, up to this size for all models together, such as 2G; they "
           "outlive restarts and unloads (default: none are kept)", "SIZE", field="prompt_cache_bytes"),
    Option("worker_timeout", deadline, 120.0,
           "end a worker process that gives no sign of life, or makes no progress with its jobs, for this long: 90, "
           "10m (default: 2m; negative: never)", "TIME", field="worker_timeout_s"),
    Option("load_timeout", deadline, 300.0,
           "the same while a worker loads its model or converts it from SafeTensors (default: 5m; negative: never)",
           "TIME", field="load_timeout_s"),
    Option("max_queue", integer(0, 2**20), 512, "jobs of a model that may wait, beyond those that run", "N"),
    Option("preload", str, (), "load this model at the start (repeatable)", "NAME", (), ","),
    Option("alias", alias, (), "another name for a model, or a pattern of names such as `gpt-*` (repeatable)",
           "NAME=MODEL", (), ",", field="aliases"),
    Option("default_model", str, None, "the model for requests that name no model, or an unknown one", "NAME"),
    Option("seed", integer(0, 2**32 - 1), None, "seed of requests that set none (default: random)", "N",
           also=("generate", "run")),
    Option("temp", decimal(0, 100), SamplingParams().temperature, "temperature of requests that set none", "T",
           also=("generate", "run")),
    Option("n_predict", integer(1, 2**31 - 1), None,
           "token limit of requests that set none (default: until the model stops or the context is full)", "N"),
    Option("chat_template", str, None, "a Jinja chat template that replaces the model's own", "TEXT",
           also=_AS_SERVED),
    Option("chat_template_file", file_text, None, "the same, from a file", "FILE", also=_AS_SERVED),
    Option("safetensors_type", one_of(tuple(SAFETENSORS_TYPES)), None,
           f"type that the weights of SafeTensors folders are converted to: {', '.join(SAFETENSORS_TYPES)} (default: "
           "their own)", "TYPE", also=("convert",)),
    Option("imatrix", absolute_path, None,
           "quantise SafeTensors folders by the importance matrix in this file, as `llama-imatrix` writes it; a "
           "server uses it for the model that it is of", "FILE", also=("convert",)),
    Option("lora", adapter, (),
           "apply a LoRA adapter (a GGUF file or a PEFT folder) to the models of its architecture, at this scale "
           "(default: 1) unless a request sets another (repeatable)",
           "PATH[=SCALE]", ("SHIMMY_LORA_GGUF",), os.pathsep, also=_WITH_ENGINE),
    Option("api_key", api_key, (), "accept only requests with this key (repeatable)", "KEY", (), ",",
           field="api_keys"),
    Option("api_key_file", file_keys, None, "accept the keys in this file, one a line", "FILE"),
    Option("allowed_hosts", host_name, (),
           "host names that clients may use for the server, beside its addresses, such as ai.example.com or "
           "*.example.com; `*`: any (default: on a loopback address only its own names, otherwise any)",
           "NAME,...", (), ",", ","),
    Option("cors_origins", origin, (),
           "origins of the web pages that may use the server, such as https://example.com; `*`: all, but not to "
           "delete or pull models, `none`: none "
           "(default: those of this machine, such as http://localhost:3000)", "ORIGIN,...", (), ",", ","),
    Option("max_connections", integer(1, 2**20), 1024,
           "clients that may be connected at once; for a further client a connection without a request in progress is "
           "closed, and if there is none, its requests are refused", "N"),
    Option("metrics", switch, True, "serve Prometheus metrics under /metrics"),
    Option("max_body_mb", integer(1, 1024), 16, "largest request body accepted, in MiB", "N", field="max_body_bytes"),
    Option("cpu_variant", str, None, "use this CPU variant of the engine, such as `haswell` (default: the best)",
           "NAME", also=(*_WITH_ENGINE, _RPC_WORKER)),
    Option("log_level", one_of(_LOG_LEVELS), "info", f"what to log: {', '.join(_LOG_LEVELS)}", "LEVEL",
           also=(*_WITH_MODELS, *_WITH_FILES, "convert", _RPC_WORKER)),
    Option("log_format", one_of(_LOG_FORMATS), "text", "format of the log: text or json", "FORMAT",
           also=(*_WITH_MODELS, *_WITH_FILES, "convert", _RPC_WORKER)),
)  # fmt: skip

# Options that have no field of Config to themselves: `load` joins each with another.
_JOINED = ("chat_template_file", "api_key_file", "seed", "temp")
_SAMPLING = {"seed": "seed", "temperature": "temp"}  # fields of SamplingParams, and their options


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that a person can set about a server: a field for each option, under the name that its row gives."""

    bind: Bind
    model_paths: tuple[Path, ...]
    model_dirs: tuple[Path, ...]
    usual_dirs: tuple[Path, ...]  # to be searched as well; most of them will not be there
    alias_file: Path | None  # where `cp` keeps aliases
    cache_dir: Path | None  # None: there is no place for one
    n_ctx: int | None
    n_sequences: int
    n_batch: int
    kv_type: str
    n_threads: int | None
    devices: tuple[str, ...] | None  # None: by themselves; (): none
    gpu_layers: int | None  # None: as many as fit
    tensor_split: tuple[float, ...]  # a share for each device; (): by their free memory
    n_cpu_moe: int
    device_required: bool
    rpc: tuple[Address, ...]  # machines that compute a part of each model
    rpc_key_file: Path | None
    rpc_timeout_s: float
    weights: str
    speculate: bool
    draft_model: Path | None
    embeddings: bool
    pooling: str | None  # None: the model's own
    keep_alive_s: float  # infinite: for ever
    max_memory_bytes: int | None  # None: what the system has
    prompt_cache_bytes: int | None  # None: no prompt goes to the disk
    worker_timeout_s: float  # infinite: never
    load_timeout_s: float
    max_queue: int
    preload: tuple[str, ...]
    aliases: tuple[tuple[str, str], ...]  # another name, which may be a pattern, and a model's
    default_model: str | None
    sampling: SamplingParams
    sampling_given: tuple[str, ...]  # the fields of it that the person set
    n_predict: int | None
    chat_template: str | None
    safetensors_type: str | None  # None: what the weights are
    imatrix: Path | None  # an importance matrix
    lora: tuple[tuple[Path, float], ...]  # adapters and their scales
    api_keys: tuple[str, ...]
    allowed_hosts: tuple[str, ...]  # patterns of names; none: by the address that is bound
    cors_origins: tuple[str, ...]  # patterns of origins; none: this machine's
    max_connections: int
    metrics: bool
    max_body_bytes: int
    cpu_variant: str | None
    log_level: str
    log_format: str

    @property
    def roots(self) -> tuple[Path, ...]:
        """Where to look for models: what the person named, then the usual places."""
        return (*self.model_paths, *self.model_dirs, *self.usual_dirs)

    def sampling_of(self, defaults: ModelDefaults) -> SamplingParams:
        """For requests that bring none: this server's options, then the model's values, then llama.cpp's."""
        if not defaults.sampling:
            return self.sampling
        given = {name: getattr(self.sampling, name) for name in self.sampling_given}
        values: dict[str, Any] = dict(defaults.sampling) | given
        return replace(SamplingParams(), **values)


def load(
    flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ, file: Mapping[str, Any] | None = None
) -> Config:
    """The Config of these `flags` (texts as typed, lists for repeatable ones, None when not given) and the rest.

    Raises ConfigError for a value that an option cannot have, or a key of `file` that no option has.
    """
    unknown = set(file or {}) - {option.name for option in OPTIONS}
    if unknown:
        guess = did_you_mean(min(unknown), [option.name for option in OPTIONS])
        raise ConfigError(
            f"the configuration file has unknown keys: {', '.join(sorted(unknown))}{f'; {guess}' if guess else ''}"
        )
    found = {option.name: find(option, flags, environment, file or {}) for option in OPTIONS}
    values = {name: value for name, (value, _) in found.items()}
    if found["bind"][1] > Source.ENVIRONMENT:
        values["bind"] = _legacy_bind(values["bind"], environment)
    if values["device_required"] and (values["device"] == () or values["gpu_layers"] == 0):
        raise ConfigError("--device-required allows neither `--device none` nor `--gpu-layers 0`")
    if values["rpc_key_file"] is None and (far := [each for each in values["rpc"] if not each.is_here]):
        raise ConfigError(f"--rpc {far[0]}: another machine needs a key, the same as there: `--rpc-key-file FILE`")
    _check_split(values["tensor_split"], () if values["rpc"] else values["device"] or ())
    # The text and the file mean the same thing: the one from the stronger source counts.
    template = min(
        found["chat_template"], found["chat_template_file"], key=lambda value_and_source: value_and_source[1]
    )
    values["chat_template"] = template[0]
    values["api_key"] = _api_keys(values, environment)
    values["cache_dir"] = values["cache_dir"] or _default_cache_dir(environment)
    values["max_body_mb"] *= 2**20
    return Config(
        **{option.field or option.name: values[option.name] for option in OPTIONS if option.name not in _JOINED},
        alias_file=_alias_file(environment),
        usual_dirs=() if values["model_path"] or values["model_dirs"] else _usual_dirs(environment),
        sampling=SamplingParams(**{field: values[name] for field, name in _SAMPLING.items()}),
        sampling_given=tuple(field for field, name in _SAMPLING.items() if found[name][1] < Source.DEFAULT),
    )


def _check_split(shares: tuple[float, ...], devices: tuple[str, ...]) -> None:
    """Raise ConfigError for shares that divide nothing. `devices` are all that have one; (): that is not known yet."""
    if shares and not any(shares):
        raise ConfigError("--tensor-split: one of the shares must be more than 0")
    if shares and devices and len(shares) != len(devices):
        numbers, names = plural(len(shares), "number"), plural(len(devices), "device")
        raise ConfigError(f"--tensor-split has {numbers} for the {names} of --device: give one for each")


def _usual_dirs(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where people and other programs keep models."""
    lm_studio = (_place("~/.lmstudio/models"), _place("~/.cache/lm-studio/models"))
    own_dir = _place(f"{environment.get('XDG_DATA_HOME') or '~/.local/share'}/shimmy/models")
    own = (_place("models"), _place("~/models"), own_dir)
    ollama = (ollama_store(environment), _place("/usr/share/ollama/.ollama/models"))
    return tuple(filter(None, (*own, hub_cache(environment), *ollama, *lm_studio)))


def _alias_file(environment: Mapping[str, str]) -> Path | None:
    """Where `cp` keeps aliases."""
    place = _place(environment.get("XDG_CONFIG_HOME") or "~/.config")
    return place / "shimmy" / "aliases.json" if place else None


def hub_cache(environment: Mapping[str, str]) -> Path | None:
    """The cache of Hugging Face's hub, where huggingface_hub has it (constants.py)."""
    home = environment.get("HF_HOME") or f"{environment.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    cache = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return _place(os.path.expandvars(cache))


def ollama_store(environment: Mapping[str, str]) -> Path | None:
    """Ollama's models of this user."""
    return _place(environment.get("OLLAMA_MODELS") or "~/.ollama/models")


def _place(text: str) -> Path | None:
    """None where there is no home folder, or no working directory."""
    try:
        return absolute_path(text)
    except (RuntimeError, ValueError):
        return None


def _default_cache_dir(environment: Mapping[str, str]) -> Path | None:
    place = _place(environment.get("XDG_CACHE_HOME") or "~/.cache")
    return place / "shimmy" if place else None


def _api_keys(values: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[str, ...]:
    """The keys of both options. A variable that is set but empty is refused: it must not leave the server open."""
    keys: tuple[str, ...] = values["api_key"] + (values["api_key_file"] or ())
    for option in OPTIONS:
        if option.name in {"api_key", "api_key_file"} and option.variable in environment and not keys:
            raise ConfigError(f"{option.variable} is set, but empty: give it a value, or unset it to need no key")
    return keys


def _legacy_bind(bind: Bind, environment: Mapping[str, str]) -> Bind:
    """SHIMMY_HOST and SHIMMY_PORT, where no address was given as a whole.

    Where a service is called `shimmy`, Kubernetes and Docker set SHIMMY_PORT to its URL in all containers beside it.
    Such a value says nothing about this server.
    """
    host = environment.get("SHIMMY_HOST", "").strip().removeprefix("[").removesuffix("]")
    port = environment.get("SHIMMY_PORT", "").strip()
    if not port or "://" in port:
        return Bind(host or bind.host, bind.port)
    try:
        return Bind(host or bind.host, integer(0, 65535)(port))
    except ValueError as exc:
        raise ConfigError(f"SHIMMY_PORT: {exc}") from exc
