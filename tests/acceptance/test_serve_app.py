"""The gateway under Ray Serve: rayservice.yaml's cluster on this machine, with one node for each of its three groups.

The head has no keys and runs no sandbox. Two replicas of the gateway run on the node with the keys. The sandboxes run
on the node without keys.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.config import BucketConfig
from tests.acceptance.http_box import HttpBox, refusal
from tests.support.rayservice import Served, serving
from tests.support.service import eventually, files_below, read_or_empty, start, workers

API_KEY = "key-of-the-served-tenant-000"
OTHER_KEY = "key-of-another-served-tenant-000"
SIGNING_KEY = "signing-key-of-the-served-cluster-000"
BIG_BYTES = 3_000_000


@pytest.fixture(scope="module")
def keys(bucket: BucketConfig) -> dict[str, str]:
    """The content of the Kubernetes Secret, and the settings that locate the bucket."""
    return {
        "SANDBOX_API_KEY": API_KEY,
        "HOLDFAST_API_KEYS": json.dumps({"other": OTHER_KEY}),
        "HOLDFAST_SIGNING_KEY": SIGNING_KEY,
        "R2_ACCESS_KEY_ID": bucket.access_key_id.get_secret_value(),
        "R2_SECRET_ACCESS_KEY": bucket.secret_access_key.get_secret_value(),
        "BACKUP_BUCKET_NAME": bucket.bucket,
        "BACKUP_BUCKET_ENDPOINT": bucket.endpoint_url or "",
        "HOLDFAST_REGION": bucket.region,
        "HOLDFAST_WARM_WORKERS": "0",
    }


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, str]) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serve")
    with serving(folder / "home", folder / "data", keys=keys, api_key=API_KEY) as served:
        yield served


@pytest.fixture(scope="module")
def box(served: Served) -> Iterator[HttpBox]:
    with served.service.client() as client, HttpBox(client, "served").destroyed_at_the_end() as box:
        yield box


def test_two_replicas_answer_and_one_service_runs(served: Served) -> None:
    with served.service.client() as client:
        assert client.get("/ready").json() == {"ready": True}
    assert len(workers(served.service, b"ray::ServeReplica:holdfast:gateway")) == 2
    assert len(workers(served.service, b"ray::ServiceHost")) == 1


def test_output_comes_through_the_proxy_while_the_command_runs(box: HttpBox) -> None:
    running = box.start("sh", "-c", "echo first; until [ -e go-on ]; do sleep 0.05; done; echo second >&2; exit 3")
    running.said(b"first\n")  # the command is still running: it waits for the test

    box.write("/workspace/go-on", b"")
    ran = running.result()

    assert (ran.stdout, ran.stderr, ran.exit_code) == (b"first\n", b"second\n", 3)


def test_files_of_any_size_and_name_pass_both_ways(box: HttpBox) -> None:
    data = bytes(range(256)) * (BIG_BYTES // 256)
    for name in (b"/workspace/large", "/workspace/ü 100%".encode(), b"/workspace/not-\xff-utf8"):
        box.write(name, data)
        assert box.read(name) == data


def test_a_backup_brings_back_what_was_lost_here_and_elsewhere(box: HttpBox) -> None:
    box.sh("mkdir src; echo kept > src/file")
    handle = box.backup(name="before")
    box.sh("rm -r src")

    assert box.restore(handle) == {"success": True, "dir": "/workspace", "id": handle["id"]}
    assert box.read("/workspace/src/file") == b"kept\n"
    with HttpBox(box.client, "served-fork").destroyed_at_the_end() as fork:
        fork.restore(handle)
        assert fork.sh("cat src/file") == "kept\n"


def test_an_error_keeps_its_type_and_has_one_request_id(box: HttpBox) -> None:
    missing = box.post("restore", id=str(uuid.uuid4()), dir="/workspace")
    assert refusal(missing) == (404, "BACKUP_NOT_FOUND")
    assert len(missing.headers.get_list("x-request-id")) == 1
    assert refusal(box.get("/workspace/missing")) == (404, "FILE_NOT_FOUND")
    assert refusal(box.post("backup", dir="/etc")) == (400, "INVALID_BACKUP_CONFIG")

    named = box.client.get("/nowhere", headers={"X-Request-Id": "of-the-client"})
    assert refusal(named) == (404, "NOT_FOUND")
    assert named.headers.get_list("x-request-id") == ["of-the-client"]


def test_a_wrong_key_is_refused_and_another_tenants_sees_nothing(served: Served, box: HttpBox) -> None:
    box.sh("true")
    for key in ("wrong-key-000", ""):
        with served.service.client(key) as stranger:
            assert refusal(stranger.get(box.url)) == (401, "UNAUTHORIZED")
    with served.service.client(OTHER_KEY) as other:
        assert refusal(other.get(box.url)) == (404, "SANDBOX_NOT_FOUND")


def test_a_client_that_goes_away_stops_its_command(box: HttpBox) -> None:
    for _ in range(30):  # Serve cancels the request too, at about the same time, and either may come first
        running = box.start("sh", "-c", "echo ready; exec sleep 600")
        running.said(b"ready")
        eventually(lambda: box.info()["commands"] == 1)

        running.hang_up()

        eventually(lambda: box.info()["commands"] == 0)


def test_a_separate_gateway_joins_the_same_service_and_leaves_it_running(
    served: Served, box: HttpBox, keys: dict[str, str]
) -> None:
    box.write("/workspace/seen-by-all", b"once")
    data_dir = served.service.data_dir

    joined = start(served.service.home, data_dir, env={**keys, **served.ray}, key=API_KEY)
    try:
        with joined.client() as client:
            assert HttpBox(client, box.id).read("/workspace/seen-by-all") == b"once"
        assert len(workers(served.service, b"ray::ServiceHost")) == 1
    finally:
        status = joined.stop()

    assert status == 0
    assert box.read("/workspace/seen-by-all") == b"once"


def test_a_sandboxs_process_imports_no_dependency_of_ray_serve(served: Served, box: HttpBox) -> None:
    box.sh("true")
    maps = [read_or_empty(Path(f"/proc/{pid}/maps")) for pid in workers(served.service, b"ray::SandboxHost")]
    assert any(maps) and all(b"/numpy/" not in text for text in maps)


def test_keys_are_only_in_the_environment_of_the_gateways_own_node(
    served: Served, box: HttpBox, keys: dict[str, str]
) -> None:
    box.sh("true")
    secrets = [API_KEY, OTHER_KEY, SIGNING_KEY, keys["R2_ACCESS_KEY_ID"], keys["R2_SECRET_ACCESS_KEY"]]
    logs = [path for path in files_below(served.folder) if "logs" in path.parts]
    paths = (*logs, *served.service.home.glob("cluster.*"))
    texts = {path.name: read_or_empty(path).decode(errors="replace") for path in paths}
    texts["what Serve says"] = json.dumps(served.status())

    assert any('"event": "request"' in text for text in texts.values())
    assert {name for name, text in texts.items() if any(secret in text for secret in secrets)} == set()
    holders = {
        title: [pid for pid in workers(served.service, title) if _environment_holds(pid, secrets)]
        for title in (b"ray::SandboxHost", b"ray::ServeController", b"ray::ServeReplica")
    }
    assert workers(served.service, b"ray::SandboxHost")
    assert {title: len(pids) for title, pids in holders.items()} == {
        b"ray::SandboxHost": 0,
        b"ray::ServeController": 0,
        b"ray::ServeReplica": 2,
    }


def _environment_holds(pid: int, secrets: list[str]) -> bool:
    environment = read_or_empty(Path(f"/proc/{pid}/environ")).decode(errors="replace")
    return any(secret in environment for secret in secrets)
