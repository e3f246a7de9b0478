"""The listing of a backup: every name in its tree, so that nobody has to fetch the archive to know what it holds.

It is made by the walk that each backup begins with, and lies beside the archive. Its form is

    block*  index

A block holds entries in order, compressed by zlib. The index, compressed too, says of each block where it ends, its
first path and its SHA-256. The backup's metadata holds the index's SHA-256, so the metadata's signature covers every
entry. A reader takes the index and those blocks that it needs, never the whole.

Entries are in the order of `sort_key`: a directory comes right before what is in it, names in the order of their bytes.
An entry is written as its depth and its own name, so that deep trees take no more room than flat ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from storage.errors import CorruptMetadataError, IntegrityError
from storage.metadata import ListingDigest

_BLOCK_BYTES = 128 * 1024
_MAX_INDEX_BYTES = 8 * 2**20
_MAX_BYTES = 512 * 2**20
"""A larger listing is not kept: only a tree that was made for it has one."""
_LEVEL = 1
_ENTRY = struct.Struct("<HHHHQqI")
"""Depth, st_mode, bytes of the name, bytes of a link's target, size, seconds and nanoseconds of the last change."""
_ROW = struct.Struct("<III32sI")
"""Bytes stored, bytes of the entries, number of entries, SHA-256 of the bytes stored, bytes of the first path."""


class Entry(NamedTuple):
    """One name in a tree. `path` is relative to the root, whose own is empty. `mode` holds the type, as st_mode does.

    `size_bytes` is that of a regular file, else 0. `target` is that of a symbolic link, else empty; of a link
    with several names it may be unknown, and is empty then.
    """

    path: bytes
    mode: int
    size_bytes: int
    modified_s: int
    modified_ns: int
    target: bytes

    @property
    def is_directory(self) -> bool:
        """True for a directory."""
        return stat.S_ISDIR(self.mode)


class Contents(Protocol):
    """The entries of a tree, in the order of `sort_key`."""

    def scan(self, start: bytes, end: bytes | None, *, deep: bool) -> Iterator[Entry]:
        """Yields the entries whose keys are at or after `start`, and before `end`.

        If not `deep`, leaves out what is in the directories that it yields.
        """


def sort_key(path: bytes) -> bytes:
    """The key that brings a directory right before what is in it. No name contains the byte 0."""
    return path.replace(b"/", b"\0")


def keys_below(path: bytes) -> tuple[bytes, bytes | None]:
    """The first key of all that is in a directory, and the key that ends it."""
    key = sort_key(path)
    return (key + b"\0", key + b"\1") if key else (b"\0", None)


def key_after(key: bytes, *, deep: bool) -> bytes:
    """The least key after an entry's; after all that is in it, if not `deep`."""
    return key + (b"\0" if deep else b"\1")


