"""The fields that every dialect which writes text shares, and the GenerateRequest that comes of them.

Sampling has llama.cpp's own names; the ranges of its values are `engine.sampling`'s. The names of reasoning budgets are
llama-server's two and vLLM's one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any

from shimmy.api.request_fields.field_kinds import (
    FLOAT32_MAX,
    INT32_MAX,
    INT32_MIN,
    N_STRINGS_MAX,
    Boolean,
    Duration,
    Fields,
    Integer,
    Json,
    Kind,
    ListOf,
    NotServed,
    Number,
    Texts,
    kind_of,
    natural,
    number,
    read_array,
    read_model,
    read_object,
    read_text,
    refuse,
    shown,
    text,
    wrong_kind,
)
from shimmy.api.request_fields.grammar import GRAMMAR_FIELDS, constraining, read_grammar
from shimmy.messages.model_info import MAX_ADAPTER_SCALE, ModelDefaults
from shimmy.messages.request import AdapterScales, GenerateRequest, Prompt
from shimmy.messages.sampling_limits import BOUNDS

if TYPE_CHECKING:
    from shimmy.config import Config
    from shimmy.generation import Services

N_ADAPTERS_MAX = 256  # named in one request
N_BIASES_MAX = 1 << 16


@dataclass(frozen=True, slots=True)
class Seed:
    """Any integer, of which the low 32 bits count; -1 draws a seed at random, as in llama.cpp."""

    def read(self, value: object, path: str) -> int | None:
        if type(value) is not int:
            wrong_kind(path, "an integer", value)
        return None if value == -1 else value % 2**32

    def schema(self) -> Json:
        return {"type": "integer"}


@dataclass(frozen=True, slots=True)
class LogitBias:
    """OpenAI's object {"id": bias} or llama-server's array [[id, bias], [id, false]]; -100 and false mean never."""

    def read(self, value: object, path: str) -> tuple[tuple[int, float], ...]:
        if isinstance(value, dict | list) and len(value) > N_BIASES_MAX:
            refuse(path, f"at most {N_BIASES_MAX} biases", str(len(value)))
        if isinstance(value, dict):
            return tuple(self._pair(_id_of_key(key), bias, f"{path}.{key[:20]}") for key, bias in value.items())
        items = read_array(value, path, "an object or an array of [token id, bias] pairs")
        return tuple(self._item(item, f"{path}[{index}]") for index, item in enumerate(items))

    def schema(self) -> Json:
        bias = {"anyOf": [number.schema(), {"const": False}]}
        pair = {"type": "array", "prefixItems": [natural.schema(), bias], "minItems": 2, "maxItems": 2}
        by_id = {"type": "object", "propertyNames": {"pattern": "^[0-9]{1,11}$"}, "additionalProperties": bias}
        array = {"type": "array", "items": pair, "maxItems": N_BIASES_MAX}
        return {"anyOf": [by_id | {"maxProperties": N_BIASES_MAX}, array]}

    def _item(self, item: object, path: str) -> tuple[int, float]:
        pair = read_array(item, path, "a [token id, bias] pair")
        if len(pair) != 2:
            refuse(path, "a [token id, bias] pair", f"{len(pair)} values")
        return self._pair(pair[0], pair[1], path)

    @staticmethod
    def _pair(token: object, bias: object, path: str) -> tuple[int, float]:
        if type(token) is not int or not 0 <= token <= INT32_MAX:
            refuse(path, "a token id", shown(token) if type(token) is int else kind_of(token))
        amount = -inf if bias is False else number.read(bias, path)
        return token, amount if amount > -100 else -inf


@dataclass(frozen=True, slots=True)
class StopStrings:
    """One text or several; empty ones, of which interfaces make an empty field, stop nothing."""

    def read(self, value: object, path: str) -> tuple[str, ...]:
        if isinstance(value, str):
            return _stops.read([read_text(value, path)] if value else [], path)
        given = _given_stops.read(value, path)
        return _stops.read([each for each in given if each], path)

    def schema(self) -> Json:
        return {"anyOf": [text.schema(), _given_stops.schema()]}


_stops = Texts()
_given_stops = ListOf(text, "a string or an array of strings", at_most=N_STRINGS_MAX, noun="strings")


@dataclass(frozen=True, slots=True)
class Lora:
    """llama-server's array [{"id": 0, "scale": 0.5}]; the worker, which has the adapters, checks their ids."""

    def read(self, value: object, path: str) -> AdapterScales:
        items = read_array(value, path, "an array of objects with id and scale")
        if len(items) > N_ADAPTERS_MAX:
            refuse(path, f"at most {N_ADAPTERS_MAX} adapters", str(len(items)))
        return tuple(self._item(item, f"{path}[{index}]") for index, item in enumerate(items))

    def schema(self) -> Json:
        scale = {"type": "number", "minimum": -MAX_ADAPTER_SCALE, "maximum": MAX_ADAPTER_SCALE}
        item = {"type": "object", "properties": {"id": natural.schema(), "scale": scale}, "required": ["id", "scale"]}
        return {"type": "array", "items": item, "maxItems": N_ADAPTERS_MAX}

    @staticmethod
    def _item(value: object, path: str) -> tuple[int, float]:
        item = read_object(value, path, "an object with id and scale")
        scale = number.read(item.get("scale"), f"{path}.scale")
        if abs(scale) > MAX_ADAPTER_SCALE:
            refuse(f"{path}.scale", f"a number from {-MAX_ADAPTER_SCALE:g} to {MAX_ADAPTER_SCALE:g}", shown(scale))
        return natural.read(item.get("id"), f"{path}.id"), scale


