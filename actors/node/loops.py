"""Loop devices: attaches one to an archive, and finds the file under one, even if the file's name has been removed.

Source: loop(4), and linux/loop.h.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

_CONTROL = "/dev/loop-control"
_LOOP_GET_STATUS64, _LOOP_CONFIGURE, _LOOP_CTL_GET_FREE = 0x4C05, 0x4C0A, 0x4C82
_READ_ONLY, _AUTOCLEAR = 1, 4
_INFO = struct.Struct("<QQ216x")
"""`struct loop_info64`: the file's device and inode, then fields that we skip."""
_CONFIG = struct.Struct("<II52xI64s64x32x16x64x")
"""`struct loop_config`: descriptor and block size, a `loop_info64` with flags and the file's name, and room."""
_NAME_BYTES = 63
_TRIES = 64


@dataclass(frozen=True, slots=True)
class Attached:
    """A loop device with a file. It is detached once it is neither open nor mounted."""

    device: str
    fd: int

    def close(self) -> None:
        """Closes the device; a mount of it keeps it attached."""
        os.close(self.fd)


def attach(archive: Path) -> Attached:
    """Attaches a free loop device to a file, read-only.

    Raises:
        OSError: there are no loop devices, or the kernel is older than 5.8; nothing is attached.
    """
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        file = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for _ in range(_TRIES):  # another process may take the same device first
                device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
                if (fd := _configured(device, file, archive)) is not None:
                    return Attached(device, fd)
        finally:
            os.close(file)
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), _CONTROL)


def _configured(device: str, file: int, archive: Path) -> int | None:
    """The descriptor of a loop device that now has the file; None if it has another one. Raises OSError."""
    name = os.fsencode(archive)[:_NAME_BYTES]
    config = _CONFIG.pack(file, 0, _READ_ONLY | _AUTOCLEAR, name)
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _LOOP_CONFIGURE, config)
    except BaseException as e:
        os.close(fd)
        if isinstance(e, OSError) and e.errno == errno.EBUSY:
            return None
        raise
    return fd


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
