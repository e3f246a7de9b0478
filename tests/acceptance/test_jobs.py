"""The main flow as Ray jobs: the same command line, run in the cluster by `ray job submit`."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.http_box import HttpBox
from tests.support.service import PROGRAMS, Service, clean_environment, read_or_empty, running, workers

JOB_S = 300
RAY_S_AGENT, RAY_S_DASHBOARD = 52_365, 8265
"""The ports that the first Ray on a machine takes."""


def submit(service: Service, entrypoint: str, *options: str) -> tuple[int, str]:
    """Runs one job to its end; returns its status and its output."""
    env = clean_environment(
        service.home,
        {
            "RAY_ADDRESS": service.jobs_url,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(service.data_dir / "secrets" / "ray_token"),
        },
    )
    argv: Sequence[str] = [str(PROGRAMS / "ray"), "job", "submit", *options, "--", "sh", "-c", entrypoint]
    done = subprocess.run(argv, env=env, cwd=service.home, capture_output=True, text=True, timeout=JOB_S, check=False)
    return done.returncode, done.stdout + done.stderr


def documents(text: str) -> list[dict[str, Any]]:
    """Extracts the JSON documents from a job's output."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_a_job_backs_up_lists_and_restores(service: Service, box: HttpBox) -> None:
    box.sh("mkdir src; echo kept > src/file")

    status, said = submit(service, f"holdfast backup {box.id} /workspace --name nightly --ttl 3600 --json")
    assert status == 0, said
    (handle,) = documents(said)
    assert handle.keys() == {"id", "dir"}
    box.sh("rm -r src")

    script = f"holdfast list {box.id} --json && holdfast restore {box.id} {handle['id']} --json"
    status, said = submit(service, script)

    assert status == 0, said
    listed, restored = documents(said)
    assert [(row["id"], row["name"]) for row in listed["backups"]] == [(handle["id"], "nightly")]
    assert restored == {"success": True, "dir": "/workspace", "id": handle["id"]}
    assert box.read("/workspace/src/file") == b"kept\n"


def test_a_sandbox_that_a_job_makes_gets_nothing_of_the_job(service: Service, tmp_path: Path, box: HttpBox) -> None:
    (tmp_path / "of-the-job.txt").write_text("the job's own file")
    runtime = json.dumps({"env_vars": {"JOB_SECRET": "of-the-job"}})

    status, said = submit(
        service,
        "test -e of-the-job.txt && echo job has $JOB_SECRET && "
        f"holdfast exec {box.id} -- sh -c \"env; pwd; ls -A .\" && "
        "holdfast restore nobody 00000000-0000-4000-8000-000000000000 --json",
        "--working-dir", str(tmp_path), "--runtime-env-json", runtime,
    )  # fmt: skip

    assert "job has of-the-job" in said
    assert "JOB_SECRET=" not in said
    assert "PATH=/usr/local/bin:/usr/bin" in said
    assert "\n/workspace\n" in said
    assert status != 0
    assert documents(said)[-1]["code"] == "BACKUP_NOT_FOUND"
    actors = workers(service, b"ray::SandboxHost")
    assert actors
    for pid in actors:
        assert b"JOB_SECRET" not in read_or_empty(Path(f"/proc/{pid}/environ"))
        assert not list(Path(f"/proc/{pid}/cwd").glob("of-the-job.txt"))


def test_a_job_reaches_its_own_cluster_beside_another_ray(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for port in (RAY_S_AGENT, RAY_S_DASHBOARD):
            with suppress(OSError):  # another Ray has the port already, which is as good
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
        beside = stack.enter_context(running(tmp_path / "home", tmp_path / "data"))

        status, said = submit(beside, "holdfast exec of-the-job -- hostname --json; holdfast list --json")

        assert status == 0, said
        assert documents(said)[-1]["sandboxes"][0]["id"] == "of-the-job"
        for _ in range(4):  # each job determines its cluster anew, and could find any on this machine
            status, said = submit(beside, "echo address=$RAY_ADDRESS")
            assert status == 0 and f"address={beside.client_env['RAY_ADDRESS']}\n" in said, said


@pytest.fixture(autouse=True)
def no_sandbox_left(service: Service) -> Any:
    yield
    with service.client() as client:
        client.delete("/v1/sandbox/nobody")
