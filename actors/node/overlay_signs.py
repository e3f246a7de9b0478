"""Attributes of restored files that an overlay would take for its own signs.

An overlay with `userxattr` keeps its signs in user xattrs that begin with `user.overlay.`. In an archive, which a
command may have given them before it was made, they hide files, make others unreadable, and are never shown as
attributes. (In the layer they do no harm: the kernel escapes or refuses those that a command sets.)
Source: kernel Documentation/filesystems/overlayfs.rst, "User xattr" and "Nested xattr escaping".
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from actors.node import squashfs

_SIGN = "user.overlay."


def first_sign(archive: Path, mounted: Path) -> str | None:
    """The first name in a mounted archive that has such an attribute. Quick for an archive without any xattrs.

    Raises:
        ArchiveError: not a squashfs archive.
    """
    if not squashfs.has_xattrs(archive):
        return None
    fd = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return "." if _has_sign(fd, ".") else _first_below(fd)
    finally:
        os.close(fd)


def _first_below(folder: int) -> str | None:
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in found:
        if _has_sign(folder, name):
            return name
        if is_directory:
            child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                below = _first_below(child)
            finally:
                os.close(child)
            if below is not None:
                return below
    return None


def _has_sign(folder: int, name: str) -> bool:
    try:
        attributes = os.listxattr(f"/proc/self/fd/{folder}/{name}", follow_symlinks=False)
    except OSError as e:
        if e.errno == errno.ENOTSUP:
            return False
        raise
    return any(attribute.startswith(_SIGN) for attribute in attributes)
