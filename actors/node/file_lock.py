"""Locks on the node's files and folders, by flock(2): each excludes other processes, and other threads of this one.

The kernel ends a lock with the process that holds it. A record lock of fcntl(2), as fasteners takes, excludes no other
thread, and ends as soon as its process closes any descriptor of the file.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_S = 0.02


@contextmanager
def held(file: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the lock of a file, which is made if it is missing, within the block.

    `waiting` is called repeatedly while somebody else has the lock; it raises an error to end the wait. Raises OSError.
    """
    with _opened(file) as fd:
        while not take(fd):
            waiting()
            time.sleep(_POLL_S)
        yield


@contextmanager
def held_if_free(file: Path) -> Iterator[bool]:
    """Holds the lock of a file, which is made if it is missing, within the block; yields False if it is taken.

    Raises OSError.
    """
    with _opened(file) as fd:
        yield take(fd)


def take(fd: int) -> bool:
    """Takes the lock of an open file or folder, until its last descriptor is closed. Returns False if it is taken."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)
