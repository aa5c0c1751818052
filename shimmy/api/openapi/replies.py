"""What replies look like, as JSON Schema: the components of the OpenAPI document that no request is read with.

Field names and their order are those of the modules that write the replies; a test holds one against the other.
"""

from shimmy.api.admin.control import SHOWN_DEFAULTS, UNAVAILABLE, UNLOADED
from shimmy.api.request_fields.field_kinds import Json
from shimmy.errors import BY_CODE
from shimmy.pool.model_runtime import State

TEXT: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
PLACE: Json = {"type": "integer", "minimum": 1}
NUMBER: Json = {"type": "number"}
FLAG: Json = {"type": "boolean"}
NULL: Json = {"type": "null"}
ANYTHING: Json = {}
ID_OR_NULL: Json = {"type": ["string", "null"]}
COUNT_OR_NULL: Json = {"type": ["integer", "null"]}


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def const(value: str) -> Json:
    return {"type": "string", "const": value}


def one_of(*texts: str) -> Json:
    return {"type": "string", "enum": list(texts)}


def array(items: Json) -> Json:
    return {"type": "array", "items": items}


def either(*kinds: Json) -> Json:
    return {"anyOf": list(kinds)}


def record(fields: Json, optional: Json | None = None) -> Json:
    """An object that always has `fields`, and sometimes `optional` ones."""
    schema: Json = {"type": "object", "properties": fields | (optional or {})}
    return schema | {"required": list(fields)} if fields else schema


def _error() -> Json:
    types = sorted({error.type for error in BY_CODE.values()})
    fields: Json = {"message": TEXT, "type": one_of(*types), "param": ID_OR_NULL, "code": one_of(*sorted(BY_CODE))}
    return record({"error": record(fields)})


def _chat() -> Json:
    function = record({"name": TEXT, "arguments": TEXT})
    custom = record({"name": TEXT, "input": TEXT})
    call = either(
        record({"id": TEXT, "type": const("function"), "function": function}),
        record({"id": TEXT, "type": const("custom"), "custom": custom}),
    )
    message = record(
        {"role": const("assistant"), "content": ID_OR_NULL, "refusal": NULL},
        {"reasoning_content": TEXT, "tool_calls": array(call), "function_call": function},
    )
    said = record({"arguments": TEXT}, {"name": TEXT})
    said_text = record({"input": TEXT}, {"name": TEXT})
    call_delta = either(
        record({"index": COUNT, "function": said}, {"id": TEXT, "type": const("function")}),
        record({"index": COUNT, "custom": said_text}, {"id": TEXT, "type": const("custom")}),
    )
    delta = record(
        {},
        {
            "role": const("assistant"), "content": ID_OR_NULL, "reasoning_content": TEXT,
            "tool_calls": array(call_delta), "function_call": said,
        },
    )  # fmt: skip
    logprobs = either(ref("ChatLogprobs"), NULL)
    reasons = ("stop", "length", "tool_calls", "function_call")
    choice: Json = {"index": COUNT, "message": message, "logprobs": logprobs, "finish_reason": one_of(*reasons)}
    chunk: Json = {
        "index": COUNT,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": either(one_of(*reasons), NULL),
    }
    candidate: Json = {"token": TEXT, "bytes": array(COUNT), "logprob": NUMBER}
    token = record({**candidate, "top_logprobs": array(record(candidate))})
    return {
        "ChatCompletion": _envelope("chat.completion", record(choice), {"usage": ref("Usage")}),
        "ChatCompletionChunk": _envelope("chat.completion.chunk", record(chunk)),
        "ChatLogprobs": record({"content": array(token), "refusal": NULL}),
    }


def _completion() -> Json:
    logprobs = record({
        "tokens": array(TEXT),
        "token_logprobs": array({"type": ["number", "null"]}),
        "top_logprobs": array({"type": ["object", "null"], "additionalProperties": NUMBER}),
        "text_offset": array(COUNT),
    })  # fmt: skip
    choice: Json = {"index": COUNT, "text": TEXT, "logprobs": either(ref("TextLogprobs"), NULL)}
    reason = one_of("stop", "length")
    whole, part = choice | {"finish_reason": reason}, choice | {"finish_reason": either(reason, NULL)}
    return {
        "Completion": _envelope("text_completion", record(whole), {"usage": ref("Usage")}),
        "CompletionChunk": _envelope("text_completion", record(part)),
        "TextLogprobs": logprobs,
    }


def _envelope(kind: str, choice: Json, more: Json | None = None) -> Json:
    fields: Json = {"id": TEXT, "object": const(kind), "created": COUNT, "model": TEXT, "system_fingerprint": TEXT}
    optional: Json = {} if more else {"usage": either(ref("Usage"), NULL), **_progress()}
    optional |= {"timings": ref("Timings"), "warnings": array(TEXT)}
    return record({**fields, "choices": array(choice), **(more or {})}, optional)


