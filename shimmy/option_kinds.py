"""What an option is, which kinds of values there are, and how a value is found in flags, environment and file.

Knows no single option: the table of them is in `config`. A kind is a function that turns the text of a flag or variable
into a value, and raises ValueError with the reason where it cannot.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

from shimmy.messages.model_info import MAX_ADAPTER_SCALE
from shimmy.text.near_names import did_you_mean

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 11435
LAST_AUTO_PORT = 11535
ALL_LAYERS = 2**16  # more than any model has
MAX_DEVICES = 16  # that llama.cpp divides a model among

Number = TypeVar("Number", int, float)

_DEVICE = re.compile("(cuda|vulkan)(0|[1-9][0-9]{0,3})")
_UNITS_S = {"s": 1, "m": 60, "h": 3600}
_SIZES = "kmgt"


class ConfigError(ValueError):
    """An option has a value that it cannot have. The message names the option as the person wrote it."""


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
        return cls(host, integer(0, 65535)(port))


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
    is_joined: bool = False  # one text with commas between its parts, which a file may have as a list
    field: str = ""  # of Config; empty: the field has the option's name
    also: tuple[str, ...] = ()  # commands that take it, beside `serve`

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "SHIMMY_" + self.name.upper()

    @property
    def is_switch(self) -> bool:
        return isinstance(self.default, bool)


def integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = _number(int, text, "must be a whole number")
        if not low <= value <= high:
            raise ValueError(f"must be between {low} and {high}")
        return value

    return parse


def decimal(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = _number(float, text, "must be a number")
        if not low <= value <= high:
            raise ValueError(f"must be between {low:g} and {high:g}")
        return value

    return parse


def _number(kind: Callable[[str], Number], text: str, fault: str) -> Number:
    """`text` as a number; raises ValueError with `fault` where it is none."""
    try:
        return kind(text)
    except ValueError:
        raise ValueError(fault) from None


def seconds(text: str) -> float:
    """`90`, `90s`, `10m`, `2h`; negative: without end, which is infinity. ValueError for anything else."""
    number, factor = (text[:-1], _UNITS_S[text[-1]]) if text[-1:] in _UNITS_S else (text, 1)
    duration_s = _number(float, number, "must be a time such as 90, 10m, 2h") * factor
    if math.isnan(duration_s):
        raise ValueError("must be a number of seconds")
    return math.inf if duration_s < 0 else duration_s


def deadline(text: str) -> float:
    """Like `seconds`, but at least one second."""
    duration_s = seconds(text)
    if duration_s < 1:
        raise ValueError("must be at least one second")
    return duration_s


def n_bytes(text: str) -> int:
    """`1G`, `512M`, `1.5GB`, `2GiB`: powers of 1000, or of 1024 with an `i`. ValueError for anything else."""
    number = text.strip().lower().removesuffix("b")
    base = 1024 if number.endswith("i") else 1000
    number = number.removesuffix("i")
    power = _SIZES.find(number[-1:]) + 1 if number[-1:] else 0
    fault = "must be a size such as 4G or 512M"
    amount = _number(float, number[:-1] if power else number, fault) * base**power
    if not 0 < amount < 2**60 or (base == 1024 and not power):
        raise ValueError(fault)
    return int(amount)


def device_names(text: str) -> tuple[str, ...] | None:
    """Names of devices with commas between them; none for `none`, None for `auto`. Their letters' case is no matter."""
    words = list(filter(None, (part.strip().lower() for part in text.split(","))))
    if words in (["auto"], ["none"]):
        return None if words == ["auto"] else ()
    if not words or not all(_DEVICE.fullmatch(word) for word in words):
        raise ValueError("must be `auto`, `none` or names such as CUDA0 or Vulkan0, which `shimmy gpu-info` lists")
    names = tuple(word.upper() if word.startswith("cuda") else word.capitalize() for word in words)
    if len(set(names)) < len(names):
        raise ValueError("names a device twice")
    if len(names) > MAX_DEVICES:
        raise ValueError(f"names more than {MAX_DEVICES} devices")
    return names


def layer_count(text: str) -> int | None:
    """A number of layers, ALL_LAYERS for `all`, None for `auto`."""
    words = {"auto": None, "all": ALL_LAYERS}
    if text.lower() in words:
        return words[text.lower()]
    n_layers = _number(int, text, fault := "must be `auto`, `all` or a number of layers")
    if not 0 <= n_layers <= ALL_LAYERS:
        raise ValueError(fault)
    return n_layers


def alias(text: str) -> tuple[str, str]:
    """`NAME=MODEL`."""
    name, equals, model = (part.strip() for part in text.partition("="))
    if not (name and equals and model):
        raise ValueError("must be NAME=MODEL")
    return name, model


