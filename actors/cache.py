"""The node's archives: downloaded, verified and converted once, shared by every sandbox of the node.

An entry is one file, named for its backup and its content, and never changed. Whoever needs one takes a hard
link, so eviction can neither disturb a mount nor a restore that is under way.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fasteners import InterProcessLock

from actors.node.errors import ArchiveError
from actors.node.removal import remove_tree

_SUFFIX = ".sqsh"
_POLL_S = 0.1
_LOCK_FILES = 4096


@dataclass(frozen=True, slots=True)
class CachedArchive:
    """An archive in the cache that is verified and safe to mount."""

    path: Path
    sha256: str


class ArchiveCache:
    """A folder of archives, bounded in size; least recently used ones go first."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._locks = folder / "locks"
        self._max_bytes = max_bytes

    def obtain(
        self,
        backup_id: str,
        link: Path,
        produce: Callable[[Path], tuple[Path, str]],
        *,
        waiting: Callable[[], None] = lambda: None,
    ) -> tuple[CachedArchive, bool]:
        """Links a backup's archive to `link`; has it produced first if the cache does not hold it.

        One process at a time produces one archive; the others wait and then find it.

        Args:
            produce: is given an empty work folder, and returns the finished archive in it and its SHA-256.
            waiting: is called over and over while another process produces it; raises to give up.

        Returns:
            The archive at `link`, and whether it was in the cache already.
        """
        with self._locked(backup_id, waiting):
            found = self._find(backup_id)
            if found is not None:
                with contextlib.suppress(FileNotFoundError):  # another process has just evicted it
                    os.utime(found.path)
                    os.link(found.path, link)
                    return CachedArchive(link, found.sha256), True
            work = self._folder / f".{backup_id}.work"
            remove_tree(work)
            work.mkdir()
            try:
                made, sha256 = produce(work)
                os.link(made, link)
                self._keep(backup_id, made, sha256)
            finally:
                remove_tree(work)
        self.evict()
        return CachedArchive(link, sha256), False

    def holds(self, backup_id: str) -> bool:
        """Whether a backup's archive is here now."""
        return self._find(backup_id) is not None

    def forget(self, backup_id: str) -> None:
        """Removes a backup's archive, so that it is fetched anew."""
        for path in list(self._folder.glob(f"{backup_id}_*{_SUFFIX}")):
            path.unlink(missing_ok=True)

    def adopt(self, backup_id: str, archive: Path, sha256: str) -> None:
        """Takes an archive over that was made on this node; the file at `archive` moves."""
        with self._locked(backup_id):
            self._keep(backup_id, archive, sha256)
        self.evict()

    @contextmanager
    def _locked(self, backup_id: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        self._locks.mkdir(parents=True, exist_ok=True)
        lock = InterProcessLock(self._lock_file(backup_id))
        try:
            while not lock.acquire(blocking=False):
                waiting()
                time.sleep(_POLL_S)
        except BaseException:
            lock.lockfile.close()  # which fasteners leaves open after a vain attempt
            raise
        try:
            yield
        finally:
            lock.release()

    def _lock_file(self, backup_id: str) -> Path:
        """One of so many: a file for each backup would be left for ever."""
        return self._locks / str(zlib.crc32(backup_id.encode()) % _LOCK_FILES)

    def remove_leftovers(self) -> None:
        """Removes what processes that died have left half-made."""
        for work in self._folder.glob(".*.work"):
            lock = InterProcessLock(self._lock_file(work.stem.removeprefix(".")))
            if lock.acquire(blocking=False):
                try:
                    remove_tree(work)
                finally:
                    lock.release()
            else:
                lock.lockfile.close()

    def evict(self) -> None:
        """Removes the least recently used archives until the rest fits."""
        entries = sorted(self._entries(), key=lambda entry: entry[0], reverse=True)
        total = 0
        for _, size, path in entries:
            total += size
            if total > self._max_bytes:
                path.unlink(missing_ok=True)
                total -= size

    def _entries(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime, status.st_size, path))
        return found

    def _keep(self, backup_id: str, archive: Path, sha256: str) -> None:
        archive.chmod(0o400)
        with archive.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(archive, self._folder / f"{backup_id}_{sha256}{_SUFFIX}")

    def _find(self, backup_id: str) -> CachedArchive | None:
        for path in self._folder.glob(f"{backup_id}_*{_SUFFIX}"):
            return CachedArchive(path, path.stem.partition("_")[2])
        return None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal. Raises ArchiveError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise ArchiveError(f"the archive cannot be read: {e.strerror}") from None
