"""A sandbox serves calls only while all its mounts are in place; after a fault the next call restores them."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from actors.config import NodeConfig
from actors.errors import (
    BackupCreateError,
    BackupRestoreError,
    HoldfastError,
    InvalidBackupConfigError,
    OperationCancelledError,
    SandboxUnavailableError,
)
from actors.models import DirectoryBackup, ExecRequest, Output
from actors.node import mountinfo, mounting
from actors.node.archive_cache import ArchiveCache
from actors.node.drivers import Driver
from actors.node.errors import MountBusyError, MountError, ToolError
from actors.node.hierarchies import Hierarchies
from actors.node.layers import Layer
from actors.node.stacks import Stack
from actors.node_layout import NodeLayout, choose_driver
from actors.sandbox.facade import LocalSandbox
from storage.catalog import BackupCatalog
from storage.config import BucketConfig
from tests.support.damage import DAMAGE
from tests.support.held_store import AwayStore
from tests.support.mount_leaks import children, losses_in_hand, wait_until
from tests.support.sandboxes import Node, backup, restore, run, sh
from tests.support.service import comm_of, read_or_empty


def restored_twice(
    node: Node, catalog: BackupCatalog | None = None
) -> tuple[LocalSandbox, DirectoryBackup, DirectoryBackup]:
    """A sandbox with two restored directories that were written to."""
    box = node.sandbox(catalog=catalog)
    sh(box, "echo 1 > file; mkdir -p ~/data; echo 2 > ~/data/file")
    handles = backup(box), backup(box, "/home/sandbox/data")
    for handle in handles:
        restore(box, handle)
    sh(box, "echo later > later; echo later > ~/data/later")
    return box, *handles


CONTENT = "1\nlater\n2\nlater\n"
SHOW = "cat file later ~/data/file ~/data/later"


def test_a_sandbox_that_could_not_be_unmounted_is_mounted_again_by_the_next_call(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, _, _ = restored_twice(node)
    monkeypatch.setattr("actors.sandbox.overlays._UNMOUNT_S", 0.2)
    with (node.tree(box) / "home" / "sandbox" / "data" / "file").open():
        with pytest.raises(MountError):
            box.close()
        assert not box.is_awake
        with pytest.raises(SandboxUnavailableError):
            backup(box)
    assert sh(box, SHOW) == CONTENT
    handle = backup(box)
    restore(box, handle, "/tmp/again")
    assert sh(box, "cat file later", cwd="/tmp/again") == "1\nlater\n"


def test_a_restore_succeeds_once_its_record_is_written_though_the_sync_fails(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, handle, _ = restored_twice(node)
    real = os.fsync

    def fails_for_folders(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EIO, "injected")
        real(fd)

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", fails_for_folders)
        restore(box, handle, mode="copy")
    box.close()
    again = node.sandbox()
    assert sh(again, "cat file ~/data/later; ls") == "1\nlater\nfile\n"


@pytest.mark.parametrize("driver", [Driver.MIXED, Driver.ROOTLESS, Driver.FUSE], indirect=True)
def test_a_directory_whose_layer_could_not_be_remounted_is_not_backed_up(node: Node) -> None:
    store = AwayStore(node.catalog().store)
    box, _, _ = restored_twice(node, node.catalog(store))
    archives = sorted(node.home("box").glob("archives/*.sqsh"))
    for archive in node.layout.cache.glob("*.sqsh"):
        archive.unlink()
    store.is_away = True
    for archive in archives:
        archive.rename(archive.with_suffix(".away"))
    os.kill(next(pid for pid, name in children().items() if name == "squashfuse_ll"), signal.SIGKILL)
    assert wait_until(lambda: not box.is_awake, timeout_s=30)

    with pytest.raises(SandboxUnavailableError) as raised:
        backup(box)
    assert raised.value.context["outcome"] == "not_executed"

    for archive in archives:
        archive.with_suffix(".away").rename(archive)
    assert sh(box, SHOW) == CONTENT


@pytest.mark.parametrize("driver", [Driver.MIXED, Driver.ROOTLESS, Driver.FUSE], indirect=True)
def test_the_remount_of_one_layer_does_not_hide_the_failure_of_another(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, _, _ = restored_twice(node)
    revive, tried = box.parts.layers.revive, list[str]()

    def fails_at_first(layer: Layer) -> None:
        tried.append(layer.id)
        if len(tried) == 1:
            box.parts.layers.close(layer)
            raise MountError("injected")
        revive(layer)

    monkeypatch.setattr(box.parts.layers, "revive", fails_at_first)
    with box.parts.tree_lock.shared():  # both losses wait; otherwise the sandbox could be mounted again between them
        for pid in [pid for pid, name in children().items() if name == "squashfuse_ll"]:
            os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: losses_in_hand() == 2)
    assert wait_until(lambda: losses_in_hand() == 0, timeout_s=60)
    assert len(tried) == 1
    assert not box.is_awake
    assert sh(box, SHOW) == CONTENT


def test_a_layer_that_could_not_be_discarded_is_discarded_at_the_next_wake(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, handle, _ = restored_twice(node)
    unmount, failed = Stack.unmount, list[Stack]()

    def fails_once(stack: Stack, *, deadline_s: float) -> None:
        if not failed:
            failed.append(stack)
            raise MountBusyError("injected")
        unmount(stack, deadline_s=deadline_s)

    monkeypatch.setattr(Stack, "unmount", fails_once)
    restore(box, handle)
    assert wait_until(lambda: bool(failed))
    assert len(list(node.home("box").glob("layers/*"))) == 3
    box.close()
    assert sh(box, "cat file ~/data/later") == "1\nlater\n"
    assert len(list(node.home("box").glob("layers/*"))) == 2


def test_a_damaged_record_is_a_typed_error_and_the_sandbox_can_be_destroyed(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "echo 1 > file")
    box.close()
    for name in ("sandbox.json", "sandbox.json.copy"):
        (kernel_node.home("box") / name).write_text('{"version": 1, "entr')

    damaged = kernel_node.sandbox(awake=False)
    with pytest.raises(SandboxUnavailableError) as raised:
        run(damaged, "true")
    assert raised.value.context == {"outcome": "not_executed", "reason": "CORRUPT_RECORD"}

    damaged.destroy()
    assert sh(damaged, "ls -A") == ""


def test_an_interrupted_destruction_leaves_no_partial_sandbox(
    kernel_node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, handle, _ = restored_twice(kernel_node)

    def fails(path: Path) -> None:
        raise ToolError("injected")

    with monkeypatch.context() as patched:
        patched.setattr("actors.node_layout.remove_tree", fails)
        with pytest.raises(SandboxUnavailableError) as raised:
            box.destroy()
    assert raised.value.context["outcome"] == "unknown"
    assert list(kernel_node.layout.trash.iterdir())
    assert not kernel_node.home("box").exists()

    box.destroy()
    assert sh(box, "ls -A") == ""
    restore(box, handle)
    assert sh(box, "ls") == "file\n"


def test_without_a_spool_folder_backups_and_restores_fail_with_their_own_errors(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    handle = backup(box)
    spool = kernel_node.home("box") / "spool"
    spool.rmdir()
    spool.write_text("in the way")
    with pytest.raises(BackupCreateError):
        backup(box)
    with pytest.raises(BackupRestoreError):
        restore(box, handle)
    spool.unlink()
    restore(box, handle)


def test_a_target_whose_real_name_is_not_utf8_is_the_callers_error(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    handle = backup(box)
    sh(box, "cd /app; mkdir \"$(printf '\\377')\"; ln -s \"$(printf '\\377')\" link")
    with pytest.raises(InvalidBackupConfigError):
        restore(box, handle, "/app/link")


def test_a_persist_whose_tar_is_killed_ends_with_an_error(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    (kernel_node.tree(box) / "workspace" / "large").write_bytes(os.urandom(30_000_000))
    stream = box.persist("a-name")
    next(stream)
    (tar,) = (pid for pid in pids_of(kernel_node) if comm_of(pid) == "tar")
    os.kill(tar, signal.SIGKILL)
    with pytest.raises(HoldfastError):
        list(stream)


def test_a_tar_that_is_killed_while_it_unpacks_is_not_the_callers_error(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    transfer = box.open_hydrate()
    found: list[int] = []

    def runs() -> bool:
        found[:] = [pid for pid in pids_of(kernel_node) if comm_of(pid) == "tar"]
        return bool(found)

    assert wait_until(runs)
    os.kill(found[0], signal.SIGKILL)
    with pytest.raises(SandboxUnavailableError) as raised:
        box.commit(transfer)
    assert raised.value.context == {"outcome": "unknown", "reason": "TOOL_KILLED"}


def test_a_command_whose_box_is_killed_ends_with_an_unknown_outcome(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    events = box.exec("a-name", ExecRequest(argv=["sh", "-c", "echo begun; sleep 60"]))
    assert next(events) == Output(stream="stdout", data=b"begun\n")
    for pid in pids_of(kernel_node):
        if comm_of(pid) == "bwrap":
            with suppress(ProcessLookupError):  # the inner one dies with the outer one
                os.kill(pid, signal.SIGKILL)
    with pytest.raises(SandboxUnavailableError) as raised:
        list(events)
    assert raised.value.context["outcome"] == "unknown" and raised.value.context["reason"] == "TOOL_KILLED"
    assert not raised.value.may_be_retried


def pids_of(node: Node) -> list[int]:
    folders = [folder for folder, _, _ in os.walk(Hierarchies.find().v2 / node.layout.cgroup)]
    return [int(pid) for folder in folders for pid in read_or_empty(Path(folder, "cgroup.procs")).split()]


def test_an_argument_that_looks_like_an_option_is_run_as_the_command(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    assert run(box, "--help").exit_code == 127
    assert run(box, "-i", "echo", "x").stdout == b""


def test_waiting_for_another_process_to_fetch_the_archive_can_be_cancelled(tmp_path: Path) -> None:
    cache = ArchiveCache(tmp_path, max_bytes=100)
    (tmp_path / "locks").mkdir()
    argv = [sys.executable, "-m", "tests.support.programs.file_lock_holder", str(cache._lock_file("one"))]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()

        def cancelled() -> None:
            raise OperationCancelledError("cancelled")

        with pytest.raises(OperationCancelledError):
            cache.obtain("one", tmp_path / "link", never, waiting=cancelled)
        other.communicate(b"\n")


def test_an_archive_is_produced_once_for_all_threads_of_a_process(tmp_path: Path) -> None:
    cache = ArchiveCache(tmp_path / "cache", max_bytes=100)
    begun, awaited = threading.Event(), threading.Event()

    def produce(work: Path) -> tuple[Path, str]:
        begun.set()
        assert awaited.wait(60), "nobody else waited for it"
        cache.remove_leftovers()  # as a wake and the sweeper do in threads of the same process
        (work / "made").write_bytes(b"made")
        return work / "made", hashlib.sha256(b"made").hexdigest()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.obtain, "one", tmp_path / "first", produce)
        assert begun.wait(60)
        second = pool.submit(cache.obtain, "one", tmp_path / "second", never, waiting=awaited.set)
        assert [each.result()[1] for each in (first, second)] == [False, True]
    assert [(tmp_path / name).read_bytes() for name in ("first", "second")] == [b"made"] * 2


def never(work: Path) -> tuple[Path, str]:
    raise AssertionError("somebody else fetches it")


def test_an_archive_over_the_limit_does_not_evict_the_others(tmp_path: Path) -> None:
    cache = ArchiveCache(tmp_path / "cache", max_bytes=100)
    for age, (name, size) in enumerate([("large", 1000), ("small", 40), ("smaller", 30)]):
        path = tmp_path / name
        path.write_bytes(b"x" * size)
        cache.adopt(name, path, "0" * 64)
        os.utime(tmp_path / "cache" / f"{name}_{'0' * 64}.sqsh", (1000 - age, 1000 - age)) if size < 1000 else None
    cache.evict()
    assert {path.name.partition("_")[0] for path in (tmp_path / "cache").glob("*.sqsh")} == {"small", "smaller"}


def test_a_sandbox_whose_files_are_on_another_node_does_not_start_empty(
    scratch: Path, kernel_node: Node, bucket: BucketConfig
) -> None:
    here = kernel_node.sandbox("travelling")
    sh(here, "echo kept > file")
    handle = backup(here)
    here.close()
    with Node(scratch / "elsewhere", bucket, kernel_node.driver, identity="another node") as other:
        there = other.sandbox("travelling", awake=False)
        for act in (lambda: sh(there, "ls"), lambda: backup(there), lambda: restore(there, handle)):
            with pytest.raises(SandboxUnavailableError) as raised:
                act()
            assert raised.value.context == {"outcome": "not_executed", "reason": "ELSEWHERE"}
        back = kernel_node.sandbox("travelling")
        assert sh(back, "cat file") == "kept\n"
        back.ownership.check()  # it claims no epoch any more
        back.close()  # nor does it write down what it finds unsaved, which would bring a deleted state back

        there.destroy()
        restore(there, handle)
        assert sh(there, "cat file") == "kept\n"
        with pytest.raises(SandboxUnavailableError):
            kernel_node.sandbox("travelling")
        there.destroy()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A volume of the operator's, with a mount of ours in it."""
    for point in (tmp_path / "volume", tmp_path / "volume" / "ours"):
        point.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", point], check=True)
    yield tmp_path / "volume"
    mounting.sweep(tmp_path)


