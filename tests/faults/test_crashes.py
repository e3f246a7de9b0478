"""kill -9 before and after every step of a backup and of a restore; then a fresh sandbox over the same folder works."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from actors.errors import BackupNotFoundError
from actors.models import DirectoryBackup, RestoreMode
from actors.node import mountinfo
from storage import keys
from storage.errors import ObjectMissingError
from tests.support.mount_leaks import loop_devices, wait_until
from tests.support.sandboxes import Node, backup, crash, described, restore, sh

STEPS = '''
import os, signal, sys

class Killer:
    """Ends this process at once, before or after the nth call of one of the methods it wraps."""

    def __init__(self, wrapped, at, when, only):
        self._wrapped, self._at, self._when, self._only, self._count = wrapped, int(at), when, only, 0

    def __getattr__(self, name):
        value = getattr(self._wrapped, name)
        if name not in self._only:
            return value

        def call(*args, **options):
            self._count += 1
            hit = self._count == self._at
            if hit and self._when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = value(*args, **options)
            if hit:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    def __setattr__(self, name, value):
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            setattr(self._wrapped, name, value)
'''

CREATE = (
    STEPS
    + """
from tests.support.s3 import FAST
from tests.support.sandboxes import backup, from_description
from storage.s3 import S3ObjectStore
told, method, when, number = sys.argv[1:]
node = from_description(told)
if method in ("create",):
    box = node.sandbox("crashing")
    box._archiver = Killer(box._archiver, number, when, {method})
else:
    store = S3ObjectStore(node.bucket, transfer=FAST)
    node.sandbox("crashing").close()
    box = node.sandbox("crashing", catalog=node.catalog(Killer(store, number, when, {method})))
print("ready", flush=True)
backup(box)
print("survived", flush=True)
"""
)

CREATE_STEPS = [
    (method, when, number)
    for method, times in (("create", 1), ("create_upload", 1), ("presign_part", 2), ("complete_upload", 1))
    for number in range(1, times + 1)
    for when in ("before", "after")
]


@pytest.mark.parametrize(("method", "when", "number"), CREATE_STEPS)
def test_a_crash_at_any_step_of_a_backup_leaves_a_whole_backup_or_none(
    kernel_node: Node, method: str, when: str, number: int
) -> None:
    node = kernel_node
    first = node.sandbox("crashing")
    sh(first, "rm -rf *; head -c 7000000 /dev/urandom > large; echo x > small")
    expected = sh(first, "sha256sum large small")
    first.close()
    before = node.keys()
    ended = crash(CREATE, described(node), method, when, str(number))
    assert ended.stdout == "ready\n", ended.stderr
    assert ended.status == -signal.SIGKILL
    again = node.sandbox("crashing")
    assert sh(again, "sha256sum large small") == expected
    assert not (node.home("crashing") / "spool").exists()
    new = node.keys() - before
    committed = {key.split("/")[1] for key in new if key.endswith("meta.json")}
    archived = {key.split("/")[1] for key in new if key.endswith("data.sqsh")}
    assert committed <= archived
    assert not committed
    for backup_id in archived - committed:
        with pytest.raises(BackupNotFoundError):
            restore(again, DirectoryBackup(id=backup_id, dir="/workspace"))
    for backup_id in committed:
        restore(again, DirectoryBackup(id=backup_id, dir="/workspace"), "/tmp/again", "copy")
        assert sh(again, "sha256sum large small", cwd="/tmp/again") == expected
    handle = backup(again)
    restore(again, handle)
    assert sh(again, "sha256sum large small") == expected
    for backup_id in archived:
        node.catalog().store.delete(keys.metadata(backup_id))
        node.catalog().store.delete(keys.archive(backup_id))


RESTORE = (
    STEPS
    + """
import json
from actors.models import DirectoryBackup
from actors.restored import RestoredDirectories
from tests.support.sandboxes import from_description, restore
told, handle, mode, victim, method, when = sys.argv[1:]
node = from_description(told)
box = node.sandbox()
if victim == "module":
    import actors.restored
    real = getattr(actors.restored, method)
    killer = Killer(actors.restored, 1, when, {method})
    setattr(actors.restored, method, getattr(killer, method))
    killer._wrapped = type("Real", (), {method: staticmethod(real)})
elif victim == "record":
    real = box._restored

    class Crashing(RestoredDirectories):
        pass

    real.__class__ = Crashing
    killer = Killer(type("Real", (), {method: staticmethod(getattr(real, method))}), 1, when, {method})
    setattr(real, method, getattr(killer, method))
else:
    setattr(box, victim, Killer(getattr(box, victim), 1, when, {method}))
