"""Converts an upper directory of fuse-overlayfs into one of the kernel's overlay.

Both hide a deleted lower file by a whiteout: a character device 0:0 of its name. fuse-overlayfs has more markers:

    marker of fuse-overlayfs                                 the kernel's
    a file .wh.NAME in the directory of NAME                 a character device 0:0
    a file .wh..wh..opq in a directory, or an xattr          {trusted,user}.overlay.opaque = y
    user.fuseoverlayfs.origin and other xattrs of its own    none, so they are removed

fuse-overlayfs understands the kernel's markers, too, and each is made before the one that it replaces is removed. So an
interrupted conversion leaves a valid layer of fuse-overlayfs, and can be repeated.
Source: fuse-overlayfs 1.10, main.c; kernel Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from actors.node.drivers import Driver
from actors.node.union import DIRECTORY_FLAGS, Union

_HIDES = ".wh."
_OPAQUE_FILE = ".wh..wh..opq"
_OWN = ("user.fuseoverlayfs.", "user.overlay.")
"""Prefixes of the xattrs that fuse-overlayfs uses itself, and hides from its users."""
_OPAQUE_XATTRS = ("trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque")


def convert(upper: int, lower: Union | None, driver: Driver) -> None:
    """Converts a directory of an upper for `driver`. No overlay of that upper may be mounted. Idempotent.

    Args:
        upper: descriptor of the directory.
        lower: the lower directory under it; None if there is none, or it is hidden. A marker that hides
            nothing is removed, because the kernel would list its name.
    """
    before = os.fstat(upper)
    opaque = "user.overlay.opaque" if driver is Driver.ROOTLESS else "trusted.overlay.opaque"
    with os.scandir(upper) as entries:
        found = {entry.name: entry.stat(follow_symlinks=False) for entry in entries}
    if _OPAQUE_FILE in found or any(_has(upper, name) for name in _OPAQUE_XATTRS):
        os.setxattr(upper, opaque, b"y")
        lower = None
    for name, status in found.items():
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            if not _exists(lower, name):
                os.unlink(name, dir_fd=upper)
        elif name.startswith(_HIDES):
            _convert_sign(upper, lower, name, found)
        elif stat.S_ISDIR(status.st_mode):
            with _directory(upper, name) as child, _below(lower, name) as child_of_lower:
                convert(child, child_of_lower, driver)
        elif stat.S_ISREG(status.st_mode):
            _remove_own_xattrs(f"/proc/self/fd/{upper}/{name}", but=opaque)
    _remove_own_xattrs(f"/proc/self/fd/{upper}", but=opaque)
    os.utime(upper, ns=(before.st_atime_ns, before.st_mtime_ns))


def _convert_sign(upper: int, lower: Union | None, name: str, found: dict[str, os.stat_result]) -> None:
    hidden = name.removeprefix(_HIDES)
    if hidden not in found and _exists(lower, hidden):
        with contextlib.suppress(FileExistsError):
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=upper)
    os.unlink(name, dir_fd=upper)


@contextlib.contextmanager
def _directory(folder: int, name: str) -> Iterator[int]:
    """Opens the directory `name` of a folder for the block."""
    fd = os.open(name, DIRECTORY_FLAGS, dir_fd=folder)
    try:
        yield fd
    finally:
        os.close(fd)


def _below(folder: Union | None, name: str) -> contextlib.AbstractContextManager[Union | None]:
    return contextlib.nullcontext() if folder is None else folder.below(name)


def _exists(folder: Union | None, name: str) -> bool:
    return folder is not None and folder.find(name) is not None


def _has(folder: int, attribute: str) -> bool:
    try:
        return os.getxattr(folder, attribute) == b"y"
    except OSError as e:
        if e.errno in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):  # EPERM: trusted xattrs in a user namespace
            return False
        raise


def _remove_own_xattrs(path: str, *, but: str) -> None:
    for attribute in os.listxattr(path):
        if attribute.startswith(_OWN) and attribute != but:
            os.removexattr(path, attribute)