@dataclass(frozen=True, slots=True)
class Choice:
    """The kind of a value that is one of a few words, in any case."""

    words: Sequence[str]

    def __call__(self, text: str) -> str:
        if text.lower() not in self.words:
            guess = did_you_mean(text.lower(), self.words)
            raise ValueError(f"must be one of {', '.join(self.words)}{f'; {guess}' if guess else ''}")
        return text.lower()


def one_of(choices: Sequence[str]) -> Callable[[str], str]:
    return Choice(choices)


def switch(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off"}:
        return False
    raise ValueError("must be true or false")


def host_name(text: str) -> str:
    """A host's name without its port, in which `*` may stand for a part, or an address."""
    name = text.strip().lower().removeprefix("[").removesuffix("]")
    if not name or "/" in name or (":" in name and name.count(":") < 2):
        raise ValueError("must be a host's name such as ai.example.com or *.example.com, without a port")
    return name


def origin(text: str) -> str:
    """`SCHEME://HOST[:PORT]`, in which `*` may stand for a part; `*`, `null` and `none` by themselves."""
    lowered = text.strip().lower().removesuffix("/")
    scheme, separator, authority = lowered.partition("://")
    if lowered in {"*", "null", "none"}:
        return lowered
    if not (scheme and separator and authority) or "/" in authority:
        raise ValueError("must be an origin such as https://example.com or http://localhost:*, or `*`")
    return lowered.removesuffix({"http": ":80", "https": ":443"}.get(scheme, ""))  # browsers leave these out


def api_key(text: str) -> str:
    """A key for the API. A blank one is refused: a person who sets a key wants the server closed."""
    if not text.strip():
        raise ValueError("is blank: give a key, or leave the option out")
    return text.strip()


def absolute_path(text: str) -> Path:
    """The absolute path of `text`, so that moving or removing the working directory changes nothing."""
    path = Path(text).expanduser()
    try:
        return path.absolute()
    except FileNotFoundError as exc:
        raise ValueError("is relative to the working directory, which was removed: give an absolute path") from exc


def adapter(text: str) -> tuple[Path, float]:
    """`PATH`, or `PATH=SCALE`."""
    path, equals, scale = text.rpartition("=")
    if not equals:
        return Path(text).expanduser(), 1.0
    if not path:
        raise ValueError("must be PATH or PATH=SCALE")
    return Path(path).expanduser(), decimal(-MAX_ADAPTER_SCALE, MAX_ADAPTER_SCALE)(scale)


def file_text(text: str) -> str:
    """The text of the file with this path."""
    try:
        return absolute_path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"cannot read `{text}`: {exc}") from exc


def file_keys(text: str) -> tuple[str, ...]:
    """The keys in the file with this path. A file without keys is refused: its owner wants the server closed."""
    keys = tuple(file_text(text).split())
    if not keys:
        raise ValueError(f"there is no key in `{text}`")
    return keys


class Source(IntEnum):
    """Where a value comes from, the strongest source first."""

    FLAG = 0
    ENVIRONMENT = 1
    FILE = 2
    DEFAULT = 3


def find(
    option: Option, flags: Mapping[str, Any], environment: Mapping[str, str], file: Mapping[str, Any]
) -> tuple[Any, Source]:
    """The value from the strongest source that has one, and which source that is. Raises ConfigError."""
    given = flags.get(option.name)
    if given is not None:
        return _parse(option, given, option.flag, option.flag_separators), Source.FLAG
    for variable in (option.variable, *option.variables):
        if environment.get(variable):
            return _parse(option, environment[variable], variable, option.separators), Source.ENVIRONMENT
    if option.name in file:
        given = file[option.name]
        # One text is divided as that of a flag is, but a path in a file has its colons for itself.
        separators = option.flag_separators.replace(":", "") if isinstance(given, str) else ""
        return _parse(option, given, f"`{option.name}` in the configuration file", separators), Source.FILE
    return option.default, Source.DEFAULT


def _parse(option: Option, given: Any, source: str, separators: str = "") -> Any:
    """`given` is text, a list of texts (a repeated flag, a TOML list), or a number or boolean of a TOML file."""
    try:
        if option.is_joined and isinstance(given, list):
            given = ",".join(map(str, given))
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
        raise ValueError("is not a value for this option")
    if not isinstance(item, str | int | float):
        raise ValueError("must be a single value")
    return str(item)


def _split(texts: list[str], separators: str) -> list[str]:
    for separator in separators:
        texts = [part for text in texts for part in text.split(separator)]
    return [text for text in texts if text]
