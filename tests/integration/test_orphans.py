"""Orphans of an actor that dies while it starts a process: none of them keeps its sandbox from being mounted again."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from actors.node import holders
from actors.service.node_sweeper import NodeSweeper
from tests.support.mount_leaks import loop_devices, wait_until
from tests.support.sandboxes import Node, backup, crash, described, restore, sh

STARTS = int(os.environ.get("HOLDFAST_TEST_KILLED_STARTS", "20"))
"""Number of interrupted starts: 20 are enough for CI, a thousand make a soak test."""
STRIDE = int(os.environ.get("HOLDFAST_TEST_STEPS_APART", "101"))
"""Number of bubblewrap's system calls between one death and the next; 1 makes a soak test."""

ACTORS = "tests.support.programs.actors_killed_at_random"


def restored_box(node: Node) -> None:
    """A sandbox with a restored directory and a write over it, asleep."""
    box = node.sandbox()
    sh(box, "mkdir data; echo original > data/file")
    restore(box, backup(box, "/workspace/data"))
    sh(box, "echo later > data/later")
    box.close()


def orphans(node: Node) -> list[holders.Holder]:
    return [holder for holder in holders.find(list(node.layout.mounting)) if holder.is_orphan]


@pytest.mark.timeout(200 + STARTS * 10)
def test_a_sandbox_whose_actor_dies_at_any_moment_of_a_start_comes_back(node: Node) -> None:
    restored_box(node)
    # In its own mount namespace: other processes on this machine that make one meanwhile get no copies of its mounts.
    ended = crash(ACTORS, described(node), str(STARTS), "1", timeout_s=100 + STARTS * 10, before=["unshare", "--mount"])
    assert (ended.status, ended.stderr) == (0, ""), ended.stdout[-3000:]
    assert ended.stdout.endswith("all came back\n")


HALF_STARTED = "tests.support.programs.box_half_started"


@pytest.mark.parametrize("how", ["grouped", "found by what it holds"])
def test_an_orphan_of_a_half_started_bubblewrap_does_not_block_its_sandbox(node: Node, how: str) -> None:
    restored_box(node)
    ended = crash(HALF_STARTED, described(node), how)
    assert ended.status == -9, ended.stderr
    orphan = int(ended.stdout.split()[-1])
    try:
        assert wait_until(lambda: [holder.pid for holder in orphans(node)] == [orphan]), orphans(node)
        box = node.sandbox()
        assert sh(box, "cat data/file data/later") == "original\nlater\n"
        box.close()
        assert not NodeSweeper(node.config.node, None).sweep().stuck
        assert orphans(node) == []
        assert wait_until(lambda: loop_devices(node.data_dir) == [])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGKILL)


FINISHED = "tests.support.programs.first_process_orphaned"


def test_an_orphaned_first_process_of_a_box_does_not_block_its_sandbox(
    kernel_node: Node,
) -> None:
    restored_box(kernel_node)
    ended = crash(FINISHED, described(kernel_node))
    assert ended.status == -9, ended.stderr
    first = int(ended.stdout)
    try:
        assert wait_until(lambda: first in [holder.pid for holder in orphans(kernel_node)])
        box = kernel_node.sandbox()
        assert sh(box, "cat data/file data/later") == "original\nlater\n"
        box.close()
        assert orphans(kernel_node) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)


def test_the_sweep_ends_orphans_of_half_started_bubblewraps(kernel_node: Node) -> None:
    restored_box(kernel_node)
    for how in ("grouped", "found by what it holds"):
        ended = crash(HALF_STARTED, described(kernel_node), how)
        assert ended.status == -9, ended.stderr
        assert orphans(kernel_node) != []
        assert not NodeSweeper(kernel_node.config.node, None).sweep().stuck
        assert orphans(kernel_node) == []
        assert wait_until(lambda: loop_devices(kernel_node.data_dir) == [])


def test_a_tool_whose_first_process_died_is_ended_with_its_children(kernel_node: Node) -> None:
    restored_box(kernel_node)
    ended = crash(HALF_STARTED, described(kernel_node), "alive")
    assert (ended.status, ended.stdout.splitlines()[-1]) == (0, "True"), ended


def test_a_strangers_process_that_holds_a_mount_is_named_and_left_alone(kernel_node: Node) -> None:
    restored_box(kernel_node)
    box = kernel_node.sandbox()
    with subprocess.Popen(["unshare", "--mount", "sleep", "1000"]) as stranger:
        try:
            folders = list(kernel_node.layout.mounting)
            assert wait_until(lambda: (stranger.pid, "sleep") in [(one.pid, one.name) for one in holders.find(folders)])
            assert orphans(kernel_node) == []
            assert holders.end_orphans(kernel_node.layout.mounting) == 0
            assert stranger.poll() is None
        finally:
            stranger.kill()
    box.close()


def test_process_1_is_never_an_orphan(tmp_path: Path) -> None:
    look = "tests.support.programs.orphans_below"
    script = (
        'mount -t tmpfs none "$1"; mkdir "$1/in"; mount -t tmpfs none "$1/in"; unshare --mount "$2" -m "$3" "$1"; :'
    )
    argv = [
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        "sh",
        "-euc",
        script,
        "sh",
        str(tmp_path),
        sys.executable,
        look,
    ]
    assert subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout == b"[(1, False)]\n"


def test_an_unmounted_loop_device_of_ours_is_detached(kernel_node: Node) -> None:
    archive = kernel_node.layout.root / "cache" / "left"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(bytes(1_000_000))
    subprocess.run(["losetup", "--find", archive], check=True)
    assert loop_devices(kernel_node.data_dir)
    NodeSweeper(kernel_node.config.node, None).sweep()
    assert wait_until(lambda: not loop_devices(kernel_node.data_dir))


def test_a_loop_device_that_another_process_has_just_detached_is_no_error(tmp_path: Path) -> None:
    device = tmp_path / "device"
    os.mknod(device, stat.S_IFBLK | 0o600, os.makedev(60, 0))  # there is no such device: ENXIO, as for a detached one
    holders.detach(device)


AT_EACH_STEP = "tests.support.programs.actors_killed_at_each_step"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["command", "backup"])
def test_a_sandbox_whose_actor_dies_at_any_step_of_bubblewrap_comes_back(kernel_node: Node, kind: str) -> None:
    restored_box(kernel_node)
    ended = crash(
        AT_EACH_STEP, described(kernel_node), kind, str(STRIDE), timeout_s=1700, before=["unshare", "--mount"]
    )
    assert (ended.status, ended.stderr) == (0, ""), ended.stdout[-3000:]
    assert int(ended.stdout.split()[-2]) > 10
