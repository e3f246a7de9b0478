"""Finds processes that hold our mounts in other mount namespaces, and loop devices that none of our mounts uses.

A new mount namespace is a copy of another one, with all its mounts, until its maker unmounts them. A bubblewrap that
was interrupted before that keeps the mounts for as long as it lives: the kernel then refuses to mount an overlay's
upper again, and the archive's loop device stays. The first process of a box whose bubblewrap was killed early may do
the same. Such processes are found by the mounts that they hold.
"""

from __future__ import annotations

import errno
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
_FIRST = "unshare"
_OLD_ROOT = "/oldroot"
"""The folder in which bubblewrap has the old mounts until it unmounts them. Source: bubblewrap.c, pivot_root."""
_END_S = 5.0
_LOOP_CLR_FD = 0x4C01
"""The ioctl that detaches a loop device. Source: include/uapi/linux/loop.h."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A process with one of our mounts in another mount namespace. We may end it if `is_orphan`."""

    pid: int
    name: str
    mount: str
    is_orphan: bool


def find(folders: Sequence[Path]) -> list[Holder]:
    """Returns the processes in other mount namespaces that hold mounts below `folders` (absolute, without symlinks)."""
    ours = os.readlink(_PROC / "self" / "ns" / "mnt")
    origins = [origin for folder in folders if (origin := _origin(folder)) is not None]
    seen: dict[str, _Held] = {}
    found = []
    for entry in _PROC.glob("[0-9]*"):
        with suppress(OSError):
            namespace = os.readlink(entry / "ns" / "mnt")
            if namespace == ours:
                continue
            if namespace not in seen:
                seen[namespace] = _held(entry, folders, origins)
            held = seen[namespace]
            if held.at is None and held.of is None:
                continue
            is_orphan = _is_orphan(int(entry.name))
            mount = held.at or (held.of if is_orphan else None)
            if mount is not None:
                name = (entry / "comm").read_text().strip()
                found.append(Holder(int(entry.name), name, mount, is_orphan))
    return found


def end_orphans(folders: Sequence[Path]) -> int:
    """Kills the processes of orphaned boxes that hold our mounts. Logs the other processes that hold some.

    Returns:
        The number of processes that were killed.
    """
    folders = [Path(os.path.realpath(folder)) for folder in folders]
    ended = 0
    for holder in find(folders):
        if not holder.is_orphan:
            log.info("mount_held", pid=holder.pid, name=holder.name, mount=Path(holder.mount).name)
            continue
        log.warning("orphan_ended", pid=holder.pid, name=holder.name, mount=Path(holder.mount).name)
        _kill(holder.pid)
        ended += 1
    return ended


def unused_loop_devices(folders: Sequence[Path]) -> Iterator[Path]:
    """Yields the loop devices of files below `folders` that no mount of this namespace uses."""
    ours = {}
    for device in Path("/sys/block").glob("loop*"):
        with suppress(OSError):
            file = Path((device / "loop" / "backing_file").read_text().strip())
            if any(file.is_relative_to(folder) for folder in folders):
                ours[(device / "dev").read_text().strip()] = Path("/dev") / device.name
    mounted = {mount.device for mount in mountinfo.mounts()}  # last: a device may just have been mounted
    yield from (device for number, device in ours.items() if number not in mounted)


def detach(device: Path) -> None:
    """Detaches a loop device, as soon as it is no longer in use. Success if it has no file any more. Raises OSError.

    Source: loop(4), LOOP_CLR_FD: "if the device is in use, it is detached at the last close".
    """
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _LOOP_CLR_FD, 0)
        finally:
            os.close(fd)
    except OSError as e:
        if e.errno != errno.ENXIO:
            raise


@dataclass(frozen=True, slots=True)
class _Held:
    """The mount point of one of our mounts in a namespace: `at` below our folders, or elsewhere `of` one of them."""

    at: str | None = None
    of: str | None = None


def _held(process: Path, folders: Sequence[Path], origins: Sequence[tuple[str, Path]]) -> _Held:
    """Finds one of our mounts in a process's namespace. A finished box shows our folders under names of its own."""
    of = None
    for mount in mountinfo.parse((process / "mountinfo").read_bytes()):
        point = mount.point
        if point.is_relative_to(_OLD_ROOT):
            point = Path("/") / point.relative_to(_OLD_ROOT)
        if any(point.is_relative_to(folder) and point != folder for folder in folders):
            return _Held(at=str(point))
        if any(mount.device == device and Path(mount.root).is_relative_to(root) for device, root in origins):
            of = str(point)
    return _Held(of=of)


def _origin(folder: Path) -> tuple[str, Path] | None:
    """The device of a folder's file system, and the folder's path in it, by which its bind mounts are recognised."""
    above = [mount for mount in mountinfo.mounts() if folder.is_relative_to(mount.point)]
    if not above:  # in a chroot(2) that is no mount point
        return None
    mount = sorted(above, key=lambda mount: len(mount.point.parts))[-1]
    return mount.device, Path(mount.root) / folder.relative_to(mount.point)


def _is_orphan(pid: int) -> bool:
    """True for a process of a box whose starter is dead: it and all its ancestors below process 1 belong to boxes."""
    if pid == 1:
        return False
    while pid > 1:
        stat = (_PROC / str(pid) / "stat").read_text()
        name = stat.partition("(")[2].rpartition(")")[0]
        if name != _BUBBLEWRAP and not (name == _FIRST and _is_first(pid)):
            return False
        pid = int(stat.rpartition(")")[2].split()[1])
    return True


def _is_first(pid: int) -> bool:
    """True if an unshare(1) is the first process of one of our boxes: its arguments drop to the sandbox's user."""
    words = (_PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    return b"setpriv" in words and any(word.startswith(b"--reuid=") for word in words)


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
