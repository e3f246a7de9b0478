"""Loop devices: the file that one was set up with, which may have lost its name since."""

from __future__ import annotations

import fcntl
import os
import struct

_LOOP_GET_STATUS64 = 0x4C05
_INFO = struct.Struct("<QQ216x")
"""`struct loop_info64`: the file's device and inode, and what we do not look at. Source: linux/loop.h."""


def backing_file(device: str) -> tuple[int, int] | None:
    """The device and inode of the file under a loop device, as stat(2) has them; None if that cannot be found out."""
    buffer = bytearray(_INFO.size)
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.ioctl(fd, _LOOP_GET_STATUS64, buffer)
    except OSError:
        return None
    finally:
        os.close(fd)
    found_device, inode = _INFO.unpack(buffer)
    return found_device, inode
