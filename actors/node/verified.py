"""The node's record of the archives whose SHA-256 was checked since it booted, each for the file as it was then.

A file is believed as long as nothing about it has changed: device, inode, size, and the times of its last change. A
hard link that is made or removed changes one of these times for all links of a file. So archives are linked and
unlinked here, under a lock, and the record goes along. Whatever else touches a file has it read once more.

    <folder>/<sha256>-<inode>    one record, good for one boot, and only if each of its bytes is as expected
    <folder>/.lock-<xx>          held by whoever checks, links or unlinks one of the archives that share it

Nobody but root can change an archive between its check and its use: all of it lies below folders of mode 0700.
"""

from __future__ import annotations

import contextlib
import fcntl
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

from actors.node.errors import DamagedCopyError
from actors.node.removal import remove_tree

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_CHUNK_BYTES = 1024 * 1024
_MODE = 0o400
_POLL_S = 0.02
_TRIES = 3
SUFFIX = ".sqsh"

GoOn = Callable[[], None]
"""Is called over and over while something takes long; raises to give up."""


def boot_id() -> str:
    """What tells this run of the machine's kernel from every other."""
    return _BOOT_ID.read_text().strip()


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file's identity, and what changes whenever it does. Source: inode(7)."""

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
        """Whether at most links, owner and mode have changed between the two, and nothing was written."""
        return astuple(self)[:-1] == astuple(other)[:-1]


def stamp_of(archive: Path) -> Stamp:
    """The stamp of an archive.

    Raises:
        DamagedCopyError: it is missing, or no regular file.
    """
    try:
        found = archive.lstat()
    except OSError as e:
        raise DamagedCopyError(f"The archive cannot be looked at: {e.strerror}.") from None
    if not stat.S_ISREG(found.st_mode):
        raise DamagedCopyError("Something else lies in the archive's place.")
    return Stamp.of(found)


def read_digest(fd: int, go_on: GoOn) -> str:
    """The SHA-256 of what the disk has of a file: what memory holds of it is dropped first. Raises OSError.

    Source: posix_fadvise(2), POSIX_FADV_DONTNEED; pages that are not written back yet stay, and are read as they are.
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
    """Gives an archive back to root alone, if somebody has changed that."""
    found = os.fstat(fd)
    if (found.st_uid, found.st_gid) != (0, 0):
        os.fchown(fd, 0, 0)
    if stat.S_IMODE(found.st_mode) != _MODE:
        os.fchmod(fd, _MODE)


def _nothing() -> None:
    """The `go_on` of whoever does not give up."""


class Verified:
    """The record. Any number of processes and threads may use the same folder."""

    def __init__(
        self, folder: Path, *, boot: str | None = None, digest: Callable[[int, GoOn], str] = read_digest
    ) -> None:
        """`boot` is the boot that records have to be of, this one by default; `digest` reads a file's SHA-256."""
        self._folder = folder
        self._given_boot = boot
        self._digest = digest

    @functools.cached_property
    def _boot(self) -> str:
        return self._given_boot or boot_id()

    def holds(self, archive: Path, sha256: str) -> bool:
        """Whether an archive was checked since the node booted, and has not changed since. Reads no archive."""
        try:
            return self._is_recorded(sha256, stamp_of(archive))
        except DamagedCopyError:
            return False

    def check(self, archive: Path, sha256: str, *, go_on: GoOn = _nothing) -> Stamp:
        """Sees to it that an archive is what its digest says; reads it only if that is not on record.

        Returns:
            The file as it was found good.

        Raises:
            DamagedCopyError: it is not, or cannot be read.
        """
        with contextlib.suppress(DamagedCopyError):
            stamp = stamp_of(archive)
            if self._is_recorded(sha256, stamp):
                return stamp
        with self._locked(sha256, go_on):
            return self._check(archive, sha256, go_on)

    def note(self, archive: Path, sha256: str, *, as_of: Stamp) -> None:
        """Takes note of a digest that was taken of the bytes of a file, unless they were written to since `as_of`.

        Raises DamagedCopyError if there is no such file.
        """
        with self._locked(sha256):
            stamp = stamp_of(archive)
            if stamp.has_content_of(as_of):
                self._write(sha256, stamp)

    def link(self, archive: Path, sha256: str, target: Path, *, go_on: GoOn = _nothing) -> Stamp:
        """Makes a hard link to an archive that is what its digest says, and takes note of its use in its atime.

        Returns:
            The file at `target`, which is the one that was checked.

        Raises:
            DamagedCopyError: it is not; nothing was linked.
            FileExistsError: something is at `target` already.
        """
        with self._locked(sha256, go_on):
            checked = self._check(archive, sha256, go_on)
            os.utime(archive, ns=(time.time_ns(), checked.mtime_ns))
            os.link(archive, target, follow_symlinks=False)
            linked = stamp_of(target)
            if not linked.has_content_of(checked):
                target.unlink()
                raise DamagedCopyError("The archive was replaced while it was linked.")
            self._write(sha256, linked)
            return linked

    def replace(self, archive: Path, sha256: str, target: Path) -> None:
        """Puts a link to an archive in the place of whatever is at `target`. Raises DamagedCopyError, ToolError."""
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
        """Removes one link to an archive, or whatever lies in its place; nothing being there is success.

        Raises:
            OSError, ToolError: it could not be removed.
        """
        try:
            with self._carried(archive, sha256):
                archive.unlink(missing_ok=True)
        except IsADirectoryError:
            remove_tree(archive)

    def unlink_all(self, folder: Path) -> None:
        """Removes the archives in a folder that are named for their digests. Raises OSError, ToolError."""
        for archive in folder.glob(f"*{SUFFIX}"):
            self.unlink(archive, archive.stem)

    def doubt(self, archive: Path, sha256: str) -> None:
        """Has an archive read once more by whoever uses it, through whichever of its links."""
        with self._locked(sha256), contextlib.suppress(DamagedCopyError, OSError):
            found = stamp_of(archive)
            self._file(sha256, found.inode).unlink(missing_ok=True)
            os.utime(archive, ns=(archive.lstat().st_atime_ns, found.mtime_ns))  # changes the ctime

    def prune(self, used: Collection[tuple[str, int]], *, older_than: float) -> int:
        """Removes the records of other boots, and of files that are no more, unless they were written since an instant.

        Args:
            used: the digests and inodes of the files that there are.
            older_than: the instant, in seconds since the epoch.

        Returns:
            How many were removed.
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
        """As `check`, for whoever has the lock."""
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
        """The digest of a file that nothing was written to meanwhile, and its stamp."""
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
        """The block changes an archive's links and nothing else: if the file is on record, it is so afterwards."""
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
        """One record, as whole as it has to be found: a half or a damaged one is none."""
        return json.dumps({"boot": self._boot, "sha256": sha256, "file": astuple(stamp)}).encode()

    def _write(self, sha256: str, stamp: Stamp) -> None:
        """Writes a record, whole or not at all. Not synced: after a power failure it is one of another boot.

        That a disk is full, or broken, costs another reading of the archive and nothing else.
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
        """By flock(2), which also keeps threads of one process apart, and ends with the process."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        name = hashlib.sha256(os.fsencode(sha256)).hexdigest()[:2]  # of a file's name, which may be anything
        fd = os.open(self._folder / f".lock-{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    go_on()
                    time.sleep(_POLL_S)
            yield
        finally:
            os.close(fd)
