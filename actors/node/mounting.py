"""Mounts and unmounts file systems, by mount(8), mount(2) and umount(2).

An unmount either removes the mount or raises an error; it is never lazy. The one exception is a dead FUSE mount on the
way to the path, which is detached.

What a FUSE daemon serves is mounted by a child, which can be killed when the daemon hangs. What needs the kernel
alone is mounted by system calls: to start mount(8) takes ten times as long. Unmounting is one system call that asks
nothing of the file system, so it also removes a hung or dead FUSE mount; umount(8) would access it first.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from actors.node import drivers, loops, mountinfo, process
from actors.node.errors import MountBusyError, MountError, NoRoomToMountError, ToolError, full_disk_in, is_full
from actors.node.system_calls import checked, libc

_MOUNT_TIMEOUT_S = 30.0
_RETRY_S = 0.02
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_BIND = 1, 2, 4, 4096
_CLONE_FS = 0x200
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_BUSY = b"already mounted"


def mount(argv: Sequence[str], *, cwd: Path, deadline_s: float = 0.0) -> None:
    """Runs a `mount` command; repeats it until the deadline while the kernel answers EBUSY.

    Raises:
        MountBusyError: the mount point, or an overlay's upper, was still in use at the deadline.
        NoRoomToMountError: the disk is full; nothing is mounted.
        MountError: it failed; nothing is mounted.
    """

    def attempt() -> None:
        try:
            ended = process.run(argv, timeout_s=_MOUNT_TIMEOUT_S, cwd=str(cwd))
        except ToolError as e:
            raise MountError(e.message, hint=e.hint) from e
        if ended.status == 0:
            return
        what, said = f"{argv[0]} of {argv[2]}", process.printable(ended.stderr)
        if full_disk_in(ended.stderr.decode(errors="replace")):
            raise NoRoomToMountError(f"{what} failed: {said}")
        if _BUSY not in ended.stderr:
            raise MountError(f"{what} failed: {said}")
        raise MountBusyError(f"{what} found it in use: {said}")

    _repeat_while_busy(attempt, deadline_s)


def mount_archive(archive: Path, point: Path) -> None:
    """Mounts an archive read-only at `point`, on a loop device that is detached with the unmount.

    Where no loop device can be attached here, mount(8) does it, which knows older kernels and other device folders.

    Raises:
        MountError: it failed; nothing is mounted.
    """
    try:
        attached = loops.attach(archive)
    except OSError:
        mount(drivers.kernel_squashfs(archive, point), cwd=point.parent)
        return
    try:
        _mount(attached.device, str(point), "squashfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    except OSError as e:
        raise MountError(f"mount of squashfs failed: {e.strerror}.") from None
    finally:
        attached.close()


def mount_overlay(data: str, point: str, *, cwd: Path, deadline_s: float) -> None:
    """Mounts an overlay, whose options and `point` name directories in `cwd`. Raises as `mount`.

    It runs in a thread with a working directory of its own, so that mountinfo shows no path of the node.
    """
    failed: list[OSError] = []

    def mount_here() -> None:
        try:
            checked(libc.unshare(_CLONE_FS))
            os.chdir(cwd)
            _mount("overlay", point, "overlay", _MS_NOSUID | _MS_NODEV, data)
        except OSError as e:
            failed.append(e)

    def attempt() -> None:
        failed.clear()
        thread = threading.Thread(target=mount_here, name="mount")
        try:
            thread.start()
        except RuntimeError as e:  # Python raises it where a thread's start fails with EAGAIN
            raise MountError(f"mount of overlay failed: {e}.") from None
        thread.join()
        if not failed:
            return
        (error,) = failed
        if is_full(error):
            raise NoRoomToMountError(f"mount of overlay failed: {error.strerror}.")
        if error.errno != errno.EBUSY:
            raise MountError(f"mount of overlay failed: {error.strerror}.")
        raise MountBusyError(f"mount of overlay found it in use: {error.strerror}.")

    _repeat_while_busy(attempt, deadline_s)


def _repeat_while_busy(attempt: Callable[[], None], deadline_s: float) -> None:
    """Repeats an attempt while it raises MountBusyError, until the deadline."""
    deadline = time.monotonic() + deadline_s
    while True:
        try:
            attempt()
            return
        except MountBusyError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_RETRY_S)


def _mount(source: str, point: str, fs_type: str | None, flags: int, data: str = "") -> None:
    """Calls mount(2). Raises OSError."""
    kind = None if fs_type is None else fs_type.encode()
    checked(libc.mount(os.fsencode(source), os.fsencode(point), kind, ctypes.c_ulong(flags), data.encode()))


def bind_descriptors(source_fd: int, target_fd: int) -> None:
    """Bind-mounts the file or directory of one descriptor onto that of another.

    Raises:
        MountError: the kernel refused.
    """
    source, target = f"/proc/self/fd/{source_fd}", f"/proc/self/fd/{target_fd}"
    try:
        _mount(source, target, None, _MS_BIND)
    except OSError as e:
        raise MountError(f"A bind mount failed: {e.strerror}.") from None


def unmount(path: Path, *, deadline_s: float) -> None:
    """Unmounts everything that is mounted at exactly `path`; tries again until the deadline while it is busy.

    Success if nothing is mounted there. A deadline of 0 means one attempt.

    Raises:
        MountBusyError: at the deadline the mount was still in use, or covered by another one; it is still there.
        MountError: the kernel refused for another reason.
    """
    deadline = time.monotonic() + deadline_s
    while mountinfo.find(path) is not None:
        if libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW) == 0:
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
        if libc.umount2(os.fsencode(way.point), _UMOUNT_NOFOLLOW | _MNT_DETACH) == 0:
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
