"""Labels and events of a sandbox: neither wakes it, and the sandbox need not exist before."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import httpx

from tests.acceptance.http_box import HttpBox, refusal
from tests.support.service import COMMAND_S, HOLDFAST, Service, clean_environment


def run_cli(service: Service, *argv: str) -> Any:
    """Returns the single document that a command with --json prints."""
    env = clean_environment(service.home, {"HOLDFAST_DATA_DIR": str(service.data_dir)})
    done = subprocess.run(
        [HOLDFAST, *argv], env=env, cwd=service.home, capture_output=True, timeout=COMMAND_S, check=True
    )
    return json.loads(done.stdout)


def test_labels_are_set_without_waking_and_stay(service: Service, box: HttpBox, other_client: httpx.Client) -> None:
    client = box.client
    put = client.put(f"{box.url}/labels", json={"team/owner": "anna", "stage": "dev"})
    assert (put.status_code, put.json()) == (200, {"team/owner": "anna", "stage": "dev"})
    assert not client.get(f"{box.url}/running").json()["awake"], "setting labels woke it"
    asleep = box.info()
    assert (asleep["labels"], asleep["running"], asleep["epoch"]) == ({"team/owner": "anna", "stage": "dev"}, False, 0)
    assert refusal(other_client.get(box.url)) == (404, "SANDBOX_NOT_FOUND")
    assert refusal(client.put(f"{box.url}/labels", json={"a b": "x"})) == (422, "INVALID_REQUEST")

    changed = run_cli(service, "label", box.id, "stage-", "cli=yes", "--json")
    assert changed == {"labels": {"team/owner": "anna", "cli": "yes"}}

    created = HttpBox(client, client.post("/v1/sandbox", json={"labels": {"a": "1"}}).json()["id"])
    with created.destroyed_at_the_end():
        assert created.info()["labels"] == {"a": "1"}


def test_events_are_read_without_waking(service: Service, boxes: Callable[[], HttpBox]) -> None:
    box = boxes()
    assert refusal(box.client.get(f"{box.url}/events")) == (404, "SANDBOX_NOT_FOUND")
    box.client.put(f"{box.url}/labels", json={})
    assert box.client.get(f"{box.url}/events").json() == {"events": []}
    assert run_cli(service, "events", box.id, "--json") == {"events": []}
    assert not box.client.get(f"{box.url}/running").json()["awake"], "reading woke it"
