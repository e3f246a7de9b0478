"""The attributes of a layer's root directory, which an overlay shows from its upper alone."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def copy_root(lower: Path, upper: Path) -> None:
    """Copies to the upper what an overlay shows as its root's attributes: owner, mode, user xattrs and times."""
    status = lower.stat()
    os.chown(upper, status.st_uid, status.st_gid)
    for name in _user_xattrs(lower):
        os.setxattr(upper, name, os.getxattr(lower, name))
    upper.chmod(status.st_mode & 0o7777)
    os.utime(upper, ns=(status.st_atime_ns, status.st_mtime_ns))


def _user_xattrs(path: Path) -> list[str]:
    try:
        return [name for name in os.listxattr(path) if name.startswith("user.")]
    except OSError as e:
        if e.errno == errno.ENOTSUP:  # an archive without xattrs
            return []
        raise
