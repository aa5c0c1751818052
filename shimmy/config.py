"""The frozen Config of a server, made from ONE table of options: flag, environment variable, TOML key, help text.

A flag beats the environment, which beats the configuration file, which beats the default. Knows what the options mean
as values, and nothing of what the rest of the program does with them.
"""

import contextlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shimmy.messages.model_info import MAX_ADAPTER_SCALE, ModelDefaults
from shimmy.messages.request import SamplingParams
from shimmy.wire.worker_options import SAFETENSORS_TYPES

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 11435
LAST_AUTO_PORT = 11535


_LOG_LEVELS = ("debug", "info", "warning", "error")
_LOG_FORMATS = ("text", "json")
_WEIGHTS = ("auto", "mapped", "repacked")
POOLINGS = ("mean", "cls", "last")


class ConfigError(ValueError):
    """An option has a value it cannot have; the message names the option as the person wrote it."""


@dataclass(frozen=True, slots=True)
class Bind:
    """Where to listen. A port of None means the first free one from DEFAULT_PORT to LAST_AUTO_PORT."""

    host: str
    port: int | None

    @property
    def is_everywhere(self) -> bool:
        """Whether the host stands for all addresses of the machine."""
        return self.host in {"0.0.0.0", "::", "0"}

    @classmethod
    def parse(cls, text: str) -> "Bind":
        """`auto`, `HOST:PORT`, `[v6]:PORT`, `:PORT`, `HOST` or `v6`."""
        if text == "auto":
            return cls(DEFAULT_HOST, None)
        host, colon, port = text.rpartition(":")
        is_bare_v6 = text.count(":") > 1 and not text.startswith("[")
        if not colon or text.endswith("]") or is_bare_v6:
            host, port = text, "auto"
        host = host.removeprefix("[").removesuffix("]") or DEFAULT_HOST
        if port == "auto":
            return cls(host, None)
        return cls(host, _integer(0, 65535)(port))


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table. `parse` turns the text of a flag or variable into a value, or raises ValueError."""

    name: str
    parse: Callable[[str], Any]
    default: Any
    help: str
    metavar: str = ""
    variables: tuple[str, ...] = ()  # also honoured, after SHIMMY_<NAME>
    separators: str = ""  # not empty: the option is a list, whose items stand between these in one variable
    flag_separators: str = ""  # and these in one flag, which may be repeated

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "SHIMMY_" + self.name.upper()

    @property
    def is_switch(self) -> bool:
        return isinstance(self.default, bool)


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(f"must be between {low} and {high}")
        return value

    return parse


def _decimal(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise ValueError(f"must be between {low:g} and {high:g}")
        return value

    return parse


def seconds(text: str) -> float:
    """`90`, `90s`, `10m`, `2h`; negative: without end, which is infinity. ValueError for anything else."""
    number, factor = (text[:-1], _UNITS_S[text[-1]]) if text[-1:] in _UNITS_S else (text, 1)
    duration_s = float(number) * factor
    if math.isnan(duration_s):
        raise ValueError("must be a number of seconds")
    return math.inf if duration_s < 0 else duration_s


def _deadline(text: str) -> float:
    """Like `seconds`, of one second at least."""
    duration_s = seconds(text)
    if duration_s < 1:
        raise ValueError("must be a second at least")
    return duration_s


def n_bytes(text: str) -> int:
    """`1G`, `512M`, `1.5GB`, `2GiB`: powers of 1000, or of 1024 with an `i`. ValueError for anything else."""
    number = text.strip().lower().removesuffix("b")
    base = 1024 if number.endswith("i") else 1000
    number = number.removesuffix("i")
    power = _SIZES.find(number[-1:]) + 1 if number[-1:] else 0
    amount = float(number[:-1] if power else number) * base**power
    if not 0 < amount < 2**60 or (base == 1024 and not power):
        raise ValueError("must be a size such as 4G or 512M")
    return int(amount)


def _alias(text: str) -> tuple[str, str]:
    """`NAME=MODEL`."""
    name, equals, model = (part.strip() for part in text.partition("="))
    if not (name and equals and model):
        raise ValueError("must be NAME=MODEL")
    return name, model


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}")
        return text.lower()

    return parse


def _switch(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError("must be true or false")


def _host(text: str) -> str:
    """A host's name without its port, in which `*` may stand for a part, or an address."""
    name = text.strip().lower().removeprefix("[").removesuffix("]")
    if not name or "/" in name or (":" in name and name.count(":") < 2):
        raise ValueError("must be a host's name such as ai.example.com or *.example.com, without a port")
    return name


