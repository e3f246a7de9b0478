from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from actors.errors import BackupExpiredError, ServiceUnavailableError, StorageUnavailableError
from tests.unit.gateway.conftest import DEADLINE_S, Exchange, Gateway, make_gateway
from tests.unit.gateway.memory_cluster import Silence

BACKUP = "/v1/sandbox/box/backup"
RESTORE = "/v1/sandbox/box/restore"
EXEC = "/v1/sandbox/box/exec"
AN_ID = "6c1f8e4e-0000-4000-8000-000000000001"


def assert_error(response: httpx.Response, status: int, code: str) -> dict[str, object]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    document: dict[str, object] = response.json()
    assert document["code"] == code
    assert document["error"]
    assert isinstance(document["context"], dict)
    assert document["request_id"] == response.headers["x-request-id"]
    return document


def test_an_unknown_route_is_404(gateway: Gateway) -> None:
    assert_error(gateway.request("GET", "/v1/nothing"), 404, "NOT_FOUND")
    assert_error(gateway.request("GET", "/v1/sandbox/"), 404, "NOT_FOUND")


def test_an_unknown_method_is_405_and_names_the_known_ones(gateway: Gateway) -> None:
    for path, methods in gateway.app.openapi()["paths"].items():
        response = gateway.request("PATCH", path.replace("{id}", "box").replace("{path}", "workspace/a/b"))
        assert_error(response, 405, "METHOD_NOT_ALLOWED")
        assert set(response.headers["allow"].split(", ")) == {method.upper() for method in methods}


@pytest.mark.parametrize("path", ["/v1/sandbox", "/v1/nothing", "/ready", "/metrics", "/docs", "/openapi.json"])
@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer ", "Basic key-of-the-default-tenant", "Bearer \xe9"])
def test_a_request_without_a_valid_key_is_refused(gateway: Gateway, path: str, header: str | None) -> None:
    headers = {} if header is None else {b"Authorization": header.encode("latin-1")}
    response = gateway.request("GET", path, key=None, headers=headers)
    assert_error(response, 401, "UNAUTHORIZED")
    assert response.headers["www-authenticate"].startswith("Bearer")


def test_health_needs_no_key_and_the_documentation_works_with_one(gateway: Gateway) -> None:
    assert gateway.request("GET", "/health", key=None).json() == {"status": "ok"}
    assert gateway.request("GET", "/docs").status_code == 200
    paths = gateway.request("GET", "/openapi.json").json()["paths"]
    assert "ttl" in str(paths["/v1/sandbox/{id}/backup"]["post"]["requestBody"])
    assert "$defs" not in str(paths)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"null",
        b"{}",
        b'{"dir":"/workspace","ttl":NaN}',
        b'{"dir":"/workspace","ttl":1e999}',
        b'{"dir":"/workspace","ttl":true}',
        b'{"dir":"/workspace","ttl":"60"}',
        b'{"dir":"/workspace","ttl":0}',
        b'{"dir":"/etc"}',
        b'{"dir":"/workspace/../etc"}',
        b'{"dir":"/workspace","surprise":1}',
        b'{"dir":"/workspace","name":"a\\u0007"}',
        b'{"dir":"/workspace","compression":{"format":"zstd","level":99}}',
        b"[" * 4000,
    ],
)
def test_every_bad_body_of_a_backup_or_restore_is_a_bad_configuration(gateway: Gateway, body: bytes) -> None:
    for path in (BACKUP, RESTORE):
        assert_error(gateway.request("POST", path, content=body), 400, "INVALID_BACKUP_CONFIG")
    assert gateway.cluster.sandbox("default", "box").asked == []


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 4000, b'{"argv":["a"],"timeout_ms":NaN}', b"\xff\xfe{}"])
def test_a_body_that_is_not_json_is_400(gateway: Gateway, body: bytes) -> None:
    assert_error(gateway.request("POST", EXEC, content=body), 400, "INVALID_REQUEST")


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"argv":[]}', b'{"argv":["a"],"surprise":1}', b'{"argv":"ls"}'])
def test_a_body_with_bad_values_is_422(gateway: Gateway, body: bytes) -> None:
    document = assert_error(gateway.request("POST", EXEC, content=body), 422, "INVALID_REQUEST")
    assert document["context"]


