"""The kernel's mounts of archives as lowers: one for each file of the node, shared by all sandboxes.

A kernel overlay keeps its lower file system alive but does not make the lower's *mount* busy. So umount(2) would
succeed under running layers, and the next layer would mount the archive again. Each user therefore holds a descriptor
of the mount: umount(2) then fails with EBUSY until the last descriptor is closed. The kernel closes those of a dead
process. Source: our measurement, Linux 6.18.

    <sha256>/     a mount of one file of that content
    <sha256>.1/   a mount of another file of the same content, while the first is in use

Two files can have the same content: from two backups of an unchanged directory, or if a good file has replaced a
damaged one. A layer needs the mount of its own file until it is closed, so no other file's mount replaces it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fasteners import InterProcessLock

from actors.node import loops, mountinfo, mounting
from actors.node.errors import MountBusyError, MountError

_LOCK_TIMEOUT_S = 60.0
_BUSY_PAUSES_S = (0.0, 0.01, 0.05)
"""Pauses before the attempts to unmount a lower that others may use too."""

_in_process = threading.Lock()  # fasteners locks with fcntl, which does not exclude threads of one process


@dataclass(frozen=True, slots=True)
class Hold:
    """One user's reference to a shared lower. Ends with `Lowers.release`, or with the process."""

    path: Path
    fd: int


class Lowers:
    """The shared mounts, each in a subfolder. Any number of processes may use the same folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def hold(self, archive: Path, sha256: str) -> Hold:
        """Mounts the archive, unless this very file is mounted already, and holds the mount.

        Raises:
            MountError: the archive cannot be mounted; no new mount was left.
        """
        with self._locked():
            point = self._point(archive, sha256)
            point.mkdir(exist_ok=True)
            fresh = mountinfo.find(point) is None
            try:
                if fresh:
                    mounting.mount_archive(archive, point)
                wrong = mountinfo.look(point)
                if wrong is not None:
                    raise MountError(f"The mounted archive does not work: {wrong}.")
                return Hold(point, os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            except BaseException:
                if fresh:
                    self._unmount(point)
                raise

    def _point(self, archive: Path, sha256: str) -> Path:
        """The folder in which the (checked) file `archive` is mounted; else the first one without a mount in use.

        A mount of another file with the same content is neither used instead nor covered.
        """
        status = archive.stat()
        mounted = {mount.point: mount.source for mount in mountinfo.mounts()}
        points = [point for point in self._folder.glob(f"{sha256}*") if point in mounted]
        for point in points:
            if loops.backing_file(mounted[point]) == (status.st_dev, status.st_ino):
                return point
        names = itertools.chain([sha256], (f"{sha256}.{number}" for number in itertools.count(1)))
        return next(
            point for point in (self._folder / name for name in names) if point not in mounted or self._unmount(point)
        )

    def release(self, hold: Hold) -> None:
        """Ends a reference. The last one's end unmounts the archive.

        Whoever looks at the descriptors of all processes keeps the mount busy for an instant, so this tries again.
        """
        os.close(hold.fd)
        for pause_s in _BUSY_PAUSES_S:
            time.sleep(pause_s)
            with self._locked():
                if self._unmount(hold.path):
                    return

    def release_unused(self) -> list[Path]:
        """Unmounts all lowers without a reference, which killed processes leave behind. Returns their folders."""
        with self._locked():
            return [point for point in self._folder.iterdir() if point.is_dir() and self._unmount(point)]

    def _unmount(self, point: Path) -> bool:
        try:
            mounting.unmount(point, deadline_s=0)
        except MountBusyError:
            return False
        with contextlib.suppress(FileNotFoundError):  # another process released the last reference, too
            point.rmdir()
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = InterProcessLock(self._folder / ".lock")
        with _in_process:
            if not lock.acquire(timeout=_LOCK_TIMEOUT_S):
                raise MountError(f"Another process has been mounting or unmounting archives for {_LOCK_TIMEOUT_S:g} s.")
            try:
                yield
            finally:
                lock.release()
