"""The tables of a squashfs archive in the bucket, read by ranged reads; file data is never read.

The tables of inodes and directories lie behind the data, in metadata blocks of 8 KiB, each compressed by itself. Only
those blocks are read that are needed. The archive may be hostile: every number is checked before it is used, no block
inflates beyond 8 KiB, and after too many blocks or names comes an error.

Source: Documentation/filesystems/squashfs.rst of Linux, and fs/squashfs/squashfs_fs.h for the fields.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from storage.errors import IntegrityError, NotListedError
from storage.listing import Entry
from storage.ranges import WINDOW_BYTES, RangedObject
from storage.store import ObjectStore

_SUPERBLOCK = struct.Struct("<5I6H8Q")
_MAGIC = 0x73717368
_BLOCK_BYTES = 8192
_STORED_AS_IT_IS = 0x8000
_INODE = struct.Struct("<4H2I")
"""Type, permissions, owner and group as indices, time of the last change, number."""
_DIRECTORY, _LONG_DIRECTORY = struct.Struct("<2I2HI"), struct.Struct("<4I2HI")
_FILE, _LONG_FILE = struct.Struct("<4I"), struct.Struct("<3Q4I")
_LINK = _DEVICE = struct.Struct("<2I")
_RUN, _NAME = struct.Struct("<3I"), struct.Struct("<HhHH")
"""The header of a run of names whose inodes lie in one block, and that of a name."""
_KINDS = (
    stat.S_IFDIR,
    stat.S_IFREG,
    stat.S_IFLNK,
    stat.S_IFBLK,
    stat.S_IFCHR,
    stat.S_IFIFO,
    stat.S_IFSOCK,
)
"""The kinds of inodes, from 1 on; those of long inodes follow in the same order."""
_MAX_NAMES_IN_A_RUN = 256
_MAX_NAME_BYTES = 256
_MAX_TARGET_BYTES = 65_536
_NO_NAMES_BYTES = 3
"""The size that an empty directory says it has."""
_MAX_DEPTH = 768
_MAX_BLOCKS = 100_000
_MAX_NAMES = 2_000_000
_CACHED_BLOCKS = 128


class ArchiveTables:
    """The names and inodes of one archive. What is no sound archive gives NotListedError."""

    def __init__(
        self,
        store: ObjectStore,
        key: str,
        size_bytes: int,
        *,
        work: Work,
        window_bytes: int = WINDOW_BYTES,
        hasty: bool = False,
    ) -> None:
        """Reads the superblock. `window_bytes`, `hasty`: see `RangedObject`, of which there are two at most.

        Raises:
            ObjectMissingError: there is no archive.
            NotListedError: it is none, or is compressed in a way that is not known here.
        """
        self._bounds = _Bounds(store.bucket, key, work)
        source = RangedObject(store, key, size_bytes, window_bytes=window_bytes, hasty=hasty)
        try:
            fields = _SUPERBLOCK.unpack(source.read(0, _SUPERBLOCK.size, exactly=True))
        except IntegrityError:
            raise self._bounds.broken("it has no superblock") from None
        magic, compressor, major, minor = fields[0], fields[5], fields[9], fields[10]
        root, used, inodes, directories = fields[11], fields[12], fields[15], fields[16]
        if (magic, major, minor) != (_MAGIC, 4, 0):
            raise self._bounds.broken("it is no squashfs archive of version 4.0")
        if not _SUPERBLOCK.size <= inodes < directories < used <= size_bytes:
            raise self._bounds.broken("its tables lie outside of it")
        inflate = _INFLATERS.get(compressor)
        if inflate is None:
            raise self._bounds.broken("its compression is not known here")
        self._inodes = _Table(source, inodes, directories, inflate, self._bounds)
        if not source.is_whole:
            source = RangedObject(store, key, size_bytes, window_bytes=window_bytes, hasty=hasty)
        self._directories = _Table(source, directories, used, inflate, self._bounds)
        self._root = root

    def root(self) -> Inode:
        """The root directory, whose path is empty."""
        root = self.inode(b"", self._root >> 16, self._root & 0xFFFF)
        if root.place is None:
            raise self._bounds.broken("its root is no directory")
        return root

    def check_depth(self, depth: int) -> None:
        """Raises NotListedError for a directory with this number of others above it, if that is too large."""
        if depth >= _MAX_DEPTH:
            raise self._bounds.broken(f"it is more than {_MAX_DEPTH} levels deep")

    def names(self, block: int, offset: int, size_bytes: int) -> Iterator[Name]:
        """Yields the names in a directory, in the order of their bytes. `block`, `offset`: the place of the first."""
        left = size_bytes
        reader = _Reader(self._directories, block, offset)
        last = b""
        while left > 0:
            count, inode_block, _ = _RUN.unpack(reader.take(_RUN.size))
            left -= _RUN.size
            if count >= _MAX_NAMES_IN_A_RUN:
                raise self._bounds.broken("a directory with too long a run of names")
            for _ in range(count + 1):
                inode_offset, _, _, length = _NAME.unpack(reader.take(_NAME.size))
                if length >= _MAX_NAME_BYTES:
                    raise self._bounds.broken("a name that is too long")
                name = reader.take(length + 1)
                left -= _NAME.size + length + 1
                if name <= last or name in (b".", b"..") or b"/" in name or b"\0" in name:
                    raise self._bounds.broken("names that are out of order, or cannot be")
                last = name
                self._bounds.count_name()
                yield Name(name, self, inode_block, inode_offset)
        if left:
            raise self._bounds.broken("a directory of another size than it says")

    def inode(self, path: bytes, block: int, offset: int) -> Inode:
        """The inode at a place of the table. `path` is that of its entry."""
        reader = _Reader(self._inodes, block, offset)
        kind, permissions, _, _, modified_s, _ = _INODE.unpack(reader.take(_INODE.size))
        if not 1 <= kind <= 2 * len(_KINDS):
            raise self._bounds.broken("an inode of an unknown kind")
        is_long, number = divmod(kind - 1, len(_KINDS))
        form = _KINDS[number]
        size, target, names, is_whiteout = 0, b"", None, False
        if form == stat.S_IFDIR:
            names = self._place_of_names(reader, is_long=bool(is_long))
        elif form == stat.S_IFREG:
            size = _LONG_FILE.unpack(reader.take(_LONG_FILE.size))[1] if is_long else 0
            size = size if is_long else _FILE.unpack(reader.take(_FILE.size))[3]
        elif form == stat.S_IFLNK:
            _, length = _LINK.unpack(reader.take(_LINK.size))
            if length > _MAX_TARGET_BYTES:
                raise self._bounds.broken("a link with too long a target")
            target = reader.take(length)
        elif form == stat.S_IFCHR:
            is_whiteout = _DEVICE.unpack(reader.take(_DEVICE.size))[1] == 0
        entry = Entry(path, form | (permissions & 0o7777), size, modified_s, 0, target)
        return Inode(entry, self, names, is_whiteout)

    def _place_of_names(self, reader: _Reader, *, is_long: bool) -> tuple[int, int, int]:
        """The block, the offset and the bytes of a directory's names."""
        if is_long:
            _, size, block, _, _, offset, _ = _LONG_DIRECTORY.unpack(reader.take(_LONG_DIRECTORY.size))
        else:
            block, _, size, offset, _ = _DIRECTORY.unpack(reader.take(_DIRECTORY.size))
        return block, offset, max(0, size - _NO_NAMES_BYTES)