class ListingWriter:
    """Writes a listing to a new file, block by block. The memory that it takes is bounded.

    A listing that would be too large, or that the disk has no room for, is given up: `finish` then returns None.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        with contextlib.suppress(OSError):
            self._file = path.open("xb")
        self._block = bytearray()
        self._in_block = 0
        self._first = b""
        self._index = bytearray()
        self._entries = 0
        self._size_bytes = 0

    def add(self, path: bytes, found: os.stat_result, target: bytes) -> None:
        """Adds an entry. Its path has to come after that of the entry before."""
        if not self._in_block:
            self._first = path
        name = path[path.rfind(b"/") + 1 :]
        mode = found.st_mode
        size = found.st_size if stat.S_ISREG(mode) else 0
        seconds, ns = divmod(found.st_mtime_ns, 1_000_000_000)
        depth = path.count(b"/") + 1 if path else 0
        self._block += _ENTRY.pack(depth, mode, len(name), len(target), size, seconds, ns) + name + target
        self._in_block += 1
        if len(self._block) >= _BLOCK_BYTES:
            self._end_block()

    def begin_anew(self) -> None:
        """Forgets all entries. A listing that was given up stays so."""
        if self._file is not None:
            try:
                self._file.seek(0)
                self._file.truncate()
            except OSError:
                self._give_up()
        self._block.clear()
        self._index.clear()
        self._in_block = self._entries = self._size_bytes = 0

    def finish(self) -> ListingDigest | None:
        """Completes the file; returns what the metadata has to say of it. None: there is no listing, and no file."""
        self._end_block()
        index = zlib.compress(self._index)
        try:
            if self._file is not None:
                self._file.write(index)
                self._file.close()
        except OSError:
            self._give_up()
        if self._file is None:
            return None
        self._file = None
        return ListingDigest(
            size_bytes=self._size_bytes + len(index),
            index_bytes=len(index),
            entries=self._entries,
            sha256=hashlib.sha256(index).hexdigest(),
        )

    def close(self) -> None:
        """Closes the file, and removes it unless it is complete. Repeatable."""
        self._give_up()

    def _end_block(self) -> None:
        if self._in_block and self._file is not None:
            data = zlib.compress(self._block, _LEVEL)
            digest = hashlib.sha256(data).digest()
            self._index += _ROW.pack(len(data), len(self._block), self._in_block, digest, len(self._first))
            self._index += self._first
            self._size_bytes += len(data)
            self._entries += self._in_block
            try:
                self._file.write(data)
            except OSError:
                self._give_up()
        if len(self._index) > _MAX_INDEX_BYTES or self._size_bytes > _MAX_BYTES:
            self._give_up()
        self._block.clear()
        self._in_block = 0

    def _give_up(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()
            with contextlib.suppress(OSError):
                self._path.unlink()


class Readable(Protocol):
    """A stored object that can be read in pieces."""

    bucket: str
    key: str

    def read(self, start: int, size_bytes: int) -> bytes:
        """Exactly these bytes. Raises IntegrityError if the object does not have them."""


@dataclass(frozen=True, slots=True)
class _Block:
    start: int
    size_bytes: int
    raw_bytes: int
    entries: int
    sha256: bytes
    first: bytes


class Listing:
    """A stored listing. It believes nothing that the digest in the metadata does not cover.

    `scan` raises CorruptMetadataError if bytes are not those that were recorded.
    """

    def __init__(self, source: Readable, digest: ListingDigest) -> None:
        """Reads the index.

        Raises:
            ObjectMissingError: there is no such listing (any more).
            CorruptMetadataError: it is not the one that the metadata is about.
        """
        self._source = source
        stored = self._read(digest.size_bytes - digest.index_bytes, digest.index_bytes)
        if hashlib.sha256(stored).hexdigest() != digest.sha256:
            raise self._damaged("another SHA-256 of the index")
        self._blocks = list(self._rows(self._inflated(stored, _MAX_INDEX_BYTES + _BLOCK_BYTES)))
        self._firsts = [sort_key(block.first) for block in self._blocks]

    def scan(self, start: bytes, end: bytes | None, *, deep: bool) -> Iterator[Entry]:
        """See `Contents.scan`."""
        bound = start
        number = max(0, bisect_right(self._firsts, bound) - 1)
        while number < len(self._blocks) and (end is None or self._firsts[number] < end):
            for entry in self._entries(self._blocks[number]):
                key = sort_key(entry.path)
                if key < bound:
                    continue
                if end is not None and key >= end:
                    return
                yield entry
                bound = key_after(key, deep=deep)
            number = max(number + 1, bisect_right(self._firsts, bound) - 1)

    def _rows(self, index: bytes) -> Iterator[_Block]:
        at = start = 0
        try:
            while at < len(index):
                size, raw, entries, sha256, length = _ROW.unpack_from(index, at)
                at += _ROW.size + length
                yield _Block(start, size, raw, entries, sha256, index[at - length : at])
                start += size
        except struct.error:
            raise self._damaged("an index that ends early") from None

    def _entries(self, block: _Block) -> Iterator[Entry]:
        stored = self._read(block.start, block.size_bytes)
        if hashlib.sha256(stored).digest() != block.sha256:
            raise self._damaged("another SHA-256 of a block")
        data = self._inflated(stored, block.raw_bytes)
        above = block.first.split(b"/")
        at = 0
        try:
            for _ in range(block.entries):
                depth, mode, named, pointed, size, seconds, ns = _ENTRY.unpack_from(data, at)
                at += _ENTRY.size
                above[max(depth - 1, 0) :] = [data[at : at + named]]
                at += named + pointed
                yield Entry(b"/".join(above), mode, size, seconds, ns, data[at - pointed : at])
        except struct.error:
            raise self._damaged("a block that ends early") from None

    def _read(self, start: int, size_bytes: int) -> bytes:
        try:
            return self._source.read(start, size_bytes)
        except IntegrityError as e:
            raise self._damaged(e.detail or "it is shorter than recorded") from None

    def _inflated(self, stored: bytes, max_bytes: int) -> bytes:
        inflate = zlib.decompressobj()
        try:
            data = inflate.decompress(stored, max_bytes + 1)
        except zlib.error:
            raise self._damaged("bytes that zlib cannot read") from None
        if len(data) > max_bytes or not inflate.eof:
            raise self._damaged("more bytes than it may hold")
        return data

    def _damaged(self, detail: str) -> CorruptMetadataError:
        return CorruptMetadataError("list", bucket=self._source.bucket, key=self._source.key, detail=detail)
