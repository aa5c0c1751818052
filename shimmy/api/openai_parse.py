"""OpenAI request bodies, with llama-server's extensions, to a `GenerateRequest`: pure functions of the decoded JSON.

A known field is honoured or refused, never dropped; null is the same as leaving it out; an unknown field is ignored.
Known and without effect by their nature: user, metadata, store, service_tier, safety_identifier, prompt_cache_key,
prediction, and parallel_tool_calls while there are no tools.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shimmy.api.fields import (
    Boolean,
    Integer,
    Json,
    Texts,
    TokenIds,
    read_array,
    read_flag,
    read_keep_alive,
    read_lora,
    read_object,
    read_sampling,
    read_text,
    refuse,
    required,
)
from shimmy.errors import BadRequest
from shimmy.messages import (
    ChatPrompt,
    GenerateRequest,
    Message,
    ModelDefaults,
    Prompt,
    TextPrompt,
    TokenPrompt,
    ToolCall,
)

if TYPE_CHECKING:
    from shimmy.config import Config

# Fields that Shimmy does not serve yet, each with the values that ask for nothing.
NOT_SERVED: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    # llama-server's own
    "grammar": ("",),
    "json_schema": (),
    "samplers": (),
    "id_slot": (-1,),
    "n_probs": (0,),
    "post_sampling_probs": (False,),
    "n_indent": (0,),
    "t_max_predict_ms": (0, -1),
    "return_tokens": (False,),
    "return_progress": (False,),
    "response_fields": ([],),
    "timings_per_token": (False,),
    "reasoning_format": ("none", "auto"),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
}

# The first of these that is set limits the reply; -1 means no limit.
LIMITS = ("max_completion_tokens", "max_tokens", "n_predict")

NO_DEFAULTS = ModelDefaults()
ROLES = ("system", "developer", "user", "assistant", "tool", "function")

_limit = Integer(at_least=-1)
_stop = Texts(or_one=True)
_token_ids = TokenIds()


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """How a reply is sent, which is no matter of the model's."""

    stream: bool
    include_usage: bool


def chat_request(body: Json, config: "Config", defaults: ModelDefaults = NO_DEFAULTS) -> GenerateRequest:
    """`defaults` are the model's; a value of the body wins over one that was set for the server, and that over them."""
    return _request(body, chat_prompt(body).with_system(defaults.system), config, defaults)


def completion_request(body: Json, config: "Config", defaults: ModelDefaults = NO_DEFAULTS) -> GenerateRequest:
    prompt = _prompt(required(body, "prompt", "a string or an array of token ids"), "prompt")
    return _request(body, prompt, config, defaults)


def reply_options(body: Json) -> ReplyOptions:
    options = body.get("stream_options")
    include_usage = None if options is None else read_object(options, "stream_options").get("include_usage")
    return ReplyOptions(
        stream=read_flag(body, "stream", default=False),
        include_usage=include_usage is not None and Boolean().read(include_usage, "stream_options.include_usage"),
    )


def chat_prompt(body: Json) -> ChatPrompt:
    """The conversation in `messages`."""
    items = read_array(required(body, "messages", "an array of messages"), "messages", "an array of messages")
    if not items:
        refuse("messages", "an array of messages", "an empty one")
    return ChatPrompt(
        messages=tuple(_message(item, f"messages[{index}]") for index, item in enumerate(items)),
        add_generation_prompt=read_flag(body, "add_generation_prompt", default=True),
    )


def read_model(body: Json, default: str | None = None) -> str:
    """The name of a model; `default` where there is none."""
    if default is not None and body.get("model") is None:
        return default
    return read_text(required(body, "model", "the name of a model"), "model")


def _request(body: Json, prompt: Prompt, config: "Config", defaults: ModelDefaults) -> GenerateRequest:
    refuse_not_served(body, NOT_SERVED)
    limits = [_limit.read(body[name], name) for name in LIMITS if body.get(name) is not None]
    n_predict = limits[0] if limits else config.n_predict or defaults.n_predict
    stop = body.get("stop")
    return GenerateRequest(
        model=read_model(body, config.default_model),
        prompt=prompt,
        sampling=read_sampling(body, config.sampling_of(defaults)),
        n_predict=None if n_predict == -1 else n_predict,
        stop=defaults.stop if stop is None else _stop.read(stop, "stop"),
        cache_prompt=read_flag(body, "cache_prompt", default=True),
        keep_alive_s=read_keep_alive(body),
        lora=read_lora(body),
    )


