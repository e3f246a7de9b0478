"""Lays an unpacked layer over a plain directory: the result is what an overlay of the two shows.

No process may change either tree meanwhile. After an error the directory is neither what it was nor what it should be.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import stat
from pathlib import Path

from actors.node.errors import NoLayerError, ToolError
from actors.node.removal import remove_tree
from actors.node.staged import Stage, StagedDirectory
from actors.node.union import DIRECTORY_FLAGS, is_whiteout


def lay(layer: Path, over: Path, *, uid: int) -> None:
    """Lays the directory `layer` over the directory `over`.

    Raises:
        OSError, ToolError: something could not be copied or removed.
    """
    fds: list[int] = []
    try:
        for folder in (layer, over):
            fds.append(os.open(folder, DIRECTORY_FLAGS))
        # A short path of the directory: with its own one, some paths in it would be longer than the kernel takes.
        short = f"/proc/{os.getpid()}/fd/{fds[1]}/."
        stage = Stage(short, uid, math.inf, lambda: None)
        _lay(fds[0], StagedDirectory(stage))
    except NoLayerError as e:
        if isinstance(e.__cause__, OSError):
            raise e.__cause__ from None
        raise ToolError(f"The layer could not be laid over the directory: {e.message}") from e
    finally:
        for fd in fds:
            os.close(fd)


def _lay(fd: int, over: StagedDirectory) -> None:
    _make_directory(over)
    with os.scandir(fd) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        target = os.path.join(over.path, name)
        if not stat.S_ISDIR(found.st_mode):
            _remove(target)
            if not is_whiteout(found):
                over.add(fd, name, found)
            continue
        child = os.open(name, DIRECTORY_FLAGS, dir_fd=fd)
        try:
            _lay(child, over.below(name))
        finally:
            os.close(child)
    over.finish(fd)


def _make_directory(over: StagedDirectory) -> None:
    try:
        is_there = stat.S_ISDIR(os.lstat(over.path).st_mode)
    except FileNotFoundError:
        is_there = False
    if is_there:
        for attribute in os.listxattr(over.path, follow_symlinks=False):
            with contextlib.suppress(PermissionError):
                os.removexattr(over.path, attribute, follow_symlinks=False)
        over.adopt()
    else:
        _remove(over.path)
        over.make()


def _remove(target: str) -> None:
    try:
        os.unlink(target)
    except FileNotFoundError:
        return
    except OSError as e:
        if e.errno != errno.EISDIR:
            raise
        remove_tree(Path(target))
