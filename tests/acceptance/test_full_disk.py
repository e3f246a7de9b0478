"""`holdfast serve` on a disk without free blocks or without free inodes: it starts, deletes and stops."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support.full_disk import filled, tmpfs, without_inodes
from tests.support.service import Service, running

NAMES = ("a", "b", "c", "d", "e")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to fill a disk: the mount options, a command that fills it, and a function that fills it from outside."""

    options: str
    command: str
    fill: Callable[[Path], AbstractContextManager[None]]
    has_ray: bool
    """True if Ray has its files on the disk, too, beside the sandboxes and the embedded store. Ray starts no process
    where it cannot create its log files, so such a disk must not lack inodes."""


WAYS = {
    "blocks": Way("size=160m", "cat /dev/zero > zeros", filled, has_ray=True),
    "inodes": Way("size=160m,nr_inodes=4000", "i=0; while : > $i; do i=$((i+1)); done", without_inodes, has_ray=False),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


@pytest.fixture
def disk(way: Way) -> Iterator[Path]:
    """A small disk at a path that is short enough for Ray's sockets."""
    folder = Path("/tmp", secrets.token_hex(2))
    with tmpfs(folder, way.options):
        yield folder
    folder.rmdir()


def test_a_service_on_a_full_disk_deletes_ends_and_starts_again(tmp_path: Path, way: Way, disk: Path) -> None:
    home, data_dir, env = tmp_path / "home", disk / "data", {"TMPDIR": str(disk)} if way.has_ray else None
    with running(home, data_dir, env=env) as service, service.client() as client:
        for name in NAMES:
            assert run(client, name, "head -c 1000000 /dev/urandom > kept") == 0
        backups = [create_backup(client, name) for name in NAMES[:3]]

        assert run(client, "a", way.command) != 0
        with way.fill(disk):
            tells_the_truth(client)
            refuses_what_needs_room(client)
            assert client.delete(f"/v1/backup/{backups[0]['id']}").status_code == 204
            with way.fill(disk):
                assert client.delete("/v1/sandbox/b").status_code == 204
            assert run(client, "a", way.command) != 0  # the command takes freed space at once
            with way.fill(disk):
                assert client.delete("/v1/sandbox/unknown").status_code in (204, 404)
                assert client.delete("/v1/sandbox/a").status_code == 204
        assert run(client, "c", "cp kept copy") == 0
    in_good_order(service)

    with ExitStack() as fillers:
        fillers.enter_context(way.fill(disk))
        with running(home, data_dir, env=env) as service, service.client() as client:
            fillers.enter_context(way.fill(disk))
            assert service.client_env["RAY_ADDRESS"]
            tells_the_truth(client)
            for backup in backups[1:]:
                assert client.delete(f"/v1/backup/{backup['id']}").status_code == 204
                fillers.enter_context(way.fill(disk))
            for name in ("c", "d", "e"):  # asleep; more sandboxes than there are warm workers
                assert client.delete(f"/v1/sandbox/{name}").status_code == 204
                fillers.enter_context(way.fill(disk))
            assert client.get("/v1/sandbox").json()["sandboxes"] == []
            fillers.close()
            assert run(client, "a", "echo > works") == 0
        in_good_order(service)
        fillers.enter_context(way.fill(disk))
        with running(home, data_dir, env=env) as service:
            pass
        in_good_order(service)


def run(client: httpx.Client, box: str, script: str) -> int:
    """Runs a shell command in a sandbox; returns its exit status."""
    answer = client.post(f"/v1/sandbox/{box}/exec", json={"argv": ["sh", "-c", script]})
    assert answer.status_code == 200 and '"exit_code"' in answer.text, answer.text
    return int(answer.text.rpartition('"exit_code": ')[2].partition("}")[0])


def create_backup(client: httpx.Client, box: str) -> dict[str, str]:
    answer = client.post(f"/v1/sandbox/{box}/backup", json={"dir": "/workspace"})
    assert answer.status_code == 200, answer.text
    handle: dict[str, str] = answer.json()
    return handle


def tells_the_truth(client: httpx.Client) -> None:
    """Checks that the service works and reports what does not."""
    assert client.get("/health").status_code == 200
    ready = client.get("/ready")
    assert ready.status_code == 200 and "full" in " ".join(ready.json()["warnings"]), ready.text


def refuses_what_needs_room(client: httpx.Client) -> None:
    """Checks that a write and a backup are refused, and that the error names the full disk."""
    write = client.put("/v1/sandbox/c/file/workspace/new", content=b"0" * 100_000)
    assert (write.status_code, write.json()["code"]) == (507, "NO_SPACE"), write.text
    backup = client.post("/v1/sandbox/c/backup", json={"dir": "/workspace"})
    assert backup.status_code == 500 and backup.json()["context"]["reason"] in ("NO_SPACE", "STORE_FULL"), backup.text


def in_good_order(service: Service) -> None:
    """Checks that the service has ended by itself, and has logged nothing that looks like a crash."""
    assert service.process.returncode == 0, f"{service.stdout.read_text()}\n{service.stderr.read_text()}"[-5000:]
    assert "Traceback" not in service.stderr.read_text()
