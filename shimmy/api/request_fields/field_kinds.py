"""What a request field must be, and the one message its caller gets when it is not.

A kind reads one decoded JSON value, and can say its JSON Schema. A body is a `Record`: a table of fields and kinds,
from which it is validated. Knows no dialect and no field of one, but for the few that every route may have.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from shimmy.errors import BadRequest
from shimmy.option_kinds import seconds
from shimmy.text.json_writer import pieces
from shimmy.text.surrogates import has_lone_surrogate

Json = dict[str, object]
Read_co = TypeVar("Read_co", covariant=True)

# llama.cpp takes 32-bit numbers; ctypes would wrap larger integers and overflow larger floats without a word.
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
FLOAT32_MAX = 3.4028234e38
# Stop strings are looked for at every token, DRY's breakers in the whole vocabulary.
N_STRINGS_MAX, N_STRING_CHARACTERS_MAX = 64, 1 << 14
_STEP = 1 << 16  # items of one call of C code, which holds Python's lock

_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array", dict: "an object"}
_NULL: Json = {"type": "null"}
_DURATION = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?[smh]?")


def kind_of(value: object) -> str:
    return _KINDS.get(type(value), "null")


def shown(value: object) -> str:
    """`value` as a message quotes it; only for numbers, booleans and short texts."""
    return repr(value[:40] if isinstance(value, str) else value)[:40]


def refuse(path: str, expected: str, got: str) -> NoReturn:
    raise BadRequest(f"{path}: expected {expected}, got {got}", param=path)


def wrong_kind(path: str, expected: str, value: object) -> NoReturn:
    refuse(path, expected, kind_of(value))


def not_together(first: str, second: str) -> NoReturn:
    raise BadRequest(f"{first}: cannot be combined with {second}; leave one of them out", param=first)


def read_text(value: object, path: str, expected: str = "a string") -> str:
    if not isinstance(value, str):
        wrong_kind(path, expected, value)
    if has_lone_surrogate(value):
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


class Kind(Protocol[Read_co]):
    """Reads a value that is not null, or raises BadRequest naming `path`; `schema` is for the documentation."""

    def read(self, value: object, path: str) -> Read_co: ...

    def schema(self) -> Json: ...


Fields = Mapping[str, Kind[object]]


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number that a 32-bit float can hold."""

    at_least: float = -FLOAT32_MAX
    at_most: float = FLOAT32_MAX

    def read(self, value: object, path: str) -> float:
        if type(value) is not int and type(value) is not float:
            wrong_kind(path, "a number", value)
        if not self.at_least <= value <= self.at_most:
            refuse(path, self._expected(), shown(value))
        return float(value)

    def schema(self) -> Json:
        return {"type": "number", "minimum": self.at_least, "maximum": self.at_most}

    def _expected(self) -> str:
        low, high = self.at_least, self.at_most
        if low == -FLOAT32_MAX:
            return "a finite number" if high == FLOAT32_MAX else f"a number not above {high:g}"
        return f"a number from {low:g} to {high:g}"


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer of 32 bits."""

    at_least: int = INT32_MIN
    at_most: int = INT32_MAX

    def read(self, value: object, path: str) -> int:
        if type(value) is not int:
            refuse(path, "an integer", shown(value) if type(value) is float else kind_of(value))
        if not self.at_least <= value <= self.at_most:
            refuse(path, f"an integer from {self.at_least} to {self.at_most}", shown(value))
        return value

    def schema(self) -> Json:
        return {"type": "integer", "minimum": self.at_least, "maximum": self.at_most}


@dataclass(frozen=True, slots=True)
class Boolean:
    """True or false; 0 and 1 are numbers."""

    def read(self, value: object, path: str) -> bool:
        if not isinstance(value, bool):
            wrong_kind(path, "a boolean", value)
        return value

    def schema(self) -> Json:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Text:
    """Unicode text."""

    expected: str = "a string"
    may_be_empty: bool = True

    def read(self, value: object, path: str) -> str:
        text = read_text(value, path, self.expected)
        if not text and not self.may_be_empty:
            refuse(path, f"{self.expected} that is not empty", "an empty one")
        return text

    def schema(self) -> Json:
        return {"type": "string"} if self.may_be_empty else {"type": "string", "minLength": 1}


@dataclass(frozen=True, slots=True)
class Matching:
    """A text that a pattern fits as a whole; the pattern means the same in ECMAScript."""

    pattern: re.Pattern[str]
    expected: str

    def read(self, value: object, path: str) -> str:
        if not self.pattern.fullmatch(given := read_text(value, path)):
            refuse(path, self.expected, json.dumps(given)[:40])
        return given

    def schema(self) -> Json:
        return {"type": "string", "pattern": f"^(?:{self.pattern.pattern})$"}


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of some texts."""

    texts: tuple[str, ...]

    def read(self, value: object, path: str) -> str:
        if isinstance(value, str) and value in self.texts:
            return value
        expected = f"one of {', '.join(self.texts)}" if len(self.texts) > 1 else json.dumps(self.texts[0])
        refuse(path, expected, json.dumps(read_text(value, path)[:40])[:40])

    def schema(self) -> Json:
        return {"type": "string", "enum": list(self.texts)}


