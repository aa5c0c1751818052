"""What a request field must be, and the one message its caller gets when it is not.

A kind reads one decoded JSON value. `SAMPLING` is the table of llama.cpp's own names, which every dialect shares;
the other names of a dialect are its own matter, and the ranges of sampling values are `engine.sampling`'s.
"""

from dataclasses import dataclass, replace
from math import inf
from typing import Any, NoReturn, Protocol

from shimmy.config import seconds
from shimmy.errors import BadRequest
from shimmy.messages import MAX_ADAPTER_SCALE, AdapterScales, SamplingParams

Json = dict[str, object]

# llama.cpp takes 32-bit numbers; ctypes would wrap larger integers and overflow larger floats without a word.
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
FLOAT32_MAX = 3.4028234e38
N_ADAPTERS_MAX = 256  # named in one request
N_STRINGS_MAX = 64  # stop strings are looked for at every token, DRY's breakers in the whole vocabulary

_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array", dict: "an object"}


def kind_of(value: object) -> str:
    return _KINDS.get(type(value), "null")


def refuse(path: str, expected: str, got: str) -> NoReturn:
    raise BadRequest(f"{path}: expected {expected}, got {got}", param=path)


def wrong_kind(path: str, expected: str, value: object) -> NoReturn:
    refuse(path, expected, kind_of(value))


