"""Sandboxes on nodes that offer no mount driver, or another than that of their layers."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.errors import BackupRestoreError, SandboxUnavailableError
from actors.models import RestoreMode, RestoreOptions
from actors.node import mounting
from actors.node.drivers import Driver
from storage.config import BucketConfig
from tests.support.sandboxes import Node, backup, restore, sh


@pytest.fixture
def copying(scratch: Path, bucket: BucketConfig) -> Iterator[Node]:
    """A node that offers no mount driver."""
    with Node(scratch / "copying", bucket, None, identity="copying") as made:
        yield made


def test_without_a_mount_driver_a_restore_is_a_copy_and_says_so(copying: Node) -> None:
    box = copying.sandbox(f"sb-{uuid.uuid4().hex[:8]}")
    sh(box, "echo kept > file")
    handle = backup(box)
    sh(box, "rm file; echo new > other")
    assert box.restore_backup(RestoreOptions(id=handle.id, dir=handle.dir)).mode is RestoreMode.COPY
    assert sh(box, "cat *") == "kept\n"
    assert [row.mode for row in box.info().restored] == [RestoreMode.COPY]
    box.close()
    box.wake()
    assert sh(box, "cat *") == "kept\n"
    assert box.restore_backup(RestoreOptions(id=handle.id, dir=handle.dir, mode=RestoreMode.COPY)).mode is None
    box.destroy()


def test_without_a_mount_driver_a_requested_overlay_is_refused_with_a_hint(copying: Node) -> None:
    box = copying.sandbox(f"sb-{uuid.uuid4().hex[:8]}")
    sh(box, "echo kept > file")
    handle = backup(box)
    sh(box, "echo changed > file")
    with pytest.raises(BackupRestoreError) as raised:
        restore(box, handle, mode="overlay")
    assert raised.value.context["reason"] == "NO_MOUNT_DRIVER"
    assert '"copy"' in (raised.value.hint or "")
    assert sh(box, "cat file") == "changed\n"
    box.destroy()


def test_without_a_mount_driver_a_lost_overlay_is_recovered_as_a_copy(kernel_node: Node, copying: Node) -> None:
    name = f"sb-{uuid.uuid4().hex[:8]}"
    lost = kernel_node.sandbox(name)
    sh(lost, "echo kept > file")
    restore(lost, backup(lost))
    again = copying.sandbox(name, lost=["node"])
    assert sh(again, "cat file") == "kept\n"
    assert [row.mode for row in again.info().restored] == [RestoreMode.COPY]
    again.destroy()


@pytest.mark.parametrize("driver", [Driver.KERNEL, Driver.MIXED, Driver.ROOTLESS], indirect=True)
def test_a_sandbox_with_layers_of_the_fuse_driver_wakes_with_the_offered_driver(
    scratch: Path, bucket: BucketConfig, driver: Driver
) -> None:
    with Node(scratch / "data", bucket, Driver.FUSE) as before:
        box = before.sandbox()
        sh(box, "mkdir one two; echo 1 > one/file; echo 2 > two/file; echo 3 > two/gone")
        one, two = backup(box, "/workspace/one"), backup(box, "/workspace/two")
        restore(box, one)
        restore(box, two)
        sh(box, "echo more >> one/file; rm two/gone; rm -r one/none 2>/dev/null; echo new > two/new")
    with Node(scratch / "data", bucket, driver) as after:
        for _ in range(2):
            box = after.sandbox()
            assert sh(box, "cat one/file two/file two/new; ls two") == "1\nmore\n2\nnew\nfile\nnew\n"
            assert {row.driver for row in box.info().restored} == {driver.value}
            sh(box, "echo n > t; mv t two/file; rm two/file; test ! -e two/file; echo 2 > two/file")
            box.close()
        box = after.sandbox()
        restore(box, one)
        assert sh(box, "cat one/file two/file") == "1\n2\n"
        box.destroy()


def test_without_a_mount_driver_layers_are_kept_but_unavailable(scratch: Path, bucket: BucketConfig) -> None:
    for driver in (Driver.FUSE, Driver.KERNEL):
        folder = scratch / driver.value
        with Node(folder, bucket, driver) as before:
            box = before.sandbox()
            sh(box, "echo old > file")
            restore(box, backup(box))
            sh(box, "echo written > file")
        layers = before.home("box") / "layers"
        kept = sorted(path for path in layers.rglob("upper/*"))
        with Node(folder, bucket, None) as without:
            if driver is Driver.FUSE:
                box = without.sandbox(awake=False)
                with pytest.raises(SandboxUnavailableError) as raised:
                    box.wake()
                box.close()
                assert raised.value.context["cause"] == "NO_MOUNT_DRIVER"
        assert kept and sorted(path for path in layers.rglob("upper/*")) == kept
        with Node(folder, bucket, Driver.KERNEL) as again:
            box = again.sandbox()
            assert sh(box, "cat file") == "written\n"
            box.destroy()
        mounting.sweep(folder)


def test_a_tree_with_the_rootless_drivers_own_attributes_is_copied_instead(scratch: Path, bucket: BucketConfig) -> None:
    with Node(scratch / "data", bucket, Driver.ROOTLESS) as node:
        box = node.sandbox()
        sh(box, "mkdir d; touch d/hidden; echo 1 > d/shown; echo 2 > plain")
        directory = node.tree(box) / "workspace" / "d"
        os.setxattr(directory, "user.overlay.opaque", b"x")
        os.setxattr(directory / "hidden", "user.overlay.whiteout", b"y")
        os.setxattr(directory.parent / "plain", "user.other", b"y")
        handle = backup(box)
        with pytest.raises(BackupRestoreError) as raised:
            restore(box, handle)
        assert raised.value.context["reason"] == "SIGNS_REFUSED"
        assert '"copy"' in (raised.value.hint or "")
        restore(box, handle, mode="copy")
        assert sh(box, "ls d") == "hidden\nshown\n"
        os.removexattr(directory, "user.overlay.opaque")
        os.removexattr(directory / "hidden", "user.overlay.whiteout")
        restore(box, backup(box))
        assert sh(box, "ls d") == "hidden\nshown\n"
        box.destroy()


@pytest.mark.parametrize("driver", [Driver.MIXED, Driver.ROOTLESS])
@pytest.mark.parametrize("place", [".", "folder", "file", "folder/file"])
def test_a_tree_with_empty_attributes_that_squashfuse_cannot_show_is_copied_instead(
    scratch: Path, bucket: BucketConfig, driver: Driver, place: str
) -> None:
    with Node(scratch / "data", bucket, driver) as node:
        box = node.sandbox()
        sh(box, "mkdir folder; echo data > file; echo data > folder/file")
        os.setxattr(node.tree(box) / "workspace" / place, "user.empty", b"")
        handle = backup(box)
        with pytest.raises(BackupRestoreError) as raised:
            restore(box, handle)
        assert raised.value.context["reason"] == "SIGNS_REFUSED"
        restore(box, handle, mode="copy")
        assert os.getxattr(node.tree(box) / "workspace" / place, "user.empty") == b""
        sh(box, "echo more >> folder/file")
        os.removexattr(node.tree(box) / "workspace" / place, "user.empty")
        restore(box, backup(box))
        assert sh(box, "cat folder/file") == "data\nmore\n"
        box.destroy()