class Name(NamedTuple):
    """A name in a directory of an archive, and the place of its inode."""

    name: bytes
    tables: ArchiveTables
    block: int
    offset: int

    def inode(self, path: bytes) -> Inode:
        """Reads the inode."""
        return self.tables.inode(path, self.block, self.offset)


class Inode(NamedTuple):
    """An entry of an archive. `is_whiteout` is True for a character device 0:0."""

    entry: Entry
    tables: ArchiveTables
    place: tuple[int, int, int] | None
    """Of a directory, the block, the offset and the bytes of its names."""
    is_whiteout: bool

    def names(self) -> Iterator[Name]:
        """Yields what is in it, if it is a directory."""
        return self.tables.names(*self.place) if self.place else iter(())


@dataclass(slots=True)
class Work:
    """The work that is done for one reader, which is limited, and its blocks in memory. Archives may share it."""

    blocks: int = 0
    names: int = 0
    cache: OrderedDict[tuple[_Table, int], tuple[bytes, int]] = field(default_factory=OrderedDict)


class _Bounds:
    """The limits of the work, for one archive."""

    def __init__(self, bucket: str, key: str, work: Work) -> None:
        self._bucket, self._key = bucket, key
        self.work = work

    def count_block(self) -> None:
        self.work.blocks += 1
        if self.work.blocks > _MAX_BLOCKS:
            raise self.broken("its tables are too large or too scattered")

    def count_name(self) -> None:
        self.work.names += 1
        if self.work.names > _MAX_NAMES:
            raise self.broken("it has too many names")

    def broken(self, detail: str) -> NotListedError:
        return NotListedError("list", bucket=self._bucket, key=self._key, detail=detail)


