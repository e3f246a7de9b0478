"""Sandboxes outlive their actors: killed, overloaded, or asleep with no files on the node."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.acceptance.http_box import HttpBox, refusal
from tests.support.drivers import reported
from tests.support.mount_leaks import wait_until
from tests.support.service import Service, eventually, running, workers
from tests.support.trees import MINUTES_OF_READING

DRIVERS = Path(__file__).parent / "drivers"
CALLS = 1000
MOST_MEMORY_BYTES = 600 * 2**20
"""Memory limit for one sandbox's actor: about 200 MB for a Ray worker and its imports, and a reserve."""
SANDBOX = b"ray::SandboxHost"


def actor_of(service: Service, make: Callable[[], object]) -> int:
    """Returns the pid of the actor that `make` has created."""
    before = set(workers(service, SANDBOX))
    make()
    (made,) = set(workers(service, SANDBOX)) - before
    return made


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_calls_after_an_actor_was_killed_are_served_and_nothing_is_lost(service: Service, box: HttpBox) -> None:
    actor = actor_of(service, lambda: box.write("/workspace/file", b"backed up"))
    box.restore(box.backup())
    box.write("/workspace/later", b"written over the restore")
    kill(actor)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda _: box.read("/workspace/later"), range(8)))
    assert read == [b"written over the restore"] * 8
    assert box.read("/workspace/file") == b"backed up"
    assert box.sh("cat later") == "written over the restore"
    kinds = [event["kind"] for event in box.client.get(f"{box.url}/events").json()["events"]]
    assert kinds[::-1][:3] == ["created", "backed_up", "restored"]


def test_the_input_of_a_command_whose_actor_was_killed_is_a_known_error(service: Service, box: HttpBox) -> None:
    actor = actor_of(service, lambda: box.write("/workspace/file", b"kept"))
    running = box.taking_input("cat")

    def dying() -> Iterator[bytes]:
        yield b"read"
        running.said(b"read")
        kill(actor)
        yield b"not read"

    sent = running.feed(dying())

    assert refusal(sent) in ((503, "SANDBOX_UNAVAILABLE"), (404, "COMMAND_NOT_FOUND"))
    assert (running.result().error or {})["code"] == "SANDBOX_UNAVAILABLE"
    assert box.read("/workspace/file") == b"kept"


def test_an_actor_that_was_killed_wakes_its_sandbox_without_a_call(service: Service, box: HttpBox) -> None:
    actor = actor_of(service, lambda: box.write("/workspace/file", b"backed up"))
    box.restore(box.backup())
    box.write("/workspace/later", b"written over the restore")
    before = box.client.get(box.url).json()["epoch"]
    kill(actor)
    eventually(lambda: box.client.get(box.url).json().get("epoch", 0) > before)
    assert service.node_path(box.id, "/workspace/later").read_bytes() == b"written over the restore"


def test_an_interrupted_backup_is_an_error_and_its_idempotency_key_still_makes_one_backup(
    service: Service, box: HttpBox
) -> None:
    actor = actor_of(service, lambda: box.sh(f"truncate -s {MINUTES_OF_READING} hole; echo kept > file"))
    key = {"Idempotency-Key": uuid.uuid4().hex}

    def interrupted() -> tuple[int, str, str, str | None]:
        with service.client() as client:
            answer = client.post(f"{box.url}/backup", json={"dir": "/workspace"}, headers=key)
            context = answer.json()["context"]
            return answer.status_code, answer.json()["code"], context["outcome"], answer.headers.get("Retry-After")

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(interrupted)
        eventually(lambda: (box.client.get(f"{box.url}/operation").json() or {}).get("phase") == "compressing")
        kill(actor)
        status, code, outcome, retry_after = call.result()
    assert (status, code, outcome) == (503, "SANDBOX_UNAVAILABLE", "unknown")
    assert retry_after is not None
    box.sh("rm hole")
    first = box.client.post(f"{box.url}/backup", json={"dir": "/workspace"}, headers=key).json()
    again = box.client.post(f"{box.url}/backup", json={"dir": "/workspace"}, headers=key).json()
    assert first == again
    listed = box.client.get(f"{box.url}/backups").json()["backups"]
    assert [row["id"] for row in listed] == [first["id"]]
    assert not list((service.data_dir / "node" / "boxes" / "default" / box.id / "spool").glob("*"))


def test_a_thousand_calls_at_once_are_served_up_to_the_limit_and_else_refused(
    service: Service, record_property: Callable[[str, object], None]
) -> None:
    said = reported(DRIVERS / "many_at_once.py", CALLS, home=service.home, env=service.client_env, timeout_s=500)
    record_property("ended", said["ended"])
    assert said["ended"].keys() == {"served", "refused"}
    assert sum(said["ended"].values()) == CALLS
    assert said["ended"]["served"] >= 64
    assert said["written"] == said["served"]
    assert said["twice"] == []
    assert said["later"] == "served"


def test_an_actor_under_many_simultaneous_calls_stays_small(service: Service, box: HttpBox) -> None:
    actor = actor_of(service, lambda: box.sh("true"))
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda number: box.exec("echo", str(number)), range(512)))
    assert len(answers) == 512
    status = Path(f"/proc/{actor}/status").read_text()
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak < MOST_MEMORY_BYTES


@pytest.mark.timeout(600)
def test_a_sandbox_asleep_in_the_bucket_leaves_no_files_on_its_node_and_wakes_complete(
    tmp_path: Path,
) -> None:
    env = {"HOLDFAST_ON_SLEEP": "backup", "HOLDFAST_SLEEP_AFTER_S": "1"}
    with running(tmp_path / "home", tmp_path / "data", env=env) as service, service.client() as client:
        box = HttpBox(client, "light")
        boxes = tmp_path / "data" / "node" / "boxes"

        def is_asleep() -> bool:
            return not client.get(f"/v1/sandbox/{box.id}/running").json()["awake"]

        box.sh("mkdir -p a/b; echo one > a/b/file; chmod 640 a/b/file; echo home > ~/file; ln -s a link")
        mine = box.backup("/workspace/a")
        for night in range(2):
            assert wait_until(is_asleep, timeout_s=120)
            assert list(boxes.glob("*/*")) == [], "it keeps its files on the node"
            assert box.sh("cat link/b/file ~/file; stat -c %a a/b/file; ls") == "one\nhome\n640\na\nlink\n" + (
                "night-0\n" if night else ""
            )
            box.sh(f"touch night-{night}")
        assert wait_until(is_asleep, timeout_s=120)
        names = [row.get("name") for row in client.get(f"{box.url}/backups").json()["backups"]]
        assert names.count("asleep") == 2, "one for /workspace and one for /home, of the last night"
        kinds = [event["kind"] for event in client.get(f"{box.url}/events").json()["events"]]
        assert kinds.count("slept") >= 3  # more often on a slow machine
        assert client.delete(box.url).status_code == 204
        left = client.get(f"{box.url}/backups").json()["backups"]
        assert [row["id"] for row in left] == [mine["id"]]
