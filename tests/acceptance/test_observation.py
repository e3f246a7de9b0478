"""Observability for an operator: log lines with a request's id, and metrics of the actors."""

from __future__ import annotations

import json
import uuid
from fnmatch import fnmatch
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.http_box import HttpBox
from tests.support.service import Service, eventually, files_below, finished_lines


def actor_log_lines(service: Service, request_id: str) -> list[dict[str, Any]]:
    """Returns the actors' log lines for a request's id; Ray keeps their output."""
    lines = []
    for file in files_below(service.ray_folder):
        if fnmatch(file.name, "worker-*.err"):
            lines += [json.loads(line) for line in finished_lines(file) if request_id in line]
    return lines


def metrics(client: httpx.Client) -> dict[tuple[str, tuple[str, ...]], float]:
    """Returns the samples, keyed by name and by label values in the order of the labels' names."""
    response = client.get("/metrics")
    assert response.status_code == 200
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def complete(client: httpx.Client) -> dict[tuple[str, tuple[str, ...]], float]:
    """Returns the samples once those of the cluster are among them: they are missing when the cluster answers late."""
    found: dict[tuple[str, tuple[str, ...]], float] = {}

    def is_complete() -> bool:
        found.clear()
        found.update(metrics(client))
        return found.get(("holdfast_service_up", ())) == 1

    eventually(is_complete)
    return found


def test_an_actor_logs_under_the_id_of_the_request_it_serves(service: Service, box: HttpBox) -> None:
    box.write("/workspace/file", b"content")
    mine, other = f"backup-{uuid.uuid4()}", f"restore-{uuid.uuid4()}"
    made = box.client.post(f"{box.url}/backup", json={"dir": "/workspace"}, headers={"X-Request-Id": mine})
    assert (made.status_code, made.headers["x-request-id"]) == (200, mine)
    handle = made.json()
    restored = box.client.post(f"{box.url}/restore", json=handle, headers={"X-Request-Id": other})
    assert restored.status_code == 200, restored.text

    def line(request_id: str, event: str) -> dict[str, Any]:
        eventually(lambda: any(row["event"] == event for row in actor_log_lines(service, request_id)))
        (found,) = [row for row in actor_log_lines(service, request_id) if row["event"] == event]
        return found

    created = line(mine, "backup_created")
    assert (created["sandbox"], created["tenant"], created["backup"]) == (box.id, "default", handle["id"])
    assert created["request_id"] == mine
    assert line(other, "backup_restored")["backup"] == handle["id"]


def test_the_gateways_metrics_include_the_actors_work(service: Service, box: HttpBox) -> None:
    client = box.client
    before = complete(client)

    def grown(name: str, *labels: str) -> float:
        return complete(client).get((name, labels), 0) - before.get((name, labels), 0)

    box.write("/workspace/file", b"x" * 100_000)
    handle = box.backup()
    box.restore(handle)
    box.post("restore", id=str(uuid.uuid4()), dir="/workspace")

    eventually(lambda: grown("holdfast_calls_total", "restore_backup", "BACKUP_NOT_FOUND") >= 1)
    eventually(lambda: grown("holdfast_calls_total", "create_backup", "ok") >= 1)
    assert grown("holdfast_calls_total", "restore_backup", "ok") >= 1
    assert grown("holdfast_call_duration_seconds_count", "restore_backup") >= 2
    assert grown("holdfast_archived_bytes_total") >= 100_000
    assert grown("holdfast_uploaded_bytes_total") > 0
    assert grown("holdfast_cache_lookups_total", "hit") >= 1
    assert grown("holdfast_wakes_total", "afresh") >= 1
    found = complete(client)
    assert (
        1
        <= found["holdfast_sandboxes_awake", ()]
        <= found["holdfast_slots", ("free",)] + found["holdfast_slots", ("used",)]
    )
    assert found["holdfast_nodes", ()] == 1


def test_no_metric_names_a_sandbox_or_a_process(client: httpx.Client, box: HttpBox) -> None:
    box.write("/workspace/file", b"content")
    eventually(lambda: ("holdfast_calls_total", ("commit", "ok")) in metrics(client))
    text = client.get("/metrics").text
    assert box.id not in text and "WorkerId" not in text
