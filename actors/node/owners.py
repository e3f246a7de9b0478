"""Gives a tree, which nobody else uses, to one owner."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_SET_IDS = stat.S_ISUID | stat.S_ISGID


def give(root: Path, *, uid: int) -> None:
    """Gives the directory `root` and all that is in it to the user and the group `uid`. Keeps all modes.

    Raises OSError.
    """
    directories = [os.fspath(root)]
    while directories:
        directory = directories.pop()
        _give(directory, uid)
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    directories.append(entry.path)
                else:
                    _give(entry.path, uid)


def _give(path: str, uid: int) -> None:
    """Sets the owner, and then the mode, of which the kernel takes the set-id bits away. Source: chown(2)."""
    found = os.lstat(path)
    if (found.st_uid, found.st_gid) == (uid, uid):
        return
    os.chown(path, uid, uid, follow_symlinks=False)
    if found.st_mode & _SET_IDS and not stat.S_ISLNK(found.st_mode):
        os.chmod(path, stat.S_IMODE(found.st_mode))
