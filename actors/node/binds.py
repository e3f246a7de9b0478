"""Bind mounts that put a layer into a sandbox's tree.

The target is a descriptor, not a path: between a check of a path and its use the sandbox could swap a symlink in.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from actors.node import mountinfo, mounting
from actors.node.errors import MountError

_REQUIRED = frozenset({"nosuid", "nodev"})


def bind(source: Path, target_fd: int) -> None:
    """Mounts the directory `source` onto the directory that `target_fd` (O_PATH) pins.

    A bind mount takes over the flags of the mount that `source` lies on, and those have to include nosuid and
    nodev: they could only be added afterwards, when the sandbox has already seen the mount without them.
    Source: mount(2), "Creating a bind mount".

    Raises:
        MountError: `source` is no directory or lacks the flags, or the kernel refused; nothing is mounted.
    """
    with _pinned(source) as source_fd:
        missing = _REQUIRED - _flags(source_fd)
        if missing:
            raise MountError(f"{source} lies on a mount without {' and '.join(sorted(missing))}.")
        mounting.bind_descriptors(source_fd, target_fd)


def unbind(path: Path, *, deadline_s: float) -> None:
    """Unmounts what is mounted at `path` (absolute, without symlinks); nothing being there is success.

    Raises:
        MountBusyError: something used it until the deadline; it is still mounted.
    """
    mounting.unmount(path, deadline_s=deadline_s)


@contextlib.contextmanager
def _pinned(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as e:
        raise MountError(f"{path} cannot be bound: {e.strerror}.") from e
    try:
        yield fd
    finally:
        os.close(fd)


def _flags(fd: int) -> frozenset[str]:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
    mount_id = int(fields["mnt_id"])
    return next((mount.options for mount in mountinfo.mounts() if mount.id == mount_id), frozenset())
