"""The contents of a backup, read from the tables of its archives in the bucket.

An incremental backup has several archives, one laid over the other. A newer one hides what has its name in the older
ones, except that directories of one name are merged. A character device 0:0, a whiteout, hides a name and shows
nothing. The archives hold no other sign of an overlay, so names in the order of their bytes suffice to merge them, one
directory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import merge
from itertools import groupby, takewhile
from operator import itemgetter
from typing import NamedTuple

from storage.listing import Entry, sort_key
from storage.ranges import WINDOW_BYTES
from storage.squashfs_tables import ArchiveTables, Inode, Name, Work
from storage.store import ObjectStore

_WINDOWS_BYTES = 16 * 2**20
"""The most bytes of all archives' windows together. Each archive has two."""


class StoredArchive(NamedTuple):
    """The place of an archive in the bucket, and its size."""

    key: str
    size_bytes: int


class ArchiveContents:
    """The contents of archives that are laid over each other; of one archive, what is in it.

    `scan` raises NotListedError for what is no sound archive.
    """

    def __init__(self, store: ObjectStore, archives: Sequence[StoredArchive], *, hasty: bool = False) -> None:
        """Reads the superblocks of the archives, the oldest first. `hasty`: see `RangedObject`.

        Raises:
            ObjectMissingError: an archive is not there.
            NotListedError: one is none, or is compressed in a way that is not known here.
        """
        work = Work()
        window_bytes = min(WINDOW_BYTES, _WINDOWS_BYTES // (2 * len(archives)))
        self._newest_first = [
            ArchiveTables(store, key, size_bytes, work=work, window_bytes=window_bytes, hasty=hasty)
            for key, size_bytes in reversed(archives)
        ]

    def scan(self, start: bytes, end: bytes | None, *, deep: bool) -> Iterator[Entry]:
        """See `storage.listing.Contents`."""
        roots = [tables.root() for tables in self._newest_first]
        if not start:
            yield roots[0].entry
            if not deep:
                return
        levels = [_Level(roots)]
        while levels:
            level = levels[-1]
            for name, found in level.names:
                path = level.prefix + name
                key = sort_key(path)
                if end is not None and key >= end:
                    return
                is_before = key < start
                if is_before and not start.startswith(key + b"\0"):
                    continue
                shown = found[0].inode(path)
                if not (is_before or shown.is_whiteout):
                    yield shown.entry
                if shown.place is not None and (deep or is_before):
                    shown.tables.check_depth(len(levels))
                    older = (each.inode(path) for each in found[1:])
                    levels.append(_Level([shown, *takewhile(lambda inode: inode.place is not None, older)]))
                    break
            else:
                levels.pop()


class _Level:
    """A directory that a scan is in, and those of its names that the scan has not come to."""

    def __init__(self, directories: Sequence[Inode]) -> None:
        """`directories` is the directory in each archive that shows it, the newest first."""
        path = directories[0].entry.path
        self.prefix = path + b"/" if path else b""
        self.names = _names(directories)


def _names(directories: Sequence[Inode]) -> Iterator[tuple[bytes, Sequence[Name]]]:
    """Yields each name in a directory once, as it is in those archives that have it, the newest first."""
    if len(directories) == 1:
        return ((name.name, (name,)) for name in directories[0].names())
    # merge keeps names that are equal in the order of the directories
    names = merge(*(directory.names() for directory in directories), key=itemgetter(0))
    return ((name, tuple(found)) for name, found in groupby(names, key=itemgetter(0)))