def test_the_sweep_leaves_the_operators_volume_mounted(mounted: Path) -> None:
    assert mounting.sweep(mounted, and_itself=False) == []
    assert [mount.point for mount in mountinfo.mounts_under(mounted)] == [mounted]


def test_a_node_has_one_identity_for_all_its_processes(tmp_path: Path) -> None:
    layouts = [NodeLayout(NodeConfig(data_dir=tmp_path / "one")) for _ in range(2)]
    assert layouts[0].identity() == layouts[1].identity()
    assert NodeLayout(NodeConfig(data_dir=tmp_path / "other")).identity() != layouts[0].identity()
    assert [path.name for path in layouts[0].root.iterdir()] == ["id"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_sandbox_with_a_damaged_record_wakes_complete(kernel_node: Node, damage: str) -> None:
    box, _, _ = restored_twice(kernel_node)
    for _ in range(2):
        box.close()
        DAMAGE[damage](kernel_node.home("box") / "sandbox.json")
        box = kernel_node.sandbox()
        assert sh(box, SHOW) == CONTENT


@pytest.mark.parametrize("result", ["empty", "nonsense", "a link", "a directory"])
def test_a_damaged_driver_verdict_is_made_again(tmp_path: Path, result: str) -> None:
    node = NodeConfig(data_dir=tmp_path)
    chosen = choose_driver(node)
    (tried,) = NodeLayout(node).driver.glob(f"{chosen}-*.json")
    whole = tried.read_text()
    tried.unlink()
    if result == "a directory":
        (tried / "inside").mkdir(parents=True)
    elif result == "a link":
        tried.symlink_to("kernal")
    else:
        tried.write_text("" if result == "empty" else "kernel")
    assert choose_driver(node) is chosen
    assert tried.read_text() == whole
