"""Holds replies against the OpenAPI document: they have its statuses, its types, its fields and no others."""

import json
import re
from functools import cache
from typing import Any, cast

from jsonschema import Draft202012Validator

from shimmy.api.openapi.document import document
from shimmy.api.routes import OPEN_PATHS, ROUTES
from tests.fakes import Reply

_PATHS = [(method, path) for method, path, _ in ROUTES]
DOCUMENT = cast("dict[str, Any]", json.loads(json.dumps(document(_PATHS, OPEN_PATHS))))
EVENTS = "text/event-stream"
# A path of the document by method and route, and the routes in the order in which they are tried.
_ROUTES = [
    (method, re.compile(re.sub(r"\\{rest:path\\}", ".+", re.sub(r"\\{rest\\}", "[^/]+", re.escape(route)))), route)
    for method, route, _ in ROUTES
]


def operation(method: str, route: str) -> dict[str, Any]:
    """What the document says of a method on a route as the route table writes it."""
    path = route.replace("{rest:path}", "{model}").replace("{rest}", "{response_id}")
    return cast("dict[str, Any]", DOCUMENT["paths"][path][method.lower()])


def assert_conforms(method: str, path: str, reply: Reply) -> None:
    """Fails where the document does not describe `reply`; passes over methods and paths that have no route."""
    routes = [route for of, pattern, route in _ROUTES if of == method and pattern.fullmatch(path.partition("?")[0])]
    if not routes:
        return
    responses = operation(method, routes[0])["responses"]
    assert str(reply.status) in responses, f"{method} {routes[0]} answers with {reply.status}: {reply.body[:200]!r}"
    if reply.status == 304:
        assert not reply.body
        return
    content = _resolved(responses[str(reply.status)])["content"]
    media_type = reply.headers[b"content-type"].decode().partition(";")[0]
    assert media_type in content
    if media_type == EVENTS:
        for event in reply.chunks():
            is_error = isinstance(event, dict) and list(event) == ["error"]
            if event != "[DONE]":
                _validate("Error" if is_error else _name(content[EVENTS]["x-item-schema"]), event)
    elif media_type == "application/json":
        _validate(_name(content[media_type]["schema"]), reply.json())


def _name(reference: dict[str, str]) -> str:
    return reference["$ref"].rpartition("/")[2]


def _resolved(value: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in value:
        return value
    found = DOCUMENT
    for name in value["$ref"].split("/")[1:]:
        found = found[name]
    return found


def _validate(name: str, value: object) -> None:
    errors = [*_validator(name).iter_errors(value)]
    assert not errors, f"{name}: {errors[0].message} at {errors[0].json_path}"


@cache
def _validator(name: str) -> Draft202012Validator:
    schemas = {each: _closed(schema) for each, schema in DOCUMENT["components"]["schemas"].items()}
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}})


def _closed(schema: Any) -> Any:
    """The same, where an object has no other fields than those that are named."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(value) for name, value in schema.items()}
    return closed | {"additionalProperties": False} if "properties" in schema else closed
