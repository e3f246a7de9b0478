"""The node's record of the archives whose SHA-256 was checked since it booted, each with its file's stamp at that time.

A check is valid as long as nothing about the file has changed: device, inode, size, mtime and ctime. A hard link that
is made or removed changes the ctime for all links of a file. So archives are linked and unlinked here, under a lock,
and the record is updated with them. After any other change the file is read once more.

    <folder>/<sha256>-<inode>    one record, valid for one boot, and only if each of its bytes is as expected
    <folder>/.lock-<xx>          the lock for checking, linking or unlinking any of the archives that share it

Nobody but root can change an archive between its check and its use: all archives lie below folders of mode 0700.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import stat
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

from actors.node import file_lock
from actors.node.errors import DamagedCopyError
from actors.node.removal import remove_tree

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CHUNK_BYTES = 1024 * 1024
_MODE = 0o400
_TRIES = 3
SUFFIX = ".sqsh"

GoOn = Callable[[], None]
"""A callback that is called again and again during a long operation; it raises an error to end that operation."""


def boot_id() -> str:
    """The identifier of this run of the machine's kernel."""
    return _BOOT_ID.read_text().strip()


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file's identity, and the fields that change whenever the file does. Source: inode(7)."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, found: os.stat_result) -> Stamp:
        """The stamp in the result of a stat(2)."""
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def has_content_of(self, other: Stamp) -> bool:
        """True if nothing was written between the two stamps: at most links, owner and mode have changed."""
        return astuple(self)[:-1] == astuple(other)[:-1]


def stamp_of(archive: Path) -> Stamp:
    """The stamp of an archive.

    Raises:
        DamagedCopyError: it is missing, or not a regular file.
    """
    try:
        found = archive.lstat()
    except OSError as e:
        raise DamagedCopyError(f"The archive cannot be looked at: {e.strerror}.") from None
    if not stat.S_ISREG(found.st_mode):
        raise DamagedCopyError("Something else lies in the archive's place.")
    return Stamp.of(found)


def read_digest(fd: int, go_on: GoOn) -> str:
    """The SHA-256 of a file as it is on the disk: its pages in memory are dropped first. Raises OSError.

    Pages that are not written back yet stay in memory, and are read from there. Source: posix_fadvise(2),
    POSIX_FADV_DONTNEED.
    """
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    hasher = hashlib.sha256()
    position = 0
    while chunk := os.pread(fd, _CHUNK_BYTES, position):
        go_on()
        hasher.update(chunk)
        position += len(chunk)
    return hasher.hexdigest()


def _make_private(fd: int) -> None:
    """Gives an archive back to root alone, if its owner or mode was changed."""
    found = os.fstat(fd)
    if (found.st_uid, found.st_gid) != (0, 0):
        os.fchown(fd, 0, 0)
    if stat.S_IMODE(found.st_mode) != _MODE:
        os.fchmod(fd, _MODE)


def _nothing() -> None:
    """The `go_on` of a caller that never ends the operation."""


