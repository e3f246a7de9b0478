"""Probe, unmount, sweep, bind, and the choice of a driver, on real mounts. Needs root and FUSE."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.node import binds, daemons, drivers, mountinfo, mounting
from actors.node.daemons import Daemon
from actors.node.errors import MountBusyError, MountError, ToolMissingError
from tests.support.mount_leaks import nothing_leaks, wait_until

LONG_S = 60.0
"""Time limit for work that takes milliseconds on an idle machine, and seconds on a busy one."""


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    with nothing_leaks(tmp_path):
        yield tmp_path
        mounting.sweep(tmp_path)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("content")
    subprocess.run(["mksquashfs", "tree", "a.sqsh", "-quiet"], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "a.sqsh"


class Served:
    """An archive served by squashfuse_ll, and the reports about the daemon."""

    def __init__(self, folder: Path, archive: Path) -> None:
        self.point = folder / drivers.LOWER
        self.point.mkdir()
        self.exits: queue.Queue[Daemon] = queue.Queue()
        self.daemon = daemons.of_this_process().start(
            drivers.fuse_squashfs(archive), name="squashfuse_ll", cwd=folder, on_exit=self.exits.put
        )
        self.daemon.wait_until_serving(self.point, timeout_s=LONG_S)


@pytest.fixture
def served(scratch: Path, archive: Path) -> Served:
    return Served(scratch, archive)


def tmpfs(point: Path, *options: str) -> Path:
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(["size=1m", *options]), "tmpfs", point], check=True)
    return point


@contextlib.contextmanager
def pinned(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def test_the_mount_of_an_open_file_is_known_though_another_covers_its_place(scratch: Path) -> None:
    below = tmpfs(scratch / "point")
    with pinned(below) as under:
        subprocess.run(["mount", "--bind", scratch, below], check=True)
        with pinned(below) as over:
            kinds = [
                next(each.fs_type for each in mountinfo.mounts() if each.id == mountinfo.id_of(fd))
                for fd in (under, over)
            ]
    assert kinds[0] == "tmpfs" and kinds[1] != "tmpfs"


def test_a_living_mount_answers_a_probe(served: Served) -> None:
    assert mountinfo.probe(served.point, timeout_s=LONG_S) is None


def test_a_dead_fuse_mount_is_in_mountinfo_and_fails_a_probe(served: Served) -> None:
    served.daemon.kill()
    assert served.exits.get(timeout=LONG_S) is served.daemon
    assert mountinfo.find(served.point) is not None
    assert "Transport endpoint is not connected" in (mountinfo.probe(served.point, timeout_s=LONG_S) or "")


def test_a_hanging_fuse_mount_fails_a_probe_in_time(served: Served) -> None:
    os.kill(served.daemon.pid, signal.SIGSTOP)
    state = Path(f"/proc/{served.daemon.pid}/stat")
    try:
        assert wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
        assert mountinfo.probe(served.point, timeout_s=0.2) == "it did not answer within 0.2 s"
        mounting.unmount(served.point, deadline_s=1)
    finally:
        os.kill(served.daemon.pid, signal.SIGCONT)
    assert served.daemon.exited.wait(LONG_S)


def test_names_with_blanks_are_found_and_unmounted(scratch: Path) -> None:
    point = tmpfs(scratch / "a b\tc\nd\\040\udcff")
    assert mountinfo.find(point) is not None
    mounting.unmount(point, deadline_s=0)
    assert mountinfo.find(point) is None


def test_unmount_removes_all_mounts_stacked_at_a_path(scratch: Path) -> None:
    tmpfs(tmpfs(scratch / "point"))
    mounting.unmount(scratch / "point", deadline_s=0)
    assert mountinfo.find(scratch / "point") is None
    mounting.unmount(scratch / "point", deadline_s=0)


def test_sweep_clears_nested_and_dead_mounts(scratch: Path, served: Served) -> None:
    tmpfs(scratch / "outer")
    tmpfs(tmpfs(scratch / "outer" / "inner"))
    served.daemon.kill()
    served.daemon.exited.wait(LONG_S)
    assert mounting.sweep(scratch) == []
    assert mountinfo.mounts_under(scratch) == []


def test_sweep_ends_living_daemons(scratch: Path, served: Served) -> None:
    assert mounting.sweep(scratch) == []
    assert served.daemon.exited.wait(LONG_S)


def test_sweep_names_mounts_in_use(scratch: Path) -> None:
    busy = tmpfs(scratch / "busy")
    tmpfs(scratch / "idle")
    with (busy / "file").open("w"):
        assert mounting.sweep(scratch, deadline_s=0.1) == [busy]
    assert mounting.sweep(scratch) == []


def test_a_daemon_that_cannot_start_says_why(scratch: Path) -> None:
    (scratch / drivers.LOWER).mkdir()
    (scratch / "bad").write_bytes(b"no squashfs" * 20_000)
    exits: queue.Queue[Daemon] = queue.Queue()
    argv = drivers.fuse_squashfs(scratch / "bad")
    daemon = daemons.of_this_process().start(argv, name="squashfuse_ll", cwd=scratch, on_exit=exits.put)
    with pytest.raises(MountError, match="doesn't look like a squashfs image"):
        daemon.wait_until_serving(scratch / drivers.LOWER, timeout_s=LONG_S)
    assert exits.get(timeout=60) is daemon


def test_a_daemon_that_never_mounts_fails_at_its_time_limit(scratch: Path) -> None:
    daemon = daemons.of_this_process().start(["sleep", "60"], name="sleep", cwd=scratch, on_exit=lambda _: None)
    with pytest.raises(MountError, match="did not mount within"):
        daemon.wait_until_serving(scratch / "nothing", timeout_s=0.1)
    daemon.kill()
    assert daemon.exited.wait(LONG_S)
    daemon.kill()


def test_a_daemons_long_output_neither_blocks_it_nor_fills_our_memory(scratch: Path) -> None:
    exits: queue.Queue[Daemon] = queue.Queue()
    argv = ["sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x >&2; echo the end >&2"]
    daemon = daemons.of_this_process().start(argv, name="talker", cwd=scratch, on_exit=exits.put)
    assert exits.get(timeout=60) is daemon
    assert daemon.complaint.endswith("the end")
    assert len(daemon.complaint) <= 300


def test_a_daemon_that_is_not_installed_is_the_callers_error(scratch: Path) -> None:
    with pytest.raises(ToolMissingError):
        daemons.of_this_process().start(["no-such-daemon"], name="none", cwd=scratch, on_exit=lambda _: None)


def test_bind_mounts_onto_the_directory_that_the_descriptor_pins(scratch: Path) -> None:
    source = tmpfs(scratch / "source", "nosuid", "nodev")
    (source / "file").write_text("bound")
    target, moved = scratch / "target", scratch / "moved"
    target.mkdir()
    with pinned(target) as fd:
        target.rename(moved)
        target.symlink_to("/etc")
        binds.bind(source, fd)
    assert (moved / "file").read_text() == "bound"
    mount = mountinfo.find(moved)
    assert mount is not None
    assert mount.options >= {"nosuid", "nodev"}
    binds.unbind(moved, deadline_s=0)
    assert list(moved.iterdir()) == []


@pytest.mark.parametrize("options", [[], ["nosuid"], ["nodev"]])
def test_bind_refuses_a_source_that_honours_setuid_or_devices(scratch: Path, options: list[str]) -> None:
    source = tmpfs(scratch / "source", *options)
    (scratch / "target").mkdir()
    with pinned(scratch / "target") as fd, pytest.raises(MountError, match="without"):
        binds.bind(source, fd)
    assert mountinfo.find(scratch / "target") is None


def test_unbind_of_a_bind_in_use_fails_after_its_deadline(scratch: Path) -> None:
    source = tmpfs(scratch / "source", "nosuid", "nodev")
    target = scratch / "target"
    target.mkdir()
    with pinned(target) as fd:
        binds.bind(source, fd)
    with (target / "file").open("w"), pytest.raises(MountBusyError):
        binds.unbind(target, deadline_s=0.1)
    assert mountinfo.find(target) is not None
    binds.unbind(target, deadline_s=1)
