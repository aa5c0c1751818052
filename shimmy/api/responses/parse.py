"""Bodies of OpenAI's Responses, with the extras of the other routes, to a `GenerateRequest`: pure functions of JSON.

A known field is honoured or refused, never dropped; null is the same as leaving it out; an unknown field is ignored.
Not served: built-in tools, background replies, and state on the server other than stored responses.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from shimmy.api.http_exchange import encode_large
from shimmy.api.request_fields.field_kinds import (
    Boolean,
    Fields,
    FreeObject,
    Integer,
    Json,
    ListOf,
    Matching,
    NotServed,
    OneOf,
    Record,
    Text,
    WithoutEffect,
    boolean,
    not_together,
    read_object,
    read_text,
    refuse,
    text,
)
from shimmy.api.request_fields.grammar import ANY_OBJECT, GRAMMAR_FIELDS, SCHEMA_FIELDS, with_strictness
from shimmy.api.request_fields.job import JOB_FIELDS, generate_request
from shimmy.api.request_fields.reasoning import EFFORT, VERBOSITY, template_arguments
from shimmy.api.request_fields.tool_kinds import Callee, DeclaredTool, Tools, ToolSet
from shimmy.api.request_fields.tools import RequestedToolChoice, ToolChoiceField, offered
from shimmy.api.responses.conversation import conversation
from shimmy.api.responses.items import FindItem, Input, Item, ItemId, identified
from shimmy.errors import BadRequest
from shimmy.messages.model_info import ModelDefaults
from shimmy.messages.request import ChatPrompt, GenerateRequest, Grammar

if TYPE_CHECKING:
    from shimmy.config import Config

NO_DEFAULTS = ModelDefaults()
N_TOP_LOGPROBS_MAX = 20
LOGPROBS, SEALED_REASONING = "message.output_text.logprobs", "reasoning.encrypted_content"
INPUT = "a string or an array of items"
# OpenAI's own limits.
_N_METADATA_MAX, _METADATA_KEY_CHARACTERS, _METADATA_CHARACTERS = 16, 64, 512


@dataclass(frozen=True, slots=True)
class Metadata:
    """A few texts under the caller's own names."""

    def read(self, value: object, path: str) -> dict[str, str]:
        given = read_object(value, path)
        if len(given) > _N_METADATA_MAX:
            refuse(path, f"at most {_N_METADATA_MAX} entries", str(len(given)))
        for name, entry in given.items():
            if len(name) > _METADATA_KEY_CHARACTERS:
                refuse(path, f"keys of at most {_METADATA_KEY_CHARACTERS} characters", str(len(name)))
            if len(read_text(entry, f"{path}.{name}")) > _METADATA_CHARACTERS:
                refuse(f"{path}.{name}", f"at most {_METADATA_CHARACTERS} characters", str(len(str(entry))))
        return {name: str(entry) for name, entry in given.items()}

    def schema(self) -> Json:
        value = {"type": "string", "maxLength": _METADATA_CHARACTERS}
        return {"type": "object", "maxProperties": _N_METADATA_MAX, "additionalProperties": value}


@dataclass(frozen=True, slots=True)
class Moved:
    """A field of another route that has another place here; every value is refused."""

    to: str

    def read(self, value: object, path: str) -> NoReturn:  # noqa: ARG002 - of a Kind
        raise BadRequest(
            f"Unsupported parameter: '{path}'. In the Responses API, this parameter has moved to '{self.to}'.",
            param=path,
        )

    def schema(self) -> Json:
        return {"description": f"Not served: it is `{self.to}` here.", "enum": [None]}


@dataclass(frozen=True, slots=True)
class ReplyTextFormat:
    """The form of the reply; a schema is always enforced."""

    def read(self, value: object, path: str) -> Grammar | None:
        kind = _format.read(value, path)["type"]
        if kind == "json_schema":
            return with_strictness(_schema_format.read(value, path))
        return ANY_OBJECT if kind == "json_object" else None

    def schema(self) -> Json:
        return {"anyOf": [_plain_format.schema(), _schema_format.schema()]}


_format = Record({"type": OneOf(("text", "json_object", "json_schema"))}, required={"type": "a string"})
_plain_format = Record({"type": OneOf(("text", "json_object"))}, required={"type": "a string"})
_schema_format = Record(
    {"type": OneOf(("json_schema",)), **SCHEMA_FIELDS, "json_schema": Moved("text.format.schema")},
    required={"name": "a string", "schema": "a JSON Schema object"},
)