print("ready", flush=True)
restore(box, DirectoryBackup.model_validate_json(handle), mode=mode)
print("survived", flush=True)
"""
)

# The instant after one step is the instant before the next, so few of them need both.
OVERLAY_STEPS = [
    ("_cache", "obtain", "after"),
    ("_layers", "create", "after"),
    ("module", "unbind", "after"),
    ("module", "bind", "before"),
    ("module", "bind", "after"),
    ("record", "_commit", "before"),
    ("record", "_commit", "after"),
    ("record", "_discard", "after"),
]
COPY_STEPS = [
    ("_archiver", "extract", "before"),
    ("_archiver", "extract", "after"),
    ("module", "_exchange", "before"),
    ("module", "_exchange", "after"),
    ("record", "_commit", "after"),
    ("record", "_discard", "after"),
    ("record", "_remove_stage", "after"),
]


def check(
    node: Node, scratch: Path, mode: RestoreMode, victim: str, method: str, when: str, *, mounted_before: bool
) -> None:
    first = node.sandbox()
    sh(first, "mkdir data; echo old > data/one; echo old > data/two")
    old = backup(first, "/workspace/data")
    sh(first, "echo new > data/one; echo new > data/two")
    handle = backup(first, "/workspace/data")
    restore(first, old, mode="overlay" if mounted_before else "copy")
    first.close()
    for archive in node.layout.cache.glob(f"{handle.id}_*"):
        archive.unlink()
    ended = crash(RESTORE, described(node), handle.model_dump_json(), mode.value, victim, method, when)
    assert ended.stdout == "ready\n", ended.stderr
    assert ended.status == -signal.SIGKILL
    again = node.sandbox()
    content = sh(again, "cat data/one data/two; ls -A . data")
    assert content in (f"{word}\n{word}\n.:\ndata\n\ndata:\none\ntwo\n" for word in ("old", "new"))
    known = [entry for entry in again.info().restored if entry.mode == "overlay"]
    assert len(list(node.home("box").glob("layers/*"))) == len(known)
    assert len(list(node.home("box").glob("archives/*"))) == len(known)
    assert not (node.home("box") / "spool").exists()
    assert not (node.home("box") / "stage").exists()
    assert [path for path in node.layout.cache.iterdir() if path.name.endswith(".work")] == []
    assert len(mountinfo.mounts_under(node.tree(again))) == len(known)
    restore(again, handle, mode=mode)
    assert sh(again, "cat data/one data/two") == "new\nnew\n"
    again.close()
    assert mountinfo.mounts_under(scratch) == [] or node.driver.value == "kernel"
    again._layers.release_unused_lowers()
    assert mountinfo.mounts_under(scratch) == []
    assert wait_until(lambda: loop_devices(scratch) == [])


@pytest.mark.parametrize(("victim", "method", "when"), OVERLAY_STEPS)
def test_a_crash_at_any_step_of_a_restore_leaves_the_old_content_or_the_new(
    node: Node, scratch: Path, victim: str, method: str, when: str
) -> None:
    check(node, scratch, RestoreMode.OVERLAY, victim, method, when, mounted_before=True)


@pytest.mark.parametrize("mounted_before", [True, False])
@pytest.mark.parametrize(("victim", "method", "when"), COPY_STEPS)
def test_a_crash_at_any_step_of_a_copy_leaves_the_old_content_or_the_new(
    kernel_node: Node, scratch: Path, victim: str, method: str, when: str, *, mounted_before: bool
) -> None:
    check(kernel_node, scratch, RestoreMode.COPY, victim, method, when, mounted_before=mounted_before)


HALF_DOWNLOADED = """
import os, signal, sys
from tests.support.sandboxes import from_description, restore
from actors.models import DirectoryBackup
import actors.restore
node = from_description(sys.argv[1])
box = node.sandbox()

def killed(store, key, path, **options):
    path.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

actors.restore.download = killed
restore(box, DirectoryBackup.model_validate_json(sys.argv[2]))
"""


def test_a_half_downloaded_archive_is_removed_by_the_next_that_wakes(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    handle = backup(box)
    box.close()
    for archive in kernel_node.layout.cache.glob("*.sqsh"):
        archive.unlink()
    assert crash(HALF_DOWNLOADED, described(kernel_node), handle.model_dump_json()).status == -signal.SIGKILL
    assert list(kernel_node.layout.cache.glob(".*.work"))
    kernel_node.sandbox("other")
    assert list(kernel_node.layout.cache.glob(".*.work")) == []
    with pytest.raises(ObjectMissingError):
        kernel_node.catalog().get("default", handle.id[:-12] + "0" * 12)
