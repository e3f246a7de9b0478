"""The scrub of a node's archives, run by the node's host: reads each one regularly, to find damage before it is used.

It reads from the disk, past the page cache; slowly, one archive at a time, and at the processor's lowest priority. A
damaged entry of the cache is removed. Of a damaged archive under a sandbox's layer, only the record of its verification
is removed. The sandbox notices that within seconds if it is awake, otherwise as it wakes, and fetches the archive anew
(`actors.sandbox.mending`).
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from actors.logs import log
from actors.node.archive_cache import ArchiveCache
from actors.node.errors import DamagedCopyError, NodeError
from actors.node.verified import SUFFIX, Stamp, Verified, stamp_of

BYTES_PER_S = 32 * 1024 * 1024
"""The speed of reading: a cache of the default size takes eleven minutes, and a fiftieth of a core."""
ROUND_S = 86_400.0
"""The time between the beginnings of two rounds."""
_CHUNK_BYTES = 1024 * 1024


@dataclass(slots=True)
class Scrubbed:
    """The outcome of a round: the number of archives read, and the names of those that were damaged."""

    read: int = 0
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Found:
    """One archive. `sandbox` is empty for an entry of the cache."""

    path: Path
    sha256: str
    sandbox: str = ""


class Scrub:
    """The scrub of one node.

    Args:
        boxes: the folder with the sandboxes' folders, by tenant.
        bytes_per_s: the speed of reading.
    """

    def __init__(
        self, cache: ArchiveCache, boxes: Path, verified: Verified, *, bytes_per_s: float = BYTES_PER_S
    ) -> None:
        self._cache = cache
        self._boxes = boxes
        self._verified = verified
        self._bytes_per_s = bytes_per_s

    def round(self) -> Scrubbed:
        """Reads each archive of the node once, whatever its number of links. Removes records of files that are gone."""
        began_at = time.time()
        done = Scrubbed()
        read: dict[tuple[int, int, str], bool] = {}
        for found in self._archives():
            try:
                stamp = stamp_of(found.path)
                key = (stamp.device, stamp.inode, found.sha256)
                if key not in read:
                    done.read += 1
                    read[key] = self._is_good(found, stamp)
                is_good = read[key]
            except DamagedCopyError:
                if not os.path.lexists(found.path):  # it was evicted, or its layer is gone
                    continue
                is_good = False
            if not is_good:
                done.damaged.append(found.path.name)
                self._deal_with(found)
        self._verified.prune({(sha256, inode) for _, inode, sha256 in read}, older_than=began_at)
        log.info("archives_scrubbed", read=done.read, damaged=len(done.damaged))
        return done

    def step(self) -> float:
        """Runs one round; returns the seconds until the next one begins."""
        began = time.monotonic()
        self.round()
        return max(1.0, began + ROUND_S - time.monotonic())

    def _archives(self) -> Iterator[_Found]:
        for entry in self._cache.entries():
            yield _Found(entry.path, entry.sha256)
        for folder in self._boxes.glob("*/*/archives"):
            found: list[Path] = []
            with contextlib.suppress(FileNotFoundError):  # the sandbox was removed meanwhile
                found += folder.glob(f"*{SUFFIX}")
            for path in found:
                yield _Found(path, path.stem, sandbox=folder.parent.name)

    def _is_good(self, found: _Found, stamp: Stamp) -> bool:
        """Tells whether an archive is good. If its digest differs, drops its record and reads the archive once more."""
        try:
            if digest_on_disk(found.path, pace=self._pace()) == found.sha256:
                if stamp_of(found.path) == stamp:  # otherwise it was linked, which kept its record, or changed
                    self._verified.note(found.path, found.sha256, as_of=stamp)
                return True
        except OSError as e:
            if not os.path.lexists(found.path):
                return True
            log.warning("archive_not_read", error=type(e).__name__)
        self._verified.doubt(found.path, found.sha256)
        try:
            self._verified.check(found.path, found.sha256)
        except DamagedCopyError:
            return not os.path.lexists(found.path)
        return True

    def _deal_with(self, found: _Found) -> None:
        if found.sandbox:
            log.error("archive_under_layer_damaged", sandbox=found.sandbox, sha256=found.sha256)
            return
        with contextlib.suppress(OSError, NodeError):  # the next restore says what is wrong
            self._cache.drop(found.path, "the scrub has found it damaged")

    def _pace(self) -> Callable[[int], None]:
        began, total = time.monotonic(), 0

        def read(count: int) -> None:
            nonlocal total
            total += count
            ahead_s = began + total / self._bytes_per_s - time.monotonic()
            if ahead_s > 0:
                time.sleep(ahead_s)

        return read


def digest_on_disk(path: Path, *, pace: Callable[[int], None] = lambda count: None) -> str:
    """Returns the SHA-256 of a file's bytes on the disk, past the page cache if the file system supports that.

    Raises OSError. Source: open(2), O_DIRECT: the buffer and the position are multiples of the block's size.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_DIRECT)
    except OSError:  # tmpfs and some FUSE file systems do not have it
        fd = os.open(path, flags)
    hasher = hashlib.sha256()
    with mmap.mmap(-1, _CHUNK_BYTES) as buffer, memoryview(buffer) as view, os.fdopen(fd, "rb", buffering=0) as file:
        while count := file.readinto(view):
            hasher.update(view[:count])
            pace(count)
    return hasher.hexdigest()
