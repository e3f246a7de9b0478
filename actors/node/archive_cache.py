"""The node's cache of archives: each is downloaded, verified and converted once, for all sandboxes of the node.

An entry is one file, named for its backup and its SHA-256, and never changed. A layer, which several backups may need,
has its SHA-256 as the backup's name, too. A caller gets a hard link to it, so eviction disturbs neither a mount nor a
running restore.

The disk is not trusted: an entry is read before its first use after each boot of the node, and after any change of its
file (`actors.node.verified`). An entry whose SHA-256 is not the one in its name is removed, and made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from actors.logs import log
from actors.node import file_lock
from actors.node.errors import ArchiveError, DamagedCopyError, ToolError
from actors.node.removal import remove_tree
from actors.node.verified import SUFFIX, Stamp, Verified, stamp_of

_LOCK_FILES = 4096


@dataclass(frozen=True, slots=True)
class CachedArchive:
    """An archive of the cache: an entry, or a verified link to one, which is safe to mount."""

    path: Path
    sha256: str


class ArchiveCache:
    """A folder of archives, bounded in size. The least recently used, by access time, are evicted first."""

    def __init__(self, folder: Path, *, max_bytes: int, verified: Verified | None = None) -> None:
        """`verified` is the node's record of checked archives, by default the folder `verified` beside `folder`."""
        self._folder = folder
        self._verified = verified or Verified(folder.parent / "verified")
        self._locks = folder / "locks"
        self._max_bytes = max_bytes

    def obtain(
        self,
        backup_id: str,
        link: Path,
        produce: Callable[[Path], tuple[Path, str]],
        *,
        sha256: str | None = None,
        waiting: Callable[[], None] = lambda: None,
    ) -> tuple[CachedArchive, bool]:
        """Makes a hard link to a backup's archive at `link`. Produces the archive first if the cache does not have it.

        Single flight: one thread of one process produces an archive; the others wait and then use it.

        Args:
            produce: makes the archive in the empty folder that it is called with; returns its path and SHA-256.
            sha256: the digest in the signed metadata; entries with another digest are removed. Without it, as for an
                archive that was converted here, the digest in the entry's name counts.
            waiting: called repeatedly while somebody else has the lock, or the archive is read; raises to end the
                wait.

        Returns:
            The archive at `link`, and True if it was in the cache already.
        """
        with self._locked(backup_id, waiting):
            found = self._linked(backup_id, link, sha256, waiting)
            if found is not None:
                return found, True
            work = self._folder / f".{backup_id}.work"
            remove_tree(work)
            work.mkdir()
            try:
                made, made_sha256 = produce(work)
                self._verified.note(made, made_sha256, as_of=stamp_of(made))
                stamp = self._verified.link(made, made_sha256, link)
                self._keep(backup_id, made, made_sha256)
                self._verified.note(link, made_sha256, as_of=stamp)
            finally:
                remove_tree(work)
        self.evict()
        return CachedArchive(link, made_sha256), False

    def _linked(
        self, backup_id: str, link: Path, sha256: str | None, waiting: Callable[[], None]
    ) -> CachedArchive | None:
        """Links the backup's first entry that is intact and has the digest `sha256`; removes those found before it.

        A layer is taken from a backup's entry, too, if it is that backup's whole archive.
        """
        for found in list(self._found("*", sha256) if sha256 == backup_id else self._found(backup_id)):
            if sha256 is not None and found.sha256 != sha256:
                self.drop(found.path, "it is not the archive that the backup's metadata names")
                continue
            try:
                self._verified.link(found.path, found.sha256, link, go_on=waiting)
                return CachedArchive(link, found.sha256)
            except DamagedCopyError as e:
                self.drop(found.path, e.message)
        return None

    def drop(self, path: Path, why: str) -> None:
        """Removes a bad entry, so that the archive is fetched anew when it is next needed.

        Raises:
            OSError, ToolError: the entry could not be removed.
        """
        log.error("cached_archive_dropped", entry=path.name, detail=why)
        self._verified.unlink(path, _digest_in(path))

    def holds(self, backup_id: str) -> bool:
        """Tells whether the cache has a backup's archive now."""
        return next(self._found(backup_id), None) is not None

    def entries(self) -> list[CachedArchive]:
        """All entries, in no particular order."""
        return [CachedArchive(path, _digest_in(path)) for path in self._folder.glob(f"*{SUFFIX}")]

    def unlink(self, link: CachedArchive) -> None:
        """Removes a link that `obtain` made. Raises nothing: what is left is removed with its folder."""
        with contextlib.suppress(OSError, ToolError):
            self._verified.unlink(link.path, link.sha256)

    def forget(self, backup_id: str) -> None:
        """Removes a backup's archive from the cache, so that it is fetched anew."""
        for found in list(self._found(backup_id)):
            self._verified.unlink(found.path, found.sha256)

    def adopt(self, backup_id: str, archive: Path, sha256: str, *, as_of: Stamp | None = None) -> None:
        """Moves the file `archive`, an archive made on this node, into the cache.

        `as_of` is the file's stamp from before its digest was computed. Without a stamp, or if the file has changed
        since, the archive is read before its first use.
        """
        with self._locked(backup_id):
            is_as_digested = stamp_of(archive) == as_of
            self._keep(backup_id, archive, sha256)
            if as_of is not None and is_as_digested:
                self._verified.note(self._entry(backup_id, sha256), sha256, as_of=as_of)
        self.evict()

    @contextmanager
    def _locked(self, backup_id: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        self._locks.mkdir(parents=True, exist_ok=True)
        with file_lock.held(self._lock_file(backup_id), waiting):
            yield

    def _lock_file(self, backup_id: str) -> Path:
        """The lock file of a backup, one of `_LOCK_FILES`. A file for each backup would be left behind for ever."""
        return self._locks / str(zlib.crc32(backup_id.encode()) % _LOCK_FILES)

    def remove_leftovers(self) -> None:
        """Removes the work folders of processes that died while they produced an archive; never one that is in use."""
        for work in self._folder.glob(".*.work"):
            self._locks.mkdir(parents=True, exist_ok=True)
            with file_lock.held_if_free(self._lock_file(work.stem.removeprefix("."))) as is_free:
                if is_free:
                    remove_tree(work)

    def evict(self) -> None:
        """Removes each archive that no longer fits into the cache beside those that were used more recently."""
        entries = sorted(self._entries(), key=lambda entry: entry[0], reverse=True)
        total = 0
        for _, size, path in entries:
            total += size
            if total > self._max_bytes:
                self._verified.unlink(path, _digest_in(path))
                total -= size

    def _entries(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self._folder.glob(f"*{SUFFIX}"):
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            found.append((status.st_atime, status.st_size, path))
        return found

    def _keep(self, backup_id: str, archive: Path, sha256: str) -> None:
        archive.chmod(0o400)
        with archive.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(archive, self._entry(backup_id, sha256))

    def _entry(self, backup_id: str, sha256: str) -> Path:
        return self._folder / f"{backup_id}_{sha256}{SUFFIX}"

    def _found(self, backup_id: str, sha256: str = "*") -> Iterator[CachedArchive]:
        for path in self._folder.glob(f"{backup_id}_{sha256}{SUFFIX}"):
            yield CachedArchive(path, _digest_in(path))


def _digest_in(entry: Path) -> str:
    return entry.stem.partition("_")[2]


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal. Raises ArchiveError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise ArchiveError(f"the archive cannot be read: {e.strerror}") from None
