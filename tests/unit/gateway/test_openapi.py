"""The gateway tested against its own OpenAPI description.

Requests that the schema allows, and many that it does not, get a documented answer and never an unhandled error.
"""

from __future__ import annotations

import re
from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from tests.unit.gateway.conftest import KEY, make_gateway

HEADERS = {"Authorization": f"Bearer {KEY}"}

# To the gateway, a tar archive is opaque bytes; the sandbox interprets it.
schemathesis.serializer.alias("application/x-tar", "application/octet-stream")

NAMES = {"/v1/sandbox": "a-sandbox-1", "/v1/backup/": "01234567-89ab-4cde-8f01-23456789abcd"}

schema = schemathesis.openapi.from_asgi("/openapi.json", make_gateway().app, headers=HEADERS)


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_request_gets_a_documented_answer(case: schemathesis.Case[Any]) -> None:
    response = case.call(headers=HEADERS)
    case.validate_response(response, checks=[not_a_server_error, response_schema_conformance])


def test_ids_and_directories_have_patterns_in_the_description() -> None:
    paths = make_gateway().app.openapi()["paths"]
    for beginning, name in NAMES.items():
        for operation in (
            operation for at, row in paths.items() if at.startswith(beginning) for operation in row.values()
        ):
            for parameter in operation.get("parameters", []):
                pattern = parameter["schema"].get("pattern", "")
                assert parameter["name"] != "id" or (re.search(pattern, name) and not re.search(pattern, "a/b"))
    body = paths["/v1/sandbox/{id}/restore"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    described = body["properties"]["dir"]["pattern"]
    assert re.search(described, "/var/tmp/x") and not re.search(described, "/etc")


def test_the_error_for_one_of_several_directories_names_its_index() -> None:
    answer = make_gateway().request("POST", "/v1/sandbox/box/forget", json={"dir": ["/workspace", 1]})
    assert answer.json()["context"]["fields"].keys() == {"dir.1"}