@pytest.mark.parametrize("sandbox", ["UPPER", "-a", "a_b", "a" * 129])
def test_an_impossible_sandbox_name_is_422(gateway: Gateway, sandbox: str) -> None:
    assert_error(gateway.request("GET", f"/v1/sandbox/{sandbox}"), 422, "INVALID_REQUEST")


def test_a_bad_query_is_422_and_a_bad_backup_id_400(gateway: Gateway) -> None:
    assert_error(gateway.request("GET", "/v1/sandbox?limit=0"), 422, "INVALID_REQUEST")
    assert_error(gateway.request("GET", "/v1/backup/none"), 400, "INVALID_BACKUP_CONFIG")


def test_a_body_beyond_the_limit_is_413_with_and_without_a_declared_length(gateway: Gateway) -> None:
    async def undeclared() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b" " * 1000

    for content in (b" " * 5000, undeclared()):
        document = assert_error(gateway.request("POST", EXEC, content=content), 413, "REQUEST_TOO_LARGE")
        assert document["context"] == {"limit_bytes": 4096}


def test_an_upload_beyond_its_own_limit_is_413_and_leaves_nothing(gateway: Gateway) -> None:
    async def body(mebibytes: int) -> AsyncIterator[bytes]:
        for _ in range(mebibytes * 16):
            yield b"x" * 65_536

    path = "/v1/sandbox/box/file/workspace/big"
    assert gateway.request("PUT", path, content=body(3)).json() == {"ok": True}
    assert_error(gateway.request("PUT", path, content=body(5)), 413, "REQUEST_TOO_LARGE")
    box = gateway.cluster.sandbox("default", "box")
    assert len(box.files["/workspace/big"]) == 3 * 1024 * 1024
    assert [len(block) for block in box.uploads[0].blocks] == [1024 * 1024] * 3
    assert box.uploads[1].aborted


def test_a_body_that_stops_coming_times_out() -> None:
    async def scenario() -> None:
        gateway = make_gateway(body_idle_s=0.01)
        exchange = Exchange(gateway.app, "PUT", "/v1/sandbox/box/file/workspace/a", b"first", more=True)
        async with asyncio.timeout(DEADLINE_S):
            await exchange.task
        assert (exchange.status, exchange.document()["code"]) == (408, "REQUEST_TIMEOUT")
        assert gateway.cluster.sandbox("default", "box").uploads[0].aborted

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("method", "path", "limit"),
    [
        ("PUT", "/v1/sandbox/box/file/workspace/a", "upload_total_s"),
        ("POST", "/v1/sandbox/box/hydrate", "upload_total_s"),
        ("POST", BACKUP, "body_total_s"),
    ],
)
def test_a_body_that_keeps_coming_for_too_long_times_out(method: str, path: str, limit: str) -> None:
    async def scenario() -> None:
        gateway = make_gateway(**{limit: 0.01})
        exchange = Exchange(gateway.app, method, path, b"first", more=True)
        async with asyncio.timeout(DEADLINE_S):
            await exchange.task
        assert (exchange.status, exchange.document()["code"]) == (408, "REQUEST_TIMEOUT")
        assert "too long" in exchange.document()["error"]
        assert exchange.document()["context"]["total_s"] == 0.01

    asyncio.run(scenario())


def test_an_error_of_the_cluster_keeps_its_code_context_and_hint(gateway: Gateway) -> None:
    box = gateway.cluster.sandbox("default", "box")
    box.failure = BackupExpiredError("Too old.", hint="Make another.", context={"backup": AN_ID})
    response = gateway.request("POST", RESTORE, json={"id": AN_ID, "dir": "/workspace"})
    document = assert_error(response, 410, "BACKUP_EXPIRED")
    assert (document["error"], document["hint"]) == ("Too old.", "Make another.")
    assert document["context"] == {"backup": AN_ID}
    assert "retry-after" not in response.headers


def test_a_retryable_error_says_when_to_retry(gateway: Gateway) -> None:
    gateway.cluster.sandbox("default", "box").failure = StorageUnavailableError("No answer.")
    response = gateway.request("POST", BACKUP, json={"dir": "/workspace"})
    assert_error(response, 503, "STORAGE_UNAVAILABLE")
    assert int(response.headers["retry-after"]) > 0


