"""Invalid requests: each gets a clear error of its kind, and changes nothing in the sandbox or the bucket."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from actors.node import mountinfo
from tests.acceptance.http_box import HttpBox, refusal
from tests.acceptance.test_meaning import bucket, tree_of, wait_for_note
from tests.support.service import Service, eventually

CONFIG = (400, "INVALID_BACKUP_CONFIG")
BAD_DIRS: dict[str, Any] = {
    "relative": "workspace",
    "empty": "",
    "two dots": "/workspace/../etc",
    "two dots at the end": "/workspace/..",
    "two dots that stay inside": "/workspace/a/../b",
    "NUL": "/workspace/\0",
    "too long": "/workspace/" + "x/" * 2043,
    "the root": "/",
    "outside the roots": "/etc",
    "beside a root": "/workspace2",
    "proc": "/proc/self/root",
    "var": "/var",
    "number": 7,
    "null": None,
    "list": ["/workspace"],
    "object": {"path": "/workspace"},
    "boolean": True,
}
BAD_BACKUPS: dict[str, dict[str, Any]] = {
    "name of 257 characters": {"name": "x" * 257},
    "name with a line feed": {"name": "a\nb"},
    "name with NUL": {"name": "a\0b"},
    "name with DEL": {"name": "a\x7fb"},
    "name with a C1 control": {"name": "a\x85b"},
    "name that is a number": {"name": 7},
    "ttl of 0": {"ttl": 0},
    "ttl below 0": {"ttl": -1},
    "ttl in a string": {"ttl": "60"},
    "ttl that is a boolean": {"ttl": True},
    "ttl of null": {"ttl": None},
    "ttl beyond all floats": {"ttl": 10**400},
    "ttl in a list": {"ttl": [60]},
    "excludes that is a string": {"excludes": "*.log"},
    "exclude with a line feed": {"excludes": ["a\nb"]},
    "empty exclude": {"excludes": [""]},
    "exclude that ends with a backslash": {"excludes": ["bin\\"]},
    "exclude of nothing": {"excludes": ["*.log", "!"]},
    "exclude with a range that is reversed": {"excludes": ["[z-a]"]},
    "exclude with an open bracket": {"excludes": ["[a"]},
    "exclude above the directory": {"excludes": ["../a"]},
    "too many excludes": {"excludes": ["a"] * 1001},
    "gitignore that is a string": {"gitignore": "yes"},
    "unknown compression": {"compression": {"format": "xz"}},
    "unknown field in compression": {"compression": {"format": "zstd", "threads": 2}},
    "level beyond the format's": {"compression": {"format": "gzip", "level": 10}},
    "level of lz4": {"compression": {"format": "lz4", "level": 1}},
    "level of 0": {"compression": {"format": "zstd", "level": 0}},
    "unknown field": {"dirs": "/workspace"},
}
BAD_IDS: dict[str, Any] = {
    "empty": "",
    "no UUID": "backup-1",
    "UUID without hyphens": uuid.uuid4().hex,
    "UUID in braces": f"{{{uuid.uuid4()}}}",
    "UUID with a path": f"../{uuid.uuid4()}",
    "null": None,
    "number": 7,
}
BAD_BODIES: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"{",
    "NaN": b'{"dir": "/workspace", "ttl": NaN}',
    "Infinity": b'{"dir": "/workspace", "ttl": Infinity}',
    "minus Infinity": b'{"dir": "/workspace", "ttl": -Infinity}',
    "list": b"[]",
    "null": b"null",
    "string": b'"/workspace"',
    "no UTF-8": b'{"dir": "/workspace\xff"}',
    "lone surrogate": b'{"dir": "/workspace/\\ud800"}',
    "nested beyond all measure": b'{"dir":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "two documents": b'{"dir": "/workspace"} {"dir": "/workspace"}',
}


@dataclass(frozen=True)
class Unchanged:
    """A sandbox with a backup and a restored directory, and the state that must be the same after each request."""

    box: HttpBox
    handle: dict[str, str]


@pytest.fixture(scope="module")
def kept(service: Service, client: httpx.Client) -> Iterator[Unchanged]:
    with HttpBox(client, f"bad-{uuid.uuid4().hex[:8]}").destroyed_at_the_end() as box:
        box.sh("mkdir sub; echo kept > sub/file")
        handle = box.backup()
        box.restore(box.backup("/workspace/sub"))
        box.sh("echo changed > sub/file; echo changed > top")
        wait_for_note(service, box)
        eventually(lambda: box.info()["commands"] == 0)
        yield Unchanged(box, handle)


@pytest.fixture
def unchanged(service: Service, kept: Unchanged) -> Iterator[Unchanged]:
    def state() -> tuple[object, ...]:
        info = kept.box.info()
        mounts = mountinfo.mounts_under(service.data_dir)
        return tree_of(service, kept.box), bucket(service), mounts, info["restored"], info["commands"]

    before = state()
    yield kept
    assert state() == before


def send(box: HttpBox, action: str, body: bytes) -> httpx.Response:
    return box.client.post(f"{box.url}/{action}", content=body, headers={"Content-Type": "application/json"})


def dump(document: object) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize("directory", BAD_DIRS.values(), ids=BAD_DIRS.keys())
def test_a_bad_directory_is_refused(unchanged: Unchanged, directory: object) -> None:
    assert refusal(send(unchanged.box, "backup", dump({"dir": directory}))) == CONFIG
    for mode in ("overlay", "copy"):
        body = dump({"id": unchanged.handle["id"], "dir": directory, "mode": mode})
        assert refusal(send(unchanged.box, "restore", body)) == CONFIG


@pytest.mark.parametrize("options", BAD_BACKUPS.values(), ids=BAD_BACKUPS.keys())
def test_a_bad_option_of_a_backup_is_refused(unchanged: Unchanged, options: dict[str, Any]) -> None:
    response = send(unchanged.box, "backup", dump({"dir": "/workspace", **options}))

    assert refusal(response) == CONFIG
    (field,) = options
    assert any(name.startswith(field) for name in response.json()["context"]["fields"])


def test_a_missing_directory_or_id_is_named(unchanged: Unchanged) -> None:
    for action, body, field in (
        ("backup", {}, "dir"),
        ("restore", {"id": unchanged.handle["id"]}, "dir"),
        ("restore", {"dir": "/workspace"}, "id"),
    ):
        response = send(unchanged.box, action, dump(body))
        assert refusal(response) == CONFIG
        assert list(response.json()["context"]["fields"]) == [field]


@pytest.mark.parametrize("backup_id", BAD_IDS.values(), ids=BAD_IDS.keys())
def test_an_id_that_is_no_uuid_is_refused(unchanged: Unchanged, backup_id: object) -> None:
    assert refusal(send(unchanged.box, "restore", dump({"id": backup_id, "dir": "/workspace"}))) == CONFIG


def test_an_unknown_backup_id_is_not_found(unchanged: Unchanged) -> None:
    unknown = str(uuid.uuid4())

    assert refusal(send(unchanged.box, "restore", dump({"id": unknown, "dir": "/workspace"})))[0] == 404
    assert refusal(unchanged.box.client.get(f"/v1/backup/{unknown}")) == (404, "BACKUP_NOT_FOUND")
    assert refusal(unchanged.box.client.delete(f"/v1/backup/{unknown}")) == (404, "BACKUP_NOT_FOUND")
    assert refusal(unchanged.box.client.get("/v1/backup/no-uuid")) == CONFIG
    assert refusal(unchanged.box.client.delete("/v1/backup/no-uuid")) == CONFIG


@pytest.mark.parametrize("extra", [{"mode": "move"}, {"mode": 1}, {"mode": None}, {"driver": "fuse"}])
def test_a_bad_option_of_a_restore_is_refused(unchanged: Unchanged, extra: dict[str, Any]) -> None:
    assert refusal(send(unchanged.box, "restore", dump({**unchanged.handle, **extra}))) == CONFIG


@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
@pytest.mark.parametrize("action", ["backup", "restore"])
def test_a_body_that_is_no_json_object_is_refused(unchanged: Unchanged, action: str, body: bytes) -> None:
    assert refusal(send(unchanged.box, action, body)) == CONFIG


@pytest.mark.parametrize("action", ["backup", "restore", "exec"])
def test_a_body_that_is_too_large_is_refused(unchanged: Unchanged, action: str) -> None:
    body = dump({"dir": "/workspace", "name": "x" * 2**20})

    assert refusal(send(unchanged.box, action, body)) == (413, "REQUEST_TOO_LARGE")
    chunked = unchanged.box.client.post(f"{unchanged.box.url}/{action}", content=iter([body[:500_000], body[500_000:]]))
    assert refusal(chunked) == (413, "REQUEST_TOO_LARGE")


@pytest.mark.parametrize(
    "body",
    [{}, {"argv": []}, {"argv": "ls"}, {"argv": [1]}, {"argv": ["a\0b"]}, {"argv": ["true"], "timeout_ms": 0},
     {"argv": ["true"], "timeout_ms": "1"}, {"argv": ["true"], "timeout_ms": True}, {"argv": ["true"], "cwd": "x"},
     {"argv": ["true"], "cwd": "/a/../b"}, {"argv": ["true"], "env": {"a=b": "c"}}, {"argv": ["true"], "env": ["a"]},
     {"argv": ["true"], "shell": True}, {"argv": [""]}, {"argv": ["true"], "timeout_ms": 10**309},
     {"argv": ["true"], "timeout_ms": 1.5}, {"argv": ["true", "x" * 131_072]},
     {"argv": ["true"], "env": {"A": "x" * 131_070}}, {"argv": ["true"], "env": {f"V{n}": "" for n in range(1025)}},
     {"argv": [*["x" * 100_000] * 10, "y"]}],
    ids=lambda body: dump(body)[:60].decode(),
)  # fmt: skip
def test_a_bad_command_is_refused(unchanged: Unchanged, body: dict[str, Any]) -> None:
    assert refusal(send(unchanged.box, "exec", dump(body))) == (422, "INVALID_REQUEST")


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=1001", "limit=x", f"limit={10**309}", f"limit={'9' * 5000}", "limit=1e309", "limit=nan",
     "limit=", "limit=-1", "limit=%00", "limit=%ff", "cursor=%21nonsense", "cursor=%00", "cursor=%ff",
     "cursor=%ed%a0%80", f"cursor={10**309}", f"cursor={'x' * 1025}", f"cursor={'%00' * 1024}"],
    ids=lambda query: query[:20],
)  # fmt: skip
def test_a_bad_page_is_refused(unchanged: Unchanged, query: str) -> None:
    for path in ("/v1/sandbox", f"{unchanged.box.url}/backups"):
        assert refusal(unchanged.box.client.get(f"{path}?{query}")) == (422, "INVALID_REQUEST")


@pytest.mark.parametrize("query", ["limit=0", f"limit={10**309}", f"limit={'9' * 5000}", "limit=1e309", "limit=%ff"])
def test_a_bad_number_of_events_is_refused(unchanged: Unchanged, query: str) -> None:
    assert refusal(unchanged.box.client.get(f"{unchanged.box.url}/events?{query}")) == (422, "INVALID_REQUEST")


@pytest.mark.parametrize(
    ("cwd", "expected"),
    [("/workspace/missing", (404, "FILE_NOT_FOUND")), ("/workspace/top", (404, "FILE_NOT_FOUND")),
     ("/tmp/dangling", (404, "FILE_NOT_FOUND")), ("/tmp/loop", (404, "FILE_NOT_FOUND")),
     ("/tmp/closed", (403, "PATH_FORBIDDEN")), ("/usr/bin/env", (404, "FILE_NOT_FOUND")),
     ("/nowhere", (404, "FILE_NOT_FOUND"))],
)  # fmt: skip
def test_a_directory_that_cannot_be_entered_is_an_http_error(
    kept: Unchanged, cwd: str, expected: tuple[int, str]
) -> None:
    kept.box.sh("cd /tmp; mkdir -p -m 0 closed; ln -sfn missing dangling; ln -sfn loop loop")
    response = send(kept.box, "exec", dump({"argv": ["echo", "begun"], "cwd": cwd}))
    assert refusal(response) == expected
    assert response.json()["context"] == {"cwd": cwd}


@pytest.mark.parametrize("path", ["", ":", "/nowhere"])
def test_a_command_is_found_or_not_whatever_its_path_variable(kept: Unchanged, path: str) -> None:
    assert kept.box.exec("/bin/true", PATH=path).exit_code == 0
    assert kept.box.exec("no-such-program", PATH=path).exit_code == 127


def test_unknown_paths_and_methods_have_the_same_kind_of_error(client: httpx.Client) -> None:
    for path in ("/", "/v1", "/v2/sandbox", "/v1/sandbox/", "/v1/sandbox/a/nothing", "/v1/sandbox/a/running/"):
        assert refusal(client.get(path)) == (404, "NOT_FOUND")
    for method, path in (
        ("PUT", "/v1/sandbox"),
        ("GET", "/v1/sandbox/a/exec"),
        ("POST", "/health"),
        ("PATCH", "/v1/sandbox/a"),
    ):
        response = client.request(method, path)
        assert refusal(response) == (405, "METHOD_NOT_ALLOWED")
        assert response.headers["allow"]


@pytest.mark.parametrize(
    "path", ["/ready", "/metrics", "/docs", "/openapi.json", "/v1/sandbox", "/v1/sandbox/a", "/no/such"]
)
def test_without_a_valid_key_nothing_but_health_is_answered(service: Service, client: httpx.Client, path: str) -> None:
    with service.client("") as nobody, service.client("wrong-key") as stranger:
        for refused in (nobody.get(path), stranger.get(path)):
            assert refusal(refused) == (401, "UNAUTHORIZED")
            assert refused.headers["www-authenticate"].startswith("Bearer")
        for authorization in (f"Basic {service.api_key}", service.api_key, f"Bearer {service.api_key}x", "Bearer"):
            assert refusal(nobody.get(path, headers={"Authorization": authorization})) == (401, "UNAUTHORIZED")
        assert nobody.get("/health").json() == {"status": "ok"}


def test_readiness_metrics_and_api_documentation_are_served(client: httpx.Client) -> None:
    assert client.get("/ready").json() == {"ready": True}
    assert "holdfast" in client.get("/metrics").text
    assert client.get("/docs").headers["content-type"].startswith("text/html")
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/sandbox/{id}/backup", "/v1/sandbox/{id}/restore", "/v1/backup/{id}"} <= paths.keys()


def test_the_metrics_name_no_sandbox(client: httpx.Client, box: HttpBox) -> None:
    box.sh("true")

    assert box.id not in client.get("/metrics").text
