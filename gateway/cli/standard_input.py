"""The standard input that `holdfast exec` passes on to its command."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

STDIN = 0
_NULL = os.makedev(1, 3)
"""The device /dev/null. Source: null(4)."""


def passed_on(fd: int = STDIN) -> BinaryIO | None:
    """Our standard input if it is piped or redirected; None for a terminal, /dev/null, or an input that is closed.

    It is read without a buffer. A thread that waits for a buffer of Python's would abort the process at its end.
    """
    try:
        found = os.fstat(fd)
        if os.isatty(fd) or (stat.S_ISCHR(found.st_mode) and found.st_rdev == _NULL):
            return None
        return open(fd, "rb", buffering=0, closefd=False)
    except OSError:
        return None
