"""A folder on the node's disk for the work of one call at a time. What a dead process has left there can be removed.

A lock (flock(2)) on the folder itself tells whether anybody works in it. The kernel ends it with the process, and it
also holds between the threads of one process.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from actors.node.removal import remove_tree


@contextmanager
def working_in(folder: Path) -> Iterator[Path]:
    """Makes the folder anew, empty, for the block, and removes it with all its content at the end.

    The caller ensures that nobody else calls this for the same folder meanwhile.

    Raises:
        OSError, ToolError: the folder cannot be made or removed.
    """
    fd = _made(folder)
    try:
        yield folder
    finally:
        try:
            remove_tree(folder)
        finally:
            os.close(fd)


def remove_unless_in_use(folder: Path) -> bool:
    """Removes what a dead process has left in the folder. Returns False if there is nothing, or if it is in use.

    Raises:
        OSError, ToolError: it cannot be removed.
    """
    with suppress(FileNotFoundError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(folder)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
    return False


def _made(folder: Path) -> int:
    """Makes the folder and locks it. Returns the descriptor that holds the lock."""
    while True:
        remove_tree(folder)
        folder.mkdir(parents=True, mode=0o711)
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # `remove_unless_in_use` has come in between
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(fd), os.stat(folder)):
                return fd
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
