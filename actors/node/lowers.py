"""Archives mounted by the kernel, once per node, for all sandboxes that were restored from them.

A kernel overlay keeps its lower file system alive but does not make the lower's *mount* busy, so umount(2) would
take it from under running layers and the next layer would mount the archive again. Each user therefore holds a
descriptor of the mount: the kernel then answers EBUSY until the last one is closed, and closes those of a dead
process by itself. Source: our measurement, Linux 6.18.

    <sha256>/     a mount of one file of that content
    <sha256>.1/   a mount of another file of the same content, while the first is in use

Two backups of one unchanged directory are two files with the same bytes, and a damaged file is replaced by a good one.
No file's mount takes the place of another's: a layer needs its own until it is closed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fasteners import InterProcessLock

from actors.node import drivers, loops, mountinfo, mounting
from actors.node.errors import MountBusyError, MountError

_LOCK_TIMEOUT_S = 60.0
_PROBE_S = 5.0

_in_process = threading.Lock()  # fasteners locks with fcntl, which tells processes apart but not threads


@dataclass(frozen=True, slots=True)
class Hold:
    """One user's claim on a shared lower. Ends with `Lowers.release`, or with the process."""

    path: Path
    fd: int


class Lowers:
    """The shared mounts, one folder for each file. Any number of processes may use the same folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def hold(self, archive: Path, sha256: str) -> Hold:
        """Mounts the archive unless this very file is mounted, and keeps it so.

        Raises:
            MountError: the archive cannot be mounted; nothing was left.
        """
        with self._locked():
            point = self._point(archive, sha256)
            point.mkdir(exist_ok=True)
            fresh = mountinfo.find(point) is None
            try:
                if fresh:
                    mounting.mount(drivers.kernel_squashfs(archive, point), cwd=self._folder)
                wrong = mountinfo.probe(point, timeout_s=_PROBE_S)
                if wrong is not None:
                    raise MountError(f"The mounted archive does not work: {wrong}.")
                return Hold(point, os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            except BaseException:
                if fresh:
                    self._unmount(point)
                raise

    def _point(self, archive: Path, sha256: str) -> Path:
        """The folder in which `archive`, which was checked, is mounted; else the first one without a mount in use.

        A mount of any other file is neither taken for it nor covered by it.
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
        """Gives up a claim; the last one to do so unmounts the archive."""
        os.close(hold.fd)
        with self._locked():
            self._unmount(hold.path)

    def release_unused(self) -> list[Path]:
        """Unmounts what nobody holds (any more: a killed process cannot unmount), and names it."""
        with self._locked():
            return [point for point in self._folder.iterdir() if point.is_dir() and self._unmount(point)]

    def _unmount(self, point: Path) -> bool:
        try:
            mounting.unmount(point, deadline_s=0)
        except MountBusyError:
            return False
        with contextlib.suppress(FileNotFoundError):  # two that let go at once: the other was first
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
