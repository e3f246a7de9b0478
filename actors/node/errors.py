"""Errors of the node's kernel and tools.

NodeError
├── BoxError                  no box could be built around a tool or a command
├── ToolError                 a tool failed
│   ├── ToolMissingError      it is not installed
│   ├── ToolTimeoutError      it ran too long and was killed
│   ├── ToolKilledError       a signal ended it
│   ├── NoMemoryLeftError     the node gave it no memory
│   └── NoProcessesLeftError  the node let it start no process or thread
├── NoSpaceLeftError          the disk is full
├── ReadOnlyDiskError         the disk is mounted read-only
├── PathError                 a path inside a sandbox cannot be used
│   ├── PathMissingError      it does not exist
│   └── PathTypeError         it is of another type than needed
├── TreeError                 a tree cannot be archived faithfully, or is beyond the limits
├── ArchiveError              an archive is invalid, incomplete or unreadable
├── DamagedCopyError          this node's copy of an archive is damaged or gone
├── CgroupError               an operation on a control group failed
├── MountError                a mount could not be made or removed
│   ├── MountBusyError        because something still uses it
│   └── NoRoomToMountError    because the disk is full
├── DriverUnavailableError    the requested mount driver is not offered, or none is
├── ArchiveRefusedError       an archive holds files that the node's driver would show wrongly
├── NoLayerError              a directory's changes cannot be archived by themselves, so all of it has to be
├── LayerMismatchError        a layer was made with another archive or driver
└── CorruptRecordError        a record on the node's disk cannot be read
"""

from __future__ import annotations

import errno
import os
from typing import Any


class NodeError(Exception):
    """The root of these errors. `message` may hold a path of the node: it is for the log, not for a client."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint))


_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: OSError) -> bool:
    """True if no block or inode was left on the disk, or in the user's quota."""
    return error.errno in _FULL


def full_disk_in(output: str) -> str | None:
    """Returns the words of strerror(3) for a full disk if a tool's output has them, else None."""
    return next((words for words in map(os.strerror, _FULL) if words in output), None)


def _rebuild(cls: type[NodeError], message: str, hint: str | None) -> NodeError:
    return cls(message, hint=hint)


class ToolError(NodeError):
    """A tool of the node failed."""


class ToolMissingError(ToolError):
    """A tool of the node is not installed."""


class ToolTimeoutError(ToolError):
    """A tool of the node ran too long and was killed, with all that it had started."""


class ToolKilledError(ToolError):
    """A signal ended a tool of the node, most often the kernel's SIGKILL when memory ran out."""


class NoMemoryLeftError(ToolError):
    """A tool of the node got no memory."""


class NoProcessesLeftError(ToolError):
    """A tool of the node could start no further process or thread."""


class BoxError(NodeError):
    """No box could be built around a tool or a command, so nothing ran. `message` has the box's own words."""


class NoSpaceLeftError(NodeError):
    """The disk is full."""


class ReadOnlyDiskError(NodeError):
    """The disk is mounted read-only, perhaps by the kernel after errors of the disk."""


class PathError(NodeError):
    """A path inside a sandbox cannot be used."""


class PathMissingError(PathError):
    """A path inside a sandbox does not exist."""


class PathTypeError(PathError):
    """A path inside a sandbox has another file type than needed."""


class TreeError(NodeError):
    """A tree cannot be archived faithfully, or is beyond the limits."""


class ArchiveError(NodeError):
    """An archive is invalid, incomplete or unreadable."""


class DamagedCopyError(NodeError):
    """This node's copy of an archive is damaged or gone; that says nothing about the backup in the bucket."""


class CgroupError(NodeError):
    """An operation on a control group failed."""


class MountError(NodeError):
    """A mount could not be made or removed."""


class MountBusyError(MountError):
    """A mount could not be made or removed because something still uses it; nothing was changed."""


class NoRoomToMountError(MountError):
    """A mount could not be made because the disk has no room for the kernel's files; nothing was changed."""


class DriverUnavailableError(NodeError):
    """The requested mount driver is not offered on the node, or no driver is."""


class ArchiveRefusedError(NodeError):
    """An archive holds files that the node's driver would show wrongly. It can be restored as a copy."""


class NoLayerError(NodeError):
    """A directory's changes cannot be archived by themselves. `message` completes "because …"."""


class LayerMismatchError(NodeError):
    """A layer was made with another archive or driver than it is opened with."""


class CorruptRecordError(NodeError):
    """A record on the node's disk is damaged, or cannot be read."""