def _origin(text: str) -> str:
    """`SCHEME://HOST[:PORT]`, in which `*` may stand for a part; `*`, `null` and `none` by themselves."""
    origin = text.strip().lower().removesuffix("/")
    scheme, separator, authority = origin.partition("://")
    if origin in {"*", "null", "none"}:
        return origin
    if not (scheme and separator and authority) or "/" in authority:
        raise ValueError("must be an origin such as https://example.com or http://localhost:*, or `*`")
    return origin.removesuffix({"http": ":80", "https": ":443"}.get(scheme, ""))  # browsers leave these out


def _key(text: str) -> str:
    """A key for the API, which cannot be blank: who sets one wants the server closed."""
    if not text.strip():
        raise ValueError("is blank, which is no key: give one, or leave the option out")
    return text.strip()


def _path(text: str) -> Path:
    """The absolute path that is meant; it stays the same when the working directory is moved or removed."""
    path = Path(text).expanduser()
    try:
        return path.absolute()
    except FileNotFoundError as exc:
        raise ValueError("is relative to the working directory, which was removed: give an absolute path") from exc


def _adapter(text: str) -> tuple[Path, float]:
    """`PATH`, or `PATH=SCALE`."""
    path, equals, scale = text.rpartition("=")
    if not equals:
        return Path(text).expanduser(), 1.0
    if not path:
        raise ValueError("must be PATH or PATH=SCALE")
    return Path(path).expanduser(), _decimal(-MAX_ADAPTER_SCALE, MAX_ADAPTER_SCALE)(scale)


def _contents(text: str) -> str:
    """The text of the file that is named."""
    try:
        return _path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"cannot read `{text}`: {exc}") from exc


def _keys(text: str) -> tuple[str, ...]:
    """The keys in the file that is named. A file without one is refused: its owner wants the server closed."""
    keys = tuple(_contents(text).split())
    if not keys:
        raise ValueError(f"there is no key in `{text}`")
    return keys


_UNITS_S = {"s": 1, "m": 60, "h": 3600}
_SIZES = "kmgt"

