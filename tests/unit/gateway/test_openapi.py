"""The gateway against its own description: whatever the schema allows, and much that it does not, gets a documented
answer and never an unhandled error."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from tests.unit.gateway.conftest import KEY, make_gateway

HEADERS = {"Authorization": f"Bearer {KEY}"}

# A tar archive is bytes like any other to the gateway; what it means is the sandbox's to find out.
schemathesis.serializer.alias("application/x-tar", "application/octet-stream")

schema = schemathesis.openapi.from_asgi("/openapi.json", make_gateway().app, headers=HEADERS)


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_request_gets_a_documented_answer(case: schemathesis.Case[Any]) -> None:
    response = case.call(headers=HEADERS)
    case.validate_response(response, checks=[not_a_server_error, response_schema_conformance])
