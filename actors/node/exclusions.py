"""Describes many excluded entries of one directory by few patterns, for mksquashfs.

mksquashfs 4.5.1 compares each entry of a directory with each pattern for that directory until one matches. That is
quadratic: where 20,000 of 40,000 entries of a directory were excluded by name, it took 7.5 s of processor time, and
0.1 s with one pattern for all of them (own measurement). Commands are paused meanwhile.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

FEW = 64
"""So many names in one directory are excluded one by one."""
_WORTHWHILE = 8
"""The fewest names for which one pattern is used."""


@dataclass(frozen=True, slots=True)
class Exclusion:
    """The excluded entries of one directory: those that begin or end with certain texts, as no other entry does."""

    beginnings: frozenset[bytes]
    endings: frozenset[bytes]
    others: frozenset[bytes]
    """The names of the other excluded entries."""


def find_exclusion(excluded: Sequence[bytes], kept: Sequence[bytes]) -> Exclusion:
    """Describes the excluded entries of a directory by few patterns, where many have something in common.

    Args:
        kept: the names of all other entries of the directory.
    """
    begun = _distinctive(excluded, kept)
    # In a pattern, `*` matches no dot at the head of a name.
    undotted = [name[::-1] for name in excluded if not name.startswith(b".")]
    ended = {name[::-1]: text[::-1] for name, text in _distinctive(undotted, [name[::-1] for name in kept]).items()}
    beginnings, endings = Counter(begun.values()), Counter(ended.values())
    by_beginning, by_ending, others = set(), set(), set()
    for name in excluded:
        beginning, ending = begun.get(name, b""), ended.get(name, b"")
        if max(beginnings[beginning], endings[ending]) < _WORTHWHILE:
            others.add(name)
        elif beginnings[beginning] >= endings[ending]:
            by_beginning.add(beginning)
        else:
            by_ending.add(ending)
    return Exclusion(frozenset(by_beginning), frozenset(by_ending), frozenset(others))


def _distinctive(names: Sequence[bytes], others: Sequence[bytes]) -> dict[bytes, bytes]:
    """For each name its shortest beginning that none of the others has; without names that are such beginnings."""
    ordered = sorted(others)
    found = {}
    for name in names:
        at = bisect_left(ordered, name)
        length = 1 + max((_in_common(name, near) for near in ordered[max(0, at - 1) : at + 1]), default=0)
        if length <= len(name):
            found[name] = name[:length]
    return found


def _in_common(one: bytes, other: bytes) -> int:
    """The length of the longest beginning that two names share."""
    shared = min(len(one), len(other))
    return next((index for index in range(shared) if one[index] != other[index]), shared)
