"""A sandbox's dependencies die under it: the S3 server, the archive tools, the FUSE daemons."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from actors.errors import BackupCreateError, BackupRestoreError, HoldfastError, MountLostError
from actors.models import DirectoryBackup, RestoreMode
from actors.node import mountinfo
from actors.node.drivers import Driver
from actors.sandbox.facade import LocalSandbox
from actors.sandbox.steps import CreateStep, RestoreStep
from storage import keys
from storage.embedded import EmbeddedS3
from storage.errors import StoreUnavailableError
from storage.s3 import S3ObjectStore
from tests.support.killing import STEP_LOG, Interrupted, act_at
from tests.support.mount_leaks import wait_until
from tests.support.s3 import ACCESS_KEY, BUCKET, FAST, SECRET_KEY
from tests.support.sandboxes import Background, Node, backup, command, described, read, restore, run, sh, write
from tests.support.service import eventually
from tests.support.trees import MINUTES_OF_READING

ONCE = FAST.model_copy(update={"attempts": 1, "concurrency": 1})
"""One attempt, so that no test waits for a dead server; and one part at a time."""


class MortalS3:
    """The embedded S3 server. It can be killed, and started again with the same folder and port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Below the kernel's ports for clients, so that no client takes it meanwhile.
        for port in random.sample(range(20_000, 32_000), 20):
            self._port = port
            with contextlib.suppress(StoreUnavailableError):
                self.start()
                break
        self.config = self._server.config

    def start(self) -> None:
        self._server = EmbeddedS3(
            self._folder,
            access_key=SecretStr(ACCESS_KEY),
            secret_key=SecretStr(SECRET_KEY),
            bucket=BUCKET,
            port=self._port,
        ).start()

    def kill(self) -> None:
        pid = self._server.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        self.stop()

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture
def server(scratch: Path) -> Iterator[MortalS3]:
    made = MortalS3(scratch / "s3")
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def on_mortal(scratch: Path, server: MortalS3, best_driver: Driver) -> Iterator[Node]:
    """A node whose S3 server can be killed."""
    with Node(scratch / "data", server.config, best_driver) as made:
        made.adjust(transfer=ONCE)
        yield made


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts the test without observers of steps, and removes its own at the end."""
    monkeypatch.setattr(STEP_LOG, "handlers", [])


def taken(node: Node, store: Any = None) -> LocalSandbox:
    """A sandbox with an epoch, over a store that makes one attempt by default."""
    box = node.sandbox(catalog=node.catalog(store or S3ObjectStore(node.bucket, transfer=ONCE)))
    box.ownership.change(lambda state: state)
    return box


def fill(box: LocalSandbox) -> str:
    return sh(box, "head -c 11000000 /dev/urandom > large; echo x > small; sha256sum large small")


def whole(node: Node) -> set[str]:
    """Ids of the backups in the bucket; fails if one of them is incomplete, or an archive is there for none."""
    found = node.keys()
    ids = {key.split("/")[1] for key in found if key.startswith(keys.BACKUPS_PREFIX)}
    records = [node.catalog().get("default", backup_id) for backup_id in ids]
    archives = {keys.archive(record.id) for record in records if not record.is_incremental}
    layers = {keys.layer("default", layer.sha256) for record in records for layer in record.layers or ()}
    assert {key for key in found if key.endswith(".sqsh")} == archives | layers
    return ids


def check_nothing_is_left(node: Node, expected: set[str]) -> None:
    home = node.home("box")
    assert whole(node) == expected
    assert list(node.catalog().store.list_uploads("")) == []
    assert node.state("box").pending == []
    assert list((home / "spool").iterdir()) == []
    assert list(node.layout.cache.glob(".*.work")) == []


def goes_on(node: Node, box: LocalSandbox, content: str, made: set[str]) -> None:
    """With the store back, checks that a new backup works and settles the failed one."""
    handle = backup(box)
    check_nothing_is_left(node, {handle.id, *made})
    for backup_id in (handle.id, *made):
        restore(box, DirectoryBackup(id=backup_id, dir="/workspace"), "/tmp/again", "copy")
        assert sh(box, "sha256sum large small", cwd="/tmp/again") == content


@pytest.mark.parametrize("step", CreateStep)
def test_a_backup_whose_store_dies_before_a_step_is_whole_or_nothing(
    on_mortal: Node, server: MortalS3, watched: None, step: CreateStep
) -> None:
    box = taken(on_mortal)
    content = fill(box)
    act_at(step, "before", server.kill)
    made = set()
    if step in (CreateStep.CHECKPOINT, CreateStep.CACHE):
        made = {backup(box).id}
    else:
        with pytest.raises(BackupCreateError) as raised:
            backup(box)
        assert raised.value.context["reason"] == "STORAGE_UNAVAILABLE"
    assert sh(box, "sha256sum large small") == content
    server.start()
    goes_on(on_mortal, box, content, made)


@pytest.mark.parametrize(
    ("method", "when", "nth"),
    [("create_upload", "after", 1), ("presign_part", "before", 2), ("complete_upload", "after", 1)],
)
def test_a_backup_whose_store_dies_during_the_upload_leaves_nothing(
    on_mortal: Node, server: MortalS3, method: str, when: str, nth: int
) -> None:
    store = S3ObjectStore(on_mortal.bucket, transfer=ONCE)
    box = taken(on_mortal, Interrupted(store, method, when, nth, act=server.kill))
    content = fill(box)
    with pytest.raises(BackupCreateError) as raised:
        backup(box)
    assert raised.value.context["reason"] == "STORAGE_UNAVAILABLE"
    server.start()
    goes_on(on_mortal, box, content, set())


def test_a_backup_whose_store_restarts_during_the_upload_succeeds(on_mortal: Node, server: MortalS3) -> None:
    def restart() -> None:
        server.kill()
        server.start()

    patient = {"attempts": 100, "backoff_initial_s": 0.1, "backoff_max_s": 0.5}
    on_mortal.adjust(transfer=FAST.model_copy(update=patient))
    store = S3ObjectStore(on_mortal.bucket, transfer=FAST)
    box = taken(on_mortal, Interrupted(store, "presign_part", "before", 2, act=restart))
    content = fill(box)
    made = backup(box)
    goes_on(on_mortal, box, content, {made.id})


def restorable(node: Node, box: LocalSandbox) -> tuple[DirectoryBackup, str]:
    """A backup of the sandbox's former content, which the node has not cached."""
    content = fill(box)
    handle = backup(box)
    sh(box, "rm large small; echo other > small")
    for archive in node.layout.cache.glob("*.sqsh"):
        archive.unlink()
    return handle, content


