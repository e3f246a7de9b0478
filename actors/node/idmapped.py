"""Idmapped mounts: they show the files of the sandboxes' user as those of one sandbox's own user, both ways.

The kernel counts some of what it limits by the user that a process runs as: descriptors in flight, memory of pipes,
files that epoll watches. So the processes of an awake sandbox run as a user of their own. The disk and the archives
keep one owner for all sandboxes; the mapping between the two lasts until the sandbox sleeps.

    <box>/root                     a view of itself, mounted over it while the sandbox is awake
    <layer>/idmapped/lower         the archive (lower1 and so on: those over it), and
    <layer>/idmapped/layer         the layer's own folder, both only while the overlay over them is being mounted

An overlay cannot be mapped itself, so all of its layers are. It keeps private copies of their mounts.
Source: mount_setattr(2), "ID-mapped mounts"; clone_private_mount in fs/namespace.c.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from actors.node import drivers, mounting
from actors.node.drivers import IDMAPPED_LAYER, Driver
from actors.node.errors import MountError
from actors.node.system_calls import checked, libc
from actors.node.user_namespace import UserNamespace

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD = -100
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_EMPTY_PATH = 0x1000
_MOUNT_ATTR_IDMAP = 0x00100000
_MS_PRIVATE = 1 << 18
_UNMOUNT_S = 10.0
_SQUASHFS_SINCE = (6, 2)
"""The first Linux whose squashfs can be idmapped. Overlays take such layers since 5.19."""


class _Attributes(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user_namespace"))


def obstacle(driver: Driver | None, release: str) -> str | None:
    """Returns the reason why sandboxes with this driver share one user, if it is known without trying.

    `driver` is None if backups are restored as copies only; `release` is the kernel's.
    """
    if driver is None:
        return None
    if driver is not Driver.KERNEL:
        return f"The mount driver {driver} cannot show a restored directory as another user's."
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None or tuple(map(int, found.groups())) < _SQUASHFS_SINCE:
        return f"Linux {release} cannot show an archive as another user's; 6.2 can."
    return None


class View:
    """The view of a sandbox's plain folder, mounted over it, in which its files belong to the sandbox's own user."""

    def __init__(self, root: Path, user_namespace: UserNamespace) -> None:
        self._root = root
        self._user_namespace = user_namespace
        self._is_mounted = False

    @property
    def owner(self) -> int:
        """The user who owns the sandbox's files in the view; without one, that of all sandboxes."""
        return self._user_namespace.user

    def mount(self) -> None:
        """Mounts the view. If that is impossible, the sandbox shares the user of all sandboxes until it is closed."""
        namespace = self._user_namespace.mapping()
        if namespace is None or self._is_mounted:
            return
        try:
            _attach(self._root, self._root, namespace)
        except OSError as e:
            self._user_namespace.share(f"The data folder cannot be mounted for another user: {e.strerror}.")
        else:
            self._is_mounted = True

    def unmount(self) -> None:
        """Unmounts the view. Raises MountBusyError if something in it is in use, MountError."""
        if self._is_mounted:
            mounting.unmount(Path(os.path.realpath(self._root)), deadline_s=_UNMOUNT_S)
            self._is_mounted = False


@contextmanager
def layers(folder: Path, namespace: int, *, archives: int = 1) -> Iterator[None]:
    """Mounts idmapped clones of a layer's folder and of its archives within the block. Raises MountError, OSError."""
    names = [(drivers.lower(number), drivers.idmapped_lower(number)) for number in range(archives)]
    with ExitStack() as stack:
        for source, target in (*((folder / a, folder / b) for a, b in names), (folder, folder / IDMAPPED_LAYER)):
            target.mkdir(parents=True, exist_ok=True)
            try:
                _attach(source, target, namespace)
            except OSError as e:
                raise MountError(f"{source.name} cannot be mounted for another user: {e.strerror}.") from e
            stack.callback(mounting.unmount, target, deadline_s=_UNMOUNT_S)
        yield


def _attach(source: Path, target: Path, namespace: int) -> None:
    """Mounts an idmapped clone of the mount at `source`, without those below it, at `target`. Raises OSError.

    It is private: else what is mounted in it would also be mounted in its source, if that is shared.
    """
    fd = checked(libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | os.O_CLOEXEC))
    try:
        attributes = _Attributes(_MOUNT_ATTR_IDMAP, 0, _MS_PRIVATE, namespace)
        size = ctypes.sizeof(attributes)
        checked(libc.syscall(_MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size))
        checked(libc.syscall(_MOVE_MOUNT, fd, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH))
    finally:
        with suppress(OSError):
            os.close(fd)