OPTIONS: tuple[Option, ...] = (
    Option("bind", Bind.parse, Bind(DEFAULT_HOST, None),
           f"where to listen; `auto` is the first free port from {DEFAULT_PORT} to {LAST_AUTO_PORT} on {DEFAULT_HOST}",
           "HOST:PORT|auto", ("SHIMMY_BIND_ADDRESS",)),
    Option("model_path", _path, (), "a GGUF file, or a folder with some (repeatable)",
           "FILE_OR_DIR", ("SHIMMY_BASE_GGUF",), os.pathsep),
    Option("model_dirs", _path, (),
           "folders to look for models in (default, without --model-path either: ./models, ~/models, "
           "~/.local/share/shimmy/models, and where Hugging Face, Ollama and LM Studio keep theirs)",
           "A:B", ("SHIMMY_MODEL_PATHS",), ":;", ":"),
    Option("cache_dir", _path, None, "folder for what can be made again (default: ~/.cache/shimmy)", "DIR"),
    Option("ctx_size", _integer(16, 2**24), None,
           "tokens of KV memory for all sequences of a model (default: its training length, if memory allows)",
           "N", ("SHIMMY_MAX_CTX",)),
    Option("parallel", _integer(1, 256), 32, "how many jobs of a model may run at once; more wait in line", "N"),
    Option("batch_size", _integer(32, 8192), 512, "how many tokens one decode takes at most", "N"),
    Option("threads", _integer(1, 512), None,
           "threads of a worker (default: the physical cores, within the limits of a container)", "N"),
    Option("weights", _one_of(_WEIGHTS), "auto",
           "weights are pages of the file, `mapped`, or a copy that suits the processor, `repacked`; `auto`: what is "
           "faster, as threads are chosen too; tried while a model is idle, and used from its next load on", "KIND"),
    Option("speculation", _switch, True, "guess text ahead where that is faster"),
    Option("draft_model", _path, None,
           "a small GGUF model that guesses ahead for models of the same vocabulary, where that is faster", "FILE"),
    Option("embeddings", _switch, False,
           "let models that were not made for embeddings make some, too; each takes a second KV memory for them"),
    Option("pooling", _one_of(POOLINGS), None,
           f"how one embedding is made of those of all tokens: {', '.join(POOLINGS)} (default: as the model says; else "
           "the mean for encoders, the last token for others)", "TYPE"),
    Option("keep_alive", seconds, 300.0,
           "how long a model stays loaded without a job: 90, 10m, 2h (default: 5m; negative: for ever)", "TIME"),
    Option("max_memory", n_bytes, None,
           "memory for the server with all its models, such as 4G; models that are idle make room for others "
           "(default: what the system has)", "SIZE"),
    Option("prompt_cache", n_bytes, None,
           "keep computed prompts in the cache folder, up to this size for all models together, such as 2G; so they "
           "outlive restarts and unloads (default: none is kept)", "SIZE"),
    Option("worker_timeout", _deadline, 120.0,
           "end a model's process that gives no sign of life, or does not get on with its jobs, for so long: 90, 10m "
           "(default: 2m; negative: never)", "TIME"),
    Option("load_timeout", _deadline, 300.0,
           "the same while it loads its model, or makes it of SafeTensors (default: 5m; negative: never)", "TIME"),
    Option("max_queue", _integer(0, 2**20), 512, "how many jobs of a model may wait, beyond those that run", "N"),
    Option("preload", str, (), "load this model at the start (repeatable)", "NAME", (), ","),
    Option("alias", _alias, (), "another name for a model, a pattern such as `gpt-*` too (repeatable)",
           "NAME=MODEL", (), ","),
    Option("default_model", str, None, "the model for requests that name none, or one that is not there", "NAME"),
    Option("seed", _integer(0, 2**32 - 1), None, "seed of requests that bring none (default: random)", "N"),
    Option("temp", _decimal(0, 100), SamplingParams().temperature, "temperature of requests that bring none", "T"),
    Option("n_predict", _integer(1, 2**31 - 1), None,
           "limit of tokens for requests that bring none (default: until the model ends or the context is full)", "N"),
    Option("chat_template", str, None, "a Jinja chat template instead of the model's own", "TEXT"),
    Option("chat_template_file", _contents, None, "the same, from a file", "FILE"),
    Option("safetensors_type", _one_of(tuple(SAFETENSORS_TYPES)), None,
           f"what the weights of SafeTensors folders become: {', '.join(SAFETENSORS_TYPES)} (default: what they are)",
           "TYPE"),
    Option("lora", _adapter, (),
           "apply a LoRA adapter, a GGUF file or a folder that PEFT wrote, to the models of its architecture, at this "
           "scale (default: 1) or the one that a request brings (repeatable)",
           "PATH[=SCALE]", ("SHIMMY_LORA_GGUF",), os.pathsep),
    Option("api_key", _key, (), "accept only requests with this key (repeatable)", "KEY", (), ","),
    Option("api_key_file", _keys, None, "accept the keys in this file, one a line", "FILE"),
    Option("allowed_hosts", _host, (),
           "names by which clients may call the server, beside its addresses, such as ai.example.com or *.example.com; "
           "`*`: any (default: on a loopback address none but its own, otherwise any)", "NAME,...", (), ",", ","),
    Option("cors_origins", _origin, (),
           "web pages that may use the server, by their origins, such as https://example.com; `*`: all, `none`: none "
           "(default: those of this machine, such as http://localhost:3000)", "ORIGIN,...", (), ",", ","),
    Option("max_connections", _integer(1, 2**20), 1024,
           "how many clients may be connected at once; for a further one another is closed that has no request in "
           "progress, and when there is none, requests are refused", "N"),
    Option("metrics", _switch, True, "serve Prometheus figures under /metrics"),
    Option("max_body_mb", _integer(1, 1024), 16, "largest request body accepted, in MiB", "N"),
    Option("cpu_variant", str, None, "force one of the engine's CPU variants, such as `haswell`", "NAME"),
    Option("log_level", _one_of(_LOG_LEVELS), "info", f"what to log: {', '.join(_LOG_LEVELS)}", "LEVEL"),
    Option("log_format", _one_of(_LOG_FORMATS), "text", "how to log: text or json", "FORMAT"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a person can set about a server."""

    bind: Bind
    model_paths: tuple[Path, ...]
    model_dirs: tuple[Path, ...]
    usual_dirs: tuple[Path, ...]  # to be searched as well; most of them will not be there
    cache_dir: Path | None  # None: there is no place for one
    n_ctx: int | None
    n_sequences: int
    n_batch: int
    n_threads: int | None
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
    sampling_given: tuple[str, ...]  # the fields of it that somebody set
    n_predict: int | None
    chat_template: str | None
    safetensors_type: str | None  # None: what the weights are
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
        """Where to look for models: what somebody named, then the usual places."""
        return (*self.model_paths, *self.model_dirs, *self.usual_dirs)

    def sampling_of(self, defaults: ModelDefaults) -> SamplingParams:
        """For requests that bring none: what somebody set for this server, then the model's, then llama.cpp's."""
        if not defaults.sampling:
            return self.sampling
        given = {name: getattr(self.sampling, name) for name in self.sampling_given}
        values: dict[str, Any] = dict(defaults.sampling) | given
        return replace(SamplingParams(), **values)


def load(
    flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ, file: Mapping[str, Any] | None = None
) -> Config:
    """The Config of these `flags` (texts as typed, lists for repeatable ones, None when not given) and the rest.

    Raises ConfigError for a value that cannot be, or a key of `file` that no option has.
    """
    unknown = set(file or {}) - {option.name for option in OPTIONS}
    if unknown:
        raise ConfigError(f"the configuration file has unknown keys: {', '.join(sorted(unknown))}")
    found = {option.name: _find(option, flags, environment, file or {}) for option in OPTIONS}
    values = {name: value for name, (value, _) in found.items()}
    if found["bind"][1] > _ENVIRONMENT:
        values["bind"] = _legacy_bind(values["bind"], environment)
    # The text and the file mean the same thing: the one from the stronger source counts.
    template = min(found["chat_template"], found["chat_template_file"], key=lambda value_and_rank: value_and_rank[1])
    return Config(
        bind=values["bind"],
        model_paths=values["model_path"],
        model_dirs=values["model_dirs"],
        usual_dirs=() if values["model_path"] or values["model_dirs"] else _usual_dirs(environment),
        cache_dir=values["cache_dir"] or _default_cache_dir(environment),
        n_ctx=values["ctx_size"],
        n_sequences=values["parallel"],
        n_batch=values["batch_size"],
        n_threads=values["threads"],
        weights=values["weights"],
        speculate=values["speculation"],
        draft_model=values["draft_model"],
        embeddings=values["embeddings"],
        pooling=values["pooling"],
        keep_alive_s=values["keep_alive"],
        max_memory_bytes=values["max_memory"],
        prompt_cache_bytes=values["prompt_cache"],
        worker_timeout_s=values["worker_timeout"],
        load_timeout_s=values["load_timeout"],
        max_queue=values["max_queue"],
        preload=values["preload"],
        aliases=values["alias"],
        default_model=values["default_model"],
        sampling=SamplingParams(seed=values["seed"], temperature=values["temp"]),
        sampling_given=tuple(field for field, name in _SAMPLING.items() if found[name][1] < _DEFAULT),
        n_predict=values["n_predict"],
        chat_template=template[0],
        safetensors_type=values["safetensors_type"],
        lora=values["lora"],
        api_keys=_api_keys(values, environment),
        allowed_hosts=values["allowed_hosts"],
        cors_origins=values["cors_origins"],
        max_connections=values["max_connections"],
        metrics=values["metrics"],
        max_body_bytes=values["max_body_mb"] * 2**20,
        cpu_variant=values["cpu_variant"],
        log_level=values["log_level"],
        log_format=values["log_format"],
    )


_SAMPLING = {"seed": "seed", "temperature": "temp"}  # fields of SamplingParams, and their options
_FLAG, _ENVIRONMENT, _FILE, _DEFAULT = range(4)  # the sources, the strongest first


def _find(
    option: Option, flags: Mapping[str, Any], environment: Mapping[str, str], file: Mapping[str, Any]
) -> tuple[Any, int]:
    """The value from the strongest source that has one, and which source that is."""
    given = flags.get(option.name)
    if given is not None:
        return _parse(option, given, option.flag, option.flag_separators), _FLAG
    for variable in (option.variable, *option.variables):
        if environment.get(variable):
            return _parse(option, environment[variable], variable, option.separators), _ENVIRONMENT
    if option.name in file:
        return _parse(option, file[option.name], f"`{option.name}` in the configuration file"), _FILE
    return option.default, _DEFAULT


def _parse(option: Option, given: Any, source: str, separators: str = "") -> Any:
    """`given` is text, a list of texts (a repeated flag, a TOML list), or a number or boolean of a TOML file."""
    try:
        if not option.separators:
            return option.parse(_text(given, option))
        items = given if isinstance(given, list) else [given]
        texts = _split([_text(item, option) for item in items], separators)
        if not texts:
            raise ValueError("is empty")
        return tuple(option.parse(text) for text in texts)
    except ValueError as exc:
        raise ConfigError(f"{source}: {exc} (got {given!r})") from exc


def _text(item: Any, option: Option) -> str:
    """A single value as the text a person would have typed."""
    if isinstance(item, bool) != option.is_switch and not isinstance(item, str):
        raise ValueError("is no value for this option")
    if not isinstance(item, str | int | float):
        raise ValueError("must be a single value")
    return str(item)


def _split(texts: list[str], separators: str) -> list[str]:
    for separator in separators:
        texts = [part for text in texts for part in text.split(separator)]
    return [text for text in texts if text]


def _usual_dirs(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Where people and other programs keep models."""
    # As huggingface_hub has them (constants.py).
    hub_home = environment.get("HF_HOME") or f"{environment.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    hub = environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE") or f"{hub_home}/hub"
    hub = os.path.expandvars(hub)
    ollama = (environment.get("OLLAMA_MODELS") or "~/.ollama/models", "/usr/share/ollama/.ollama/models")
    lm_studio = ("~/.lmstudio/models", "~/.cache/lm-studio/models")
    own = ("models", "~/models", f"{environment.get('XDG_DATA_HOME') or '~/.local/share'}/shimmy/models")
    dirs = []
    for text in (*own, hub, *ollama, *lm_studio):
        with contextlib.suppress(RuntimeError, ValueError):  # nobody's home, or no working directory
            dirs.append(_path(text))
    return tuple(dirs)


def _default_cache_dir(environment: Mapping[str, str]) -> Path | None:
    try:
        return _path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "shimmy"
    except (RuntimeError, ValueError):  # nobody's home, or no working directory
        return None


def _api_keys(values: Mapping[str, Any], environment: Mapping[str, str]) -> tuple[str, ...]:
    """All keys. A variable that was meant to have some must not leave the server open because it is empty."""
    keys: tuple[str, ...] = values["api_key"] + (values["api_key_file"] or ())
    for option in OPTIONS:
        if option.name in {"api_key", "api_key_file"} and option.variable in environment and not keys:
            raise ConfigError(f"{option.variable} is set, but to nothing: give it a value, or unset it to need no key")
    return keys


def _legacy_bind(bind: Bind, environment: Mapping[str, str]) -> Bind:
    """SHIMMY_HOST and SHIMMY_PORT, where no address was given as a whole.

    Kubernetes and Docker set SHIMMY_PORT to the URL of a service that is called `shimmy`, for all its neighbours: that
    is no word of anybody's about this server.
    """
    host = environment.get("SHIMMY_HOST", "").strip().removeprefix("[").removesuffix("]")
    port = environment.get("SHIMMY_PORT", "").strip()
    if not port or "://" in port:
        return Bind(host or bind.host, bind.port)
    try:
        return Bind(host or bind.host, _integer(0, 65535)(port))
    except ValueError as exc:
        raise ConfigError(f"SHIMMY_PORT: {exc}") from exc