class _Table:
    """The metadata blocks of one table. Blocks are named by their distance from its beginning."""

    def __init__(
        self, source: RangedObject, start: int, end: int, inflate: Callable[[bytes], bytes], bounds: _Bounds
    ) -> None:
        self._source, self._start, self._end, self._inflate = source, start, end, inflate
        self.bounds = bounds

    def block(self, number: int) -> tuple[bytes, int]:
        """The content of a block, and the next one."""
        cache = self.bounds.work.cache
        found = cache.get((self, number))
        if found is None:
            found = self._read(number)
            cache[self, number] = found
            if len(cache) > _CACHED_BLOCKS:
                cache.popitem(last=False)
        return found

    def _read(self, number: int) -> tuple[bytes, int]:
        self.bounds.count_block()
        at = self._start + number
        if at + 2 > self._end:
            raise self.bounds.broken("a block outside of its table")
        try:
            if self._end - self._start <= self._source.window_bytes:
                self._source.read(self._start, self._end - self._start)  # one request for the whole table
            header = int.from_bytes(self._source.read(at, 2), "little")
            size = header & ~_STORED_AS_IT_IS
            if not size or at + 2 + size > self._end or size > _BLOCK_BYTES:
                raise self.bounds.broken("a block of an impossible size")
            stored = self._source.read(at + 2, size)
        except IntegrityError as e:
            raise self.bounds.broken(e.detail or "it is shorter than recorded") from None
        data = stored if header & _STORED_AS_IT_IS else self._inflated(stored)
        return data, number + 2 + size

    def _inflated(self, stored: bytes) -> bytes:
        try:
            data = self._inflate(stored)
        except Exception as e:  # each library has its own
            raise self.bounds.broken(f"a block that cannot be inflated ({type(e).__name__})") from None
        if len(data) > _BLOCK_BYTES:
            raise self.bounds.broken("a block that is too large")
        return data


class _Reader:
    """Reads on from a place in a table, from one block into the next."""

    def __init__(self, table: _Table, block: int, offset: int) -> None:
        self._table = table
        self._data, self._next = table.block(block)
        self._at = offset

    def take(self, size_bytes: int) -> bytes:
        """The next bytes, exactly."""
        if self._at + size_bytes <= len(self._data):
            self._at += size_bytes
            return self._data[self._at - size_bytes : self._at]
        if self._at > len(self._data):
            raise self._table.bounds.broken("a place outside of its block")
        head, self._at = self._data[self._at :], 0
        self._data, self._next = self._table.block(self._next)
        return head + self.take(size_bytes - len(head))


def _zlib(stored: bytes) -> bytes:
    return zlib.decompressobj().decompress(stored, _BLOCK_BYTES + 1)


def _lz4(stored: bytes) -> bytes:
    import lz4.block  # type: ignore[import-untyped]

    data: bytes = lz4.block.decompress(stored, uncompressed_size=_BLOCK_BYTES)
    return data


def _zstd(stored: bytes) -> bytes:
    from backports.zstd import DecompressionParameter, ZstdDecompressor

    reader = ZstdDecompressor(options={DecompressionParameter.window_log_max: 20})
    return reader.decompress(stored, _BLOCK_BYTES + 1)


_INFLATERS: dict[int, Callable[[bytes], bytes]] = {1: _zlib, 5: _lz4, 6: _zstd}
"""By squashfs's number of the compression."""
