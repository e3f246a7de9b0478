"""Mounts and unmounts file systems, by mount(8), mount(2) and umount(2).

An unmount either removes the mount or raises an error; it is never lazy. The one exception is a dead FUSE mount on the
way to the path, which is detached.

Mounting runs in a child, which can be killed when a file system hangs. Unmounting is one system call that asks
nothing of the file system, so it also removes a hung or dead FUSE mount; umount(8) would access it first.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Sequence
from pathlib import Path

from actors.node import mountinfo, process
from actors.node.errors import MountBusyError, MountError, NoRoomToMountError, ToolError, full_disk_in

_MOUNT_TIMEOUT_S = 30.0
_RETRY_S = 0.02
_MS_BIND = 4096
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_BUSY = b"already mounted"

_libc = ctypes.CDLL(None, use_errno=True)


def mount(argv: Sequence[str], *, cwd: Path, deadline_s: float = 0.0) -> None:
    """Runs a `mount` command; repeats it until the deadline while the kernel answers EBUSY.

    Raises:
        MountBusyError: the mount point, or an overlay's upper, was still in use at the deadline.
        NoRoomToMountError: the disk is full; nothing is mounted.
        MountError: it failed; nothing is mounted.
    """
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            ended = process.run(argv, timeout_s=_MOUNT_TIMEOUT_S, cwd=str(cwd))
        except ToolError as e:
            raise MountError(e.message, hint=e.hint) from e
        if ended.status == 0:
            return
        if full_disk_in(ended.stderr.decode(errors="replace")):
            raise NoRoomToMountError(f"{argv[0]} of {argv[2]} failed: {process.printable(ended.stderr)}")
        if _BUSY not in ended.stderr:
            raise MountError(f"{argv[0]} of {argv[2]} failed: {process.printable(ended.stderr)}")
        if time.monotonic() >= deadline:
            raise MountBusyError(f"{argv[0]} of {argv[2]} found it in use: {process.printable(ended.stderr)}")
        time.sleep(_RETRY_S)


def bind_descriptors(source_fd: int, target_fd: int) -> None:
    """Bind-mounts the file or directory of one descriptor onto that of another.

    Raises:
        MountError: the kernel refused.
    """
    source, target = f"/proc/self/fd/{source_fd}", f"/proc/self/fd/{target_fd}"
    if _libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(_MS_BIND), None) != 0:
        raise MountError(f"A bind mount failed: {os.strerror(ctypes.get_errno())}.")


def unmount(path: Path, *, deadline_s: float) -> None:
    """Unmounts everything that is mounted at exactly `path`; tries again until the deadline while it is busy.

    Success if nothing is mounted there. A deadline of 0 means one attempt.

    Raises:
        MountBusyError: at the deadline the mount was still in use, or covered by another one; it is still there.
        MountError: the kernel refused for another reason.
    """
    deadline = time.monotonic() + deadline_s
    while mountinfo.find(path) is not None:
        if _libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW) == 0:
            continue
        code = ctypes.get_errno()
        if code == errno.EBUSY:
            if time.monotonic() >= deadline:
                raise MountBusyError(
                    f"{path} is still in use after {deadline_s:g} s.",
                    hint="End the processes that have files open or their working directory in it.",
                )
            time.sleep(_RETRY_S)
        elif code == errno.ENOTCONN and _detach_way_to(path):
            continue
        elif code not in (errno.EINVAL, errno.ENOENT):
            raise MountError(f"{path} cannot be unmounted: {os.strerror(code)}.")
        elif time.monotonic() >= deadline and mountinfo.find(path) is not None:  # else another process unmounted it
            raise MountBusyError(f"{path} is covered by another mount.")


def _detach_way_to(path: Path) -> bool:
    """Detaches the nearest FUSE or overlay mount above `path`, with all that is mounted in it; its daemon is dead.

    This lazy unmount does no harm: nobody can write through a dead daemon, and the kernel refuses to mount an upper
    again while its overlay is still in use.

    Returns:
        True if a mount was detached.
    """
    table = {mount.id: mount for mount in mountinfo.mounts()}
    found = mountinfo.find(path)
    way = table.get(found.parent_id) if found is not None else None
    while way is not None and (way.fs_type == "overlay" or way.fs_type.startswith("fuse")):
        if _libc.umount2(os.fsencode(way.point), _UMOUNT_NOFOLLOW | _MNT_DETACH) == 0:
            return True
        way = table.get(way.parent_id)
    return False


def sweep(path: Path, *, deadline_s: float = 10.0, and_itself: bool = True) -> list[Path]:
    """Unmounts everything below `path`, and at `path` if `and_itself`, whoever mounted it, whether it answers or not.

    A FUSE daemon ends with its last mount. Only for the start and the end of the service: it would take the mounts
    of a living sandbox away.

    Returns:
        The mount points that could not be unmounted before the deadline.
    """
    path = Path(os.path.realpath(path))
    deadline = time.monotonic() + deadline_s
    while True:
        for point in _points_under(path, and_itself=and_itself):
            try:
                unmount(point, deadline_s=0)
            except MountError:
                continue
        left = _points_under(path, and_itself=and_itself)
        if not left or time.monotonic() >= deadline:
            return left
        time.sleep(_RETRY_S)


def _points_under(path: Path, *, and_itself: bool) -> list[Path]:
    points = dict.fromkeys(mount.point for mount in mountinfo.mounts_under(path))
    return [point for point in points if and_itself or point != path]
