from __future__ import annotations

import asyncio
import json

import pytest

from actors.errors import RETRYABLE, SandboxUnavailableError, StorageUnavailableError
from actors.models import (
    BackupFile,
    ChangeKind,
    DirectoryStatus,
    FileChange,
    FileKind,
    FileState,
    RecoveredDirectory,
    SandboxEvent,
)
from actors.request_ids import carrying
from tests.unit.gateway.conftest import DEADLINE_S, OTHER_KEY, Exchange, Gateway
from tests.unit.gateway.memory_cluster import NOW, Silence

FORGOTTEN = DirectoryStatus.FORGOTTEN


def test_a_backup_is_created_listed_restored_and_deleted(gateway: Gateway) -> None:
    handle = gateway.request(
        "POST", "/v1/sandbox/box/backup", json={"dir": "/workspace", "name": "n", "ttl": 60}
    ).json()
    assert set(handle) == {"id", "dir"}
    page = gateway.request("GET", "/v1/sandbox/box/backups").json()
    assert [b["id"] for b in page["backups"]] == [handle["id"]]
    assert "cursor" not in page
    restored = gateway.request("POST", "/v1/sandbox/fork/restore", json={**handle, "mode": "copy"}).json()
    assert restored == {"success": True, **handle}
    path = f"/v1/backup/{handle['id']}"
    assert gateway.request("GET", path).json()["name"] == "n"
    assert gateway.request("DELETE", path).status_code == 204
    assert gateway.request("GET", path).json()["code"] == "BACKUP_NOT_FOUND"


def test_the_files_and_changes_of_backups_come_in_pages(gateway: Gateway) -> None:
    box, tenant = gateway.cluster.sandbox("default", "box"), gateway.cluster.tenant("default")
    first, second = (
        gateway.request("POST", "/v1/sandbox/box/backup", json={"dir": "/workspace"}).json()["id"] for _ in range(2)
    )
    now = FileState(kind=FileKind.SYMLINK, size_bytes=0, mode=0o777, modified_at=NOW, target="\udcff")
    tenant.listing = [BackupFile(path=path, **now.__dict__) for path in ("/a\n", "/b\udc80")]
    tenant.changes = [FileChange(path="/a\n", change=ChangeKind.ADDED, after=now)]
    url = f"/v1/backup/{first.upper()}/files?path=/d%ff&recursive=true&limit=1"
    page = gateway.request("GET", url).json()
    assert (page["files"][0]["path"], page["files"][0]["target"], page["source"]) == ("/a\n", "\udcff", "listing")
    last = gateway.request("GET", f"{url}&cursor={page['cursor']}")
    assert b"/b\\udc80" in last.content and "cursor" not in last.json()
    assert tenant.asked == [(first, "/d\udcff", True, 1, None), (first, "/d\udcff", True, 1, "1")]
    changes = gateway.request("GET", f"/v1/backup/{first}/diff/{second}").json()
    assert [(row["path"], row["change"]) for row in changes["changes"]] == [("/a\n", "added")]
    assert (changes["compared_by"], changes["partial"]) == ("size_and_time", True)
    assert gateway.request("GET", f"/v1/sandbox/box/diff/{first}?dir=/app&limit=7").json() == changes
    assert box.asked[-1] == (first, "/app", 7, None)


@pytest.mark.parametrize("path", ["files", "diff/{0}"])
def test_the_contents_of_another_tenants_backup_are_missing(gateway: Gateway, path: str) -> None:
    backup = gateway.request("POST", "/v1/sandbox/box/backup", json={"dir": "/workspace"}).json()["id"]
    for url in (f"/v1/backup/{backup}/{path.format(backup)}", f"/v1/sandbox/theirs/diff/{backup}"):
        assert gateway.request("GET", url, key=OTHER_KEY).json()["code"] == "BACKUP_NOT_FOUND"


@pytest.mark.parametrize(
    "url", ["/v1/backup/x/files", "/v1/backup/x/diff/{0}", "/v1/backup/{0}/diff/x", "/v1/sandbox/b/diff/x"]
)
def test_the_contents_of_what_is_no_backup_are_refused(gateway: Gateway, url: str) -> None:
    known = gateway.request("POST", "/v1/sandbox/box/backup", json={"dir": "/workspace"}).json()["id"]
    response = gateway.request("GET", url.format(known))
    assert (response.status_code, response.json()["code"]) == (400, "INVALID_BACKUP_CONFIG")


