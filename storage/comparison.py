"""The comparison of two trees by their entries: what was added, changed and removed.

A file of the same size and time of change is taken for unchanged. Nobody reads its content.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from storage.listing import Contents, Entry, sort_key
from storage.paging import PAGE_BYTES, Mark

_COMPARED = 100_000
"""Most entries that one page compares: so a page of two large trees that are equal takes less than a second."""


class Differs(StrEnum):
    """The facts in which two entries may differ."""

    KIND = "kind"
    SIZE = "size_bytes"
    MODE = "mode"
    TIME = "modified_at"
    TARGET = "target"


@dataclass(frozen=True, slots=True)
class Change:
    """A path whose entries differ. `before` is None for one that was added, `after` for one that was removed."""

    path: bytes
    before: Entry | None
    after: Entry | None
    differs: tuple[Differs, ...] = ()


@dataclass(frozen=True, slots=True)
class ChangePage:
    """One page of changes, in the order of their paths. `cursor` is None on the last page, and only there.

    A page may have fewer changes than were asked for, even none.
    """

    changes: tuple[Change, ...]
    cursor: str | None


def change_page(before: Contents, after: Contents, *, limit: int, cursor: str | None = None) -> ChangePage:
    """One page of the changes from one tree to another.

    Raises:
        InvalidCursorError: permanent.
    """
    mark = Mark.first(2) if cursor is None else Mark.parsed(cursor, 2)
    changes: list[Change] = []
    size_bytes = 0
    pairs = _pairs(mark.entries(0, before, b"", None, deep=True), mark.entries(1, after, b"", None, deep=True))
    for compared, (key, old, new) in enumerate(pairs):
        if len(changes) == limit or size_bytes > PAGE_BYTES or compared == _COMPARED:
            return ChangePage(tuple(changes), mark.cursor())
        mark.passes(key, (old is not None, new is not None))
        change = _change(old, new)
        if change is not None:
            changes.append(change)
            size_bytes += len(key) + len(old.target if old else b"") + len(new.target if new else b"")
    return ChangePage(tuple(changes), None)


def _pairs(before: Iterator[Entry], after: Iterator[Entry]) -> Iterator[tuple[bytes, Entry | None, Entry | None]]:
    """Merges two trees: each key once, with the entries that have it."""
    old, new = next(before, None), next(after, None)
    while old is not None or new is not None:
        old_key = None if old is None else sort_key(old.path)
        new_key = None if new is None else sort_key(new.path)
        key = min(key for key in (old_key, new_key) if key is not None)
        yield key, old if old_key == key else None, new if new_key == key else None
        if old_key == key:
            old = next(before, None)
        if new_key == key:
            new = next(after, None)


def _change(old: Entry | None, new: Entry | None) -> Change | None:
    if old is None or new is None:
        either = old or new
        return None if either is None else Change(either.path, old, new)
    differs = tuple(_differences(old, new))
    return Change(new.path, old, new, differs) if differs else None


def _differences(old: Entry, new: Entry) -> Iterator[Differs]:
    """The facts that differ.

    The time of a directory changes with what is in it, which has entries of its own, and that of a link says nothing.
    """
    if old == new:
        return
    if stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode):
        yield Differs.KIND
        return
    if stat.S_IMODE(old.mode) != stat.S_IMODE(new.mode):
        yield Differs.MODE
    if stat.S_ISREG(old.mode):
        if old.size_bytes != new.size_bytes:
            yield Differs.SIZE
        if not _same_time(old, new):
            yield Differs.TIME
    if old.target != new.target and old.target and new.target:
        yield Differs.TARGET


def _same_time(old: Entry, new: Entry) -> bool:
    """True if the times are the same as far as both are known: archives hold whole seconds only."""
    if old.modified_s != new.modified_s:
        return False
    return old.modified_ns == new.modified_ns or 0 in (old.modified_ns, new.modified_ns)