@dataclass(frozen=True, slots=True)
class ListOf(Generic[Read_co]):
    """An array whose items are all of one kind."""

    kind: Kind[Read_co]
    expected: str = "an array"
    at_least: int = 0
    at_most: int | None = None
    noun: str = "items"

    def read(self, value: object, path: str) -> tuple[Read_co, ...]:
        items = read_array(value, path, self.expected)
        if len(items) < self.at_least:
            refuse(path, self.expected, "an empty one")
        if self.at_most is not None and len(items) > self.at_most:
            refuse(path, f"at most {self.at_most} {self.noun}", str(len(items)))
        read = self.kind.read
        return tuple([read(item, f"{path}[{index}]") for index, item in enumerate(items)])

    def schema(self) -> Json:
        schema: Json = {"type": "array", "items": self.kind.schema()}
        if self.at_least:
            schema["minItems"] = self.at_least
        return schema if self.at_most is None else schema | {"maxItems": self.at_most}


@dataclass(frozen=True, slots=True)
class Texts:
    """An array of strings that are not empty, or one such string where `or_one`."""

    or_one: bool = False
    at_most: int = N_STRINGS_MAX
    n_characters_max: int = N_STRING_CHARACTERS_MAX  # of all of them together

    def read(self, value: object, path: str) -> tuple[str, ...]:
        expected = "a string or an array of strings" if self.or_one else "an array of strings"
        if self.or_one and isinstance(value, str):
            texts: tuple[str, ...] = (_words.read(value, path),)
        else:
            texts = ListOf(_words, expected, at_most=self.at_most, noun="strings").read(value, path)
        if (n_characters := sum(map(len, texts))) > self.n_characters_max:
            refuse(path, f"strings of at most {self.n_characters_max} characters together", str(n_characters))
        return texts

    def schema(self) -> Json:
        array = ListOf(_words, at_most=self.at_most).schema()
        return {"anyOf": [_words.schema(), array]} if self.or_one else array


@dataclass(frozen=True, slots=True)
class TokenIds:
    """An array of token ids; the worker, which has the vocabulary, checks how large they may be."""

    def read(self, value: object, path: str) -> tuple[int, ...]:
        items = read_array(value, path, "an array of token ids")
        for start in range(0, len(items), _STEP):
            some: list[Any] = items[start : start + _STEP]
            # This is ten times as fast as one by one, and so are nearly all.
            if {*map(type, some)} != {int} or min(some) < 0 or max(some) > INT32_MAX:
                for index, item in enumerate(some, start):
                    natural.read(item, f"{path}[{index}]")
        return tuple(items)  # type: ignore[arg-type] # they are integers by now

    def schema(self) -> Json:
        return {"type": "array", "items": natural.schema()}


