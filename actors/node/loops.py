"""Finds a loop device's backing file, even if the file's name has been removed since."""

from __future__ import annotations

import fcntl
import os
import struct

_LOOP_GET_STATUS64 = 0x4C05
_INFO = struct.Struct("<QQ216x")
"""`struct loop_info64`: the file's device and inode, then fields that we skip. Source: linux/loop.h."""


def backing_file(device: str) -> tuple[int, int] | None:
    """Returns the device and inode, as in stat(2), of the file under a loop device; None if they cannot be read."""
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
