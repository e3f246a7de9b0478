"""A restore or a backup that fails at any step changes nothing and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import pytest

from actors.errors import (
    BackupCreateError,
    BackupExpiredError,
    BackupNotFoundError,
    BackupRestoreError,
    HoldfastError,
    InvalidBackupConfigError,
    OperationCancelledError,
)
from actors.models import DirectoryBackup, RestoreMode
from actors.node import mountinfo, mounting
from actors.node.archiver import Archiver
from actors.node.binds import bind
from actors.node.drivers import Driver
from actors.sandbox.facade import LocalSandbox
from storage import keys
from storage.catalog import BackupCatalog, UnusableBackup
from storage.errors import StoreUnavailableError
from storage.s3 import S3ObjectStore
from tests.support.held_store import AwayStore
from tests.support.killing import Interrupted
from tests.support.mount_leaks import children, loop_devices, losses_in_hand, wait_until
from tests.support.s3 import FAST, fault_proxy
from tests.support.sandboxes import (
    SIGNING_KEY,
    Background,
    Node,
    backup,
    command,
    read,
    restore,
    run,
    sh,
    write,
)
from tests.support.service import files_below
from tests.support.trees import MINUTES_OF_READING, Entry, fingerprint

MODES = list(RestoreMode)


def files_under(folder: Path) -> set[str]:
    """Returns the paths of files on the node's disk, without the content of trees and the service's empty folders."""
    return {
        str(path.relative_to(folder))
        for path in files_below(folder)
        if not {"root", "merged", "lower", "upper", "work", "locks"} & set(path.parts)
    }


def undated(tree: Path) -> dict[bytes, Entry]:
    """A tree without the times of its directories, which a temporary name in them changes."""
    found = fingerprint(tree)
    return {name: replace(row, mtime_s=0) if stat.S_ISDIR(row.kind) else row for name, row in found.items()}


@contextmanager
def nothing_changes(node: Node, sandbox: LocalSandbox) -> Iterator[None]:
    """Fails if the block changes the sandbox's tree, record, mounts, daemons, layers or files on the node."""

    def state() -> tuple[object, ...]:
        return (
            undated(node.tree(sandbox)),
            sorted(str(mount.point) for mount in mountinfo.mounts_under(node.data_dir)),
            sorted(loop_devices(node.data_dir)),
            sorted(children().values()),
            sandbox.info().restored,
            {name for name in files_under(node.layout.root) if not name.startswith("cache/")},
        )

    before = state()
    yield
    assert wait_until(lambda: state() == before), state()


def prepare(node: Node) -> tuple[LocalSandbox, DirectoryBackup]:
    """A sandbox with a restored directory that was changed, and a backup from before the change."""
    node.adjust(restore_unsigned=True)
    box = node.sandbox()
    sh(box, "mkdir data; echo original > data/file")
    handle = backup(box, "/workspace/data")
    restore(box, handle)
    sh(box, "echo changed > data/file; echo more > data/more")
    return box, handle


@pytest.fixture
def prepared(kernel_node: Node) -> tuple[LocalSandbox, DirectoryBackup]:
    return prepare(kernel_node)


