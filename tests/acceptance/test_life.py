"""Start, stop, kill and restart of the service."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from actors.node import mountinfo
from tests.acceptance.http_box import HttpBox, refusal
from tests.support.service import (
    STOP_S,
    Service,
    comm_of,
    nothing_left,
    read_or_empty,
    refused,
    running,
    start,
    workers,
)


def make_some(service: Service) -> tuple[dict[str, str], dict[str, str]]:
    """Creates a sandbox with files, a restored directory with writes in it, a copy, and running commands."""
    with service.client() as client:
        box = HttpBox(client, "kept")
        box.sh("echo own > own; mkdir -p project/sub; echo 1 > project/file; echo 2 > project/sub/file; ln -s own link")
        parent, child = box.backup("/workspace/project"), box.backup("/workspace/project/sub")
        box.restore(parent)
        box.restore(child)
        box.restore(parent, dir="/home/sandbox/copy", mode="copy")
        box.sh("echo after >> project/file; rm project/sub/file; echo new > project/sub/new; echo c > ~/copy/more")
        sleeper = box.start("sh", "-c", "(trap '' TERM INT HUP; echo ready; while :; do sleep 0.05; done) & wait")
        sleeper.said(b"ready")
        assert len(mountinfo.mounts_under(service.data_dir)) >= 2
        return parent, child


def check_some(service: Service, handles: tuple[dict[str, str], dict[str, str]]) -> None:
    """Checks that everything that `make_some` made is there."""
    with service.client() as client:
        box = HttpBox(client, "kept")
        before = box.info()
        assert before["running"] is False
        assert {row["dir"] for row in before["restored"]} == {
            "/workspace/project", "/workspace/project/sub", "/home/sandbox/copy"
        }  # fmt: skip
        assert {row["id"] for row in client.get("/v1/sandbox").json()["sandboxes"]} == {"kept"}
        assert box.sh("cat own link project/file project/sub/new ~/copy/file ~/copy/more; ls project/sub") == (
            "own\nown\n1\nafter\nnew\n1\nc\nnew\n"
        )
        box.sh("echo again > project/sub/again")
        fork = HttpBox(client, "fork")
        fork.restore(handles[0], dir="/workspace")
        assert fork.sh("cat file sub/file") == "1\n2\n"
        assert client.delete(fork.url).status_code == 204
        box.restore(handles[1])
        assert box.sh("cat project/sub/file; ls project/sub") == "2\nfile\n"
        box.sh("rm project/sub/file; echo new > project/sub/new")


@pytest.mark.timeout(900)
def test_stopping_leaves_nothing_and_everything_is_there_after_the_next_start(tmp_path: Path) -> None:
    home, data_dir = tmp_path / "home", tmp_path / "data"

    service = start(home, data_dir)
    key = service.api_key
    handles = make_some(service)
    seen = service.pids()
    assert len(seen) > 5
    assert service.stop(signal.SIGTERM) == 0
    nothing_left(service)
    assert "stopped" in service.stderr.read_text()
    assert not (data_dir / "client.env").exists()

    service = start(home, data_dir)
    assert service.api_key == key
    check_some(service, handles)
    service.pids()
    service.process.kill()
    service.process.wait(STOP_S)
    assert mountinfo.mounts_under(data_dir)

    second = start(home, data_dir)
    second.known_pids |= service.known_pids
    check_some(second, handles)
    os.kill(second.process.pid, signal.SIGINT)
    assert second.process.wait(STOP_S) == 0
    nothing_left(second)
    shutil.rmtree(second.ray_folder, ignore_errors=True)


def test_a_service_leaves_nothing_when_rays_control_store_ends_before_it(tmp_path: Path) -> None:
    """This happens when all processes of a systemd unit, or of a terminal's job, get the signal at once."""
    service = start(tmp_path / "home", tmp_path / "data")
    make_some(service)
    assert mountinfo.mounts_under(service.data_dir)
    (store,) = (pid for pid in service.pids() if comm_of(pid) == "gcs_server")
    os.kill(store, signal.SIGKILL)
    assert service.stop(signal.SIGTERM) == 0
    nothing_left(service)
    shutil.rmtree(service.ray_folder, ignore_errors=True)


