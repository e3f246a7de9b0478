"""Finds xattrs of restored files that a mount driver would show wrongly.

An overlay with `userxattr` keeps its own marks in user xattrs that begin with `user.overlay.`. A command may have set
such xattrs before the archive was made. In an archive they hide files, make others unreadable, and are never shown as
xattrs. (In the layer they do no harm: the kernel escapes or refuses those that a command sets.)
Source: kernel Documentation/filesystems/overlayfs.rst, "User xattr" and "Nested xattr escaping".

squashfuse 0.1.104 lists an xattr that has no value, and then answers that it does not exist (seen in an experiment).
The overlay cannot copy such an xattr, so nothing can be written to the file, nor can the file be backed up.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Set as AbstractSet
from pathlib import Path

from actors.node import squashfs
from actors.node.drivers import Limit

_SIGN = "user.overlay."


def first_limit(archive: Path, mounted: Path, limits: AbstractSet[Limit]) -> Limit | None:
    """Returns a limit of the driver that a mounted archive exceeds, or None. Fast for an archive without any xattrs.

    Raises:
        ArchiveError: not a squashfs archive.
    """
    if not limits & {Limit.SIGNS, Limit.EMPTY_XATTRS} or not squashfs.has_xattrs(archive):
        return None
    fd = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _limit_of(fd, ".", limits) or _first_below(fd, limits)
    finally:
        os.close(fd)


def _first_below(folder: int, limits: AbstractSet[Limit]) -> Limit | None:
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        limit = _limit_of(folder, name, limits)
        if limit is None and is_directory:
            child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                limit = _first_below(child, limits)
            finally:
                os.close(child)
        if limit is not None:
            return limit
    return None


def _limit_of(folder: int, name: str, limits: AbstractSet[Limit]) -> Limit | None:
    path = f"/proc/self/fd/{folder}/{name}"
    try:
        attributes = os.listxattr(path, follow_symlinks=False)
    except OSError as e:
        if e.errno == errno.ENOTSUP:
            return None
        raise
    for attribute in attributes:
        if Limit.SIGNS in limits and attribute.startswith(_SIGN):
            return Limit.SIGNS
        if Limit.EMPTY_XATTRS in limits and not _has_value(path, attribute):
            return Limit.EMPTY_XATTRS
    return None


def _has_value(path: str, attribute: str) -> bool:
    try:
        return os.getxattr(path, attribute, follow_symlinks=False) != b""
    except OSError as e:
        if e.errno == errno.ENODATA:
            return False
        raise
