"""kill -9 before and after every step of a restore; a new actor on the same files then works."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from actors.config import BackupLimits
from actors.errors import BackupNotFoundError
from actors.models import DirectoryBackup, RestoreMode
from actors.node import mountinfo
from actors.node.drivers import Driver
from actors.sandbox.facade import LocalSandbox
from actors.sandbox.steps import RestoreStep, Step
from storage import keys
from tests.support.killing import STEP_LOG, observe_steps
from tests.support.mount_leaks import loop_devices, wait_until
from tests.support.sandboxes import Node, backup, crash, described, restore, sh, write

PASSED = {
    RestoreMode.OVERLAY: (
        RestoreStep.METADATA,
        RestoreStep.FETCH,
        RestoreStep.PREPARE,
        RestoreStep.STOP,
        RestoreStep.UNMOUNT,
        RestoreStep.SHOW,
        RestoreStep.RECORD,
        RestoreStep.DISCARD,
        RestoreStep.REPORT,
    ),
    RestoreMode.COPY: (
        RestoreStep.METADATA,
        RestoreStep.FETCH,
        RestoreStep.STOP,
        RestoreStep.PREPARE,
        RestoreStep.UNMOUNT,
        RestoreStep.SHOW,
        RestoreStep.RECORD,
        RestoreStep.DISCARD,
        RestoreStep.REPORT,
    ),
}
"""The steps of a restore in each mode, in order."""

RESTORE = "tests.support.programs.restore_killed_at_a_step"


class Crashing:
    """A sandbox with a directory restored from one backup, whose restore from another will be interrupted."""

    def __init__(self, node: Node, mode: RestoreMode, *, mounted: bool, incremental: bool) -> None:
        """`mounted`: the directory is an overlay before the interrupted restore. `incremental`: the new backup is."""
        self.node, self.mode, self.mounted = node, mode, mounted
        node.adjust(backup=BackupLimits(incremental=incremental, incremental_min_bytes=0))
        box = node.sandbox()
        sh(box, "mkdir data; echo old > data/one; echo old > data/two")
        self.old = backup(box, "/workspace/data")
        sh(box, "echo new > data/one; echo new > data/two")
        self.new = backup(box, "/workspace/data")
        self.depths = {made.id: node.catalog().get("default", made.id).depth for made in (self.old, self.new)}
        assert self.depths == {self.old.id: 1, self.new.id: 1 + incremental}
        restore(box, self.old, mode=RestoreMode.OVERLAY if mounted else RestoreMode.COPY)
        sh(box, "echo acknowledged > data/later")
        write(box, "/app/kept", "acknowledged")
        box.close()
        self.uncache()

    def uncache(self) -> None:
        """Empties the cache, so that the archive is fetched from the bucket."""
        for archive in self.node.layout.cache.glob("*.sqsh"):
            archive.unlink()

    def run(self, step: RestoreStep, when: str) -> None:
        ended = crash(RESTORE, described(self.node), self.new.model_dump_json(), self.mode, step, when)
        assert ended.status == -signal.SIGKILL and "survived" not in ended.stdout, ended

    def check_taken_up(self, *, recorded: bool, shown: bool) -> LocalSandbox:
        """Opens the sandbox again, and checks that it shows the old content or the new, and nothing of the other.

        `recorded` is True if the new backup is recorded as the restored one; `shown`, if its content is expected.
        """
        node = self.node
        box = node.sandbox()
        content = sh(box, "cat data/*; ls -A . data")
        old = "acknowledged\nold\nold\n.:\ndata\n\ndata:\nlater\none\ntwo\n"
        assert content == ("new\nnew\n.:\ndata\n\ndata:\none\ntwo\n" if shown else old)
        assert sh(box, "cat /app/kept") == "acknowledged"
        (entry,) = box.info().restored
        assert (entry.dir, entry.backup_id) == ("/workspace/data", self.new.id if recorded else self.old.id)
        self.check_nothing_is_left(box)
        box.ownership.change(lambda state: state)
        assert [(row.dir, row.backup_id, row.mode) for row in node.state("box").restored] == [
            ("/workspace/data", entry.backup_id, entry.mode)
        ]
        recovered_from = {row.dir: row.backup_id for row in node.state("box").checkpoints}
        assert recovered_from["/workspace/data"] == entry.backup_id
        return box

    def check_nothing_is_left(self, box: LocalSandbox) -> None:
        node, home = self.node, self.node.home("box")
        overlays = [entry for entry in box.info().restored if entry.mode == "overlay"]
        assert wait_until(lambda: len(list(home.glob("layers/*"))) == len(overlays))
        archives = sum(self.depths[entry.backup_id] for entry in overlays)
        assert len(list(home.glob("archives/*"))) == archives
        assert list(home.glob("spool/*")) == []
        assert not (home / "stage").exists()
        assert list(node.layout.cache.glob(".*.work")) == []
        # An overlay has two mounts beside those of its archives: the layer, and the layer in the tree.
        shown = [mount for mount in node.mounts() if mount.point.is_relative_to(node.tree(box))]
        assert len(shown) == len(overlays)
        assert len(node.mounts()) == archives + 2 * len(overlays)
        of_overlays = ["fuse-overlayfs"] * len(overlays) if node.driver is Driver.FUSE else []
        daemons = of_overlays + ["squashfuse_ll"] * archives if node.driver is not Driver.KERNEL else []
        assert wait_until(lambda: sorted(node.processes().values()) == daemons), node.processes()

    def check_end(self, box: LocalSandbox, scratch: Path) -> None:
        """Checks that a restore works again, and that closing leaves no mount, daemon or loop device."""
        restore(box, self.new, mode=self.mode)
        assert sh(box, "cat data/*") == "new\nnew\n"
        self.check_nothing_is_left(box)
        box.close()
        assert mountinfo.mounts_under(scratch) == []
        assert wait_until(lambda: loop_devices(scratch) == [])
        assert wait_until(lambda: self.node.processes() == {})


def check(
    node: Node,
    scratch: Path,
    mode: RestoreMode,
    step: RestoreStep,
    when: str,
    *,
    mounted: bool,
    incremental: bool = False,
) -> None:
    crashing = Crashing(node, mode, mounted=mounted, incremental=incremental)
    crashing.run(step, when)
    passed = PASSED[mode].index(step) + (when == "after")
    recorded = passed > PASSED[mode].index(RestoreStep.RECORD)
    # A plain directory is exchanged before the record is written: a crash between the two shows the new content.
    exchanged = mode is RestoreMode.COPY and not mounted and passed > PASSED[mode].index(RestoreStep.SHOW)
    box = crashing.check_taken_up(recorded=recorded, shown=recorded or exchanged)
    crashing.check_end(box, scratch)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", RestoreStep)
@pytest.mark.parametrize("mode", RestoreMode)
def test_a_crash_at_any_step_of_a_restore_leaves_the_old_content_or_the_new(
    kernel_node: Node, scratch: Path, mode: RestoreMode, step: RestoreStep, when: str
) -> None:
    check(kernel_node, scratch, mode, step, when, mounted=True)


# "After" a step is the same instant as "before" the next, so the variations are tried with "after" only.
@pytest.mark.parametrize("step", RestoreStep)
def test_a_crash_after_any_step_of_a_copy_over_plain_files_leaves_old_or_new_content(
    kernel_node: Node, scratch: Path, step: RestoreStep
) -> None:
    check(kernel_node, scratch, RestoreMode.COPY, step, "after", mounted=False)


@pytest.mark.parametrize("step", RestoreStep)
@pytest.mark.parametrize("driver", [Driver.MIXED, Driver.ROOTLESS, Driver.FUSE], indirect=True)
def test_a_crash_after_any_step_of_a_restore_with_fuse_leaves_old_or_new_content(
    node: Node, scratch: Path, step: RestoreStep
) -> None:
    check(node, scratch, RestoreMode.OVERLAY, step, "after", mounted=True)


@pytest.mark.parametrize("step", RestoreStep)
@pytest.mark.parametrize(
    ("driver", "mode"),
    [
        (Driver.KERNEL, RestoreMode.OVERLAY),
        (Driver.KERNEL, RestoreMode.COPY),
        (Driver.MIXED, RestoreMode.OVERLAY),
        (Driver.ROOTLESS, RestoreMode.OVERLAY),
    ],
    indirect=["driver"],
)
def test_a_crash_after_any_step_of_the_restore_of_layers_leaves_old_or_new_content(
    node: Node, scratch: Path, mode: RestoreMode, step: RestoreStep
) -> None:
    check(node, scratch, mode, step, "after", mounted=True, incremental=True)


@pytest.mark.parametrize("mode", RestoreMode)
def test_a_restore_passes_every_step_in_order(
    kernel_node: Node, monkeypatch: pytest.MonkeyPatch, mode: RestoreMode
) -> None:
    box = kernel_node.sandbox()
    handle = backup(box)
    passed: list[tuple[Step, str]] = []
    monkeypatch.setattr(STEP_LOG, "handlers", [])
    observe_steps(lambda step, when: passed.append((step, when)))
    restore(box, handle, mode=mode)
    assert passed == [(step, when) for step in PASSED[mode] for when in ("before", "after")]
    assert set(PASSED[mode]) == set(RestoreStep)


HALF_DOWNLOADED = "tests.support.programs.restore_killed_half_way"


def test_a_half_downloaded_archive_is_removed_at_the_next_start(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    sh(box, "head -c 6000000 /dev/urandom > large")
    handle = backup(box)
    box.close()
    for archive in kernel_node.layout.cache.glob("*.sqsh"):
        archive.unlink()
    ended = crash(HALF_DOWNLOADED, described(kernel_node), handle.model_dump_json())
    assert ended.status == -signal.SIGKILL and "survived" not in ended.stdout, ended
    assert list(kernel_node.layout.cache.glob(".*.work/*"))
    kernel_node.sandbox("other")
    assert list(kernel_node.layout.cache.glob(".*.work")) == []


def test_an_archive_without_metadata_is_not_restored(kernel_node: Node) -> None:
    box = kernel_node.sandbox()
    handle = backup(box)
    kernel_node.catalog().store.delete(keys.metadata(handle.id))
    for mode in RestoreMode:
        with pytest.raises(BackupNotFoundError):
            restore(box, DirectoryBackup(id=handle.id, dir="/workspace"), mode=mode)
