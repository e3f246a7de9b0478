"""Exchanges two paths of one file system in one step."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from actors.node.errors import MountError, PathError
from actors.node.system_calls import checked, libc

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def exchange(one: Path, other: Path) -> None:
    """Exchanges two paths. Neither is ever missing.

    Source: renameat2(2), RENAME_EXCHANGE.

    Raises:
        PathError: the directory came from the archive of an overlay whose driver cannot rename it.
        MountError: the kernel refused.
    """
    try:
        checked(libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE))
    except OSError as e:
        if e.errno == errno.EXDEV:  # from fuse-overlayfs, for a directory that came from the archive
            raise PathError('A directory inside a restored one cannot be replaced here; use mode "overlay".') from None
        raise MountError(f"The directory cannot be exchanged: {e.strerror}.") from None
