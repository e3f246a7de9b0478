"""Decides whether mksquashfs should look for files with the same content.

mksquashfs 4.5.1 compares a file with every earlier one whose size has the same low 16 bits, until it finds the same
content. That is quadratic: 50,000 different files of 1 KiB take 25 s of processor time, and 0.2 s with -no-duplicates;
20,000 files take 4.7 s and 0.1 s (own measurement). But without the search, equal files are stored again.
"""

from __future__ import annotations

from array import array

_BUCKETS = 1 << 16
"""mksquashfs's own number. Source: DUP_HASH in squashfs-tools."""
_COMPARISON_S = 20e-9
"""Time of one comparison. Source: the measurement above, 25 s for 50,000² / 2 of them."""
_BYTES_PER_S = 50e6
"""How fast bytes that might be stored twice are compressed and sent, at a guess."""
_ALWAYS_S = 0.5
"""A search of this length is made for any tree."""


class SizeCounts:
    """Counts the files of a tree by size, in buckets. Takes 1 MiB, whatever the number of files."""

    def __init__(self) -> None:
        self._files = array("Q", bytes(8 * _BUCKETS))
        self._bytes = array("Q", bytes(8 * _BUCKETS))

    def add(self, size_bytes: int) -> None:
        """Counts a file. Empty files have no content to compare."""
        if size_bytes:
            self._files[size_bytes % _BUCKETS] += 1
            self._bytes[size_bytes % _BUCKETS] += size_bytes

    def search_costs_more(self) -> bool:
        """True if the search for duplicates takes longer than it could ever save."""
        comparisons = sum(count * (count - 1) // 2 for count in self._files if count > 1)
        repeatable = sum(size for count, size in zip(self._files, self._bytes, strict=True) if count > 1)
        search_s = comparisons * _COMPARISON_S
        return search_s > _ALWAYS_S and search_s > repeatable / _BYTES_PER_S