@pytest.mark.parametrize("step", RestoreStep)
def test_a_restore_whose_store_dies_before_a_step_changes_everything_or_nothing(
    on_mortal: Node, server: MortalS3, watched: None, step: RestoreStep
) -> None:
    box = taken(on_mortal)
    handle, content = restorable(on_mortal, box)
    act_at(step, "before", server.kill)
    if step in (RestoreStep.METADATA, RestoreStep.FETCH):
        with pytest.raises(BackupRestoreError) as raised:
            restore(box, handle)
        assert raised.value.context["reason"] == "STORAGE_UNAVAILABLE"
        assert sh(box, "cat small; ls") == "other\nsmall\n"
        server.start()
        restore(box, handle)
    else:
        restore(box, handle)
        server.start()
    assert sh(box, "sha256sum large small") == content
    box.ownership.change(lambda state: state)
    check_nothing_is_left(on_mortal, {handle.id})
    assert [row.backup_id for row in on_mortal.state("box").restored] == [handle.id]


@pytest.mark.parametrize("mode", RestoreMode)
def test_a_restore_whose_store_dies_during_the_download_changes_nothing(
    on_mortal: Node, server: MortalS3, mode: RestoreMode
) -> None:
    store = S3ObjectStore(on_mortal.bucket, transfer=ONCE)
    box = taken(on_mortal, Interrupted(store, "presign_get", "before", 2, act=server.kill))
    handle, content = restorable(on_mortal, box)
    with pytest.raises(BackupRestoreError) as raised:
        restore(box, handle, mode=mode)
    assert raised.value.context["reason"] == "STORAGE_UNAVAILABLE"
    assert sh(box, "cat small; ls -A") == "other\nsmall\n"
    server.start()
    check_nothing_is_left(on_mortal, {handle.id})
    restore(box, handle, mode=mode)
    assert sh(box, "sha256sum large small") == content


def tool(node: Node, name: str) -> int | None:
    return next((pid for pid, found in node.processes().items() if found == name), None)


