"""The example of the specification, over HTTP alone."""

from __future__ import annotations

import re
import uuid

import httpx

from tests.acceptance.http_box import HttpBox


def test_a_directory_wrecked_after_its_backup_comes_back_with_a_restore(client: httpx.Client) -> None:
    created = client.post("/v1/sandbox")
    assert created.status_code == 200
    assert created.json().keys() == {"id"}
    with HttpBox(client, created.json()["id"]).destroyed_at_the_end() as box:
        box.write("/workspace/src/main.py", b"print('hello')\n")
        assert box.exec("python3", "src/main.py").stdout == b"hello\n"

        handle = box.backup("/workspace", name="before upgrade", ttl=3600)

        assert handle.keys() == {"id", "dir"}
        assert str(uuid.UUID(handle["id"])) == handle["id"]
        assert handle["dir"] == "/workspace"

        box.sh("rm -rf src; echo wreck > wreck")
        result = box.restore(handle)

        assert result == {"success": True, "dir": "/workspace", "id": handle["id"]}
        assert box.exec("python3", "src/main.py").stdout == b"hello\n"
        assert box.get("/workspace/wreck").status_code == 404


def test_a_backup_is_described_by_its_name_and_time_to_live(box: HttpBox) -> None:
    box.write("/workspace/file", b"1234")
    handle = box.backup(name="Grüße 🌲", ttl=3600)

    info = box.client.get(f"/v1/backup/{handle['id']}").json()

    assert (info["name"], info["ttl_s"], info["dir"], info["sandbox"]) == ("Grüße 🌲", 3600, "/workspace", box.id)
    assert (info["expired"], info["files"], info["source_bytes"]) == (False, 1, 4)
    assert re.fullmatch(r"[0-9a-f]{64}", info["sha256"])


def test_a_backup_lives_for_three_days_by_default(box: HttpBox) -> None:
    box.sh("echo 1 > file")
    handle = box.backup()

    assert box.client.get(f"/v1/backup/{handle['id']}").json()["ttl_s"] == 259_200


def test_the_backups_of_a_sandbox_are_listed_newest_first_and_page_by_page(box: HttpBox) -> None:
    box.sh("echo 1 > file")
    made = [box.backup(name=str(number))["id"] for number in range(3)]

    first = box.client.get(f"{box.url}/backups", params={"limit": 2}).json()
    second = box.client.get(f"{box.url}/backups", params={"limit": 2, "cursor": first["cursor"]}).json()

    listed = [row["id"] for row in (*first["backups"], *second["backups"])]
    assert listed == made[::-1]
    assert "cursor" not in second


def test_a_deleted_backup_is_gone_from_every_route(box: HttpBox) -> None:
    box.sh("echo 1 > file")
    handle = box.backup()

    assert box.client.delete(f"/v1/backup/{handle['id']}").status_code == 204

    assert box.client.get(f"/v1/backup/{handle['id']}").status_code == 404
    assert box.post("restore", **handle).status_code == 404
    assert box.client.get(f"{box.url}/backups").json() == {"backups": []}


def test_a_repeated_request_with_one_idempotency_key_makes_one_backup(box: HttpBox) -> None:
    box.sh("echo 1 > file")
    path, body = f"/v1/sandbox/{box.id}/backup", {"dir": "/workspace"}

    answers = [box.client.post(path, json=body, headers={"Idempotency-Key": "step 1"}) for _ in range(3)]

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(box.client.get(f"/v1/sandbox/{box.id}/backups").json()["backups"]) == 1
    refused = box.client.post(path, json=body, headers={"Idempotency-Key": "x" * 201})
    assert (refused.status_code, refused.json()["code"]) == (400, "INVALID_BACKUP_CONFIG")