def test_a_second_service_on_the_same_folder_and_a_busy_port_are_refused_with_a_sentence(
    service: Service, tmp_path: Path
) -> None:
    again = refused(tmp_path / "home", service.data_dir)
    port = refused(tmp_path / "home", tmp_path / "data", port=int(service.url.rsplit(":", 1)[1]))

    assert (again.status, port.status) == (1, 1)
    assert "error: Another `holdfast serve` uses this data folder." in again.stderr
    assert "error: The gateway cannot listen on 127.0.0.1 port" in port.stderr
    for attempt in (again, port):
        assert "Traceback" not in attempt.stderr
        assert "hint:" in attempt.stderr
        assert attempt.stdout == ""
    with service.client() as client:
        assert client.get("/ready").json() == {"ready": True}


@pytest.mark.parametrize(
    ("env", "word"),
    [({"HOLDFAST_SANDBOX_UID": "root"}, "sandbox_uid"), ({"SANDBOX_API_KEY": "short"}, "8 characters"),
     ({"BACKUP_BUCKET_ENDPOINT": "https://user:secret-word@host"}, "backup_bucket_endpoint"),
     ({"HOLDFAST_API_KEYS": '{"a": "same-key-1", "b": "same-key-1"}'}, "share")],
)  # fmt: skip
def test_a_wrong_setting_is_named_and_its_value_is_not(tmp_path: Path, env: dict[str, str], word: str) -> None:
    attempt = refused(tmp_path / "home", tmp_path / "data", env=env)

    assert attempt.status == 2
    assert "error: a setting is wrong:" in attempt.stderr
    assert word.lower() in attempt.stderr.lower()
    assert "secret-word" not in attempt.stderr and "same-key" not in attempt.stderr
    assert "Traceback" not in attempt.stderr


def test_without_the_buckets_keys_only_backups_fail_and_name_the_missing_settings(
    tmp_path: Path,
) -> None:
    with running(tmp_path / "home", tmp_path / "data", env={"BACKUP_BUCKET_NAME": "mine"}) as service:
        missing = ["R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", "CLOUDFLARE_ACCOUNT_ID (or BACKUP_BUCKET_ENDPOINT)"]
        assert "warning: backup and restore are off" in service.stdout.read_text()
        assert not any("rclone" in comm_of(pid) for pid in service.pids())
        with service.client() as client:
            box = HttpBox(client, "box")
            assert box.sh("echo works | tee file") == "works\n"
            assert box.read("/workspace/file") == b"works\n"
            handle = {"id": "00000000-0000-4000-8000-000000000000", "dir": "/workspace"}
            for response in (
                box.post("backup", dir="/workspace"),
                box.post("restore", **handle),
                client.get(f"{box.url}/backups"),
                client.get(f"/v1/backup/{handle['id']}"),
            ):
                assert refusal(response) == (400, "INVALID_BACKUP_CONFIG")
                assert response.json()["context"]["missing"] == missing
                assert all(name in response.json()["error"] for name in missing)
                assert "BACKUP_BUCKET_NAME" not in response.text
            assert client.delete(box.url).status_code == 204


def test_everything_listens_on_loopback_only(service: Service) -> None:
    listening = service.listening()

    assert len({pid for pid, _ in listening}) >= 4
    assert [(comm_of(pid), at) for pid, at in listening if not is_loopback(at[0])] == []


def test_nobody_joins_the_cluster_or_its_dashboard_without_the_token(service: Service) -> None:
    import httpx

    response = httpx.get(f"{service.jobs_url}/api/jobs/", timeout=20)

    assert response.status_code in (401, 403)
    token = (service.data_dir / "secrets" / "ray_token").read_text()
    allowed = httpx.get(f"{service.jobs_url}/api/jobs/", headers={"Authorization": f"Bearer {token}"}, timeout=20)
    assert allowed.status_code == 200


def test_secrets_are_for_their_owner_only(service: Service) -> None:
    folder = service.data_dir / "secrets"
    for path in (folder, *folder.iterdir(), service.data_dir / "client.env"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert service.ray_folder.stat().st_mode & 0o077 == 0
    assert json.loads((service.data_dir / "secrets" / "secrets.json").read_text())


def is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def test_out_of_memory_commands_are_killed_before_actors_and_actors_before_the_service(
    service: Service, box: HttpBox
) -> None:
    command = int(box.sh("cat /proc/self/oom_score_adj"))

    def scores(title: bytes) -> set[int]:
        said = (read_or_empty(Path(f"/proc/{pid}/oom_score_adj")) for pid in workers(service, title))
        return {int(score) for score in said if score}  # the actors of destroyed sandboxes may be ending

    assert max(scores(b"ray::ServiceHost") | scores(b"ray::NodeHost")) < min(scores(b"ray::SandboxHost"))
    assert max(scores(b"ray::SandboxHost")) < command
