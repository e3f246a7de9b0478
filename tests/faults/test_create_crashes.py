"""kill -9 before and after every step of creating a backup; a new actor on the same files then works."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from actors.errors import BackupNotFoundError
from actors.models import BackupOptions, DirectoryBackup
from actors.sandbox.facade import LocalSandbox
from actors.sandbox.steps import CreateStep, Step
from storage.metadata import SandboxState
from tests.support.documents import committed
from tests.support.killing import STEP_LOG, observe_steps
from tests.support.mount_leaks import wait_until
from tests.support.sandboxes import Node, backup, crash, described, restore, sh, write
from tests.support.trees import MINUTES_OF_READING

PASSED = (
    CreateStep.HOLD,
    CreateStep.ARCHIVE,
    CreateStep.BEGIN,
    CreateStep.UPLOAD,
    CreateStep.CLAIM,
    CreateStep.COMMIT,
    CreateStep.CHECKPOINT,
    CreateStep.CACHE,
)
"""The steps of creating a backup, in order."""

CREATE = "tests.support.programs.create_killed_at_a_step"

UPLOAD = "tests.support.programs.create_killed_at_a_request"
# One part at a time, so that the earlier ones are in the bucket when the process dies at a later one.

ARCHIVE = "tests.support.programs.create_to_be_killed"


class Crashing:
    """A sandbox with acknowledged writes and an acknowledged backup, whose next backup will be interrupted."""

    def __init__(self, node: Node, *, large_bytes: int = 6_000_000) -> None:
        """By default, `large_bytes` makes the archive larger than one part, which has at least 5 MiB."""
        self.node = node
        box = node.sandbox("crashing")
        sh(box, f"head -c {large_bytes} /dev/urandom > large; echo x > small")
        self.expected = sh(box, "sha256sum large small")
        write(box, "/app/kept", "acknowledged")
        self.acknowledged = backup(box, "/app")
        box.close()
        self._before = node.keys()

    def run(self, program: str, *args: str) -> None:
        ended = crash(program, described(self.node), *args)
        assert ended.status == -signal.SIGKILL and "survived" not in ended.stdout, ended

    @property
    def state(self) -> SandboxState:
        return self.node.state("crashing")

    def made(self, directory: str) -> set[str]:
        """Ids of the backups of a directory that were committed since the start of the test."""
        ids = {key.split("/")[1] for key in self._new() if key.endswith("/meta.json")}
        return {row.id for row in committed(self.node.catalog(), ids) if row.dir == directory}

    def check_taken_up(self) -> LocalSandbox:
        """Opens the sandbox again, and checks that acknowledged writes are there and nothing else is left."""
        begun = self.state.pending
        committed = self.made("/workspace")
        box = self.node.sandbox("crashing")
        assert sh(box, "sha256sum large small") == self.expected
        for backup_id in set(begun) - committed:
            with pytest.raises(BackupNotFoundError):
                restore(box, DirectoryBackup(id=backup_id, dir="/workspace"))
        backup(box, "/app")  # waits for the epoch, and so for the pending backup to be settled
        self.check_nothing_is_left()
        assert self.made("/workspace") == committed
        for backup_id in set(begun) - committed:
            with pytest.raises(BackupNotFoundError):
                restore(box, DirectoryBackup(id=backup_id, dir="/workspace"))
        for backup_id in committed:
            self.check_backup(box, backup_id)
        restore(box, self.acknowledged)
        assert sh(box, "cat /app/kept") == "acknowledged"
        return box

    def check_nothing_is_left(self) -> None:
        node = self.node
        home = node.home("crashing")
        assert list((home / "spool").iterdir()) == []
        assert list(node.layout.cache.glob(".*.work")) == []
        assert node.mounts() == []
        assert wait_until(lambda: node.processes() == {}), node.processes()
        assert self.state.pending == []
        assert list(node.catalog().store.list_uploads("backups/")) == []
        for part in ("/data.sqsh", "/files.list"):
            there = {key.split("/")[1] for key in self._new() if key.endswith(part)}
            assert there == self.made("/workspace") | self.made("/app")

    def check_backup(self, box: LocalSandbox, backup_id: str) -> None:
        """Checks that the backup can be restored, is listed, and is the checkpoint."""
        restore(box, DirectoryBackup(id=backup_id, dir="/workspace"), "/tmp/again", "copy")
        assert sh(box, "sha256sum large small", cwd="/tmp/again") == self.expected
        assert backup_id in {row.id for row in self.node.catalog().page("default", "crashing").records}
        assert backup_id in {row.backup_id for row in self.state.checkpoints if row.dir == "/workspace"}

    def _new(self) -> set[str]:
        return self.node.keys() - self._before


# "After" a step is the same instant as "before" the next, so the second store is tried with "after" only.
@pytest.mark.parametrize(
    ("any_store", "when"), [("rclone", "before"), ("rclone", "after"), ("moto", "after")], indirect=["any_store"]
)
@pytest.mark.parametrize("step", CreateStep)
def test_a_crash_at_any_step_of_a_backup_leaves_it_whole_or_leaves_nothing(
    any_store: Node, step: CreateStep, when: str
) -> None:
    crashing, key = Crashing(any_store), uuid.uuid4().hex
    crashing.run(CREATE, "/workspace", key, step, when)
    committed = crashing.made("/workspace")
    is_committed = PASSED.index(step) + (when == "after") > PASSED.index(CreateStep.COMMIT)
    assert len(committed) == is_committed

    box = crashing.check_taken_up()

    repeated = box.create_backup(BackupOptions(dir="/workspace"), idempotency_key=key)
    assert crashing.made("/workspace") == {repeated.id}
    if is_committed:
        assert {repeated.id} == committed
    else:
        crashing.check_backup(box, repeated.id)


def test_a_backup_passes_every_step_in_order(kernel_node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[tuple[Step, str]] = []
    monkeypatch.setattr(STEP_LOG, "handlers", [])
    observe_steps(lambda step, when: passed.append((step, when)))
    backup(kernel_node.sandbox())
    assert passed == [(step, when) for step in PASSED for when in ("before", "after")]
    assert set(PASSED) == set(CreateStep)


@pytest.mark.parametrize(
    ("method", "when", "nth", "of", "is_committed"),
    [
        ("create_upload", "after", 1, "", False),
        ("presign_part", "before", 2, "", False),
        ("presign_part", "after", 3, "", False),
        ("complete_upload", "before", 1, "", False),
        ("complete_upload", "after", 1, "", False),
        ("put", "before", 1, "/files.list", False),
        ("put", "after", 1, "/files.list", False),
        ("put", "after", 1, "/meta.json", True),
    ],
)
def test_a_crash_during_the_upload_or_the_commit_leaves_a_whole_backup_or_nothing(
    any_store: Node, method: str, when: str, nth: int, of: str, *, is_committed: bool
) -> None:
    crashing = Crashing(any_store, large_bytes=11_000_000)
    crashing.run(UPLOAD, "/workspace", method, when, str(nth), of)
    assert len(crashing.made("/workspace")) == is_committed
    crashing.check_taken_up()


@pytest.mark.parametrize("any_store", ["moto"], indirect=True)
@pytest.mark.parametrize(
    ("method", "when", "nth", "of"),
    [
        ("put", "before", 2, "/state.json"),
        ("put", "after", 2, "/state.json"),
        ("create_upload", "after", 1, ""),
        ("presign_part", "after", 3, ""),
    ],
)
def test_a_crash_while_parts_are_sent_ahead_of_the_archives_end_leaves_nothing(
    any_store: Node, method: str, when: str, nth: int, of: str
) -> None:
    crashing = Crashing(any_store, large_bytes=32_000_000)
    minutes = any_store.home("crashing") / "root" / "workspace" / "minutes"
    with minutes.open("w") as file:
        file.truncate(MINUTES_OF_READING)
    crashing.run(UPLOAD, "/workspace", method, when, str(nth), of)
    minutes.unlink()
    assert wait_until(lambda: any_store.processes() == {}), any_store.processes()
    assert crashing.made("/workspace") == set()
    crashing.check_taken_up()


def test_a_crash_during_archiving_leaves_no_tool_and_no_paused_command(kernel_node: Node) -> None:
    crashing = Crashing(kernel_node)
    minutes = kernel_node.home("crashing") / "root" / "workspace" / "minutes"
    with minutes.open("w") as file:
        file.truncate(MINUTES_OF_READING)
    program = [sys.executable, "-m", ARCHIVE, described(kernel_node)]
    with subprocess.Popen(program, cwd=Path(__file__).parents[2]) as actor:
        assert wait_until(lambda: "mksquashfs" in kernel_node.processes().values())
        actor.kill()
    minutes.unlink()
    assert wait_until(lambda: kernel_node.processes() == {}), kernel_node.processes()
    crashing.check_taken_up()