def refuse_not_served(body: Json, not_served: Mapping[str, tuple[object, ...]]) -> None:
    """Raise BadRequest for a field of `not_served` whose value is not one of those that ask for nothing."""
    for name in not_served.keys() & body.keys():
        value, asks_nothing = body[name], not_served[name]
        # Types are compared too, because 1 == True.
        if value is None or any(type(value) is type(idle) and value == idle for idle in asks_nothing):
            continue
        idle_values = "".join(f" or send {json.dumps(idle)}" for idle in asks_nothing)
        raise BadRequest(f"{name}: this value is not supported yet; leave the field out{idle_values}", param=name)


def _prompt(value: object, path: str, *, in_batch: bool = False) -> Prompt:
    if isinstance(value, str):
        return TextPrompt(read_text(value, path))
    items = read_array(value, path, "a string or an array of token ids")
    if not items:
        refuse(path, "a string or an array of token ids", "an empty array")
    if isinstance(items[0], str | list) and not in_batch:
        if len(items) > 1:
            raise BadRequest(
                f"{path}: {len(items)} prompts in one request are not supported yet; send a request for each",
                param=path,
            )
        return _prompt(items[0], f"{path}[0]", in_batch=True)
    return TokenPrompt(_token_ids.read(items, path))


def _message(value: object, path: str) -> Message:
    turn = read_object(value, path, "a message object")
    role = read_text(turn.get("role"), f"{path}.role")
    if role not in ROLES:
        refuse(f"{path}.role", f"one of {', '.join(ROLES)}", json.dumps(role)[:40])
    if turn.get("function_call") is not None:
        raise BadRequest(f"{path}.function_call: not supported; write it as tool_calls", param=f"{path}.function_call")
    tool_calls = _tool_calls(turn.get("tool_calls"), f"{path}.tool_calls")
    content = turn.get("content")
    return Message(
        role=role,
        content=None if content is None and tool_calls else _content(content, f"{path}.content"),
        name=_optional_text(turn, "name", path),
        tool_calls=tool_calls,
        tool_call_id=_optional_text(turn, "tool_call_id", path),
        reasoning_content=_optional_text(turn, "reasoning_content", path),
    )


def _content(value: object, path: str) -> str:
    if isinstance(value, list):
        # A line for each part, as llama-server joins them for templates that know only strings.
        return "\n".join(_text_part(part, f"{path}[{index}]") for index, part in enumerate(value))
    return read_text(value, path, "a string or an array of parts")


def _text_part(value: object, path: str) -> str:
    part = read_object(value, path, "a part object")
    kind = read_text(part.get("type"), f"{path}.type")
    if kind != "text":
        raise BadRequest(f"{path}: parts of type {json.dumps(kind)[:40]} are not supported yet", param=path)
    return read_text(part.get("text"), f"{path}.text")


def _tool_calls(value: object, path: str) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    return tuple(_tool_call(call, f"{path}[{index}]") for index, call in enumerate(read_array(value, path)))


def _tool_call(value: object, path: str) -> ToolCall:
    call = read_object(value, path)
    if call.get("type", "function") != "function":
        wrong_type = json.dumps(call["type"])[:40]
        refuse(f"{path}.type", '"function"', wrong_type)
    function = read_object(call.get("function"), f"{path}.function")
    return ToolCall(
        id=_optional_text(call, "id", path) or "",
        name=read_text(function.get("name"), f"{path}.function.name"),
        arguments=read_text(function.get("arguments"), f"{path}.function.arguments", "a string of JSON"),
    )


def _optional_text(source: Json, name: str, path: str) -> str | None:
    value = source.get(name)
    return None if value is None else read_text(value, f"{path}.{name}")
