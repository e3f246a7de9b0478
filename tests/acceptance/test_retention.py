"""Retention of a sandbox's backups: applied by itself after each backup, and by `gc`; it wakes nobody."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Callable
from typing import Any

import httpx

from tests.acceptance.http_box import HttpBox, refusal
from tests.support.mount_leaks import wait_until
from tests.support.service import COMMAND_S, HOLDFAST, Service, clean_environment, eventually


def run_cli(service: Service, *argv: str) -> Any:
    """Returns the single document that a command with --json prints."""
    env = clean_environment(service.home, {"HOLDFAST_DATA_DIR": str(service.data_dir)})
    done = subprocess.run(
        [HOLDFAST, *argv], env=env, cwd=service.home, capture_output=True, timeout=COMMAND_S, check=True
    )
    return json.loads(done.stdout)


def backup(box: HttpBox) -> str:
    made: str = box.client.post(f"{box.url}/backup", json={"dir": "/workspace"}).raise_for_status().json()["id"]
    return made


def listed(box: HttpBox) -> list[str]:
    return [row["id"] for row in box.client.get(f"{box.url}/backups").json()["backups"]]


def test_backups_that_the_policy_does_not_keep_go_after_each_backup(
    service: Service, box: HttpBox, other_client: httpx.Client
) -> None:
    first = backup(box)
    policy = {"keep_last": 2, "pinned": [first]}
    put = box.client.put(f"{box.url}/retention", json=policy)
    assert (put.status_code, put.json()) == (200, policy)
    made = [backup(box) for _ in range(4)]
    assert wait_until(lambda: listed(box) == [made[3], made[2], first], timeout_s=120), listed(box)
    assert box.client.get(f"{box.url}/retention").json() == policy
    assert refusal(other_client.get(f"{box.url}/retention")) == (404, "SANDBOX_NOT_FOUND")
    box.client.post(f"{box.url}/restore", json={"id": first, "dir": "/workspace"}).raise_for_status()
    eventually(lambda: 'holdfast_deleted_backups_total{reason="retention"}' in box.client.get("/metrics").text)


def test_a_policy_is_tried_set_and_applied_without_waking(service: Service, boxes: Callable[[], HttpBox]) -> None:
    box = boxes()
    made = [backup(box) for _ in range(3)]
    assert box.client.delete(f"{box.url}/retention").status_code == 204
    tried = run_cli(service, "retention", box.id, "--keep-last", "1", "--dry-run", "--json")
    assert [row["id"] for row in tried["deleted"]] == made[1::-1]
    assert tried["kept"][0]["reasons"] == ["last", "checkpoint"]
    assert box.client.get(f"{box.url}/retention").json() == {"pinned": []}
    missing = str(uuid.uuid4())
    refused = box.client.put(f"{box.url}/retention", json={"keep_last": 1, "pinned": [missing]})
    assert refusal(refused) == (404, "BACKUP_NOT_FOUND")
    assert refusal(box.client.put(f"{box.url}/retention", json={"keep_last": 0})) == (422, "INVALID_REQUEST")
    assert run_cli(service, "retention", box.id, "--keep-last", "1", "--pin", made[0], "--json") == {
        "keep_last": 1,
        "pinned": [made[0]],
    }
    assert made[1] in run_cli(service, "gc", "--dry-run", "--json")["retired_backups"]
    assert listed(box) == made[::-1]
    assert [row["id"] for row in box.client.post(f"{box.url}/retention/apply").json()["deleted"]] == [made[1]]
    assert listed(box) == [made[2], made[0]]


def test_a_sandbox_that_was_never_used_gets_a_policy_and_stays_asleep(boxes: Callable[[], HttpBox]) -> None:
    box = boxes()
    assert box.client.delete(f"{box.url}/retention").status_code == 204
    assert refusal(box.client.get(box.url)) == (404, "SANDBOX_NOT_FOUND")
    assert box.client.put(f"{box.url}/retention", json={"keep_daily": 7}).status_code == 200
    assert not box.client.get(f"{box.url}/running").json()["awake"], "setting the policy woke it"