_text = Record(
    {
        "format": ReplyTextFormat(),
        "verbosity": VERBOSITY,
        **dict.fromkeys(("type", "schema", "json_schema"), Moved("text.format")),
    }
)
# A summary is what OpenAI shows in place of the reasoning; here it is the reasoning itself.
_summary = OneOf(("auto", "concise", "detailed"))
_reasoning = Record(
    {
        "effort": EFFORT,
        "summary": _summary,
        "generate_summary": _summary,
        "context": NotServed(("auto",)),
        "mode": NotServed(("standard",)),
    }
)
# Obfuscation would hide the length of deltas from an observer of the network; it changes no text.
_stream_options = Record({"include_obfuscation": boolean})

# Parts of this dialect, and those of built-in tools, which never have any.
_INCLUDABLE = re.compile(
    r"message\.output_text\.logprobs|reasoning\.encrypted_content|message\.input_image\.image_url"
    r"|[a-z0-9_]{1,64}_call(?:_output)?\.[a-z0-9_.]{1,128}"
)

# The fields that make the prompt; also those of the body that only asks for its length.
PROMPT_FIELDS: Fields = {
    "input": Input(),
    "instructions": text,
    "previous_response_id": ItemId(),
    "tools": Tools(DeclaredTool(is_flat=True, may_nest=True)),
    "tool_choice": ToolChoiceField(is_flat=True),
    "parallel_tool_calls": Boolean(),
    "reasoning": _reasoning,
    "text": _text,
    "chat_template_kwargs": FreeObject(),
    "truncation": OneOf(("disabled", "auto")),  # a prompt that does not fit is refused either way
    "conversation": NotServed(),
    "personality": NotServed(),
}
FIELDS: Fields = {
    **JOB_FIELDS,
    **PROMPT_FIELDS,
    "max_output_tokens": Integer(at_least=1),
    "top_logprobs": Integer(0, N_TOP_LOGPROBS_MAX),
    "include": ListOf(Matching(_INCLUDABLE, "a part of a response"), "an array of strings", at_most=64),
    "stream": boolean,
    "stream_options": _stream_options,
    "store": boolean,
    "metadata": Metadata(),
    "user": text,
    "safety_identifier": text,
    "prompt_cache_key": text,
    "service_tier": Text(),
    "max_tool_calls": Integer(at_least=1),  # of built-in tools, of which there are none
    "prompt_cache_retention": WithoutEffect(),
    "prompt_cache_options": WithoutEffect(),
    "background": NotServed((False,)),
    "background_options": NotServed(),
    "prompt": NotServed(),
    "moderation": NotServed(),
    "context_management": WithoutEffect(),  # it would shorten a prompt that is too long, which is refused here
    "access_programs": NotServed(),
    "image": NotServed(),
    "reasoning_format": NotServed(("auto",)),
    "n": NotServed((1,)),
    "best_of": NotServed((1,)),
    "echo": NotServed((False,)),
    "suffix": NotServed(("",)),
    "logprobs": Moved("top_logprobs"),
    "functions": Moved("tools"),
    "function_call": Moved("tool_choice"),
    "response_format": Moved("text.format"),
    "verbosity": Moved("text.verbosity"),
    "reasoning_effort": Moved("reasoning.effort"),
    "messages": Moved("input"),
    "max_tokens": Moved("max_output_tokens"),
    "max_completion_tokens": Moved("max_output_tokens"),
}
BODY = Record(FIELDS)
COUNTED_BODY = Record({"model": text, **PROMPT_FIELDS})


@dataclass(frozen=True, slots=True)
class History:
    """Earlier items: those of the responses before, the oldest first, and how to find any other stored item."""

    items: Sequence[Item]
    find_item: FindItem


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """A job, the new items of its input, and how its reply is written.

    `input_items` are the new ones as a JSON array, and `made_ids` the ids of them that were made here. `echoed` are the
    fields of the response object that repeat the request, as the JSON text of an object without its braces.
    """

    job: GenerateRequest
    input_items: bytes
    made_ids: tuple[str, ...]
    echoed: bytes
    previous_id: str | None
    stream: bool
    store: bool
    seals_reasoning: bool
    summarizes_reasoning: bool
    callees: Mapping[str, Callee]  # by the model's names, where they are not plain functions
    warnings: tuple[str, ...] = ()  # of fields that are not served, without which the reply is still right


def previous_response_id(body: Json) -> str | None:
    value = body.get("previous_response_id")
    return None if value is None else ItemId().read(value, "previous_response_id")


