"""A directory that cannot be recovered is never shown as an empty one, whatever the cause.

Each case is tested for both ways: recovery after the loss of a node ("loss"), and a wake from the bucket ("sleep").
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from actors.errors import (
    BackupRestoreError,
    InvalidRequestError,
    SandboxUnavailableError,
)
from actors.models import DirectoryBackup, DirectoryStatus, ForgetOptions
from actors.node.drivers import WORK, Driver
from actors.sandbox.facade import LocalSandbox
from actors.state.api_views import public_recovery
from storage import keys
from storage.config import BucketConfig
from tests.integration.test_box_failures import UNBUILT
from tests.integration.test_sandbox_failures import small_disk
from tests.integration.test_sandbox_recovery import closed, left_on
from tests.support.node_faults import processes_limited, tools_replaced
from tests.support.node_pair import Pair, pair
from tests.support.sandboxes import Node, backup, read, restore, sh, write

CONTENT = "1\n"
Fault = Callable[[Node, pytest.MonkeyPatch], Any]


@pytest.fixture
def nodes(scratch: Path, bucket: BucketConfig, best_driver: Driver) -> Iterator[Pair]:
    yield from pair(scratch, bucket, best_driver, conditional=False)


@pytest.fixture
def fuse_nodes(scratch: Path, bucket: BucketConfig) -> Iterator[Pair]:
    """Nodes with the driver whose restores need a box and daemons."""
    yield from pair(scratch, bucket, Driver.FUSE, conditional=False)


# --- faults of the node


@contextmanager
def starved(node: Node, threads: int) -> Iterator[None]:
    script = "{real}"
    with processes_limited(threads) as head, tools_replaced(node.data_dir, {"bwrap": head + script}):
        yield


@contextmanager
def too_slow(node: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched, tools_replaced(node.data_dir, {"bwrap": "exec sleep 60"}):
        patched.setattr("actors.node.archiver._LIST_S", 0.3)
        patched.setattr("actors.node.archiver._EXTRACT_S", 0.3)
        yield


@contextmanager
def no_cache(node: Node) -> Iterator[None]:
    """Puts a file in the place of the cache."""
    cache = node.layout.cache
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text("in the way")
    try:
        yield
    finally:
        cache.unlink()


@contextmanager
def full_disk(node: Node) -> Iterator[None]:
    """Mounts the node's folder on a disk with no room for an archive."""
    node.data_dir.mkdir(parents=True, exist_ok=True)
    with small_disk(node.layout.cache, "16k"):
        yield


FAULTS: dict[str, tuple[Fault, str]] = {
    "no box": (lambda node, _: tools_replaced(node.data_dir, {"bwrap": UNBUILT}), "BOX_FAILED"),
    "no namespace": (lambda node, _: tools_replaced(node.data_dir, {"unshare": "exit 1"}), "BOX_FAILED"),
    "no bubblewrap": (lambda node, _: tools_replaced(node.data_dir, {"bwrap": "exit 127"}), "BOX_FAILED"),
    "killed": (lambda node, _: tools_replaced(node.data_dir, {"bwrap": "kill -9 $$"}), "TOOL_KILLED"),
    "no memory": (
        lambda node, _: tools_replaced(node.data_dir, {"bwrap": "prlimit --as=5000000 --pid $$; {real}"}),
        "OUT_OF_MEMORY",
    ),
    "no process": (lambda node, _: starved(node, 1), "NO_PROCESSES"),
    "too slow": (too_slow, "TIMEOUT"),
    "no mount": (lambda node, _: tools_replaced(node.data_dir, {"squashfuse_ll": "exit 1"}), "MOUNT_FAILED"),
    "no overlay": (lambda node, _: tools_replaced(node.data_dir, {"fuse-overlayfs": "exit 1"}), "MOUNT_FAILED"),
    "no cache": (lambda node, _: no_cache(node), "NODE_FAILED"),
    "full disk": (lambda node, _: full_disk(node), "NO_SPACE"),
}
CALLS: dict[str, Callable[[LocalSandbox], object]] = {
    "exec": lambda box: sh(box, "ls -A"),
    "list": lambda box: box.list_files("/workspace"),
    "read": lambda box: read(box, "/workspace/data/file"),
    "write": lambda box: write(box, "/tmp/file", "x"),
    "delete": lambda box: box.delete_file("/tmp/file"),
    "backup": lambda box: backup(box),
    "persist": lambda box: list(box.persist("a-name")),
    "hydrate": lambda box: box.open_hydrate(),
    "sleep": lambda box: box.back_up_for_sleep(),
}


