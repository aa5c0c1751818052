"""The description of the API is OpenAPI 3.1 by the schema that the specification publishes, as Schemathesis has it."""

import pytest
from jsonschema_rs import ValidationError
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from tests.e2e.harness import Server


def test_the_document_is_openapi(server: Server) -> None:
    document = server.get("/openapi.json").json()
    OPENAPI_31_VALIDATOR.validate(document)
    document["paths"]["/health"]["get"]["responses"]["200"].pop("description")
    with pytest.raises(ValidationError):
        OPENAPI_31_VALIDATOR.validate(document)