class Verified:
    """The record of checked archives. Any number of processes and threads may use the same folder."""

    def __init__(
        self, folder: Path, *, boot: str | None = None, digest: Callable[[int, GoOn], str] = read_digest
    ) -> None:
        """`boot` is the boot for which records are valid, by default this one; `digest` reads a file's SHA-256."""
        self._folder = folder
        self._given_boot = boot
        self._digest = digest

    @functools.cached_property
    def _boot(self) -> str:
        return self._given_boot or boot_id()

    def holds(self, archive: Path, sha256: str) -> bool:
        """True if an archive was checked since the node booted, and has not changed since. Reads no archive."""
        try:
            return self._is_recorded(sha256, stamp_of(archive))
        except DamagedCopyError:
            return False

    def check(self, archive: Path, sha256: str, *, go_on: GoOn = _nothing) -> Stamp:
        """Verifies that an archive has its digest; reads it only if that is not on record.

        Returns:
            The stamp of the verified file.

        Raises:
            DamagedCopyError: it has another digest, or cannot be read.
        """
        with contextlib.suppress(DamagedCopyError):
            stamp = stamp_of(archive)
            if self._is_recorded(sha256, stamp):
                return stamp
        with self._locked(sha256, go_on):
            return self._check(archive, sha256, go_on)

    def note(self, archive: Path, sha256: str, *, as_of: Stamp) -> None:
        """Records a digest that was computed from a file's bytes, unless the file was written to since `as_of`.

        Raises DamagedCopyError if there is no such file.
        """
        with self._locked(sha256):
            stamp = stamp_of(archive)
            if stamp.has_content_of(as_of):
                self._write(sha256, stamp)

    def link(self, archive: Path, sha256: str, target: Path, *, go_on: GoOn = _nothing) -> Stamp:
        """Verifies an archive, makes a hard link to it, and sets its atime to show that it was used.

        Returns:
            The stamp of the file at `target`, which is the one that was verified.

        Raises:
            DamagedCopyError: the archive has another digest, or cannot be read; nothing was linked.
            FileExistsError: something is at `target` already; nothing was changed.
        """
        with self._locked(sha256, go_on):
            checked = self._check(archive, sha256, go_on)
            os.link(archive, target, follow_symlinks=False)  # first: where it fails, the record stays valid
            os.utime(archive, ns=(time.time_ns(), checked.mtime_ns))
            linked = stamp_of(target)
            if not linked.has_content_of(checked):
                target.unlink()
                raise DamagedCopyError("The archive was replaced while it was linked.")
            self._write(sha256, linked)
            return linked

    def replace(self, archive: Path, sha256: str, target: Path) -> None:
        """Replaces whatever is at `target` by a link to an archive. Raises DamagedCopyError, OSError, ToolError."""
        fresh = target.with_name(f".{uuid.uuid4().hex}")
        self.link(archive, sha256, fresh)
        try:
            if target.is_dir() and not target.is_symlink():
                remove_tree(target)
            with self._carried(fresh, sha256):
                fresh.replace(target)
        finally:
            self.unlink(fresh, sha256)

    def unlink(self, archive: Path, sha256: str) -> None:
        """Removes one link to an archive, or whatever lies in its place; success if nothing is there.

        Raises:
            OSError, ToolError: it could not be removed.
        """
        try:
            with self._carried(archive, sha256):
                archive.unlink(missing_ok=True)
        except IsADirectoryError:
            remove_tree(archive)

    def unlink_all(self, folder: Path) -> None:
        """Removes the archives in a folder whose names are their digests. Raises OSError, ToolError."""
        for archive in folder.glob(f"*{SUFFIX}"):
            self.unlink(archive, archive.stem)

    def doubt(self, archive: Path, sha256: str) -> None:
        """Makes the next use of an archive read it once more, through any of its links."""
        with self._locked(sha256), contextlib.suppress(DamagedCopyError, OSError):
            found = stamp_of(archive)
            self._file(sha256, found.inode).unlink(missing_ok=True)
            os.utime(archive, ns=(archive.lstat().st_atime_ns, found.mtime_ns))  # changes the ctime

    def prune(self, used: Collection[tuple[str, int]], *, older_than: float) -> int:
        """Removes the records of files that are not in `used`, unless they were written since `older_than`.

        Args:
            used: the digests and inodes of the files that exist.
            older_than: an instant, in seconds since the epoch.

        Returns:
            The number of records that were removed.
        """
        kept = {f"{sha256}-{inode}" for sha256, inode in used}
        removed = 0
        for file in self._folder.glob("[!.]*"):
            with contextlib.suppress(FileNotFoundError):
                if file.name not in kept and file.stat().st_mtime < older_than:
                    file.unlink()
                    removed += 1
        return removed

    def _check(self, archive: Path, sha256: str, go_on: GoOn) -> Stamp:
        """Does what `check` does; the caller holds the lock."""
        stamp = stamp_of(archive)
        if self._is_recorded(sha256, stamp):
            return stamp
        try:
            stamp, found = self._read(archive, go_on)
        except OSError as e:
            raise DamagedCopyError(f"The archive cannot be read: {e.strerror}.") from None
        if found != sha256:
            raise DamagedCopyError("The archive's bytes are not those that were recorded.")
        self._write(sha256, stamp)
        return stamp

    def _read(self, archive: Path, go_on: GoOn) -> tuple[Stamp, str]:
        """The stamp and the digest of a file that nothing was written to meanwhile."""
        fd = os.open(archive, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _make_private(fd)
            for _ in range(_TRIES):
                before = Stamp.of(os.fstat(fd))
                found = self._digest(fd, go_on)
                if Stamp.of(os.fstat(fd)) == before == stamp_of(archive):
                    return before, found
        finally:
            os.close(fd)
        raise DamagedCopyError("The archive changes all the time.")

    @contextmanager
    def _carried(self, archive: Path, sha256: str) -> Iterator[None]:
        """Keeps the record valid over a block that changes an archive's links and nothing else."""
        with self._locked(sha256), contextlib.ExitStack() as opened:
            before: Stamp | None = None
            with contextlib.suppress(DamagedCopyError, OSError):
                fd = os.open(archive, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
                opened.callback(os.close, fd)
                before = Stamp.of(os.fstat(fd))
            is_recorded = before is not None and self._is_recorded(sha256, before)
            yield
            if before is None or not is_recorded:
                return
            found = os.fstat(fd)
            if found.st_nlink == 0:
                self._file(sha256, before.inode).unlink(missing_ok=True)
            elif Stamp.of(found).has_content_of(before):
                self._write(sha256, Stamp.of(found))

    def _file(self, sha256: str, inode: int) -> Path:
        return self._folder / f"{sha256}-{inode}"

    def _is_recorded(self, sha256: str, stamp: Stamp) -> bool:
        try:
            return self._file(sha256, stamp.inode).read_bytes() == self._record(sha256, stamp)
        except OSError:
            return False

    def _record(self, sha256: str, stamp: Stamp) -> bytes:
        """The exact bytes of one record; a partial or damaged record differs from them, and counts as none."""
        return json.dumps({"boot": self._boot, "sha256": sha256, "file": astuple(stamp)}).encode()

    def _write(self, sha256: str, stamp: Stamp) -> None:
        """Writes a record, all or nothing. It is not synced: after a power failure it belongs to another boot.

        If the disk is full or broken, the archive is read once more; nothing else is lost.
        """
        file = self._file(sha256, stamp.inode)
        fresh = self._folder / f"{file.name}.{uuid.uuid4().hex}"
        with contextlib.suppress(OSError):
            try:
                fresh.write_bytes(self._record(sha256, stamp))
                fresh.replace(file)
            finally:
                fresh.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, sha256: str, go_on: GoOn = _nothing) -> Iterator[None]:
        """Holds the archive's lock."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = hashlib.sha256(os.fsencode(sha256)).hexdigest()[:2]  # `sha256` may be any file name's stem
        with file_lock.held(self._folder / f".lock-{name}", go_on):
            yield
