"""Each thing that a request asks for is done or refused, on all routes of the OpenAPI document and on its own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.gateway.conftest import Gateway, make_gateway

VALUES = {"{id}": "00000000-0000-4000-8000-000000000000", "{path}": "workspace/file"}


def routes() -> list[tuple[str, str, dict[str, Any]]]:
    paths: dict[str, dict[str, Any]] = make_gateway().app.openapi()["paths"]
    paths |= {"/docs": {"get": {}}, "/openapi.json": {"get": {}}}
    return [(method.upper(), path, described) for path, row in paths.items() for method, described in row.items()]


def filled(path: str) -> str:
    for name, value in VALUES.items():
        path = path.replace(name, value)
    return path


every_route = pytest.mark.parametrize(
    ("method", "path", "described"), routes(), ids=[f"{method} {path}" for method, path, _ in routes()]
)


@every_route
def test_an_unknown_query_parameter_is_refused_on_every_route(
    gateway: Gateway, method: str, path: str, described: dict[str, Any]
) -> None:
    for query in ("?unknown=1", "?unknown", "?path=/tmp&unknown=", "?%ff=1"):
        answer = gateway.request(method, filled(path) + query)
        assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_REQUEST"), answer.text
        assert "no query parameter" in answer.json()["error"]
    assert not gateway.cluster.tenants or not gateway.cluster.sandbox("default", VALUES["{id}"]).asked


@every_route
def test_an_unsupported_header_is_refused_on_every_route(
    gateway: Gateway, method: str, path: str, described: dict[str, Any]
) -> None:
    headers = {"Session-Id": "s"}
    if method in ("POST", "PUT", "DELETE"):
        headers |= {"Content-Encoding": "gzip", "Content-Range": "bytes 1-2/3", "If-Match": "x", "If-None-Match": "*"}
        if not path.endswith(("/backup", "/fork")):
            headers["Idempotency-Key"] = "key"
    for name, value in headers.items():
        answer = gateway.request(method, filled(path), headers={name: value})
        assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_REQUEST"), answer.text
        assert name in answer.json()["error"]


@every_route
def test_a_body_that_a_route_does_not_take_is_refused(
    gateway: Gateway, method: str, path: str, described: dict[str, Any]
) -> None:
    content = described.get("requestBody", {}).get("content", {"application/json": {}})
    if "application/json" in content and not path.endswith("/labels"):  # its keys are the labels' names
        answer = gateway.request(method, filled(path), json={"unknown": 1})
        assert answer.status_code in (400, 422), answer.text
        assert "unknown" in answer.json()["error"]


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("exec", '{"argv": ["ls"], "argv": ["rm"]}'),
        ("exec", '{"argv": ["ls"], "env": {"A": "1", "\\u0041": "2"}}'),
        ("exec", '{"argv": ["\\udce9"], "cwd": "/tmp", "cwd": "/tmp"}'),
        ("backup", '{"dir": "/workspace", "excludes": ["*.env"], "excludes": []}'),
        ("backup", '{"dir": "/workspace", "ttl": ' + "9" * 4000 + ', "ttl": 1}'),
    ],
)
def test_a_field_given_twice_is_refused(gateway: Gateway, route: str, body: str) -> None:
    answer = gateway.request("POST", f"/v1/sandbox/box/{route}", content=body.encode())
    assert answer.status_code == 400 and "more than once" in answer.json()["error"], answer.text
    assert not gateway.cluster.sandbox("default", "box").asked


def test_an_empty_object_is_accepted_where_no_body_is_expected(gateway: Gateway) -> None:
    assert gateway.request("POST", "/v1/sandbox/box/persist", json={}).content == b"tarball"
    assert gateway.request("POST", "/v1/sandbox/box/cancel", json={}).json() == {"cancelled": False}


def test_a_parameter_given_twice_is_refused(gateway: Gateway) -> None:
    answer = gateway.request("GET", "/v1/sandbox/box/backups?limit=1&limit=2")
    assert (answer.status_code, answer.json()["context"]) == (400, {"parameters": ["limit"]})
    assert gateway.request("GET", "/v1/sandbox/box/files?path=/tmp&path=/app").status_code == 400
    assert gateway.request("GET", "/v1/sandbox/box/files?path=").status_code == 422


def test_identity_encoding_and_conditions_on_a_read_change_nothing(gateway: Gateway) -> None:
    path = "/v1/sandbox/box/file/workspace/file"
    assert gateway.request("PUT", path, content=b"x", headers={"Content-Encoding": "identity"}).json() == {"ok": True}
    assert gateway.request("GET", path, headers={"If-None-Match": "x", "Range": "bytes=0-"}).content == b"x"


@pytest.mark.parametrize(
    ("query", "patterns"),
    [
        ("", []),
        ("?excludes=", []),
        ("?excludes=.venv,__pycache__", [".venv", "__pycache__"]),
        ("?excludes=.venv%2C,__pycache__", [".venv", "__pycache__"]),
        ("?excludes=a&excludes=b%20c,%ff", ["a", "b c", "\udcff"]),
        ("?excludes=./build,!x", ["/build", "!x"]),
    ],
)
def test_excludes_of_persist_are_patterns_separated_by_commas(
    gateway: Gateway, query: str, patterns: list[str]
) -> None:
    assert gateway.request("POST", f"/v1/sandbox/box/persist{query}").status_code == 200
    assert gateway.cluster.sandbox("default", "box").asked == [patterns]


@pytest.mark.parametrize("excludes", ["a%00b", "a%0Ab", "x" * 5000, ",".join("x" * 1001)])
def test_bad_excludes_of_persist_are_refused(gateway: Gateway, excludes: str) -> None:
    answer = gateway.request("POST", f"/v1/sandbox/box/persist?excludes={excludes}")
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_REQUEST")
    assert gateway.cluster.sandbox("default", "box").asked == []