def test_a_backup_whose_mksquashfs_is_killed_leaves_nothing_and_resumes_commands(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    before = kernel_node.keys()
    minutes = kernel_node.tree(box) / "workspace" / "minutes"
    with command(box, "echo started; until [ -e go ]; do sleep 0.05; done; echo went on") as running:
        with minutes.open("w") as file:
            file.truncate(MINUTES_OF_READING)
        making = Background(lambda: backup(box))
        pid = eventually(lambda: tool(kernel_node, "mksquashfs"))
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        error = making.error()
        assert isinstance(error, BackupCreateError) and error.context["reason"] == "TOOL_KILLED"
        assert not running.ended
        minutes.unlink()
        write(box, "/workspace/go", "")
        assert running.result().stdout == b"started\nwent on\n"
    assert list((kernel_node.home("box") / "spool").iterdir()) == []
    assert {key for key in kernel_node.keys() - before if key.startswith("backups/")} == set()
    restore(box, backup(box))
    assert sh(box, "ls") == "go\n"


def test_a_restore_in_copy_mode_whose_unsquashfs_is_killed_changes_nothing(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "mkdir many; cd many; seq 15000 | xargs touch")
    handle = backup(box)
    sh(box, "rm -r many; echo other > small")
    killed = False
    while not killed:  # unsquashfs is quick: try again if it ended before we saw it
        restoring = Background(lambda: restore(box, handle, mode=RestoreMode.COPY))
        while not restoring.ended:
            pid = tool(kernel_node, "unsquashfs")
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        error = restoring.error()
        killed = error is not None
        if not killed:
            sh(box, "rm -r many; echo other > small")
    assert isinstance(error, BackupRestoreError) and error.context["reason"] == "TOOL_KILLED"
    assert sh(box, "cat small; ls -A") == "other\nsmall\n"
    assert list((kernel_node.home("box") / "spool").iterdir()) == []
    assert not (kernel_node.home("box") / "stage").exists()
    restore(box, handle, mode=RestoreMode.COPY)
    assert sh(box, "ls many | wc -l; ls -A") == "15000\nmany\n"


DAEMONS = [
    pytest.param(Driver.MIXED, ("squashfuse_ll",), id="mixed"),
    pytest.param(Driver.FUSE, ("squashfuse_ll",), id="fuse-archive"),
    pytest.param(Driver.FUSE, ("fuse-overlayfs",), id="fuse-overlay"),
    pytest.param(Driver.FUSE, ("squashfuse_ll", "fuse-overlayfs"), id="fuse-both"),
]


def served(box: LocalSandbox) -> None:
    """A restored directory with writes over files of the archive and beside them."""
    sh(box, "mkdir -p data/inner; echo 1 > data/a; echo 2 > data/inner/b")
    restore(box, backup(box, "/workspace/data"))
    sh(box, "echo 3 > data/c; echo 4 > data/inner/b; rm data/a")
    write(box, "/workspace/data/d", "5\n")


CONTENT = "3\n5\n4\n.:\nc\nd\ninner\n\ninner:\nb\n"
SHOW = "cat c d inner/b; ls . inner"


def kill_daemons(node: Node, victims: tuple[str, ...]) -> None:
    doomed = [pid for pid, name in node.processes().items() if name in victims]
    assert len(doomed) == len(victims)
    for pid in doomed:
        with contextlib.suppress(ProcessLookupError):  # one daemon may end when the other does
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("driver", "victims"), DAEMONS, indirect=["driver"])
def test_calls_after_a_daemons_death_find_every_write_or_fail(node: Node, victims: tuple[str, ...]) -> None:
    box = node.sandbox()
    served(box)
    kill_daemons(node, victims)
    calls: dict[str, Callable[[], object]] = {
        "exec": lambda: sh(box, SHOW, cwd="/workspace/data") == CONTENT,
        "exec from elsewhere": lambda: run(box, "sh", "-c", f"cd /workspace/data; {SHOW}", cwd="/tmp"),
        "read": lambda: read(box, "/workspace/data/d") == b"5\n",
        "list": lambda: {row.name for row in box.list_files("/workspace/data")} == {"c", "d", "inner"},
        "write": lambda: write(box, "/workspace/data/d", "5\n"),
        "backup": lambda: backup(box, "/workspace/data"),
    }
    for name, call in calls.items():
        try:
            result = call()
        except HoldfastError as e:
            assert "endpoint" not in f"{e.message} {e.hint} {e.context}", name
        else:
            assert result is not False, name
            assert "endpoint" not in str(result), name
    assert wait_until(lambda: box.is_awake)
    assert sh(box, SHOW, cwd="/workspace/data") == CONTENT
    handle = backup(box, "/workspace/data")
    restore(box, handle)
    assert sh(box, SHOW, cwd="/workspace/data") == CONTENT


@pytest.mark.parametrize(("driver", "victims"), DAEMONS, indirect=["driver"])
def test_a_command_that_a_dead_mount_ended_gets_an_error(node: Node, victims: tuple[str, ...]) -> None:
    box = node.sandbox()
    served(box)
    script = "echo started; until [ -e /tmp/go ]; do sleep 0.02; done; cat /workspace/data/c"
    with command(box, script) as running:
        with box.parts.tree_lock.shared():  # so that it ends by itself before the layer is mounted again
            kill_daemons(node, victims)
            assert wait_until(lambda: box.parts.layers.has_lost)
            (node.tree(box) / "tmp" / "go").touch()
            assert wait_until(lambda: running.ended)
        assert isinstance(running.error(), MountLostError)
    assert wait_until(lambda: not box.parts.layers.has_lost)
    assert sh(box, SHOW, cwd="/workspace/data") == CONTENT


ACTOR = "tests.support.programs.awake_until_killed"


@pytest.mark.parametrize(("driver", "victims"), DAEMONS, indirect=["driver"])
def test_a_sandbox_whose_actor_and_daemons_died_recovers_every_write(node: Node, victims: tuple[str, ...]) -> None:
    argv = [sys.executable, "-m", ACTOR, described(node)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as actor:
        assert actor.stdout is not None
        assert any(line == b"ready\n" for line in actor.stdout)
        actor.send_signal(signal.SIGSTOP)  # so that it cannot mount the layer again
        kill_daemons(node, victims)
        actor.kill()
    dead = [mount for mount in mountinfo.mounts_under(node.data_dir) if mountinfo.probe(mount.point, timeout_s=5)]
    assert dead
    box = node.sandbox()
    assert sh(box, SHOW, cwd="/workspace/data") == CONTENT
    restore(box, backup(box, "/workspace/data"))
    assert sh(box, SHOW, cwd="/workspace/data") == CONTENT