def response_request(body: Json, config: "Config", defaults: ModelDefaults, history: History) -> ResponseRequest:
    """`defaults` are the model's. Raises BadRequest, and NotFound for a reference to an unknown item."""
    given = BODY.read(body)
    new_items, made_ids = _new_items(given, history)
    prompt = _prompt(given, [*history.items, *new_items], defaults)
    job = generate_request(given, prompt, config, defaults, ("max_output_tokens",))
    include = given.get("include", ())
    wants_logprobs = LOGPROBS in include or "top_logprobs" in given
    grammar = _grammar(given, job.grammar)
    job = replace(
        job,
        grammar=grammar,
        constrained_by="text.format" if grammar is not job.grammar else job.constrained_by,
        n_logprobs=given.get("top_logprobs", 0) if wants_logprobs else None,
    )
    return ResponseRequest(
        job=job,
        input_items=encode_large(new_items),
        made_ids=tuple(made_ids),
        echoed=_echoed(body, given, job),
        previous_id=given.get("previous_response_id"),
        stream=given.get("stream", False),
        store=given.get("store", True),
        seals_reasoning=SEALED_REASONING in include,
        summarizes_reasoning=_summary_of(given) is not None,
        callees=given.get("tools", ToolSet()).special,
        warnings=given.get("tools", ToolSet()).warnings,
    )


def counted_request(body: Json, config: "Config", defaults: ModelDefaults, history: History) -> GenerateRequest:
    """A job whose prompt is counted, and that generates nothing."""
    given = COUNTED_BODY.read(body)
    new_items, _ = _new_items(given, history)
    prompt = _prompt(given, [*history.items, *new_items], defaults)
    return replace(generate_request(given, prompt, config, defaults, ()), n_predict=0)


def _new_items(given: Mapping[str, Any], history: History) -> tuple[list[Item], list[str]]:
    if not given.get("input") and not history.items:
        refuse("input", INPUT, "an empty one" if "input" in given else "nothing")
    return identified(given.get("input", ()), history.find_item)


def _prompt(given: Mapping[str, Any], items: Sequence[Item], defaults: ModelDefaults) -> ChatPrompt:
    parallel = given.get("parallel_tool_calls", True)
    tools, choice = offered(
        given.get("tools", ToolSet()), given.get("tool_choice", RequestedToolChoice()), parallel=parallel
    )
    prompt = ChatPrompt(
        messages=conversation(items, given.get("instructions", "")),
        tools=tools,
        tool_choice=choice,
        template_arguments=template_arguments(
            given.get("reasoning", {}).get("effort"),
            given.get("chat_template_kwargs"),
            verbosity=given.get("text", {}).get("verbosity"),
        ),
    )
    return prompt.with_system(defaults.system)


def _grammar(given: Mapping[str, Any], other: Grammar | None) -> Grammar | None:
    """The grammar of `text.format`, or that of a field that is not OpenAI's."""
    grammar: Grammar | None = given.get("text", {}).get("format")
    if grammar is not None and other is not None:
        not_together("text.format", next(name for name in GRAMMAR_FIELDS if given.get(name) is not None))
    return grammar or other


def _summary_of(given: Mapping[str, Any]) -> str | None:
    reasoning: dict[str, str] = given.get("reasoning", {})
    return reasoning.get("summary", reasoning.get("generate_summary"))


def _echoed(body: Json, given: Mapping[str, Any], job: GenerateRequest) -> bytes:
    """Fields as OpenAI's response object has them; a schema and the like as they came."""
    reasoning, written = given.get("reasoning", {}), body.get("text")
    text_format = written.get("format") if isinstance(written, dict) else None
    echoed: Json = {
        "background": False,
        "instructions": given.get("instructions"),
        "max_output_tokens": job.n_predict,
        "max_tool_calls": given.get("max_tool_calls"),
        "metadata": given.get("metadata", {}),
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "previous_response_id": given.get("previous_response_id"),
        "prompt_cache_key": given.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": _summary_of(given)},
        "safety_identifier": given.get("safety_identifier"),
        "service_tier": "default",
        "store": given.get("store", True),
        "temperature": job.sampling.temperature,
        "text": {
            "format": text_format or {"type": "text"},
            "verbosity": given.get("text", {}).get("verbosity", "medium"),
        },
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_logprobs": job.n_logprobs or 0,
        "top_p": job.sampling.top_p,
        "truncation": given.get("truncation", "disabled"),
        "user": given.get("user"),
    }
    return encode_large(echoed)[1:-1]