def _id_of_key(key: str) -> object:
    return int(key) if len(key) < 12 and key.isdecimal() and key.isascii() else key


def _sampling(name: str) -> Kind[object]:
    """A number in the range that llama.cpp can take, whole where the range is."""
    low, high = BOUNDS[name]
    if type(high) is int:
        return Integer(int(max(low, INT32_MIN)), high)
    return Number(max(low, -FLOAT32_MAX), high)


# Field name, which is also the attribute of SamplingParams, and what it must be.
SAMPLING: Fields = {
    "seed": Seed(),
    **{name: _sampling(name) for name in BOUNDS},
    "dry_sequence_breakers": Texts(),
    "logit_bias": LogitBias(),
    "ignore_eos": Boolean(),
}
# The name of vLLM and Hugging Face, whose penalty goes by all of the prompt and the reply.
REPETITION_PENALTY = "repetition_penalty"
_WHOLE_CONTEXT = -1
limit = Integer(at_least=-1)  # -1 is no limit
# The first of these that is set says after how many tokens reasoning is ended.
THINKING_BUDGETS = ("reasoning_budget_tokens", "thinking_budget_tokens", "thinking_token_budget")
JOB_FIELDS: Fields = {
    "model": text,
    **SAMPLING,
    REPETITION_PENALTY: _sampling("repeat_penalty"),
    "stop": StopStrings(),
    "cache_prompt": Boolean(),
    "keep_alive": Duration(),
    "lora": Lora(),
    **dict.fromkeys(THINKING_BUDGETS, limit),
    **GRAMMAR_FIELDS,
    # llama-server's own
    "samplers": NotServed(),
    "id_slot": NotServed((-1,)),
    "post_sampling_probs": NotServed((False,)),
    "n_indent": NotServed((0,)),
    "t_max_predict_ms": NotServed((0, -1)),
    "return_tokens": NotServed((False,)),
    "return_progress": NotServed((False,)),
    "response_fields": NotServed(([],)),
    "timings_per_token": NotServed((False,)),
    "reasoning_budget_message": NotServed(("",)),
}


def first_limit(given: Mapping[str, Any], names: tuple[str, ...], default: int | None = None) -> int | None:
    """The first of the limits that are given, or `default`; None where there is no limit."""
    amount = next((given[name] for name in names if name in given), default)
    return None if amount == -1 else amount


def model_defaults(body: Json, services: "Services") -> ModelDefaults:
    """The defaults of the model that `body` names; raises BadRequest, and ModelNotFound for an unknown model."""
    return services.registry.resolve(read_model(body, services.config.default_model)).defaults


def generate_request(
    given: Mapping[str, Any], prompt: Prompt, config: "Config", defaults: ModelDefaults, limits: tuple[str, ...]
) -> GenerateRequest:
    """What the fields of JOB_FIELDS ask for; `limits` are the dialect's names for how many tokens may be written.

    `defaults` are the model's; a value of the body wins over one that was set for the server, and that over them.
    """
    own = config.sampling_of(defaults)
    chosen = {name: given[name] for name in SAMPLING.keys() & given.keys()}
    if REPETITION_PENALTY in given and "repeat_penalty" not in given:  # llama.cpp's own name counts more
        chosen = {"repeat_last_n": _WHOLE_CONTEXT, **chosen, "repeat_penalty": given[REPETITION_PENALTY]}
    return GenerateRequest(
        model=read_model(given, config.default_model),
        prompt=prompt,
        sampling=replace(own, **chosen) if chosen else own,
        n_predict=first_limit(given, limits, config.n_predict or defaults.n_predict),
        stop=given.get("stop", defaults.stop),
        cache_prompt=given.get("cache_prompt", True),
        keep_alive_s=given.get("keep_alive"),
        lora=given.get("lora") or None,  # an empty array leaves the adapters at their own scales, as in llama-server
        grammar=read_grammar(given),
        n_thinking=first_limit(given, THINKING_BUDGETS),
        tells_progress=given.get("return_progress", False) and given.get("stream", False),
        constrained_by=constraining(given),
    )
