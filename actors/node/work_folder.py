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

from actors.node import file_lock
from actors.node.removal import remove_tree


@contextmanager
def working_in(folder: Path) -> Iterator[Path]:
    """Makes the folder anew, empty, for the block, and removes it with all its content at the end.

    The caller ensures that nobody else calls this for the same folder meanwhile.

    Raises:
        OSError, ToolError: the folder cannot be made or removed.
    """
    with made_anew(folder):
        try:
            yield folder
        finally:
            remove_tree(folder)


@contextmanager
def made_anew(folder: Path) -> Iterator[Path]:
    """Does as `working_in`, and leaves the removal at the end to the caller."""
    fd = _made(folder)
    try:
        yield folder
    finally:
        os.close(fd)


@contextmanager
def unless_in_use(folder: Path) -> Iterator[bool]:
    """Keeps others from working in the folder within the block. Yields False if it does not exist, or is in use."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        yield file_lock.take(fd) and _is_at(fd, folder)
    finally:
        os.close(fd)


def remove_unless_in_use(folder: Path) -> bool:
    """Removes what a dead process has left in the folder. Returns False if there is nothing, or if it is in use.

    Raises:
        OSError, ToolError: it cannot be removed.
    """
    with unless_in_use(folder) as is_unused:
        if is_unused:
            remove_tree(folder)
        return is_unused


def _made(folder: Path) -> int:
    """Makes the folder and locks it. Returns the descriptor that holds the lock.

    A folder is removed only by the holder of its lock. Otherwise `remove_unless_in_use`, which has just found an
    earlier folder unused, could remove the new one.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        is_new = _is_made(folder)
        try:
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # `remove_unless_in_use` has come in between
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_at(fd, folder):
                if is_new:
                    return fd
                remove_tree(folder)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _is_made(folder: Path) -> bool:
    """Makes the folder. Returns False if it exists."""
    try:
        folder.mkdir(mode=0o711)
    except FileExistsError:
        return False
    return True


def _is_at(fd: int, folder: Path) -> bool:
    """True if the open folder still has its name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), os.stat(folder))
    return False