def test_an_unexpected_exception_is_answered_without_its_details_and_logged_with_them(gateway: Gateway) -> None:
    gateway.cluster.sandbox("default", "box").failure = ZeroDivisionError("secret detail")
    response = gateway.request("POST", BACKUP, json={"dir": "/workspace"})
    assert_error(response, 500, "INTERNAL")
    assert "secret" not in response.text
    defects = [line for line in gateway.log.lines if line["event"] == "unhandled error"]
    assert isinstance(defects[0]["exc_info"], ZeroDivisionError)


def test_ready_shows_warnings_and_the_reason_if_not_ready(gateway: Gateway) -> None:
    assert gateway.request("GET", "/ready").json() == {"ready": True}
    gateway.cluster.tenant("default").warnings = ("A disk is full.",)
    assert gateway.request("GET", "/ready").json() == {"ready": True, "warnings": ["A disk is full."]}
    gateway.cluster.tenant("default").not_ready = ServiceUnavailableError("Nobody there.")
    assert_error(gateway.request("GET", "/ready"), 503, "SERVICE_UNAVAILABLE")


def test_names_that_are_not_utf8_survive_in_errors(gateway: Gateway) -> None:
    document = assert_error(gateway.request("GET", "/v1/sandbox/box/file/workspace/%ff"), 404, "FILE_NOT_FOUND")
    assert document["context"] == {"path": "/workspace/\udcff"}


def test_a_clients_request_id_is_used_if_it_is_valid(gateway: Gateway) -> None:
    for given, kept in (("abc-1.2_3", True), ("a" * 65, False), ("a b", False), ('"}', False)):
        headers = {"X-Request-Id": given}
        response = gateway.request("GET", "/health", headers=headers)
        assert (response.headers["x-request-id"] == given) is kept
    ids = {gateway.request("GET", "/health").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_the_log_holds_the_routes_template_and_no_value_of_the_client(gateway: Gateway) -> None:
    path = "/v1/sandbox/hidden-name/files?path=/workspace/hidden-query"
    gateway.request("GET", path, headers={"X-Request-Id": "r1"})
    line = gateway.log.lines[-1]
    assert line["route"] == "/v1/sandbox/{id}/files"
    assert (line["status"], line["request_id"], line["method"]) == (200, "r1", "GET")
    assert "hidden" not in json.dumps(line)


def test_metrics_count_requests_by_the_routes_template(gateway: Gateway) -> None:
    gateway.request("GET", "/v1/sandbox/hidden-name/running")
    gateway.request("GET", "/nowhere")
    text = gateway.request("GET", "/metrics").text
    assert 'holdfast_http_requests_total{method="GET",route="/v1/sandbox/{id}/running",status="200"} 1.0' in text
    assert 'route="unmatched",status="404"' in text
    assert "hidden-name" not in text


@pytest.mark.parametrize(("method", "path", "is_safe"), [
    ("GET", "/ready", True), ("GET", "/v1/sandbox", True), ("POST", "/v1/sandbox", False),
    ("POST", "/v1/sandbox/box/exec", False), ("GET", "/v1/sandbox/box/file/workspace/a", True),
    ("PUT", "/v1/sandbox/box/file/workspace/a", False), ("POST", "/v1/sandbox/box/persist", False),
    ("DELETE", "/v1/sandbox/box", False),
])  # fmt: skip
def test_a_request_that_a_stopping_server_cancels_is_answered_with_503(
    gateway: Gateway, method: str, path: str, is_safe: bool
) -> None:
    async def cancelled_after(steps: int) -> Exchange:
        exchange = Exchange(gateway.app, method, path, more=method != "GET")
        for _ in range(steps):
            await asyncio.sleep(0)
        exchange.task.cancel()
        await asyncio.wait({exchange.task}, timeout=DEADLINE_S)
        return exchange

    gateway.cluster.sandbox("default", "box").script = [Silence()]
    answered = 0
    for steps in range(1, 12):
        exchange = asyncio.run(cancelled_after(steps))
        assert exchange.task.exception() is None
        if exchange.status == 503:
            answered += 1
            document = exchange.document()
            assert document["code"] == "SERVICE_UNAVAILABLE" and document["request_id"]
            assert document["context"] == {"outcome": "unknown", "retryable": is_safe}
    assert answered
