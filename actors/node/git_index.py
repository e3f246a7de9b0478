"""Reads from git's index which files are tracked: versions 2, 3 and 4, whole, split or sparse.

dulwich, the Python library for it, cannot read a split index, and makes an object of each entry. This parser reads only
the names, and limits their size, because a sandbox's command may have written the file.

Names are Latin-1 text, one character for each byte.

Source: gitformat-index(5), gitformat-bitmap(5) of git 2.39.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from actors.node.errors import TreeError

MAX_BYTES = 64 * 1024 * 1024
"""Limit for an index, and for all its names: some 700,000 files. The Linux kernel's has 9 MB, Chromium's about 60."""
_MAX_NAME_BYTES = 4096
_HEADER = struct.Struct(">4sII")
_OF_STAT = 40
_MODE_AT = 24
_EXTENDED, _NAME_MASK = 0x4000, 0xFFF
_TYPE, _GITLINK, _DIRECTORY = 0o170000, 0o160000, 0o040000
_CHECK_EVERY = 10_000


@dataclass(slots=True)
class Tracked:
    """The files that git tracks in one work tree, by their paths in it."""

    names: list[str] = field(default_factory=list)
    """The paths of all entries, sorted by their bytes."""
    submodules: frozenset[str] = frozenset()
    sparse: frozenset[str] = frozenset()
    """Directories whose files the index does not name, each with a slash at its end."""
    size_bytes: int = 0
    """The approximate memory that it takes."""

    def has_file(self, path: str) -> bool:
        """Tells whether git tracks a file (no directory) at this path."""
        at = bisect_left(self.names, path)
        return at < len(self.names) and self.names[at] == path

    def has_below(self, path: str) -> bool:
        """Tells whether git tracks files below a directory, or the directory as a submodule.

        `path` is the directory's, with a slash at its end.

        Raises:
            TreeError: it is a sparse directory, so the index does not name its files.
        """
        if path in self.sparse:
            raise TreeError(
                f"Git's index does not name the files of a sparse directory ({path[:200]!r}) that is there.",
                hint="Run `git sparse-checkout reapply --no-sparse-index` in the repository, or back it up without"
                " `gitignore`.",
            )
        at = bisect_left(self.names, path)
        return (at < len(self.names) and self.names[at].startswith(path)) or path[:-1] in self.submodules


def _damaged(why: str) -> TreeError:
    """The error for an index that git itself would refuse, or that a later release of git has written."""
    return TreeError(
        f"Git's index cannot be read: {why}.",
        hint="Run `git status` in the repository, or back the directory up without `gitignore`.",
    )


def read_index(
    content: bytes, *, hash_bytes: int, shared: Callable[[str], bytes], check: Callable[[], None]
) -> Tracked:
    """Parses an index, and returns the files that it names.

    Args:
        hash_bytes: 20, or 32 in a repository with SHA-256.
        shared: returns the content of the shared index of a split one, by its hash in hexadecimal.
        check: called often; raises when the time is up.

    Raises:
        TreeError: the index cannot be parsed, or is too large.
    """
    try:
        entries = _Entries(content, hash_bytes, check)
        size = len(content)
        if entries.link is not None and entries.link[:hash_bytes].strip(b"\0"):
            below = shared(entries.link[:hash_bytes].hex())
            size += len(below)
            base = _Entries(below, hash_bytes, check)
            if base.link is not None:
                raise _damaged("its shared index is split, too")
            entries.rest_on(base, entries.link[hash_bytes:])
    except (struct.error, IndexError):
        raise _damaged("it is cut off") from None
    return entries.tracked(size)


class _Entries:
    def __init__(self, content: bytes, hash_bytes: int, check: Callable[[], None]) -> None:
        self.names: list[str] = []
        self.types: dict[str, int] = {}
        """The types of the entries that are no files: submodules and sparse directories."""
        self.nameless: list[int] = []
        """The types of the entries that replace entries of a shared index."""
        self.link: bytes | None = None
        self._content = content
        self._hash_bytes = hash_bytes
        signature, self._version, count = _HEADER.unpack_from(content)
        if signature != b"DIRC":
            raise _damaged("it is none")
        if self._version not in (2, 3, 4):
            raise _damaged(f"its version is {self._version}, and 2, 3 and 4 are known")
        at, name, total = _HEADER.size, b"", 0
        for number in range(count):
            if number % _CHECK_EVERY == 0:
                check()
            mode, name, at = self._entry(at, name)
            total += len(name)
            if len(name) > _MAX_NAME_BYTES or total > MAX_BYTES:
                raise _damaged("its names are too long")
            self._add(name.decode("latin-1"), mode & _TYPE)
        self._extensions(at)

    def _entry(self, at: int, previous: bytes) -> tuple[int, bytes, int]:
        """Parses the entry at an offset. Returns its mode, its name and the offset of its end."""
        content = self._content
        (mode,) = struct.unpack_from(">I", content, at + _MODE_AT)
        start = at + _OF_STAT + self._hash_bytes + 2
        (flags,) = struct.unpack_from(">H", content, start - 2)
        if flags & _EXTENDED:
            start += 2
        kept = 0
        if self._version == 4:
            dropped, start = _variable(content, start)
            kept = len(previous) - dropped
            if kept < 0:
                raise _damaged("a name rests on more than the one before it")
        length = flags & _NAME_MASK
        is_ended_by_nul = self._version == 4 or length == _NAME_MASK
        end = content.find(b"\0", start) if is_ended_by_nul else start + length
        if not start <= end < len(content):
            raise _damaged("it is cut off")
        name = previous[:kept] + content[start:end]
        return mode, name, end + 1 if self._version == 4 else at + (end - at + 8) // 8 * 8

    def _add(self, name: str, kind: int) -> None:
        if not name:
            self.nameless.append(kind)
            return
        self.names.append(name)
        self._note(name, kind)

    def _note(self, name: str, kind: int) -> None:
        if kind in (_GITLINK, _DIRECTORY):
            self.types[name] = kind
        else:
            self.types.pop(name, None)

    def _extensions(self, at: int) -> None:
        end = len(self._content) - self._hash_bytes
        while at + 8 <= end:
            name = self._content[at : at + 4]
            (size,) = struct.unpack_from(">I", self._content, at + 4)
            if at + 8 + size > end:
                raise _damaged("it is cut off")
            if name == b"link":
                self.link = self._content[at + 8 : at + 8 + size]
            elif not b"A" <= name[:1] <= b"Z" and name != b"sdir":  # lower case: a required extension
                raise _damaged(f"it has an extension {name.decode('latin-1')!r}, which is not known")
            at += 8 + size

    def rest_on(self, base: _Entries, bitmaps: bytes) -> None:
        """Merges the entries of the shared index `base` into those of this split one.

        Entries that replace one of the shared index have no name here. Their order is that of the bitmap.
        """
        deleted, replaced = set[int](), set[int]()
        if bitmaps:
            deleted, at = _set_bits(bitmaps, 0, len(base.names))
            replaced, _ = _set_bits(bitmaps, at, len(base.names))
        own, self.types = self.types, base.types
        for number, kind in zip(sorted(replaced), self.nameless, strict=False):
            self._note(base.names[number], kind)
        for number in deleted:
            self.types.pop(base.names[number], None)
        self.types = self.types | own
        self.names += [name for number, name in enumerate(base.names) if number not in deleted]

    def tracked(self, size_bytes: int) -> Tracked:
        """The result for lookups."""
        return Tracked(
            sorted(self.names),
            submodules=frozenset(name for name, kind in self.types.items() if kind == _GITLINK),
            sparse=frozenset(name for name, kind in self.types.items() if kind == _DIRECTORY),
            size_bytes=size_bytes,
        )


def _variable(content: bytes, at: int) -> tuple[int, int]:
    """Decodes a number of variable length. Returns it and the offset of its end."""
    value = content[at] & 127
    while content[at] & 128:
        at += 1
        value = (value + 1) << 7 | content[at] & 127
        if value > MAX_BYTES:
            raise _damaged("a name rests on more than the one before it")
    return value, at + 1


def _set_bits(bitmap: bytes, at: int, below: int) -> tuple[set[int], int]:
    """Decodes a bitmap compressed by EWAH. Returns the numbers of the set bits, and the offset of the bitmap's end.

    A control word gives the number of words of equal bits, and the number of literal words that follow it.
    """
    _, count = struct.unpack_from(">II", bitmap, at)
    words = struct.unpack_from(f">{count}Q", bitmap, at + 8) if count * 8 <= len(bitmap) else ()
    if len(words) != count:
        raise _damaged("it is cut off")
    found: set[int] = set()
    for start, stop in _runs(words):
        if start >= below:
            break
        found.update(range(start, min(stop, below)))
    return found, at + 8 + count * 8 + 4


def _runs(words: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    number = bit = 0
    while number < len(words):
        word = words[number]
        number += 1
        length = (word >> 1 & 0xFFFFFFFF) * 64
        if word & 1:
            yield bit, bit + length
        bit += length
        literals = word >> 33
        for literal in words[number : number + literals]:
            for offset in range(64):
                if literal >> offset & 1:
                    yield bit + offset, bit + offset + 1
            bit += 64
        number += literals