def test_a_fork_answers_with_an_outcome_for_each_sandbox(gateway: Gateway) -> None:
    handle = gateway.request("POST", "/v1/sandbox/box/backup", json={"dir": "/workspace"}).json()
    path = f"/v1/backup/{handle['id']}/fork"
    made = gateway.request("POST", path, json={"count": 2}).json()
    forks = [{"id": f"fork-{number}", "success": True, "existed": False} for number in (1, 2)]
    assert made == {"success": True, "backup_id": handle["id"], "dir": "/workspace", "forks": forks}
    partly = gateway.request("POST", path, json={"sandboxes": ["good", "bad"], "dir": "/home/x"})
    assert partly.status_code == 200 and not partly.json()["success"]
    assert [row.get("error", {}).get("code") for row in partly.json()["forks"]] == [None, "NO_SPACE"]
    for wrong in ({}, {"count": 0}, {"count": 257}, {"count": 1, "sandboxes": ["a"]}, {"sandboxes": ["a", "a"]}):
        refused = gateway.request("POST", path, json=wrong)
        assert (refused.status_code, refused.json()["code"]) == (400, "INVALID_BACKUP_CONFIG")
    assert gateway.request("POST", path, json={"count": 1}, key=OTHER_KEY).json()["code"] == "BACKUP_NOT_FOUND"


def test_an_incremental_backup_tells_its_archives_and_is_made_a_full_one(gateway: Gateway) -> None:
    def layers(info: dict[str, object]) -> tuple[object, ...]:
        return tuple(info.get(name) for name in ("size_bytes", "total_bytes", "depth", "parent"))

    bodies = ({"dir": "/workspace"}, {"dir": "/workspace"}, {"dir": "/workspace", "full": True})
    first, second, full = (gateway.request("POST", "/v1/sandbox/box/backup", json=body).json()["id"] for body in bodies)
    listed = gateway.request("GET", "/v1/sandbox/box/backups").json()["backups"]
    expected = {first: (1, 1, 1, None), second: (1, 2, 2, first), full: (1, 1, 1, None)}
    assert {info["id"]: layers(info) for info in listed} == expected
    path = f"/v1/backup/{second}"
    assert layers(gateway.request("GET", path).json()) == expected[second]
    made = gateway.request("POST", f"{path}/flatten").json()
    assert made["id"] not in expected and layers(made) == (2, 2, 1, None)
    assert gateway.request("POST", f"/v1/backup/{made['id']}/flatten").json() == made
    assert layers(gateway.request("GET", path).json()) == expected[second]
    for other in (f"{path}/flatten", f"/v1/backup/{'0' * 8}-0000-4000-8000-{'0' * 12}/flatten"):
        refused = gateway.request("POST", other, key=OTHER_KEY)
        assert (refused.status_code, refused.json()["code"]) == (404, "BACKUP_NOT_FOUND")
    wrong = gateway.request("POST", "/v1/sandbox/box/backup", json={"dir": "/workspace", "full": "yes"})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "INVALID_BACKUP_CONFIG")


def test_the_key_decides_the_tenant(gateway: Gateway) -> None:
    handle = gateway.request("POST", "/v1/sandbox/box/backup", json={"dir": "/workspace"}).json()
    path = f"/v1/backup/{handle['id']}"
    assert gateway.request("GET", path, key=OTHER_KEY).status_code == 404
    assert gateway.request("DELETE", path, key=OTHER_KEY).status_code == 404
    assert gateway.request("POST", "/v1/sandbox/box/restore", json=handle, key=OTHER_KEY).status_code == 404
    gateway.request("POST", "/v1/sandbox/theirs/exec", json={"argv": ["x"]}, key=OTHER_KEY)
    assert [box["id"] for box in gateway.request("GET", "/v1/sandbox").json()["sandboxes"]] == ["box"]
    assert gateway.request("GET", path).status_code == 200


def test_reading_a_sandbox_that_was_never_used_finds_nothing(gateway: Gateway) -> None:
    assert gateway.request("GET", "/v1/sandbox/box").json()["code"] == "SANDBOX_NOT_FOUND"
    assert gateway.request("GET", "/v1/sandbox/box/running").json() == {"running": False}
    assert gateway.request("GET", "/v1/sandbox/box/operation").json() is None
    assert gateway.request("POST", "/v1/sandbox/box/cancel").json() == {"cancelled": False}
    assert gateway.request("DELETE", "/v1/sandbox/box").status_code == 204
    assert gateway.request("POST", "/v1/sandbox").json()["id"]


