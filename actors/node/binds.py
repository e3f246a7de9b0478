"""Bind mounts that put a layer into a sandbox's tree.

The target is a descriptor, not a path: the sandbox could replace a path by a symlink between its check and its use.
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
    """Mounts the directory `source` onto the directory to which the descriptor `target_fd` (O_PATH) refers.

    A bind mount gets the flags of the mount that holds `source`. These have to include nosuid and nodev: flags can
    only be added after the mount, when the sandbox may already have used it without them.
    Source: mount(2), "Creating a bind mount".

    Raises:
        MountError: `source` is no directory, its mount lacks the flags, or the kernel refused; nothing is mounted.
    """
    with _pinned(source) as source_fd:
        missing = _REQUIRED - _flags(source_fd)
        if missing:
            raise MountError(f"{source} lies on a mount without {' and '.join(sorted(missing))}.")
        mounting.bind_descriptors(source_fd, target_fd)


def unbind(path: Path, *, deadline_s: float) -> None:
    """Unmounts what is mounted at `path` (absolute, without symlinks). Succeeds if nothing is mounted there.

    Raises:
        MountBusyError: something used the mount until the deadline; it is still there.
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
