"""Extreme values for every number and every query parameter of a route, beyond the range of any type."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.unit.gateway.conftest import KEY, Gateway, make_gateway

NUMBERS = ["0", "-1", "-0", "1.5", "1e308", "1e309", "-1e309", "1e-400", str(10**18), str(2**63), str(2**64),
           str(10**309), str(-(10**309)), "9" * 4300, "9" * 5000, "true", "null", '"1"', "[1]", "{}", "NaN", "Infinity",
           "-Infinity", "0x1", "01", "1_0", '"\\u0000"', '"\\ud800"']  # fmt: skip
TEXTS = [*NUMBERS, "", " ", "%00", "%ff", "%ed%a0%80", "%0a", "%25", "%2e%2e", "+", "é", "💥", "x" * 1025]
ID = "01234567-89ab-4cde-8f01-23456789abcd"
BODIES: dict[str, dict[str, Any]] = {
    "/v1/sandbox/{id}/exec": {"argv": ["true"]},
    "/v1/sandbox/{id}/backup": {"dir": "/workspace"},
    "/v1/sandbox/{id}/restore": {"dir": "/workspace", "id": ID},
    "/v1/sandbox/{id}/forget": {"dir": "/workspace"},
    "/v1/sandbox/{id}/labels": {"a": "b"},
    "/v1/sandbox/{id}/retention": {"keep_last": 3},
    "/v1/sandbox/{id}/retention/apply": {"dry_run": True},
    "/v1/backup/{id}/fork": {"count": 1},
    "/v1/sandbox": {},
}
"""A valid body for each route that takes one."""
_GATEWAY = make_gateway()
_DOCUMENT = _GATEWAY.app.openapi()


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in _DOCUMENT["paths"].items():
        for method, operation in item.items():
            yield method.upper(), path, operation


def json_routes() -> list[tuple[str, str, dict[str, Any]]]:
    """Method, path and schema of each route with a JSON body."""
    found = []
    for method, path, operation in operations():
        content = operation.get("requestBody", {}).get("content", {})
        if "application/json" in content:
            found.append((method, path, content["application/json"]["schema"]))
    return found


def fields(schema: dict[str, Any], at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of the fields that a body may have."""
    for name, inner in schema.get("properties", {}).items():
        yield (*at, name)
        yield from fields(inner, (*at, name))


def with_value(body: dict[str, Any], at: tuple[str, ...], raw: str) -> bytes:
    """The body with the raw text `raw` as this field's value; bytes, since not all such bodies are JSON."""
    marker = "the-place-of-the-value"
    document = json.loads(json.dumps(body))
    place = document
    for name in at[:-1]:
        place = place.setdefault(name, {})
    place[at[-1]] = marker
    return json.dumps(document).replace(f'"{marker}"', raw).encode()


@pytest.fixture
def gateway() -> Gateway:
    return make_gateway()


def check(gateway: Gateway, method: str, path: str, **request: Any) -> None:
    response = gateway.request(method, path, **request)
    assert response.status_code < 500, (method, path[:100], response.text)
    if response.status_code >= 400:
        assert {"code", "error", "context", "request_id"} <= response.json().keys()


@pytest.mark.parametrize(("method", "path", "schema"), json_routes(), ids=[row[1] for row in json_routes()])
def test_an_extreme_value_in_a_body_causes_no_server_error(
    gateway: Gateway, method: str, path: str, schema: dict[str, Any]
) -> None:
    for at in [*fields(schema), ("unknown",)]:
        for raw in NUMBERS:
            headers = {"Content-Type": "application/json"}
            content = with_value(BODIES[path], at, raw)
            check(gateway, method, path.replace("{id}", "box"), content=content, headers=headers)


def test_an_extreme_query_parameter_causes_no_server_error(gateway: Gateway) -> None:
    tried = 0
    for method, path, operation in operations():
        queries = [row["name"] for row in operation.get("parameters", []) if row["in"] == "query"]
        for name in queries:
            for text in TEXTS:
                raw = text if text.startswith("%") else quote(text)
                check(gateway, method, f"{path.replace('{id}', 'box')}?{name}={raw}")
                tried += 1
    assert tried >= 5 * len(TEXTS)


def test_an_extreme_name_in_a_path_causes_no_server_error(gateway: Gateway) -> None:
    for method, path, operation in operations():
        if "{id}" in path:
            for text in TEXTS:
                raw = text if text.startswith("%") else quote(text, safe="")
                content = b"{}" if "requestBody" in operation else None
                target = path.replace("{id}", raw).replace("{path}", "workspace/file")
                response = gateway.request(method, target, content=content, key=KEY)
                assert response.status_code < 500, (method, target[:100], response.text)


@pytest.mark.parametrize("key", ["0", "9" * 200, "9" * 201, "1e309", "\x7f", "é", " "])
def test_an_extreme_idempotency_key_causes_no_server_error(gateway: Gateway, key: str) -> None:
    headers = {b"Idempotency-Key": key.encode(), b"Content-Type": b"application/json"}
    check(gateway, "POST", "/v1/sandbox/box/backup", content=b'{"dir": "/workspace"}', headers=headers)


@pytest.mark.parametrize("length", [b"\xb2", b"9" * 5000, b"-1", b"1e309", b""])
def test_an_extreme_content_length_causes_no_server_error(gateway: Gateway, length: bytes) -> None:
    headers = {b"Content-Length": length, b"Content-Type": b"application/json"}
    check(gateway, "POST", "/v1/sandbox/box/exec", content=b'{"argv": ["true"]}', headers=headers)