def _progress() -> Json:
    """What chunks have where `return_progress` asks for it."""
    read: Json = {"total": COUNT, "cache": COUNT, "processed": COUNT, "time_ms": COUNT}
    return {
        "prompt_progress": record(read) | {"description": "Tokens of the prompt; `processed` counts cached ones, too."},
        "queue_position": PLACE | {"description": "The job's place among those that wait for their turn; 1: the next."},
    }


def _counts() -> Json:
    rates: Json = {
        f"{stage}_{figure}": COUNT if figure == "n" else NUMBER
        for stage in ("prompt", "predicted")
        for figure in ("n", "ms", "per_token_ms", "per_second")
    }
    usage: Json = {"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT}
    return {
        "Usage": record(
            {**usage, "prompt_tokens_details": record({"cached_tokens": COUNT})},
            {"completion_tokens_details": record({"reasoning_tokens": COUNT})},
        ),
        "Timings": record({"cache_n": COUNT, **rates}, {"draft_n": COUNT, "draft_n_accepted": COUNT}),
    }


def _embeddings() -> Json:
    vector = either(array(NUMBER), TEXT | {"description": "32-bit floats, little-endian, in base64."})
    embedding = record({"object": const("embedding"), "index": COUNT, "embedding": vector})
    usage = record({"prompt_tokens": COUNT, "total_tokens": COUNT})
    data: Json = {"object": const("list"), "data": array(embedding), "model": TEXT, "usage": usage}
    return {"Embeddings": record(data)}


def _models() -> Json:
    facts: Json = {"architecture": TEXT, "quantization": TEXT, "n_params": COUNT, "n_ctx_train": COUNT, "size": COUNT}
    model: Json = {"id": TEXT, "object": const("model"), "created": COUNT, "owned_by": TEXT, "meta": record(facts)}
    return {"Model": record(model), "ModelList": record({"object": const("list"), "data": array(ref("Model"))})}


def _responses() -> Json:
    detail: Json = {"cached_tokens": COUNT, "cache_write_tokens": COUNT}
    usage: Json = {
        "input_tokens": COUNT,
        "input_tokens_details": record(detail),
        "output_tokens": COUNT,
        "output_tokens_details": record({"reasoning_tokens": COUNT}),
        "total_tokens": COUNT,
    }
    head: Json = {
        "id": TEXT,
        "object": const("response"),
        "created_at": COUNT,
        "model": TEXT,
        "status": one_of("in_progress", "completed", "incomplete", "failed"),
        "error": either(record({"code": TEXT, "message": TEXT}), NULL),
        "incomplete_details": either(record({"reason": TEXT}), NULL),
        "completed_at": COUNT_OR_NULL,
        "usage": either(record(usage), NULL),
    }
    echoed: Json = {
        "background": FLAG,
        "instructions": ID_OR_NULL,
        "max_output_tokens": COUNT_OR_NULL,
        "max_tool_calls": COUNT_OR_NULL,
        "metadata": {"type": "object", "additionalProperties": TEXT},
        "parallel_tool_calls": FLAG,
        "previous_response_id": ID_OR_NULL,
        "prompt_cache_key": ID_OR_NULL,
        "reasoning": record({"effort": ID_OR_NULL, "summary": ID_OR_NULL}),
        "safety_identifier": ID_OR_NULL,
        "service_tier": TEXT,
        "store": FLAG,
        "temperature": NUMBER,
        "text": record({"format": {"type": "object"}, "verbosity": TEXT}),
        "tool_choice": {"type": ["string", "object"]},
        "tools": array({"type": "object"}),
        "top_logprobs": COUNT,
        "top_p": NUMBER,
        "truncation": TEXT,
        "user": ID_OR_NULL,
    }
    event: Json = {"type": TEXT, "sequence_number": COUNT}
    page: Json = {"object": const("list"), "data": array(ref("Item"))}
    return {
        "Response": record({**head, **echoed, "output": array(ref("Item"))}, {"warnings": array(TEXT)}),
        "ResponseEvent": record(event) | {"description": "What else is in it depends on its type, as at OpenAI's."},
        "Item": _item(),
        "ItemList": record({**page, "first_id": ID_OR_NULL, "last_id": ID_OR_NULL, "has_more": FLAG}),
        "DeletedResponse": record({"id": TEXT, "object": const("response"), "deleted": FLAG}),
        "InputTokens": record({"object": const("response.input_tokens"), "input_tokens": COUNT}),
    }


def _item() -> Json:
    status = one_of("in_progress", "completed", "incomplete")
    text_part = record(
        {"type": one_of("input_text", "output_text", "reasoning_text", "summary_text"), "text": TEXT},
        {"annotations": array(ANYTHING), "logprobs": array({"type": "object"})},
    )
    parts = array(text_part)

    def item(kind: str, fields: Json, optional: Json | None = None) -> Json:
        return record({"id": TEXT, "type": const(kind), "status": status, **fields}, optional)

    return either(
        item("message", {"role": TEXT, "content": parts}),
        item("reasoning", {"summary": parts, "content": parts}, {"encrypted_content": TEXT}),
        item("function_call", {"call_id": TEXT, "name": TEXT}, {"arguments": TEXT, "namespace": TEXT}),
        item(
            "function_call_output", {"output": either(TEXT, parts)}, {"call_id": TEXT, "name": TEXT, "namespace": TEXT}
        ),
        item("custom_tool_call", {"call_id": TEXT, "name": TEXT, "input": TEXT}, {"namespace": TEXT}),
        item(
            "custom_tool_call_output",
            {"output": either(TEXT, parts)},
            {"call_id": TEXT, "name": TEXT, "namespace": TEXT},
        ),
        {"type": "object", "required": ["id", "type"], "description": "Of a tool that another server ran."},
    )


def _control() -> Json:
    memory: Json = {"weights_bytes": COUNT, "kv_bytes": COUNT, "compute_bytes": COUNT, "total_bytes": COUNT}
    memory["device_bytes"] = COUNT | {"description": "Of devices beside the processor; not in the total."}
    adapter = record({"path": TEXT, "scale": NUMBER})
    known: Json = {
        "name": TEXT,
        "state": one_of(UNLOADED, *State),
        "path": TEXT,
        "size_bytes": COUNT,
        "memory": record(memory),
        "architecture": TEXT,
        "quantization": TEXT,
        "n_params": COUNT,
        "n_ctx_train": COUNT,
        "has_chat_template": FLAG,
        "embedding": FLAG,
        "adapters": array(adapter),
        "projector": ID_OR_NULL,
        "notices": array(TEXT),
        "last_used": {"type": ["number", "null"]},
        "error": ID_OR_NULL,
    }
    limit: Json = {"type": ["integer", "null"]}
    defaults = record(
        {**dict.fromkeys(SHOWN_DEFAULTS, NUMBER), "max_tokens": limit, "stop": array(TEXT), "system": TEXT}
    )
    optional: Json = {
        "defaults": defaults | {"description": "Only in `/status`: what a request gets that says nothing."},
        "converted_percent": COUNT,
        "read_percent": COUNT,
        "load_position": PLACE | {"description": "Its place among the loads that wait for memory; 1: the next."},
        "keep_alive_s": {"type": ["number", "null"]},
        "pinned": FLAG,
        "jobs": COUNT,
        "n_ctx": COUNT,
        "n_ctx_used": COUNT | {"description": "Tokens in its KV pool, of running jobs and kept for later prompts."},
        "cpu_variant": TEXT,
        "cpu_variant_note": TEXT | {"description": "Which better variants do not work on this machine, and why."},
        "device": ID_OR_NULL | {"description": "Names of the devices with some of its layers; null: the processor."},
        "device_note": TEXT | {"description": "Why not all of its layers are on a device."},
        "n_layers": COUNT | {"description": "Its layers, and one more for its output."},
        "n_device_layers": COUNT,
        "pid": COUNT,
        "idle_s": NUMBER,
    }
    broken: Json = {
        "name": TEXT,
        "state": const(UNAVAILABLE),
        "kind": TEXT,
        "path": TEXT,
        "architecture": ID_OR_NULL,
        "error": TEXT,
    }
    event = record({}, {"model": TEXT, "time": NUMBER, "models": array(ref("ModelStatus"))})
    return {
        "ModelStatus": either(record(known, optional), record(broken)),
        "ModelStatusList": record({"models": array(ref("ModelStatus"))}),
        "ModelEvent": event,
    }


def _pulls() -> Json:
    count_or_null: Json = {"type": ["integer", "null"]}
    pull_event: Json = {
        "reference": TEXT,
        "files": array(record({"name": TEXT, "size_bytes": count_or_null})),
        "file": TEXT,
        "completed_bytes": COUNT,
        "total_bytes": count_or_null,
        "bytes_per_s": COUNT,
        "eta_s": {"type": ["number", "null"]},
        "reason": TEXT,
        "seconds": {"type": ["number", "null"]},
        "path": TEXT,
        "models": array(TEXT),
    }
    return {
        "RemovedModel": record({"name": TEXT, "files": array(TEXT), "size_bytes": COUNT}),
        "Suggestions": record({"suggestions": array(record({"model": TEXT, "size_bytes": COUNT, "about": TEXT}))}),
        "PullEvent": record({}, pull_event),
        "PullResult": record({"model": TEXT, "path": TEXT, "total_bytes": COUNT, "models": array(TEXT)}),
    }


def _operation() -> Json:
    about: Json = {"name": TEXT, "version": TEXT, "models": COUNT, "openai_base_path": TEXT}
    return {
        "About": record(about),
        "Status": record({"status": TEXT}, {"reason": TEXT}),
        "Version": record({"version": TEXT}),
        "Tokens": record({"tokens": array(COUNT)}),
        "Content": record({"content": TEXT}),
        "Prompt": record({"prompt": TEXT}),
        "Document": {"type": "object"},
        "Text": TEXT,
    }


def components() -> Json:
    """The schemas by their names."""
    parts = (_chat, _completion, _counts, _embeddings, _models, _responses, _control, _pulls, _operation)
    return {"Error": _error(), **{name: schema for part in parts for name, schema in part().items()}}
