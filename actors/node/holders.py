"""Processes that hold mounts of ours in mount namespaces of their own, and loop devices that nothing of ours uses.

A mount namespace is born as a copy of another one, with all its mounts, until its maker has put them away. A bubblewrap
that was cut short in between keeps them for as long as it lives: the kernel then refuses to have an overlay's upper
mounted again, and the archive's loop device stays. They are found by what they hold.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from actors.logs import log
from actors.node import mountinfo

_PROC = Path("/proc")
_BUBBLEWRAP = "bwrap"
_OLD_ROOT = "/oldroot"
"""The folder in which bubblewrap has what it is about to put away. Source: bubblewrap.c, pivot_root."""
_END_S = 5.0
_LOOP_CLR_FD = 0x4C01
"""Source: include/uapi/linux/loop.h."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process with one of our mounts in a mount namespace that is not ours; `is_orphan` says that we may end it."""

    pid: int
    name: str
    mount: str
    is_orphan: bool


def find(folders: Sequence[Path]) -> list[Holder]:
    """The processes that hold what is mounted below `folders` (absolute, without symlinks), in other namespaces."""
    ours = os.readlink(_PROC / "self" / "ns" / "mnt")
    seen: dict[str, str | None] = {}
    found = []
    for entry in _PROC.glob("[0-9]*"):
        with suppress(OSError):
            namespace = os.readlink(entry / "ns" / "mnt")
            if namespace == ours:
                continue
            if namespace not in seen:
                seen[namespace] = _held(entry, folders)
            if (mount := seen[namespace]) is not None:
                name = (entry / "comm").read_text().strip()
                found.append(Holder(int(entry.name), name, mount, _is_orphan(int(entry.name), name)))
    return found


def end_orphans(folders: Sequence[Path]) -> int:
    """Ends the bubblewraps that nobody waits for and that hold our mounts, and names in the log who else does.

    Returns:
        how many processes were ended.
    """
    folders = [Path(os.path.realpath(folder)) for folder in folders]
    ended = 0
    for holder in find(folders):
        if not holder.is_orphan:
            log.info("mount_held", pid=holder.pid, name=holder.name, mount=holder.mount)
            continue
        log.warning("orphan_ended", pid=holder.pid, name=holder.name, mount=holder.mount)
        _kill(holder.pid)
        ended += 1
    return ended


def unused_loop_devices(folders: Sequence[Path]) -> Iterator[Path]:
    """The loop devices of files below `folders` of which nothing is mounted in this namespace."""
    mounted = {mount.device for mount in mountinfo.mounts()}
    for device in Path("/sys/block").glob("loop*"):
        with suppress(OSError):
            file = Path((device / "loop" / "backing_file").read_text().strip())
            is_ours = any(file.is_relative_to(folder) for folder in folders)
            if is_ours and (device / "dev").read_text().strip() not in mounted:
                yield Path("/dev") / device.name


def detach(device: Path) -> None:
    """Detaches a loop device; one that is still in use goes when it no longer is. Raises OSError.

    Source: loop(4), LOOP_CLR_FD: "if the device is in use, it is detached at the last close".
    """
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _LOOP_CLR_FD, 0)
    finally:
        os.close(fd)


def _held(process: Path, folders: Sequence[Path]) -> str | None:
    """One of the mounts of a process that lie below our folders, as its namespace names it."""
    for mount in mountinfo.parse((process / "mountinfo").read_bytes()):
        point = mount.point
        if point.is_relative_to(_OLD_ROOT):
            point = Path("/") / point.relative_to(_OLD_ROOT)
        if any(point.is_relative_to(folder) and point != folder for folder in folders):
            return str(point)
    return None


def _is_orphan(pid: int, name: str) -> bool:
    """Whether it is a bubblewrap whose starter is dead: above it are bubblewraps only, and process 1."""
    if name != _BUBBLEWRAP:
        return False
    while pid > 1:
        stat = (_PROC / str(pid) / "stat").read_text()
        if stat.partition("(")[2].rpartition(")")[0] != _BUBBLEWRAP:
            return False
        pid = int(stat.rpartition(")")[2].split()[1])
    return True


def _kill(pid: int) -> None:
    with suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            deadline = time.monotonic() + _END_S
            while time.monotonic() < deadline and (_PROC / str(pid) / "ns" / "mnt").exists():
                time.sleep(0.01)
        finally:
            os.close(pidfd)
