"""Pages of the contents of trees. A page is bounded in entries and in bytes, and a cursor says where the next begins.

A cursor does not hold the last path, which may be longer than a URL: it holds the beginning of the path's key, and the
number of entries with this beginning that were passed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from storage.errors import InvalidCursorError
from storage.listing import Contents, Entry, keys_below, sort_key

PAGE_BYTES = 2**20
"""Most bytes of the paths and targets of one page, but for its last entry."""
_PREFIX_BYTES = 512


@dataclass(slots=True)
class Mark:
    """A place in one or more trees that are read side by side, in the order of `sort_key`."""

    prefix: bytes
    passed: list[int]

    @classmethod
    def first(cls, trees: int) -> Mark:
        """The place before all entries."""
        return cls(b"", [0] * trees)

    @classmethod
    def parsed(cls, cursor: str, trees: int) -> Mark:
        """Reads a cursor. Raises InvalidCursorError."""
        prefix, *passed = cursor.split(".")
        try:
            key = base64.b64decode(prefix, altchars=b"-_", validate=True)
            numbers = [int(number) for number in passed if number.isascii() and number.isdigit()]
        except (binascii.Error, ValueError):
            raise InvalidCursorError("page") from None
        if len(key) > _PREFIX_BYTES or not len(numbers) == len(passed) == trees:
            raise InvalidCursorError("page")
        return cls(key, numbers)

    def cursor(self) -> str:
        """The cursor for this place."""
        return ".".join([base64.b64encode(self.prefix, altchars=b"-_").decode(), *map(str, self.passed)])

    def passes(self, key: bytes, trees: Sequence[bool]) -> None:
        """Moves behind the entries with this key, of those trees that have one."""
        if key[:_PREFIX_BYTES] != self.prefix:
            self.prefix, self.passed = key[:_PREFIX_BYTES], [0] * len(trees)
        for number, has_it in enumerate(trees):
            self.passed[number] += has_it

    def entries(
        self, number: int, contents: Contents, start: bytes, end: bytes | None, *, deep: bool
    ) -> Iterator[Entry]:
        """As `Contents.scan` on the tree of this number, from this place on."""
        prefix, left = self.prefix, self.passed[number]
        for entry in contents.scan(max(start, prefix), end, deep=deep):
            if left and sort_key(entry.path)[:_PREFIX_BYTES] == prefix:
                left -= 1
                continue
            left = 0
            yield entry


@dataclass(frozen=True, slots=True)
class EntryPage:
    """One page of entries. `cursor` is None on the last page."""

    entries: tuple[Entry, ...]
    cursor: str | None


def find_entry(contents: Contents, path: bytes) -> Entry | None:
    """The entry of a path, whose root is empty; None if there is none."""
    key = sort_key(path)
    return next(contents.scan(key, key + b"\0", deep=True), None)


def entry_page(
    contents: Contents, directory: bytes, *, recursive: bool, limit: int, cursor: str | None = None
) -> EntryPage:
    """One page of what is in a directory.

    Raises:
        InvalidCursorError: permanent.
    """
    mark = Mark.first(1) if cursor is None else Mark.parsed(cursor, 1)
    start, end = keys_below(directory)
    found: list[Entry] = []
    size_bytes = 0
    for entry in mark.entries(0, contents, start, end, deep=recursive):
        if len(found) == limit or size_bytes > PAGE_BYTES:
            return EntryPage(tuple(found), mark.cursor())
        found.append(entry)
        size_bytes += len(entry.path) + len(entry.target)
        mark.passes(sort_key(entry.path), (True,))
    return EntryPage(tuple(found), None)