def read_text(value: object, path: str, expected: str = "a string") -> str:
    if not isinstance(value, str):
        wrong_kind(path, expected, value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can write half of a surrogate pair; no tokenizer can read it
            refuse(path, "Unicode text", "a lone surrogate")
    return value


def read_array(value: object, path: str, expected: str = "an array") -> list[object]:
    if not isinstance(value, list):
        wrong_kind(path, expected, value)
    return value


def read_object(value: object, path: str, expected: str = "an object") -> Json:
    if not isinstance(value, dict):
        wrong_kind(path, expected, value)
    return value


def required(body: Json, name: str, expected: str) -> object:
    """The value of a field that must be there."""
    if name not in body:
        refuse(name, expected, "nothing")
    return body[name]


class Kind(Protocol):
    """Reads a value that is not null, or raises BadRequest naming `path`."""

    def read(self, value: object, path: str) -> object: ...


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number that a 32-bit float can hold."""

    def read(self, value: object, path: str) -> float:
        if type(value) is not int and type(value) is not float:
            wrong_kind(path, "a number", value)
        if not -FLOAT32_MAX <= value <= FLOAT32_MAX:
            refuse(path, "a finite number", _shown(value))
        return float(value)


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer of 32 bits."""

    at_least: int = INT32_MIN
    at_most: int = INT32_MAX

    def read(self, value: object, path: str) -> int:
        if type(value) is not int:
            refuse(path, "an integer", _shown(value) if type(value) is float else kind_of(value))
        if not self.at_least <= value <= self.at_most:
            refuse(path, f"an integer from {self.at_least} to {self.at_most}", _shown(value))
        return value


@dataclass(frozen=True, slots=True)
class Boolean:
    """True or false; 0 and 1 are numbers."""

    def read(self, value: object, path: str) -> bool:
        if not isinstance(value, bool):
            wrong_kind(path, "a boolean", value)
        return value


@dataclass(frozen=True, slots=True)
class Texts:
    """An array of strings that are not empty, or one such string where `or_one`."""

    or_one: bool = False

    def read(self, value: object, path: str) -> tuple[str, ...]:
        if self.or_one and isinstance(value, str):
            return (self._text(value, path),)
        items = read_array(value, path, "a string or an array of strings" if self.or_one else "an array of strings")
        if len(items) > N_STRINGS_MAX:
            refuse(path, f"at most {N_STRINGS_MAX} strings", str(len(items)))
        return tuple(self._text(item, f"{path}[{index}]") for index, item in enumerate(items))

    @staticmethod
    def _text(value: object, path: str) -> str:
        return read_text(value, path) or refuse(path, "a string that is not empty", "an empty one")


@dataclass(frozen=True, slots=True)
class TokenIds:
    """An array of token ids; the worker, which has the vocabulary, checks how large they may be."""

    def read(self, value: object, path: str) -> tuple[int, ...]:
        items = read_array(value, path, "an array of token ids")
        return tuple(
            item if type(item) is int and 0 <= item <= INT32_MAX else _natural.read(item, f"{path}[{index}]")
            for index, item in enumerate(items)
        )


@dataclass(frozen=True, slots=True)
class Seed:
    """Any integer, of which the low 32 bits count; -1 draws a seed at random, as in llama.cpp."""

    def read(self, value: object, path: str) -> int | None:
        if type(value) is not int:
            wrong_kind(path, "an integer", value)
        return None if value == -1 else value % 2**32


@dataclass(frozen=True, slots=True)
class LogitBias:
    """OpenAI's object {"id": bias} or llama-server's array [[id, bias], [id, false]]; -100 and false mean never."""

    def read(self, value: object, path: str) -> tuple[tuple[int, float], ...]:
        if isinstance(value, dict):
            return tuple(self._pair(_id_of_key(key), bias, f"{path}.{key[:20]}") for key, bias in value.items())
        items = read_array(value, path, "an object or an array of [token id, bias] pairs")
        return tuple(self._item(item, f"{path}[{index}]") for index, item in enumerate(items))

    def _item(self, item: object, path: str) -> tuple[int, float]:
        pair = read_array(item, path, "a [token id, bias] pair")
        if len(pair) != 2:
            refuse(path, "a [token id, bias] pair", f"{len(pair)} values")
        return self._pair(pair[0], pair[1], path)

    @staticmethod
    def _pair(token: object, bias: object, path: str) -> tuple[int, float]:
        if type(token) is not int or not 0 <= token <= INT32_MAX:
            refuse(path, "a token id", _shown(token) if type(token) is int else kind_of(token))
        amount = -inf if bias is False else _number.read(bias, path)
        return token, amount if amount > -100 else -inf


@dataclass(frozen=True, slots=True)
class Lora:
    """llama-server's array [{"id": 0, "scale": 0.5}]; the worker, which has the adapters, checks their ids."""

    def read(self, value: object, path: str) -> AdapterScales:
        items = read_array(value, path, "an array of objects with id and scale")
        if len(items) > N_ADAPTERS_MAX:
            refuse(path, f"at most {N_ADAPTERS_MAX} adapters", str(len(items)))
        return tuple(self._item(item, f"{path}[{index}]") for index, item in enumerate(items))

    @staticmethod
    def _item(value: object, path: str) -> tuple[int, float]:
        item = read_object(value, path, "an object with id and scale")
        scale = _number.read(item.get("scale"), f"{path}.scale")
        if abs(scale) > MAX_ADAPTER_SCALE:
            refuse(f"{path}.scale", f"a number from {-MAX_ADAPTER_SCALE:g} to {MAX_ADAPTER_SCALE:g}", _shown(scale))
        return _natural.read(item.get("id"), f"{path}.id"), scale


@dataclass(frozen=True, slots=True)
class Duration:
    """Ollama's form: a number of seconds, or a text like `10m`; negative means without end."""

    def read(self, value: object, path: str) -> float:
        text = value if isinstance(value, str) else str(_number.read(value, path))
        try:
            return seconds(text)
        except ValueError:
            refuse(path, "seconds, or a text like `10m`", _shown(value))


_natural = Integer(at_least=0)
_integer, _number = Integer(), Number()

# Field name, which is also the attribute of SamplingParams, and what it must be.
SAMPLING: dict[str, Kind] = {
    "seed": Seed(),
    "temperature": _number,
    "dynatemp_range": _number,
    "dynatemp_exponent": _number,
    "top_k": _integer,
    "top_p": _number,
    "min_p": _number,
    "typical_p": _number,
    "top_n_sigma": _number,
    "min_keep": _integer,
    "repeat_last_n": _integer,
    "repeat_penalty": _number,
    "presence_penalty": _number,
    "frequency_penalty": _number,
    "dry_multiplier": _number,
    "dry_base": _number,
    "dry_allowed_length": _integer,
    "dry_penalty_last_n": _integer,
    "dry_sequence_breakers": Texts(),
    "xtc_probability": _number,
    "xtc_threshold": _number,
    "mirostat": _integer,
    "mirostat_tau": _number,
    "mirostat_eta": _number,
    "logit_bias": LogitBias(),
    "ignore_eos": Boolean(),
}


def read_sampling(body: Json, defaults: SamplingParams) -> SamplingParams:
    """`defaults` with what `body` sets; null is the same as leaving a field out."""
    given: dict[str, Any] = {
        name: kind.read(body[name], name) for name, kind in SAMPLING.items() if body.get(name) is not None
    }
    return replace(defaults, **given) if given else defaults


def read_flag(body: Json, name: str, default: bool) -> bool:
    value = body.get(name)
    return default if value is None else Boolean().read(value, name)


def read_keep_alive(body: Json) -> float | None:
    """How long the model shall stay loaded after its last job, in seconds; None where nothing is said."""
    value = body.get("keep_alive")
    return None if value is None else Duration().read(value, "keep_alive")


def read_lora(body: Json) -> AdapterScales | None:
    """The scales of adapters; None, also for an empty array, where the adapters' own ones count, as in llama-server."""
    value = body.get("lora")
    return None if value is None else Lora().read(value, "lora") or None


def _id_of_key(key: str) -> object:
    return int(key) if key.isdecimal() and key.isascii() and len(key) < 12 else key


def _shown(value: object) -> str:
    return repr(value)[:40]