def damage_archive(node: Node, handle: DirectoryBackup) -> None:
    store = node.catalog().store
    data = bytearray(store.get(keys.archive(handle.id)).data)
    data[len(data) // 2] ^= 1
    store.put(keys.archive(handle.id), bytes(data))


def lose_archive(node: Node, handle: DirectoryBackup) -> None:
    node.catalog().store.delete(keys.archive(handle.id))


def lose_metadata(node: Node, handle: DirectoryBackup) -> None:
    node.catalog().store.delete(keys.metadata(handle.id))


def damage_metadata(node: Node, handle: DirectoryBackup) -> None:
    node.catalog().store.put(keys.metadata(handle.id), b'{"id": 7')


def tampered(**changes: object) -> Callable[[Node, DirectoryBackup], None]:
    """Changes a backup's metadata without our key, as anyone with access to the bucket can; None removes a field."""

    def act(node: Node, handle: DirectoryBackup) -> None:
        key, store = keys.metadata(handle.id), node.catalog().store
        said = {**json.loads(store.get(key).data), **changes}
        store.put(key, json.dumps({name: value for name, value in said.items() if value is not None}).encode())

    return act


def swap_archive(node: Node, handle: DirectoryBackup) -> None:
    """Swaps in another backup's archive, with metadata made to fit."""
    other = backup(node.sandbox("other"), "/home")
    store = node.catalog().store
    data = store.get(keys.archive(other.id)).data
    store.put(keys.archive(handle.id), data)
    tampered(sizeBytes=len(data), sha256=sha256(data).hexdigest(), parts=None, partBytes=None, etag=None)(node, handle)


def not_an_archive(node: Node, handle: DirectoryBackup) -> None:
    """A foreign backup of bytes that are no archive: nothing describes them but their size."""
    data = os.urandom(50_000)
    text = (
        f'{{"id":"{handle.id}","dir":"/workspace/data","name":null,"sizeBytes":{len(data)},"ttl":259200,'
        f'"createdAt":"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.000Z}"}}'
    )
    store = node.catalog().store
    store.put(keys.archive(handle.id), data)
    store.put(keys.metadata(handle.id), text.encode())


DAMAGE: dict[str, tuple[Callable[[Node, DirectoryBackup], None], type[HoldfastError], str | None]] = {
    "one flipped bit": (damage_archive, BackupRestoreError, "CORRUPT_ARCHIVE"),
    "no archive": (lose_archive, BackupNotFoundError, None),
    "no metadata": (lose_metadata, BackupNotFoundError, None),
    "damaged metadata": (damage_metadata, BackupRestoreError, "CORRUPT_METADATA"),
    "a longer time to live": (tampered(ttl=1e9), BackupRestoreError, "TAMPERED_METADATA"),
    "another tenant's": (tampered(tenant="other"), BackupRestoreError, "TAMPERED_METADATA"),
    "another directory's": (tampered(dir="/home"), BackupRestoreError, "TAMPERED_METADATA"),
    "no signature": (tampered(signature=None), BackupRestoreError, "TAMPERED_METADATA"),
    "another archive": (swap_archive, BackupRestoreError, "TAMPERED_METADATA"),
    "another's metadata": (tampered(id=str(uuid.UUID(int=1))), BackupRestoreError, "TAMPERED_METADATA"),
    "a later release's": (tampered(version=3), BackupRestoreError, "NEWER_DOCUMENT"),
    "not an archive": (not_an_archive, BackupRestoreError, "BAD_ARCHIVE"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_backup_changes_nothing(
    kernel_node: Node, prepared: tuple[LocalSandbox, DirectoryBackup], damage: str, mode: RestoreMode
) -> None:
    box, handle = prepared
    act, kind, reason = DAMAGE[damage]
    act(kernel_node, handle)
    for archive in kernel_node.layout.cache.glob("*.sqsh"):
        archive.unlink()
    with command(box, "echo ready; exec sleep 60") as running:
        with nothing_changes(kernel_node, box), pytest.raises(kind) as raised:
            restore(box, handle, mode=mode)
        assert type(raised.value) is kind
        assert raised.value.context.get("reason") == reason
        assert str(kernel_node.data_dir) not in f"{raised.value.message} {raised.value.hint} {raised.value.context}"
        assert not running.ended, "a backup that cannot be restored costs no command"
    assert sorted(os.listdir(kernel_node.layout.cache)) == ["locks"]
    assert box.info().recent[-1].outcome == kind.code


def test_an_expired_backup_cannot_be_revived_by_a_change_in_the_bucket(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "mkdir data; echo old > data/file")
    handle = backup(box, "/workspace/data", ttl=10)
    tampered(ttl=1e9)(kernel_node, handle)
    fork = kernel_node.sandbox("fork")
    for sandbox in (box, fork):
        with nothing_changes(kernel_node, sandbox), pytest.raises(BackupRestoreError) as raised:
            restore(sandbox, handle)
        assert raised.value.context == {"reason": "TAMPERED_METADATA"}
    listed = [row for row in kernel_node.catalog().page("default", box.id).rows if isinstance(row, UnusableBackup)]
    assert handle.id in [row.entry.backup_id for row in listed]


def test_an_unsigned_backup_is_refused_with_a_hint(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "mkdir data")
    handle = backup(box, "/workspace/data")
    not_an_archive(kernel_node, handle)
    with nothing_changes(kernel_node, box), pytest.raises(BackupRestoreError) as raised:
        restore(box, handle)
    assert raised.value.context == {"reason": "UNSIGNED_METADATA"}
    assert f"holdfast adopt {handle.id}" in str(raised.value.hint)
    assert "HOLDFAST_RESTORE_UNSIGNED" in str(raised.value.hint)


def test_an_archive_that_is_gone_from_the_bucket_is_not_restored_from_the_cache(
    kernel_node: Node, prepared: tuple[LocalSandbox, DirectoryBackup]
) -> None:
    box, handle = prepared
    lose_archive(kernel_node, handle)
    with nothing_changes(kernel_node, box), pytest.raises(BackupNotFoundError):
        restore(box, handle)


@pytest.mark.parametrize("mode", MODES)
def test_an_expired_backup_changes_nothing(
    kernel_node: Node, prepared: tuple[LocalSandbox, DirectoryBackup], mode: RestoreMode
) -> None:
    box, _ = prepared
    short = backup(box, "/workspace/data", ttl=100)

    def clock() -> datetime:
        return datetime.now(UTC) + timedelta(seconds=41)

    late = kernel_node.sandbox(
        "late", catalog=BackupCatalog(S3ObjectStore(kernel_node.bucket, transfer=FAST), SIGNING_KEY, clock)
    )
    with nothing_changes(kernel_node, late), pytest.raises(BackupExpiredError):
        restore(late, short, mode=mode)
    restore(box, short, mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_another_tenants_backup_looks_like_a_missing_one(kernel_node: Node, mode: RestoreMode) -> None:
    owner, thief = kernel_node.sandbox("owner", tenant="one"), kernel_node.sandbox("thief", tenant="two")
    write(owner, "/workspace/secret", "secret")
    handle = backup(owner)
    messages = []
    for wanted in (handle, DirectoryBackup(id=str(uuid.uuid4()), dir="/workspace")):
        with nothing_changes(kernel_node, thief), pytest.raises(BackupNotFoundError) as raised:
            restore(thief, wanted, mode=mode)
        messages.append(raised.value.message)
    assert len(set(messages)) == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_busy_target_is_left_as_it_was(node: Node, mode: RestoreMode, monkeypatch: pytest.MonkeyPatch) -> None:
    box, handle = prepare(node)
    monkeypatch.setattr("actors.sandbox.overlays._UNMOUNT_S", 0.2)
    with nothing_changes(node, box):
        with (
            (node.tree(box) / "workspace" / "data" / "file").open(),
            pytest.raises(BackupRestoreError) as raised,
        ):
            restore(box, handle, mode=mode)
        assert raised.value.context["reason"] == "MOUNT_FAILED"
    restore(box, handle, mode=mode)
    assert read(box, "/workspace/data/file") == b"original\n"


@pytest.mark.parametrize("mode", MODES)
def test_a_record_that_cannot_be_written_leaves_the_old_content(node: Node, mode: RestoreMode) -> None:
    box, handle = prepare(node)
    obstacle = node.home("box") / "sandbox.new"
    with nothing_changes(node, box):
        obstacle.mkdir()
        with pytest.raises(BackupRestoreError):
            restore(box, handle, mode=mode)
        obstacle.rmdir()
    assert sh(box, "cat data/file data/more") == "changed\nmore\n"
    restore(box, handle, mode=mode)
    assert sh(box, "cat data/*") == "original\n"


@contextmanager
def small_disk(point: Path, size: str) -> Iterator[Path]:
    point.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},nosuid,nodev", "tmpfs", point], check=True)
    try:
        yield point
    finally:
        mounting.sweep(point)


@pytest.mark.parametrize("mode", MODES)
def test_a_full_disk_at_a_restore_changes_nothing_and_frees_everything(
    kernel_node: Node, scratch: Path, mode: RestoreMode
) -> None:
    maker = kernel_node.sandbox("maker")
    (kernel_node.tree(maker) / "workspace" / "large").write_bytes(os.urandom(6_000_000))
    handle = backup(maker)
    with small_disk(scratch / "small", "9m" if mode is RestoreMode.COPY else "4m") as disk:  # noqa: SIM117
        with Node(disk / "data", kernel_node.bucket, kernel_node.driver) as node:
            box = node.sandbox()
            write(box, "/workspace/here", "here")
            with nothing_changes(node, box), pytest.raises(BackupRestoreError) as raised:
                restore(box, handle, mode=mode)
            assert raised.value.context["reason"] == "NO_SPACE"
            for archive in node.layout.cache.glob("*.sqsh"):
                archive.unlink()
            assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > 3_500_000
            assert sh(box, "cat here") == "here"


@pytest.mark.parametrize("driver", [Driver.MIXED, Driver.ROOTLESS, Driver.FUSE], indirect=True)
def test_a_layer_whose_daemon_dies_before_the_bind_never_shows_an_empty_directory(
    node: Node, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(scratch / "small", "40m") as disk:  # noqa: SIM117
        with Node(disk / "data", node.bucket, node.driver) as small:
            box = small.sandbox()
            sh(box, "mkdir data; echo 1 > data/file")
            handle = backup(box, "/workspace/data")
            create = box.parts.layers.create

            def created_and_lost(*args: Any, **options: Any) -> Any:
                before = children()
                layer = create(*args, **options)
                daemons = [pid for pid, name in children().items() if name == "squashfuse_ll" and pid not in before]
                os.kill(daemons[0], signal.SIGKILL)
                assert wait_until(lambda: layer.merged not in [mount.point for mount in mountinfo.mounts()])
                assert wait_until(lambda: losses_in_hand() == 0)
                return layer

            with monkeypatch.context() as patched:
                patched.setattr(box.parts.layers, "create", created_and_lost)
                with pytest.raises(BackupRestoreError):
                    restore(box, handle)
            assert sh(box, "cat data/file") == "1\n"
            restore(box, handle)
            assert sh(box, "cat data/file") == "1\n"
            assert wait_until(lambda: len(list(small.home("box").glob("layers/*"))) == 1)


def test_a_full_disk_at_a_backup_leaves_nothing(kernel_node: Node, scratch: Path) -> None:
    before = kernel_node.keys()
    with small_disk(scratch / "small", "10m") as disk:  # noqa: SIM117
        with Node(disk / "data", kernel_node.bucket, kernel_node.driver) as node:
            box = node.sandbox("tiny")
            (node.tree(box) / "workspace" / "large").write_bytes(os.urandom(6_000_000))
            with pytest.raises(BackupCreateError) as raised:
                backup(box)
            assert raised.value.context["reason"] == "NO_SPACE"
            assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > 3_000_000
            box.destroy()
    assert kernel_node.keys() == before


def test_another_mount_in_the_way_is_not_mistaken_for_ours(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "mkdir a b; echo x > a/x")
    handle = backup(box, "/workspace/a")
    restore(box, handle)
    place = kernel_node.tree(box) / "workspace"
    fd = os.open(place / "b", os.O_PATH)
    bind(next(kernel_node.home("box").glob("layers/*/merged")), fd)
    os.close(fd)
    restore(box, handle)
    assert sh(box, "cat a/x") == "x\n"


@pytest.mark.parametrize(
    ("operation", "words"), [("part", "503 " * 8), ("put", "503 " * 8), ("put", "reset " * 8), ("api", "500 " * 12)]
)
def test_a_bucket_that_fails_during_a_backup_leaves_nothing(kernel_node: Node, operation: str, words: str) -> None:
    with fault_proxy(kernel_node.bucket) as (proxy, through):
        kernel_node.bucket = through
        box = kernel_node.sandbox()
        write(box, "/workspace/file", os.urandom(6_000_000 if operation == "part" else 1000))
        assert kernel_node.catalog().store.supports_conditional_writes() is False
        before = kernel_node.keys()
        if operation == "api":
            box.wake()
        proxy.script(operation, words)
        with pytest.raises(BackupCreateError):
            backup(box)
        proxy.clear()
        left = {key for key in kernel_node.keys() - before if key.startswith("backups/")}
        assert not any(key.endswith("meta.json") for key in left)
        if operation != "api":
            assert left == set()
        assert list((kernel_node.home("box") / "spool").iterdir()) == []
        backup(box)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_backup_with_an_unknown_outcome_is_settled_by_the_next_backup(kernel_node: Node, when: str) -> None:
    def goes_away() -> None:
        away.is_away = True
        raise StoreUnavailableError("put", bucket="away")

    store = S3ObjectStore(kernel_node.bucket, transfer=FAST)
    away = AwayStore(Interrupted(store, "put", when, of="meta.json", act=goes_away))
    box = kernel_node.sandbox(f"uncertain-{when}", catalog=kernel_node.catalog(away))
    sh(box, "echo 1 > file")
    before = kernel_node.keys()
    with pytest.raises(BackupCreateError) as raised:
        backup(box, name="uncertain")
    assert raised.value.context == {"reason": "STORAGE_UNAVAILABLE", "outcome": "unknown"}
    away.is_away = False
    backup(box, name="next")
    rows = kernel_node.catalog().page("default", box.id).records
    assert [row.name for row in rows] == (["next"] if when == "before" else ["next", "uncertain"])
    made = kernel_node.keys() - before
    assert {key for key in made if key.endswith("data.sqsh")} == {keys.archive(row.id) for row in rows}


class CancelledAfter:
    """An archiver with one method that does its work and then waits until it is cancelled."""

    def __init__(self, archiver: Archiver, method: str) -> None:
        self._archiver, self._method = archiver, method

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._archiver, name)
        if name != self._method:
            return method

        def call(*args: Any, cancelled: threading.Event, **options: Any) -> Any:
            result = method(*args, cancelled=cancelled, **options)
            assert cancelled.wait(60)
            return result

        return call


def reaches(box: LocalSandbox, phase: str) -> Callable[[], bool]:
    def condition() -> bool:
        found = box.operation()
        return found is not None and found.phase.value == phase

    return condition


@pytest.mark.parametrize("phase", ["compressing", "uploading"])
def test_a_cancelled_backup_leaves_nothing(kernel_node: Node, phase: str) -> None:
    with fault_proxy(kernel_node.bucket) as (proxy, through):
        kernel_node.bucket = through
        box = kernel_node.sandbox()
        (kernel_node.tree(box) / "workspace" / "large").write_bytes(os.urandom(24_000_000))
        if phase == "compressing":
            os.truncate(kernel_node.tree(box) / "workspace" / "large", MINUTES_OF_READING)
        box.ownership.change(lambda state: state)
        before, unfinished = kernel_node.keys(), kernel_node.catalog().store.list_uploads("backups/")
        if phase == "uploading":
            proxy.script("part", "stall " * 8)
        making = Background(lambda: backup(box, compression={"format": "lz4"}))
        assert wait_until(reaches(box, phase), timeout_s=60)
        if phase == "uploading":
            assert proxy.stalled.wait(20)
        assert box.cancel()
        assert isinstance(making.error(), OperationCancelledError)
        proxy.released.set()
        assert box.operation() is None
        assert not box.cancel()
        assert wait_until(lambda: kernel_node.keys() == before)
        assert kernel_node.catalog().store.list_uploads("backups/") == unfinished
        assert list((kernel_node.home("box") / "spool").iterdir()) == []
        assert box.info().recent[-1].outcome == "OPERATION_CANCELLED"
        assert sh(box, "echo goes on") == "goes on\n"


@pytest.mark.parametrize(
    ("phase", "mode"), [("downloading", "overlay"), ("downloading", "copy"), ("extracting", "copy")]
)
def test_a_cancelled_restore_changes_nothing(kernel_node: Node, phase: str, mode: str) -> None:
    with fault_proxy(kernel_node.bucket) as (proxy, through):
        kernel_node.bucket = through
        box = kernel_node.sandbox()
        tree = kernel_node.tree(box) / "workspace" / "data"
        tree.mkdir()
        for number in range(3000):
            (tree / str(number)).write_bytes(b"x" * 3000)
        handle = backup(box, "/workspace/data")
        if phase == "downloading":
            for archive in kernel_node.layout.cache.glob("*.sqsh"):
                archive.unlink()
            proxy.script("get", "stall " * 8)
        archiver = box.parts.archiver
        if phase == "extracting":
            box.parts.archiver = cast(Archiver, CancelledAfter(box.parts.archiver, "extract"))
        with nothing_changes(kernel_node, box):
            restoring = Background(lambda: restore(box, handle, mode=mode))
            assert wait_until(reaches(box, phase), timeout_s=60)
            assert box.cancel()
            assert isinstance(restoring.error(), OperationCancelledError)
            proxy.released.set()
            proxy.clear()
        box.parts.archiver = archiver
        restore(box, handle, mode=mode)


def test_without_a_bucket_backups_name_the_missing_settings_and_the_rest_works(kernel_node: Node) -> None:
    kernel_node.adjust(bucket=None, missing_settings=("BACKUP_BUCKET_NAME", "R2_ACCESS_KEY_ID"))
    box = LocalSandbox("default", "box", kernel_node.config, driver=kernel_node.driver, catalog=None)
    try:
        assert run(box, "true").exit_code == 0
        handle = DirectoryBackup(id=str(uuid.uuid4()), dir="/workspace")
        for act in (lambda: backup(box), lambda: restore(box, handle)):
            with pytest.raises(InvalidBackupConfigError, match="BACKUP_BUCKET_NAME, R2_ACCESS_KEY_ID") as raised:
                act()
            assert raised.value.context["missing"] == ["BACKUP_BUCKET_NAME", "R2_ACCESS_KEY_ID"]
    finally:
        box.destroy()