@pytest.mark.parametrize("asleep", [False, True])
def test_a_sleeping_sandbox_counts_as_running(gateway: Gateway, *, asleep: bool) -> None:
    box = gateway.cluster.sandbox("default", "box")
    box.used, box.asleep = True, asleep
    answer = gateway.request("GET", "/v1/sandbox/box/running").json()
    assert answer == {"running": True, "awake": not asleep}


def test_a_file_is_read_as_it_was_written(gateway: Gateway) -> None:
    path = "/v1/sandbox/box/file/workspace/d%20ir/a%2Fb%ff"
    assert gateway.request("PUT", path, content=b"\x00\xff").json() == {"ok": True}
    assert list(gateway.cluster.sandbox("default", "box").files) == ["/workspace/d ir/a/b\udcff"]
    response = gateway.request("GET", path)
    assert (response.content, response.headers["content-type"]) == (b"\x00\xff", "application/octet-stream")
    listed = gateway.request("GET", "/v1/sandbox/box/files?path=/workspace/d%20ir/a").json()
    assert [f["name"] for f in listed["files"]] == ["b\udcff"]
    assert gateway.request("DELETE", path).status_code == 204
    assert gateway.request("GET", path).json()["code"] == "FILE_NOT_FOUND"


@pytest.mark.parametrize("path", ["etc/passwd", "", "workspace2/a"])
def test_a_path_outside_the_roots_is_forbidden(gateway: Gateway, path: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        response = gateway.request(method, f"/v1/sandbox/box/file/{path}")
        assert (response.status_code, response.json()["code"]) == (403, "PATH_FORBIDDEN")
    assert gateway.cluster.sandbox("default", "box").uploads == []


def test_a_path_with_dots_is_invalid(gateway: Gateway) -> None:
    response = gateway.request("GET", "/v1/sandbox/box/file/workspace/%2e%2e/etc")
    assert (response.status_code, response.json()["code"]) == (422, "INVALID_REQUEST")


def test_tar_in_and_out(gateway: Gateway) -> None:
    response = gateway.request("POST", "/v1/sandbox/box/persist")
    assert (response.content, response.headers["content-type"]) == (b"tarball", "application/x-tar")
    assert gateway.request("POST", "/v1/sandbox/box/hydrate", content=b"tar").json() == {"ok": True}
    assert gateway.cluster.sandbox("default", "box").files["hydrated"] == b"tar"


def test_an_answer_that_fails_half_way_is_left_incomplete(gateway: Gateway) -> None:
    async def scenario() -> None:
        gateway.cluster.sandbox("default", "box").tar = [b"half", StorageUnavailableError("Gone.")]
        exchange = Exchange(gateway.app, "POST", "/v1/sandbox/box/persist")
        async with asyncio.timeout(DEADLINE_S):
            await exchange.task
        assert (exchange.status, exchange.body, exchange.complete) == (200, b"half", False)
        assert {"answer cut short", "request"} == {line["event"] for line in gateway.log.lines}

    asyncio.run(scenario())


def test_an_archive_cut_short_by_a_stopping_server_is_left_incomplete(gateway: Gateway) -> None:
    async def scenario() -> None:
        gateway.cluster.sandbox("default", "box").tar = [b"half", Silence()]
        exchange = Exchange(gateway.app, "POST", "/v1/sandbox/box/persist")
        async with asyncio.timeout(DEADLINE_S):
            await exchange.until_sent(b"half")
            exchange.task.cancel()
            await exchange.task
        assert (exchange.status, exchange.body, exchange.complete) == (200, b"half", False)

    asyncio.run(scenario())


def test_the_cluster_is_joined_before_the_first_request(gateway: Gateway) -> None:
    async def scenario() -> None:
        assert not gateway.cluster.connected
        async with gateway.app.router.lifespan_context(gateway.app):
            assert gateway.cluster.connected

    asyncio.run(scenario())


def test_an_upload_is_discarded_when_its_client_disconnects(gateway: Gateway) -> None:
    async def scenario() -> None:
        exchange = Exchange(gateway.app, "PUT", "/v1/sandbox/box/file/workspace/a", b"first", more=True)
        exchange.leave()
        async with asyncio.timeout(DEADLINE_S):
            await exchange.task
        box = gateway.cluster.sandbox("default", "box")
        assert (box.uploads[0].aborted, box.files, exchange.sent) == (True, {}, [])
        assert gateway.log.lines[-1]["status"] == 499

    asyncio.run(scenario())


def test_labels_are_replaced_as_a_whole(gateway: Gateway) -> None:
    path = "/v1/sandbox/box/labels"
    assert gateway.request("PUT", path, json={"team/owner": "anna", "b": ""}).json() == {"team/owner": "anna", "b": ""}
    assert gateway.request("PUT", path, json={"stage": "dev"}).json() == {"stage": "dev"}
    assert gateway.request("GET", "/v1/sandbox/box").json()["labels"] == {"stage": "dev"}
    created = gateway.request("POST", "/v1/sandbox", json={"labels": {"a": "1"}}).json()["id"]
    assert gateway.request("GET", f"/v1/sandbox/{created}").json()["labels"] == {"a": "1"}


@pytest.mark.parametrize(
    "labels",
    [
        {"": "x"},
        {"a b": "x"},
        {"k" * 64: "x"},
        {"a": "x" * 257},
        {"a": "line\nfeed"},
        {"a": 1},
        {str(number): "" for number in range(65)},
        ["a"],
    ],
)
def test_labels_are_bounded(gateway: Gateway, labels: object) -> None:
    for method, path, body in (
        ("PUT", "/v1/sandbox/box/labels", labels),
        ("POST", "/v1/sandbox", {"labels": labels}),
    ):
        response = gateway.request(method, path, json=body)
        assert (response.status_code, response.json()["code"]) == (422, "INVALID_REQUEST")
    assert gateway.cluster.sandbox("default", "box").labels == {}
    most = {"k" * 61 + f"{number:02}": "v" * 256 for number in range(12)}
    assert gateway.request("PUT", "/v1/sandbox/box/labels", json=most).json() == most


def test_a_sandbox_can_be_created_with_and_without_a_body(gateway: Gateway) -> None:
    assert gateway.request("POST", "/v1/sandbox").json()["id"]
    assert gateway.request("POST", "/v1/sandbox", json={}).json()["id"]
    assert gateway.request("POST", "/v1/sandbox", content=b"x").status_code == 400
    assert gateway.request("PUT", "/v1/sandbox/box/labels").status_code == 400


def test_events_come_newest_first(gateway: Gateway) -> None:
    path = "/v1/sandbox/box/events"
    assert gateway.request("GET", path).json()["code"] == "SANDBOX_NOT_FOUND"
    box = gateway.cluster.sandbox("default", "box")
    box.used = True
    box.happened = [SandboxEvent(kind="created", at=NOW), SandboxEvent(kind="backed_up", at=NOW, dir="/workspace")]
    at = "2026-01-02T03:04:05Z"
    assert gateway.request("GET", path).json() == {
        "events": [{"kind": "backed_up", "at": at, "dir": "/workspace"}, {"kind": "created", "at": at}]
    }
    assert [e["kind"] for e in gateway.request("GET", f"{path}?limit=1").json()["events"]] == ["backed_up"]
    assert gateway.request("GET", f"{path}?limit=0").status_code == 422


def test_the_request_id_reaches_the_cluster(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    carried: list[object] = []
    box = gateway.cluster.sandbox("default", "box")
    box.while_backing_up = lambda: carried.append(carrying(None))
    body = {"dir": "/workspace"}
    response = gateway.request("POST", "/v1/sandbox/box/backup", json=body, headers={"X-Request-Id": "req-1"})
    assert response.headers["x-request-id"] == "req-1"
    assert [vars(handle)["_request_id"] for handle in carried] == ["req-1"]
    assert carrying(None) is None


def test_missing_directories_are_forgotten_by_name(gateway: Gateway) -> None:
    box = gateway.cluster.sandbox("default", "box")
    box.missing = [
        RecoveredDirectory(dir=name, backup_id="b", taken_at=NOW, error="BACKUP_EXPIRED", status=FORGOTTEN)
        for name in ("/app", "/workspace")
    ]
    path = "/v1/sandbox/box/forget"
    for given, expected in (("/app", ["/app"]), (["/workspace", "/app"], ["/app", "/workspace"])):
        answer = gateway.request("POST", path, json={"dir": given}).json()
        assert (answer["success"], [row["dir"] for row in answer["forgotten"]]) == (True, expected)
        assert {row["status"] for row in answer["forgotten"]} == {"forgotten"}
    wrongs: list[dict[str, object]] = [
        {"dir": "/tmp"},
        {"dir": "relative"},
        {"dir": []},
        {"dir": "/etc"},
        {},
        {"dir": "/app", "x": 1},
    ]
    for wrong in wrongs:
        assert gateway.request("POST", path, json=wrong).status_code == 422, wrong


@pytest.mark.parametrize("retryable", [True, False])
def test_only_a_retryable_error_says_when_to_retry(gateway: Gateway, *, retryable: bool) -> None:
    failure = SandboxUnavailableError("Missing.", context={RETRYABLE: retryable})
    gateway.cluster.sandbox("default", "box").failure = failure
    answer = gateway.request("POST", "/v1/sandbox/box/backup", json={"dir": "/workspace"})
    assert (answer.status_code, "Retry-After" in answer.headers) == (503, retryable)


def test_a_listed_name_that_is_not_utf8_can_be_sent_back_in_json(gateway: Gateway) -> None:
    box = gateway.cluster.sandbox("default", "box")
    box.files["/workspace/caf\udce9"] = b"1"
    [listed] = gateway.request("GET", "/v1/sandbox/box/files").json()["files"]
    body = {"argv": ["cat", listed["name"]], "cwd": f"/workspace/{listed['name']}", "env": {"A": listed["name"]}}
    answer = gateway.request("POST", "/v1/sandbox/box/exec", content=json.dumps(body).encode())
    assert answer.status_code == 200
    [asked] = box.asked
    assert (asked.argv[1], asked.cwd, asked.env) == ("caf\udce9", "/workspace/caf\udce9", {"A": "caf\udce9"})


@pytest.mark.parametrize("text", ["\\ud800", "\\udc7f", "\\udce9\\ud800", "\\udce9\\udc00"])
def test_a_surrogate_that_stands_for_no_byte_is_refused(gateway: Gateway, text: str) -> None:
    answer = gateway.request("POST", "/v1/sandbox/box/exec", content=f'{{"argv": ["{text}"]}}'.encode())
    assert (answer.status_code, answer.json()["code"]) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize("wrong", ['"timeout_ms": NaN', '"timeout_ms": 1e999', '"unknown": 1', '"timeout_ms": true'])
def test_a_body_with_a_name_that_is_not_utf8_is_validated_all_the_same(gateway: Gateway, wrong: str) -> None:
    answer = gateway.request("POST", "/v1/sandbox/box/exec", content=f'{{"argv": ["\\udce9"], {wrong}}}'.encode())
    assert (answer.status_code, answer.json()["code"]) in ((400, "INVALID_REQUEST"), (422, "INVALID_REQUEST"))


@pytest.mark.parametrize("action", ["backup", "restore", "forget"])
def test_a_directory_for_backups_must_have_a_utf8_name(gateway: Gateway, action: str) -> None:
    body = {"dir": "/workspace/caf\udce9"}
    if action == "restore":
        body["id"] = "00000000-0000-4000-8000-000000000000"
    answer = gateway.request("POST", f"/v1/sandbox/box/{action}", content=json.dumps(body).encode())
    assert answer.status_code in (400, 422) and "UTF-8" in answer.json()["error"]


def test_a_retention_policy_is_replaced_tried_and_removed(gateway: Gateway) -> None:
    path = "/v1/sandbox/box/retention"
    made = [gateway.request("POST", "/v1/sandbox/box/backup", json={"dir": "/workspace"}).json()["id"] for _ in "ab"]
    policy = {"keep_last": 1, "pinned": [made[0]]}
    assert gateway.request("PUT", path, json=policy).json() == policy
    assert gateway.request("GET", path).json() == policy
    tried = gateway.request("POST", f"{path}/apply", json={"dry_run": True, "policy": {"keep_last": 1}}).json()
    assert (tried["dry_run"], [row["id"] for row in tried["kept"]]) == (True, made[:1])
    assert [row["id"] for row in gateway.request("POST", f"{path}/apply").json()["deleted"]] == made[1:]
    assert gateway.request("DELETE", path).status_code == 204
    assert gateway.request("GET", path).json() == {"pinned": []}
    unknown = {"keep_last": 1, "pinned": ["7f8b6a0e-5c1d-4a52-9d1e-2b7f4f3f9a10"]}
    assert gateway.request("PUT", path, json=unknown).json()["code"] == "BACKUP_NOT_FOUND"


@pytest.mark.parametrize(
    ("method", "route", "body"),
    [
        ("PUT", "", {"keep_last": 0}),
        ("PUT", "", {"keep_daily": -1}),
        ("PUT", "", {"keep_last": "3"}),
        ("PUT", "", {"keep_last": 10_001}),
        ("PUT", "", {"keep_weekly": 3}),
        ("PUT", "", {"pinned": ["nonsense"]}),
        ("POST", "/apply", {"policy": {"keep_last": 1}}),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(gateway: Gateway, method: str, route: str, body: object) -> None:
    response = gateway.request(method, f"/v1/sandbox/box/retention{route}", json=body)
    assert (response.status_code, response.json()["code"]) == (422, "INVALID_REQUEST")
    assert gateway.cluster.sandbox("default", "box").asked == []
