"""Many sandboxes from one backup, in one call."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from tests.acceptance.http_box import HttpBox


def test_a_fork_makes_its_sandboxes_once_and_reports_each(client: httpx.Client, boxes: Callable[[], HttpBox]) -> None:
    base, forks = boxes(), [boxes() for _ in range(3)]
    base.sh("echo original > file")
    handle = base.backup()
    path, names = f"/v1/backup/{handle['id']}/fork", [fork.id for fork in forks]

    made = client.post(path, json={"sandboxes": names}).raise_for_status().json()
    assert made["success"] and made["dir"] == "/workspace"
    assert made["forks"] == [{"id": name, "success": True, "existed": False} for name in names]
    assert [fork.sh("cat file") for fork in forks] == ["original\n"] * 3
    forks[0].sh("echo mine > file")

    again = client.post(path, json={"sandboxes": [*names, base.id]}).raise_for_status().json()
    assert not again["success"]
    assert [row["existed"] for row in again["forks"]] == [True, True, True, False]
    assert again["forks"][3]["error"]["code"] == "SANDBOX_EXISTS"
    assert [fork.sh("cat file") for fork in forks] == ["mine\n", "original\n", "original\n"]
    assert base.sh("cat file") == "original\n"

    missing = client.post("/v1/backup/01234567-89ab-4cde-8f01-23456789abcd/fork", json={"count": 1})
    assert (missing.status_code, missing.json()["code"]) == (404, "BACKUP_NOT_FOUND")