@dataclass(frozen=True, slots=True)
class Record:
    """An object with fields of these kinds: null is the same as leaving a field out, and one not named here is let be.

    `required` names the fields that must be there, and what is expected of each, in words.
    """

    fields: Fields
    required: Mapping[str, str] = field(default_factory=dict)
    expected: str = "an object"

    def read(self, value: object, path: str = "") -> dict[str, Any]:
        """What is there, read, in the order of the object's own fields."""
        source = read_object(value, path, self.expected)
        prefix = f"{path}." if path else ""
        fields = self.fields
        given = {
            name: fields[name].read(item, prefix + name)
            for name, item in source.items()
            if item is not None and name in fields
        }
        for name, expected in self.required.items():
            if name not in given:
                refuse(prefix + name, expected, "null" if name in source else "nothing")
        return given

    def schema(self) -> Json:
        properties: Json = {
            name: kind.schema() if name in self.required else _or_null(kind.schema())
            for name, kind in self.fields.items()
        }
        schema: Json = {"type": "object", "properties": properties}
        return schema | {"required": list(self.required)} if self.required else schema


def _or_null(schema: Json) -> Json:
    match schema:
        case {"enum": [*values]}:
            return schema if None in values else {"anyOf": [schema, _NULL]}
        case {"type": str(name)}:
            return schema | {"type": [name, "null"]}
        case {"anyOf": [*kinds]}:
            return schema | {"anyOf": [*kinds, _NULL]}
    return schema  # takes any value


@dataclass(frozen=True, slots=True)
class FreeObject:
    """Any object, as it is."""

    def read(self, value: object, path: str) -> Json:
        return read_object(value, path)

    def schema(self) -> Json:
        return {"type": "object"}


@dataclass(frozen=True, slots=True)
class JsonObject:
    """Any object, as JSON text."""

    expected: str = "an object"

    def read(self, value: object, path: str) -> str:
        return read_text("".join(pieces(read_object(value, path, self.expected), ensure_ascii=False)), path)

    def schema(self) -> Json:
        return {"type": "object"}


@dataclass(frozen=True, slots=True)
class WithoutEffect:
    """A field whose purpose is a matter of OpenAI's own house, such as billing; any value will do."""

    def read(self, value: object, path: str) -> None:  # noqa: ARG002 - of a Kind
        return

    def schema(self) -> Json:
        return {"description": "Accepted, and without effect."}


@dataclass(frozen=True, slots=True)
class NotServed:
    """A field that is not served: it takes the values that ask for nothing, and refuses all others."""

    idle: tuple[object, ...] = ()

    def read(self, value: object, path: str) -> None:
        # Types are compared too, because 1 == True.
        if any(type(value) is type(idle) and value == idle for idle in self.idle):
            return
        idle_values = "".join(f" or send {json.dumps(idle)}" for idle in self.idle)
        raise BadRequest(f"{path}: this value is not supported; leave the field out{idle_values}", param=path)

    def schema(self) -> Json:
        return {"description": "Not served.", "enum": [*self.idle, None]}


@dataclass(frozen=True, slots=True)
class Duration:
    """Ollama's form: a number of seconds, or a text like `10m`; negative means without end."""

    def read(self, value: object, path: str) -> float:
        if not isinstance(value, str):
            return seconds(str(number.read(value, path)))
        if not _DURATION.fullmatch(value):
            refuse(path, "seconds, or a text like `10m`", shown(value))
        return seconds(value)

    def schema(self) -> Json:
        return {"anyOf": [number.schema(), {"type": "string", "pattern": f"^(?:{_DURATION.pattern})$"}]}


natural, integer, number = Integer(at_least=0), Integer(), Number()
boolean, text = Boolean(), Text()
_words = Text(may_be_empty=False)


def required(body: Mapping[str, object], name: str, expected: str) -> object:
    """The value of a field that must be there."""
    if name not in body:
        refuse(name, expected, "nothing")
    return body[name]


def read_query(record: Record, query: Mapping[str, str]) -> dict[str, Any]:
    """The fields of `record` as the query of a request has them; what is to be an integer is one where it can be."""
    return record.read({name: _query_value(record, name, value) for name, value in query.items()})


def _query_value(record: Record, name: str, value: str) -> object:
    is_number = isinstance(record.fields.get(name), Integer) and value.isascii() and value.isdecimal()
    return int(value) if is_number and len(value) < 12 else value


def read_model(body: Mapping[str, object], default: str | None = None) -> str:
    """The name of a model; `default` where there is none."""
    if default is not None and body.get("model") is None:
        return default
    return read_text(required(body, "model", "the name of a model"), "model")
