"""A check of standard input, for a command that cannot pass it on: finds data that would be lost."""

from __future__ import annotations

import fcntl
import os
import select
import stat
import sys
import termios

STDIN = 0


def holds_data(fd: int = STDIN) -> bool:
    """Tells whether there is something to read: bytes in a pipe or a socket, or the rest of a file. Reads nothing.

    A terminal, a device such as /dev/null, and a closed or empty input hold nothing. Neither does a pipe whose writer
    has written nothing so far, such as that of a shell over SSH.
    """
    try:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode):
            return os.lseek(fd, 0, os.SEEK_CUR) < found.st_size
        if not (stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode)):
            return False
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(0):
            return False
        waiting = bytearray(4)
        fcntl.ioctl(fd, termios.FIONREAD, waiting)
    except OSError:
        return False
    return int.from_bytes(waiting, sys.byteorder) > 0