def gone(pair: Pair, way: str) -> Callable[[], LocalSandbox]:
    """A lost or sleeping sandbox with files in /workspace/data; returns a function that opens it on node "b"."""
    box = pair.on_a()
    sh(box, "mkdir data; echo 1 > data/file; head -c 100000 /dev/urandom > data/large")
    if way == "loss":
        backup(box, "/workspace/data")
        return lambda: pair.on_b(awake=False)
    box.sleep(box.back_up_for_sleep())
    return lambda: pair.on_b(awake=False, lost=())


def refused(box: LocalSandbox, call: str = "exec") -> SandboxUnavailableError:
    with pytest.raises(SandboxUnavailableError) as raised:
        CALLS[call](box)
    assert raised.value.context["reason"] == "DIRECTORY_MISSING"
    assert raised.value.context["outcome"] == "not_executed"
    assert not box.is_awake and closed(box)
    return raised.value


def statuses(pair: Pair) -> dict[str, tuple[DirectoryStatus, str | None]]:
    """Reads the status of each directory's recovery from the state, without waking the sandbox."""
    found = public_recovery(pair.state.recovery)
    return {row.dir: (row.status, row.error) for row in found.directories} if found else {}


@pytest.mark.parametrize("way", ["loss", "sleep"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_recovery_that_fails_on_the_node_shows_no_empty_directory_and_can_be_retried(
    fuse_nodes: Pair, monkeypatch: pytest.MonkeyPatch, fault: str, way: str
) -> None:
    pair = fuse_nodes
    act, reason = FAULTS[fault]
    again = gone(pair, way)()
    with act(pair.b, monkeypatch):
        for call in ("exec", "list"):
            error = refused(again, call)
            assert error.context["cause"] == reason and error.may_be_retried
    (row,) = statuses(pair).items()
    assert row[1] == (DirectoryStatus.MISSING, reason)
    assert len(pair.state.checkpoints) == 1

    assert sh(again, "cat data/file") == CONTENT
    assert statuses(pair) == {row[0]: (DirectoryStatus.RESTORED, None)}
    assert pair.state.events[-1].kind == "recovered"


@pytest.mark.parametrize("call", CALLS)
def test_no_call_is_admitted_while_a_directory_is_missing(nodes: Pair, call: str) -> None:
    again = gone(nodes, "loss")()
    nodes.store.delete(keys.archive(nodes.state.checkpoints[0].backup_id))
    refused(again, call)
    again.destroy()
    assert not nodes.is_known and left_on(nodes.b) == ([], [])


def test_a_recovery_that_fails_on_one_node_succeeds_on_the_next(fuse_nodes: Pair, scratch: Path) -> None:
    pair = fuse_nodes
    again = gone(pair, "loss")()
    with tools_replaced(pair.b.data_dir, {"bwrap": UNBUILT}):
        refused(again)
    again.close()
    with Node(scratch / "c", pair.a.bucket, Driver.FUSE, identity="c") as third:
        box = third.sandbox(pair.name, lost=["b"])
        assert sh(box, "cat data/file") == CONTENT
        box.close()


# --- faults of the backup


def damage(pair: Pair, how: str, backup_id: str) -> None:
    store = pair.store
    if how == "damaged":
        data = bytearray(store.get(keys.archive(backup_id)).data)
        data[len(data) // 2] ^= 1
        store.put(keys.archive(backup_id), bytes(data))
    elif how == "unreadable":
        store.put(keys.metadata(backup_id), b"{")
    elif how == "tampered":
        told = json.loads(store.get(keys.metadata(backup_id)).data)
        store.put(keys.metadata(backup_id), json.dumps({**told, "ttl": 2 * told["ttl"]}).encode())
    elif how == "bare":
        store.delete(keys.archive(backup_id))
    elif how == "deleted":
        pair.a.catalog().delete("default", backup_id)


CAUSES = {
    "expired": "BACKUP_EXPIRED",
    "deleted": "BACKUP_NOT_FOUND",
    "bare": "BACKUP_NOT_FOUND",
    "damaged": "CORRUPT_ARCHIVE",
    "unreadable": "CORRUPT_METADATA",
    "tampered": "TAMPERED_METADATA",
}


def test_missing_directories_are_named_until_forgotten_and_then_the_rest_is_recovered(nodes: Pair) -> None:
    box = nodes.on_a()
    made: dict[str, DirectoryBackup] = {}
    for name in (*CAUSES, "well"):
        sh(box, f"mkdir {name}; head -c 100000 /dev/urandom > {name}/file; echo {name} > {name}/name")
        made[name] = backup(box, f"/workspace/{name}", ttl=30 if name == "expired" else 3600)
        damage(nodes, name, made[name].id)

    again = nodes.on_b(awake=False)

    error = refused(again)
    assert not error.may_be_retried
    assert "holdfast forget" in (error.hint or "")
    assert set(error.context["missing"]) == {f"/workspace/{name}" for name in CAUSES}
    expected = {f"/workspace/{name}": (DirectoryStatus.MISSING, cause) for name, cause in CAUSES.items()}
    assert statuses(nodes) == {**expected, "/workspace/well": (DirectoryStatus.RESTORED, None)}
    assert len(nodes.state.checkpoints) == 7

    for name, cause in CAUSES.items():
        refused(again)
        result = again.forget(ForgetOptions(dir=f"/workspace/{name}"))
        assert [(row.dir, row.backup_id, row.error) for row in result.forgotten] == [
            (f"/workspace/{name}", made[name].id, cause)
        ]

    assert sh(again, "cat well/name; ls") == "well\nwell\n"
    assert statuses(nodes)["/workspace/damaged"] == (DirectoryStatus.FORGOTTEN, "CORRUPT_ARCHIVE")
    assert [row.backup_id for row in nodes.state.checkpoints] == [made["well"].id]
    kinds = [event.kind for event in nodes.state.events]
    assert kinds.count("forgotten") == 6 and kinds[-1] == "recovered"
    sh(again, "mkdir deleted; echo new > deleted/file")
    backup(again, "/workspace/deleted")
    again.close()
    nodes.on_b().close()
    assert len(nodes.state.checkpoints) == 2


def test_a_sandbox_recovers_once_a_damaged_object_is_replaced(nodes: Pair) -> None:
    again = gone(nodes, "loss")()
    (checkpoint,) = nodes.state.checkpoints
    whole = nodes.store.get(keys.archive(checkpoint.backup_id)).data
    damage(nodes, "damaged", checkpoint.backup_id)
    assert refused(again).context["cause"] == "CORRUPT_ARCHIVE"
    nodes.store.put(keys.archive(checkpoint.backup_id), whole)
    assert sh(again, "cat data/file") == CONTENT


def test_forget_is_repeatable_and_only_for_missing_directories(nodes: Pair) -> None:
    again = gone(nodes, "loss")()
    nodes.store.delete(keys.archive(nodes.state.checkpoints[0].backup_id))
    for wrong in ("/workspace", "/workspace/data/file", "/tmp"):
        with pytest.raises(InvalidRequestError):
            again.forget(ForgetOptions(dir=["/workspace/data", wrong]))
    refused(again)
    first = again.forget(ForgetOptions(dir="/workspace/data"))
    assert again.forget(ForgetOptions(dir="/workspace/data")) == first
    assert sh(again, "ls -A") == ""
    assert again.forget(ForgetOptions(dir="/workspace/data")) == first
    with pytest.raises(InvalidRequestError):
        again.forget(ForgetOptions(dir="/workspace"))
    again.sleep(again.back_up_for_sleep())
    later = nodes.on_b(awake=False, lost=())
    assert later.forget(ForgetOptions(dir="/workspace/data")) == first
    assert sh(later, "ls -A") == ""


def test_a_cause_that_cannot_be_recorded_on_a_full_disk_is_still_reported(
    nodes: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    again = gone(nodes, "loss")()
    nodes.store.delete(keys.archive(nodes.state.checkpoints[0].backup_id))
    with monkeypatch.context() as patched:
        patched.setattr(again.parts.restored, "note_failure", full)
        assert refused(again).context["cause"] == "BACKUP_NOT_FOUND"
    again.forget(ForgetOptions(dir="/workspace/data"))
    assert sh(again, "ls -A") == ""


def test_a_directory_that_can_be_recovered_cannot_be_forgotten(nodes: Pair) -> None:
    again = gone(nodes, "sleep")()
    with pytest.raises(InvalidRequestError):
        again.forget(ForgetOptions(dir="/workspace"))
    assert sh(again, "cat data/file") == CONTENT


def test_a_directory_inside_a_missing_one_waits_for_it(nodes: Pair) -> None:
    box = nodes.on_a()
    sh(box, "mkdir data; echo outer > file")
    outer = backup(box)
    sh(box, "echo inner > data/file")
    backup(box, "/workspace/data")
    whole = nodes.store.get(keys.archive(outer.id)).data
    nodes.store.delete(keys.archive(outer.id))
    again = nodes.on_b(awake=False)
    assert refused(again).context["missing"] == ["/workspace", "/workspace/data"]
    nodes.store.put(keys.archive(outer.id), whole)
    assert sh(again, "cat file data/file") == "outer\ninner\n"


def test_a_directory_inside_a_forgotten_one_is_recovered(nodes: Pair) -> None:
    box = nodes.on_a()
    outer = backup(box)
    sh(box, "mkdir data; echo inner > data/file")
    backup(box, "/workspace/data")
    nodes.store.delete(keys.archive(outer.id))
    again = nodes.on_b(awake=False)
    again.forget(ForgetOptions(dir="/workspace"))
    assert sh(again, "cat data/file; ls") == "inner\ndata\n"


@pytest.mark.parametrize("target", ["/workspace/data", "/workspace"])
def test_a_restore_over_a_missing_directory_makes_the_sandbox_usable(nodes: Pair, target: str) -> None:
    other = nodes.a.sandbox(f"{nodes.name}-other")
    sh(other, "echo other > file")
    handle = backup(other)
    again = gone(nodes, "loss")()
    nodes.store.delete(keys.archive(nodes.state.checkpoints[0].backup_id))
    refused(again)
    with pytest.raises(SandboxUnavailableError):
        restore(again, handle, "/app")

    restore(again, handle, target)

    assert sh(again, f"cat {target}/file; ls {target}") == "other\nfile\n"
    assert statuses(nodes) == {"/workspace/data": (DirectoryStatus.FORGOTTEN, "BACKUP_NOT_FOUND")}
    assert [(row.dir, row.backup_id) for row in nodes.state.checkpoints] == [(target, handle.id)]
    again.close()
    assert sh(nodes.on_b(), f"cat {target}/file") == "other\n"


def test_a_sandbox_with_a_missing_directory_can_sleep_and_be_deleted(nodes: Pair) -> None:
    again = gone(nodes, "sleep")()
    (checkpoint,) = nodes.state.checkpoints
    damage(nodes, "damaged", checkpoint.backup_id)
    refused(again)
    again.sleep()
    assert not again.must_stay
    later = nodes.on_b(awake=False)
    refused(later)
    assert later.info().recovery is not None
    later.destroy()
    assert not nodes.is_known and left_on(nodes.b) == ([], [])


# --- a restore that a caller requests


ASKED_FOR = [
    (fault, mode)
    for fault in FAULTS
    for mode in ("overlay", "copy")
    if mode == "overlay" or fault not in ("no mount", "no overlay")  # a copy mounts nothing
]


@pytest.mark.parametrize(("fault", "mode"), ASKED_FOR)
def test_a_restore_that_fails_on_the_node_changes_nothing_and_succeeds_later(
    fuse_nodes: Pair, monkeypatch: pytest.MonkeyPatch, fault: str, mode: str
) -> None:
    pair = fuse_nodes
    maker = pair.on_a()
    sh(maker, "mkdir data; echo 1 > data/file; head -c 100000 /dev/urandom > data/large")
    handle = backup(maker, "/workspace/data")
    box = pair.b.sandbox(f"{pair.name}-b")
    sh(box, "mkdir data; echo old > data/file")
    act, reason = FAULTS[fault]
    with act(pair.b, monkeypatch), pytest.raises(BackupRestoreError) as raised:
        restore(box, handle, mode=mode)
    assert raised.value.context["reason"] == reason
    assert sh(box, "cat data/file") == "old\n"
    restore(box, handle, mode=mode)
    assert sh(box, "cat data/file") == CONTENT


# --- an overlay whose files are on this node


UNMOUNTABLE = {
    Driver.MIXED: {"squashfuse_ll": "exit 1"},
    Driver.ROOTLESS: {"squashfuse_ll": "exit 1"},
    Driver.FUSE: {"fuse-overlayfs": "exit 1"},
}
"""The tool of each driver whose failure makes a layer unmountable. The driver `kernel` runs none."""


@contextmanager
def unmountable(node: Node) -> Iterator[None]:
    """Within the block, no layer of the sandbox "held" can be mounted."""
    if node.driver is not Driver.KERNEL:
        with tools_replaced(node.data_dir, UNMOUNTABLE[node.driver]):
            yield
        return
    folders = list(node.home("held").glob(f"layers/*/{WORK}"))
    for folder in folders:
        folder.rename(folder.with_name("aside"))
        folder.touch()
    yield
    for folder in folders:
        if folder.exists():  # else the layer was removed
            folder.unlink()
            folder.with_name("aside").rename(folder)


@pytest.fixture
def overlay(node: Node) -> tuple[Node, DirectoryBackup]:
    """A sandbox asleep on its node, with a restored directory that was written to."""
    box = node.sandbox("held")
    sh(box, "mkdir data; echo 1 > data/file; echo plain > plain")
    handle = backup(box, "/workspace/data")
    restore(box, handle)
    sh(box, "echo later > data/later")
    box.close()
    return node, handle


def recovery_of(node: Node) -> list[tuple[str, DirectoryStatus, str | None]]:
    found = node.catalog().sandboxes.find_state("default", "held")
    recovery = public_recovery(found.state.recovery) if found else None
    return [(row.dir, row.status, row.error) for row in recovery.directories] if recovery else []


def test_an_overlay_that_cannot_be_mounted_shows_nothing_empty_and_loses_no_write(
    overlay: tuple[Node, DirectoryBackup],
) -> None:
    node, handle = overlay
    again = node.sandbox("held", awake=False)
    with unmountable(node):
        for call in ("exec", "list", "backup"):
            error = refused(again, call)
            assert error.context["cause"] == "MOUNT_FAILED" and error.may_be_retried
            assert (error.context["dir"], error.context["backup"]) == ("/workspace/data", handle.id)
    assert recovery_of(node) == [("/workspace/data", DirectoryStatus.MISSING, "MOUNT_FAILED")]
    assert sh(again, "cat data/file data/later plain") == "1\nlater\nplain\n"
    assert recovery_of(node) == []


def test_an_overlay_that_cannot_be_mounted_is_removed_only_by_forget(
    overlay: tuple[Node, DirectoryBackup],
) -> None:
    node, handle = overlay
    again = node.sandbox("held", awake=False)
    with unmountable(node):
        for wrong in ("/workspace", "/workspace/plain"):
            with pytest.raises(InvalidRequestError):
                again.forget(ForgetOptions(dir=wrong))
        (row,) = again.forget(ForgetOptions(dir="/workspace/data")).forgotten
        assert (row.backup_id, row.error, row.status) == (handle.id, "MOUNT_FAILED", DirectoryStatus.FORGOTTEN)
    assert sh(again, "ls; ls data") == "data\nplain\nfile\n"
    assert recovery_of(node) == [("/workspace/data", DirectoryStatus.FORGOTTEN, "MOUNT_FAILED")]
    assert again.info().restored == []
    assert list(node.home("held").glob("layers/*")) == []
    restore(again, handle)
    assert sh(again, "cat data/file") == CONTENT


@pytest.mark.parametrize("link", ["data", "/workspace/data"])
def test_an_overlay_that_cannot_be_mounted_is_forgotten_through_a_symbolic_link(
    overlay: tuple[Node, DirectoryBackup], link: str
) -> None:
    node, handle = overlay
    box = node.sandbox("held")
    sh(box, f"ln -s {link} link; ln -s link further")
    box.close()
    again = node.sandbox("held", awake=False)
    with unmountable(node):
        rows = again.forget(ForgetOptions(dir=["/workspace/link", "/workspace/further"])).forgotten
        assert [(row.dir, row.backup_id) for row in rows] == [("/workspace/data", handle.id)]
        assert again.forget(ForgetOptions(dir="/workspace/data")).forgotten == rows
    assert sh(again, "ls data") == "file\n"
    assert again.info().restored == []


def test_a_restore_through_a_symbolic_link_replaces_an_overlay_that_cannot_be_mounted(
    overlay: tuple[Node, DirectoryBackup],
) -> None:
    node, handle = overlay
    box = node.sandbox("held")
    sh(box, "ln -s data link")
    box.close()
    again = node.sandbox("held", awake=False)
    with unmountable(node):
        refused(again)
        restore(again, handle, "/workspace/link", "copy")
        assert [(row.dir, row.mode) for row in again.info().restored] == [("/workspace/data", "copy")]
        assert sh(again, "ls data; readlink link") == "file\ndata\n"


def test_an_overlay_that_can_be_mounted_cannot_be_forgotten(overlay: tuple[Node, DirectoryBackup]) -> None:
    node, _ = overlay
    again = node.sandbox("held", awake=False)
    with pytest.raises(InvalidRequestError):
        again.forget(ForgetOptions(dir="/workspace/data"))
    assert sh(again, "cat data/later") == "later\n"
