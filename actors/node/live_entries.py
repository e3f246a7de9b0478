"""A walk over a directory of a sandbox while its commands go on: what is there, in the order of a backup's listing."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import NamedTuple

from actors.node.errors import MountError, TreeError
from actors.node.tree import DEAD_MOUNT, TEMPORARY

_REPLACED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL})
"""The error numbers for a name that was removed, or is of another kind now."""
_LISTED = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO})


class LiveEntry(NamedTuple):
    """One name in a directory. `path` is relative to the directory, whose own is empty.

    `size_bytes` is that of a regular file, else 0; `target` that of a symbolic link, else empty.
    """

    path: bytes
    mode: int
    size_bytes: int
    modified_s: int
    modified_ns: int
    target: bytes


def live_entries(fd: int, *, start: bytes, depth: int) -> Generator[LiveEntry]:
    """Yields what an archive of the directory would hold, but for what a backup leaves out on purpose.

    A directory comes right before what is in it, names in the order of their bytes. What vanishes meanwhile is left
    out. No symbolic link is followed.

    Args:
        start: entries whose path sorts before this key (with "/" as the byte 0) are left out, and their directories
            are not read.
        depth: the number of levels that may lie below each other.

    Raises:
        TreeError: it is deeper.
        MountError: a file system in it does not answer.
    """
    root = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with ExitStack() as opened:
        opened.callback(os.close, root)
        try:
            if not start:
                yield _entry(root, b".", b"", os.fstat(root))
            yield from _below(root, b"", start, depth)
        except OSError as e:
            if e.errno in DEAD_MOUNT:
                raise MountError("A file system under the path does not answer.") from None
            raise


def _below(fd: int, prefix: bytes, start: bytes, depth: int) -> Iterator[LiveEntry]:
    if depth == 0:
        raise TreeError("The directory has too many levels.")
    for name in sorted(map(os.fsencode, os.listdir(fd))):
        path = prefix + name
        key = path.replace(b"/", b"\0")
        holds_start = start.startswith(key + b"\0")
        if key < start and not holds_start:
            continue
        try:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_IFMT(found.st_mode) not in _LISTED or TEMPORARY.fullmatch(os.fsdecode(name)):
                continue
            if key >= start:
                yield _entry(fd, name, path, found)
            if not stat.S_ISDIR(found.st_mode):
                continue
            child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        except OSError as e:
            if e.errno in _REPLACED:
                continue
            raise
        try:
            yield from _below(child, path + b"/", start, depth - 1)
        finally:
            os.close(child)


def _entry(fd: int, name: bytes, path: bytes, found: os.stat_result) -> LiveEntry:
    mode = found.st_mode
    seconds, ns = divmod(found.st_mtime_ns, 1_000_000_000)
    target = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(mode) else b""
    return LiveEntry(path, mode, found.st_size if stat.S_ISREG(mode) else 0, seconds, ns, target)
