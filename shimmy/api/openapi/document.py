"""The OpenAPI 3.1 document: every route, with the tables that its requests are validated with.

Knows what a route is for and which errors it may answer with. What a field may be, the tables say; what a reply looks
like, `openapi_replies`. Imported when the document is asked for.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from shimmy import __version__
from shimmy.api.admin import control, pulls, tokens
from shimmy.api.openai import embeddings
from shimmy.api.openai import parse as openai_parse
from shimmy.api.openapi.notes import EXAMPLES, NOTES, TAGS
from shimmy.api.openapi.replies import components, ref
from shimmy.api.request_fields.field_kinds import Json, Record
from shimmy.api.responses import parse as responses_parse
from shimmy.api.responses import routes as responses
from shimmy.errors import BY_CODE

_DESCRIPTION = (
    "Serves language models over the OpenAI API. A field that is known is honoured or refused by its name; one that is "
    "not is ignored; null is the same as leaving a field out. An error after a stream has begun is its last event."
)
_EVENTS = "text/event-stream"
_PARAMETERS: dict[str, tuple[str, str]] = {
    "{rest:path}": ("model", "The name of a model, or an alias."),
    "{rest}": ("response_id", "The id of a stored response."),
}

# What any route may say, what one that reads a body, names an object, or runs a model may say besides.
_ANY, _BODY, _NAMED, _MODEL = (401, 403, 500), (400, 408, 413, 415), (404,), (404, 409, 502, 503)


@dataclass(frozen=True, slots=True)
class Operation:
    """What a method on a path does. `reply` and `stream` name components; `body` is read by a table of that name."""

    tag: str
    summary: str
    reply: str
    errors: tuple[int, ...] = ()
    body: tuple[str, Record] | None = None
    query: Record | None = None
    stream: str | None = None
    other_replies: tuple[tuple[int, str], ...] = ()
    media_type: str = "application/json"
    for_browsers: str = ""  # a component, in HTML


def _job(summary: str, body: tuple[str, Record], reply: str, stream: str | None = None) -> Operation:
    return Operation("OpenAI", summary, reply, _BODY + _MODEL, body, stream=stream)


def _tool(summary: str, body: tuple[str, Record], reply: str) -> Operation:
    return Operation("Tokens", summary, reply, _BODY + _MODEL, body)


OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/v1/chat/completions"): _job(
        "Answer a conversation", ("ChatRequest", openai_parse.CHAT), "ChatCompletion", "ChatCompletionChunk"
    ),
    ("POST", "/v1/completions"): _job(
        "Continue a text", ("CompletionRequest", openai_parse.COMPLETION), "Completion", "CompletionChunk"
    ),
    ("POST", "/v1/embeddings"): _job(
        "Turn texts into vectors", ("EmbeddingsRequest", embeddings.BODY), "Embeddings"
    ),
    ("POST", "/v1/responses"): _job(
        "Create a response", ("ResponseRequest", responses_parse.BODY), "Response", "ResponseEvent"
    ),
    ("POST", "/v1/responses/input_tokens"): _job(
        "Count the tokens of an input", ("InputTokensRequest", responses_parse.COUNTED_BODY), "InputTokens"
    ),
    ("GET", "/v1/responses/{rest}"): Operation(
        "OpenAI", "A stored response", "Response", (400, *_NAMED), query=responses.RETRIEVE_QUERY
    ),
    ("DELETE", "/v1/responses/{rest}"): Operation("OpenAI", "Forget a response", "DeletedResponse", _NAMED),
    ("GET", "/v1/responses/{rest}/input_items"): Operation(
        "OpenAI", "What a response was an answer to", "ItemList", (400, *_NAMED, 413), query=responses.ITEMS_QUERY
    ),
    ("POST", "/v1/responses/{rest}/cancel"): Operation(
        "OpenAI", "Refused: a response that is stored is over", "", (400, *_NAMED)
    ),
    ("GET", "/v1/models"): Operation("OpenAI", "The models and aliases", "ModelList"),
    ("GET", "/v1/models/{rest:path}"): Operation("OpenAI", "One model", "Model", _NAMED),
    ("GET", "/api/models"): Operation("Models", "The models, and how each of them stands", "ModelStatusList"),
    ("GET", "/api/models/{rest:path}/status"): Operation("Models", "How a model stands", "ModelStatus", _NAMED),
    ("POST", "/api/models/{rest:path}/load"): Operation(
        "Models", "Load a model, and wait until it is", "ModelStatus", _BODY + _MODEL, ("LoadRequest", control.LOAD)
    ),
    ("POST", "/api/models/{rest:path}/unload"): Operation(
        "Models", "Let a model go when its jobs are done", "ModelStatus", _NAMED
    ),
    ("DELETE", "/api/models/{rest:path}"): Operation(
        "Models", "Delete a model's files", "RemovedModel", (400, 404)
    ),
    ("POST", "/api/models/discover"): Operation("Models", "Look at the disk now", "ModelStatusList"),
    ("POST", "/api/models/pull"): Operation(
        "Models", "Fetch a model, and say how far that is", "PullResult", (*_BODY, 404, 502, 503),
        ("PullRequest", pulls.PULL), stream="PullEvent",
    ),
    ("GET", "/api/suggestions"): Operation("Models", "Models to pull that fit this machine", "Suggestions"),
    ("GET", "/api/events"): Operation(
        "Models", "What happens to models, as it happens", "ModelEvent", media_type=_EVENTS
    ),
    ("POST", "/tokenize"): _tool("Text to token ids", ("TokenizeRequest", tokens.TOKENIZE), "Tokens"),
    ("POST", "/detokenize"): _tool("Token ids to text", ("DetokenizeRequest", tokens.DETOKENIZE), "Content"),
    ("POST", "/apply-template"): _tool(
        "The prompt that a conversation makes", ("ApplyTemplateRequest", tokens.TEMPLATE), "Prompt"
    ),
    ("GET", "/"): Operation("Server", "What this is; for browsers a page", "About", for_browsers="Text"),
    ("GET", "/health"): Operation("Server", "Whether the server is alive", "Status"),
    ("GET", "/ready"): Operation(
        "Server", "Whether the server takes requests, and has loaded what `--preload` names", "Status",
        other_replies=((503, "Status"),),
    ),
    ("GET", "/version"): Operation("Server", "The version", "Version"),
    ("GET", "/metrics"): Operation("Server", "Figures for Prometheus", "Text", _NAMED, media_type="text/plain"),
    ("GET", "/openapi.json"): Operation("Server", "This document", "Document"),
    ("GET", "/docs"): Operation("Server", "A page that shows it", "Text", media_type="text/html"),
}  # fmt: skip


def document(routes: Sequence[tuple[str, str]], open_paths: Collection[str]) -> Json:
    """The document as JSON, of methods on paths, of which `open_paths` ask for no key."""
    paths: dict[str, Json] = {}
    schemas = components()
    for method, route in routes:
        operation = OPERATIONS[method, route]
        path, parameters = _path(route)
        described = _operation(method, route, operation, parameters, is_open=route in open_paths)
        paths.setdefault(path, {})[method.lower()] = described
        if operation.body:
            name, record = operation.body
            schemas[name] = _body(record)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Shimmy",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "security": [{"key": []}, {}],  # a server without keys asks for none
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {_error_name(status): _error(status, codes) for status, codes in _codes().items()},
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "One of the server's `--api-key`."}
            },
        },
    }


def _path(route: str) -> tuple[str, list[Json]]:
    """The path as the document writes it, and its parameters."""
    for pattern, (name, description) in _PARAMETERS.items():
        if pattern in route:
            schema = {"type": "string", "minLength": 1}
            parameter = {"name": name, "in": "path", "required": True, "description": description, "schema": schema}
            return route.replace(pattern, f"{{{name}}}"), [parameter]
    return route, []


def _operation(method: str, route: str, operation: Operation, parameters: list[Json], *, is_open: bool) -> Json:
    words = re.findall(r"[a-z0-9]+", route.replace("rest:path", "model").replace("rest", "response"))
    described: Json = {
        "operationId": "_".join([method.lower(), *words]),
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": _responses(operation, is_open=is_open),
    }
    if operation.query:
        fields = operation.query.fields.items()
        parameters += [{"name": name, "in": "query", "schema": kind.schema()} for name, kind in fields]
    if parameters:
        described["parameters"] = parameters
    if operation.body:
        name, record = operation.body
        content: Json = {"schema": ref(name)}
        if name in EXAMPLES:
            content["example"] = EXAMPLES[name]
        described["requestBody"] = {"required": bool(record.required), "content": {"application/json": content}}
    return described | {"security": []} if is_open else described


def _responses(operation: Operation, *, is_open: bool) -> Json:
    content: Json = {operation.media_type: _content(operation)}
    if operation.stream:
        content[_EVENTS] = _content(operation, operation.stream)
    if operation.for_browsers:
        content["text/html"] = {"schema": ref(operation.for_browsers)}
    replies: Json = {"200": {"description": "OK", "content": content}} if operation.reply else {}
    if operation.for_browsers:
        replies["304"] = {"description": "The page that the browser has"}
    for status, name in operation.other_replies:
        replies[str(status)] = {"description": name, "content": {"application/json": {"schema": ref(name)}}}
    statuses = {*_ANY, *operation.errors} - ({401} if is_open else set())
    return replies | {str(status): {"$ref": f"#/components/responses/{_error_name(status)}"} for status in statuses}


def _content(operation: Operation, event: str = "") -> Json:
    if operation.media_type == _EVENTS or event:
        # What the events of a stream are, OpenAPI can say from 3.2 on, as `itemSchema`.
        return {"x-item-schema": ref(event or operation.reply)}
    return {"schema": ref(operation.reply)}


def _body(record: Record) -> Json:
    """The schema of a body, with what the tables do not know: what fields are for."""
    schema = record.schema()
    properties: dict[str, Json] = schema["properties"]  # type: ignore[assignment] # a Record's
    for name, field in properties.items():
        if name in NOTES:
            field.setdefault("description", NOTES[name])
    return schema


def _codes() -> dict[int, list[str]]:
    """The codes of errors by their statuses."""
    codes: dict[int, list[str]] = {}
    for code, error in sorted(BY_CODE.items(), key=lambda item: item[1].status):
        codes.setdefault(error.status, []).append(code)
    return codes


def _error_name(status: int) -> str:
    return f"Error{status}"


def _error(status: int, codes: list[str]) -> Json:
    named = ", ".join(f"`{code}`" for code in codes)
    return {
        "description": f"{HTTPStatus(status).phrase}: {named}",
        "content": {"application/json": {"schema": ref("Error")}},
    }
