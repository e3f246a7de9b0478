"""Trees of entries, and listings of them, for tests."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from storage.listing import Entry, ListingWriter, key_after, sort_key
from storage.metadata import ListingDigest

FILE, FOLDER, LINK = stat.S_IFREG | 0o640, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


def entry(path: str | bytes, mode: int = FILE, *, size: int = 3, at: int = 1_700_000_000, target: bytes = b"") -> Entry:
    """An entry; a file unless `mode` says otherwise."""
    place = os.fsencode(path) if isinstance(path, str) else path
    return Entry(place, mode, size if stat.S_ISREG(mode) else 0, at, 5, target)


def folder(path: str) -> Entry:
    """The entry of a directory."""
    return entry(path, FOLDER)


def lstat_of(of: Entry) -> os.stat_result:
    """The result of lstat(2) for the file that an entry is about."""
    ns = of.modified_s * 1_000_000_000 + of.modified_ns
    values = (of.mode, 1, 1, 1, 0, 0, of.size_bytes, 0, of.modified_s, 0)
    return os.stat_result(values, {"st_mtime_ns": ns})


def write_listing(path: Path, entries: Iterable[Entry]) -> ListingDigest | None:
    """Writes a listing of these entries, which are in order."""
    writer = ListingWriter(path)
    for each in entries:
        writer.add(each.path, lstat_of(each), each.target)
    return writer.finish()


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """The entries as a listing has them."""
    return sorted(entries, key=lambda each: sort_key(each.path))


@dataclass(frozen=True, slots=True)
class KnownContents:
    """Contents in memory, searched in the plainest way."""

    entries: list[Entry]

    def scan(self, start: bytes, end: bytes | None, *, deep: bool) -> Iterator[Entry]:
        """See `storage.listing.Contents`."""
        bound = start
        for each in self.entries:
            key = sort_key(each.path)
            if key >= bound and (end is None or key < end):
                yield each
                bound = key_after(key, deep=deep)


_names = st.binary(min_size=1, max_size=6).map(lambda name: bytes(b or 1 for b in name).replace(b"/", b"-"))
_paths = st.lists(_names, min_size=1, max_size=5).map(b"/".join)


@st.composite
def trees(draw: st.DrawFn) -> list[Entry]:
    """Whole trees in order: each directory above an entry is in it, too."""
    leaves = draw(st.dictionaries(_paths, st.integers(0, 2), max_size=30))
    above = {b"/".join(path.split(b"/")[:depth]) for path in leaves for depth in range(1, path.count(b"/") + 1)}
    files = [entry(path, size=size) for path, size in leaves.items() if path not in above]
    return in_order([entry(b"", FOLDER), *files, *(entry(path, FOLDER) for path in above)])
