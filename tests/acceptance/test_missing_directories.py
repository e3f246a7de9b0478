"""A directory that cannot be recovered: callers get an error, never an empty directory, until it is forgotten."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from storage import keys
from tests.acceptance.http_box import HttpBox
from tests.support.mount_leaks import wait_until
from tests.support.service import COMMAND_S, HOLDFAST, Service, clean_environment, running


@pytest.fixture(scope="module")
def bedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose sandboxes sleep in the bucket after one second."""
    folder = tmp_path_factory.mktemp("bedded")
    env = {"HOLDFAST_ON_SLEEP": "backup", "HOLDFAST_SLEEP_AFTER_S": "1"}
    with running(folder / "home", folder / "data", env=env) as service:
        yield service


def forgotten_by_command_line(service: Service, box: str, directory: str) -> list[str]:
    env = clean_environment(service.home, service.client_env)
    argv = [str(HOLDFAST), "forget", box, directory, "--json"]
    ended = subprocess.run(argv, env=env, cwd=service.home, capture_output=True, timeout=COMMAND_S, check=True)
    return [row["dir"] for row in json.loads(ended.stdout)["forgotten"]]


def test_calls_fail_while_a_backup_is_gone_and_work_once_its_directory_is_forgotten(bedded: Service) -> None:
    with bedded.client() as client, HttpBox(client, "missing").destroyed_at_the_end() as box:
        box.write("/workspace/file", b"1")
        box.write("/app/file", b"2")
        running_url = f"/v1/sandbox/{box.id}/running"
        assert wait_until(lambda: not client.get(running_url).json()["awake"], timeout_s=120)
        (asleep,) = (
            row for row in client.get(f"/v1/sandbox/{box.id}/backups").json()["backups"] if row["dir"] == "/app"
        )
        bedded.store().delete(keys.archive(asleep["id"]))

        for answer in (box.get("/workspace/file"), box.post("exec", argv=["ls", "/app"])):
            error = answer.json()
            assert (answer.status_code, error["code"]) == (503, "SANDBOX_UNAVAILABLE")
            assert "Retry-After" not in answer.headers
            assert (error["context"]["reason"], error["context"]["dir"]) == ("DIRECTORY_MISSING", "/app")
            assert (error["context"]["backup"], error["context"]["cause"]) == (asleep["id"], "BACKUP_NOT_FOUND")
            assert f"holdfast forget {box.id} /app" in error["hint"]
        rows = {row["dir"]: row["status"] for row in box.info()["recovery"]["directories"]}
        assert rows == {"/app": "missing", "/workspace": "restored"}

        assert box.post("forget", dir="/workspace").status_code == 422
        answer = box.post("forget", dir="/app").json()
        assert [(row["dir"], row["backup_id"]) for row in answer["forgotten"]] == [("/app", asleep["id"])]

        assert box.read("/workspace/file") == b"1"
        assert box.sh("ls -A /app") == ""
        assert forgotten_by_command_line(bedded, box.id, "/app") == ["/app"]
        rows = {row["dir"]: row["status"] for row in box.info()["recovery"]["directories"]}
        assert rows == {"/app": "forgotten", "/workspace": "restored"}
