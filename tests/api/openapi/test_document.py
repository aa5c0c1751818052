"""The OpenAPI document has the routes, fields and kinds that requests are read with, and the page shows it alone."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from shimmy.api.app import create_app
from shimmy.api.http_exchange import Exchange
from shimmy.api.openapi.docs_page import PAGE
from shimmy.api.openapi.document import OPERATIONS
from shimmy.api.openapi.notes import EXAMPLES, NOTES, TAGS
from shimmy.api.request_fields.field_kinds import Json, Kind
from shimmy.api.routes import OPEN_PATHS, ROUTES
from shimmy.errors import BY_CODE, BadRequest
from tests.api.conformance import DOCUMENT, operation
from tests.api.near_schemas import near
from tests.fakes import SCRIPT, FakeWorker, fetch, on_loop, services

SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
BODIES = dict(operation.body for operation in OPERATIONS.values() if operation.body)
READING = {route: each.body[0] for (_, route), each in OPERATIONS.items() if each.body}

CALL_CHOICE = {"type": "function", "function": {"name": "f"}}
ALLOWED = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}
# What each field is tried with: the kinds of JSON, numbers at the bounds that fields have, and forms that some take.
VALUES: list[Any] = [
    *(True, False, -101, -2, -1, 0, 1, 2, 3, 20, 21, 128, 129, 2**31 - 1, 2**31, -(2**31) - 1, 0.5, 1.5, 100.5, -1e39),
    *("", "text", "10m", "10 m", "-1", "1e3", "none", "low", "auto", "float", "asc", "\x00", "é" * 200),
    *([], [""], ["a"], ["a"] * 65, [1], [-1], [0.5], [True], [[1, 0.5]], [[1, False]], [[1, True]], [[1]], [[]], [{}]),
    *([["a"]], [[1], ["a"]], ["a", 1], [[1], "a"], [{"id": 0, "scale": 1}], [{"id": 0, "scale": 1e9}], [{"id": 0}]),
    *([{"role": "user", "content": "x"}], [{"role": "user"}], [{"role": "user", "content": 5}], [{"role": "x"}]),
    *([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}], [{"role": None}]),
    *([CALL_CHOICE], [{"type": "function", "name": "f"}], [{"name": "a b"}], [{"name": "f", "parameters": 5}]),
    *([{"type": "custom", "custom": {"name": "f", "format": {"type": kind, "grammar": grammar}}}]
      for kind in ("text", "grammar", "x") for grammar in (None, {}, {"syntax": "lark"}, {"definition": "a"}, 5)),
    *([{"type": "message"}], [{"type": "reasoning"}], [{"type": "reasoning", "encrypted_content": None}]),
    *([{"type": "function_call", "call_id": "", "name": "f", "arguments": ""}], [{"type": "none"}], [{"id": "x"}]),
    *({}, {"a": 1}, {"a": "b"}, {"1": 2}, {"1": False}, {"1": True}, {"x": 2}, {"type": "text"}),
    *({"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": 5}}, {"type": "x"}),
    {"type": "json_schema", "json_schema": {}},
    *(CALL_CHOICE, {"type": "function"}, {"name": "f"}, ALLOWED, {"type": "allowed_tools"}, {"allowed_tools": ALLOWED}),
    *({"type": "allowed_tools", "allowed_tools": ALLOWED}, {"include_usage": 1}, {"include_usage": True}),
    *({"effort": "low"}, {"effort": 5}, {"format": {"type": "json_schema"}}, {"format": {"type": "text"}}),
    *({"json": {}}, {"json": 5}, {"choice": []}, {"choice": ["a"]}, {"regex": "a"}, {"verbosity": "medium"}),
]  # fmt: skip
# What JSON Schema cannot say: that a text is JSON, that 1e39 is no integer.
BEYOND_SCHEMAS = {"guided_json": str, "seed": float}


def test_every_route_is_described_and_nothing_else() -> None:
    assert OPERATIONS.keys() == {(method, path) for method, path, _ in ROUTES}
    described = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert len(described) == len(ROUTES)
    names = [operation(method, path)["operationId"] for method, path, _ in ROUTES]
    assert len(set(names)) == len(names)
    assert {tag["name"] for tag in DOCUMENT["tags"]} == {each.tag for each in OPERATIONS.values()} == TAGS.keys()


@pytest.mark.parametrize(("method", "path"), [(method, path) for method, path, _ in ROUTES])
def test_an_operation_names_the_parameters_of_its_path_and_its_errors(method: str, path: str) -> None:
    described = operation(method, path)
    in_path = [each["name"] for each in described.get("parameters", ()) if each["in"] == "path"]
    assert in_path == (["model"] if ":path}" in path else ["response_id"] if "{" in path else [])
    assert ("401" in described["responses"]) == (path not in OPEN_PATHS) == ("security" not in described)
    assert ("requestBody" in described) == (path in READING and method == "POST")
    if "requestBody" in described:
        assert {"400", "413"} <= described["responses"].keys()


def test_references_lead_somewhere_and_schemas_are_schemas() -> None:
    targets = set(re.findall(r'"\$ref": "#/components/(\w+)/(\w+)"', json.dumps(DOCUMENT)))
    assert targets
    assert targets == {
        (kind, name) for kind in ("schemas", "responses") for name in DOCUMENT["components"][kind]
        if (kind, name) != ("responses", "Error405")
    }  # fmt: skip
    for schema in SCHEMAS.values():
        Draft202012Validator.check_schema(schema)


def test_every_status_of_the_error_tree_has_a_reply_that_names_its_codes() -> None:
    responses = DOCUMENT["components"]["responses"]
    assert responses.keys() == {f"Error{error.status}" for error in BY_CODE.values()}
    for code, error in BY_CODE.items():
        assert f"`{code}`" in responses[f"Error{error.status}"]["description"]
    assert {*SCHEMAS["Error"]["properties"]["error"]["properties"]["code"]["enum"]} == BY_CODE.keys()


@pytest.mark.parametrize("name", BODIES)
def test_a_body_has_the_fields_that_it_is_read_with(name: str) -> None:
    record, schema = BODIES[name], SCHEMAS[name]
    assert schema["properties"].keys() == record.fields.keys()
    assert schema.get("required", []) == [*record.required]


@pytest.mark.parametrize(("body", "field"), [(body, name) for body, record in BODIES.items() for name in record.fields])
def test_what_the_schema_of_a_field_takes_is_what_is_read(body: str, field: str) -> None:
    kind, validator = BODIES[body].fields[field], Draft202012Validator(SCHEMAS[body]["properties"][field])
    for value in VALUES:
        if isinstance(value, BEYOND_SCHEMAS.get(field, ())):
            continue
        refused = _refused(kind, value, field)
        assert (refused is None) == validator.is_valid(value), f"{field}: {json.dumps(value)[:80]}"
        assert refused is None or refused.startswith(field)
    assert validator.is_valid(None) == (field not in BODIES[body].required)


@pytest.mark.thorough
@pytest.mark.parametrize(("body", "field"), [(body, name) for body, record in BODIES.items() for name in record.fields])
def test_what_the_schema_of_a_field_refuses_is_refused(body: str, field: str) -> None:
    kind, schema = BODIES[body].fields[field], SCHEMAS[body]["properties"][field]
    has_parts = "properties" in json.dumps(schema)
    validator, rng, n_refused = Draft202012Validator(schema), random.Random(4), 0
    for _ in range(5000 if has_parts else 50):
        value = near(schema, rng)
        if not validator.is_valid(value):
            n_refused += 1
            assert _refused(kind, value, field) is not None, f"{field}: {json.dumps(value)[:400]}"
    assert n_refused or not has_parts


def _refused(kind: Kind[object], value: object, field: str) -> str | None:
    """What the error names, where there is one."""
    try:
        kind.read(value, field)
    except BadRequest as error:
        return error.param or "nothing"
    return None


class WatchedBody(dict[str, object]):
    """Remembers by which names it was asked for its fields."""

    names: set[str]

    def __getitem__(self, name: str) -> object:
        self.names.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: object = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


@pytest.mark.parametrize("path", READING)
@on_loop
async def test_no_route_looks_for_a_field_that_is_not_described(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body = WatchedBody(EXAMPLES[READING[path]] | {"model": "tiny.q4-1"} if "{" not in path else {})
    body.names = set()

    async def watched(_exchange: Exchange, meaning: Callable[[Json], object], _: object = None) -> object:
        return meaning(body)

    monkeypatch.setattr(Exchange, "read", watched)
    monkeypatch.setattr(Exchange, "read_or_nothing", watched)
    app = create_app(services(FakeWorker(SCRIPT)))
    await fetch(app, "POST", path.replace("{rest:path}", "tiny.q4-1"), {})
    assert body.names <= BODIES[READING[path]].fields.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_what_its_route_takes(name: str) -> None:
    BODIES[name].read(EXAMPLES[name])
    assert EXAMPLES.keys() == BODIES.keys()


def test_notes_are_about_fields_there_are() -> None:
    assert NOTES.keys() <= {name for record in BODIES.values() for name in record.fields}


@on_loop
async def test_the_document_needs_the_key_and_the_page_does_not() -> None:
    app = create_app(services(api_key=["secret"]))
    assert (await fetch(app, "GET", "/openapi.json")).status == 401
    reply = await fetch(app, "GET", "/openapi.json", headers=[(b"authorization", b"Bearer secret")])
    assert reply.json() == DOCUMENT
    page = await fetch(app, "GET", "/docs")
    assert page.body.decode() == PAGE
    assert page.headers[b"content-type"] == b"text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in page.headers[b"content-security-policy"].decode().split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"


def test_the_page_loads_nothing() -> None:
    assert not re.search(r"https?:|//[a-z]+\.|\bsrc=|<link|@import|url\(['\"]?[^)]|import\(", PAGE)
    # It asks for two things, and for what its reader sends.
    assert set(re.findall(r"fetch\(([^,]+),", PAGE)) == {'"/openapi.json"', '"/v1/models"', "url()"}


def test_a_server_that_nobody_asks_for_it_has_none_of_it_in_memory() -> None:
    code = "import sys, shimmy.server; print(*sys.modules, sep=chr(10))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "shimmy.api.app" in loaded
    late = ("shimmy.api.openapi.document", "shimmy.api.openapi.docs_page")
    assert not [name for name in loaded if name.startswith(late)]
