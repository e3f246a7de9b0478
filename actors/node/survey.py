"""A walk over a tree before it is archived: it counts the content, lists what to leave out, and enforces the limits.

The exit status of mksquashfs proves nothing about what it has read. So this walk counts the tree by other means, and
the count is compared with the archive's own afterwards. The walk also refuses a tree that would fill the disk or never
end, applies the exclude patterns, and counts what an archive cannot keep.

docs/reference/attributes.md says what becomes of each attribute.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

from actors.node import mountinfo
from actors.node.duplicates import SizeCounts
from actors.node.errors import TreeError
from actors.node.exclusions import FEW, Exclusion, find_exclusion
from actors.node.ignore_rules import Rules, text_of
from actors.node.ignored import Place, Standing, place_of
from actors.node.tree import TEMPORARY, Tree

_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_ARCHIVED = frozenset({stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO})
_TIMES_S = range(2**32)
"""The modification times that squashfs can hold: unsigned seconds of 32 bits, 1970 to February of 2106."""
_GET_FLAGS = 0x80086601
"""FS_IOC_GETFLAGS. Source: linux/fs.h, ioctl_iflags(2)."""
_NO_FLAGS = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
_FLAGS = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x80 | 0x4000 | 0x10000 | 0x20000 | 0x100000 | 0x40000000
"""The flags of chattr(1) that say how a file is to be treated: s u S i a d A j D T V F. Those that say how the disk
stores it are not counted, since a file system sets them by itself."""


Listed = Callable[[bytes, os.stat_result, bytes], None]
"""Takes an entry: its path relative to the root, what lstat(2) says of it, and the target of a symbolic link.

The target is empty for what is no link, and for a link with several names."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest tree that may be archived. `hole_bytes` bounds the holes of sparse files."""

    inodes: int
    source_bytes: int
    hole_bytes: int
    depth: int


@dataclass(slots=True)
class Survey:
    """The content of a tree. `inodes` counts the root, and each hard-linked file once, as squashfs does.

    `sockets` and `devices` are left out, and are not among the inodes. An archive loses or changes the rest: `acls` and
    `other_xattrs` count xattrs, `far_times` and `flags` count inodes.
    """

    inodes: int = 0
    files: int = 0
    source_bytes: int = 0
    hole_bytes: int = 0
    max_name_bytes: int = 0
    sockets: int = 0
    devices: int = 0
    acls: int = 0
    other_xattrs: int = 0
    far_times: int = 0
    flags: int = 0
    sizes: SizeCounts = field(default_factory=SizeCounts, compare=False, repr=False)
    """The sizes of the regular files that are archived."""
    excluded: list[bytes] = field(default_factory=list)
    """Paths to leave out, relative to the root; everything below an excluded directory is left out with it."""
    exclusions: dict[bytes, Exclusion] = field(default_factory=dict)
    """The excluded entries of each directory that has many, by its path with a slash at its end; "" is the root."""


class Follower(Protocol):
    """Goes along with a walk, one for each directory, and learns what belongs to the backup."""

    def choose(self, names: list[str]) -> list[str]:
        """The names of the directory's entries that the walk has to look at."""

    def keep(self, fd: int, name: str, found: os.stat_result) -> bool:
        """Notes an entry of the directory `fd` that belongs to the backup, and is no directory.

        Returns:
            True if it is as an earlier backup found it, and so is not archived again: then what an archive loses of it
            is not counted again either.
        """

    def below(self, name: str) -> Self:
        """The follower for the subdirectory `name`, which belongs to the backup."""

    def end(self, fd: int) -> None:
        """Is called after the walk over the directory `fd`."""

    def close(self) -> None:
        """Is called last, even if the walk has failed."""


def survey(
    root_fd: int,
    *,
    limits: Limits,
    excludes: Sequence[str] = (),
    gitignore: Tree | None = None,
    cancelled: threading.Event | None = None,
    timeout_s: float = math.inf,
    listed: Listed | None = None,
    follower: Follower | None = None,
    path_bytes: int | None = None,
) -> Survey:
    """Walks the tree below `root_fd` without leaving it.

    Args:
        excludes: patterns as in a .gitignore file in the root. They take precedence over git's own files, and apply
            to tracked files, too.
        gitignore: if given, what git ignores is left out, too; this is the sandbox's tree, in which the directory
            lies, and from which git's files are read.
        listed: called with each entry that goes into the archive; a directory comes right before what is in it,
            names in the order of their bytes.
        follower: the root's follower. What it does not choose is not counted.
        path_bytes: if given, the longest path, relative to the root, that anything in the archive may have.

    Raises:
        TreeError: a limit is exceeded (also the time limit), a directory cannot be read, or the tree changed meanwhile.
        PathError: the tree changed meanwhile.
    """
    walk = _Walk(limits, excludes, cancelled, time.monotonic() + timeout_s, listed, path_bytes)
    root = os.open(f"/proc/self/fd/{root_fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        walk.root(root, gitignore, follower)
    except OSError as e:
        name = errno.errorcode.get(e.errno or 0, "unknown error")
        raise TreeError(f"The directory could not be read completely ({name}).") from None
    finally:
        os.close(root)
    return walk.found


@dataclass(slots=True)
class _Level:
    """A directory that the walk is in, and how far it has come."""

    fd: int
    prefix: str
    """Its path with a slash at its end; "" for the root."""
    place: Place | None
    follower: Follower | None
    names: Sequence[str] = ()
    unseen: Iterator[str] = field(default_factory=lambda: iter(()))
    left_out: list[str] = field(default_factory=list)
    opened: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """What was opened for it."""


class _Walk:
    def __init__(
        self,
        limits: Limits,
        excludes: Sequence[str],
        cancelled: threading.Event | None,
        deadline: float,
        listed: Listed | None,
        path_bytes: int | None,
    ) -> None:
        self._deadline = deadline
        self._path_bytes = path_bytes
        self._listed = listed
        self.found = Survey()
        self._excludes = Rules(map(text_of, excludes), self._check_time) if excludes else None
        self._limits = limits
        self._cancelled = cancelled
        self._linked: set[int] = set()
        self._one_name_each = True

    def root(self, fd: int, gitignore: Tree | None, follower: Follower | None) -> None:
        """Walks the whole tree."""
        self._one_name_each = not _shows_a_device_twice(fd)
        self.found.inodes = 1
        found = os.fstat(fd)
        self._count_losses(fd, found)
        if self._listed is not None:
            self._listed(b"", found, b"")
        self._count_flags(fd)
        place = None if gitignore is None else place_of(gitignore, gitignore.canonical(fd), check=self._check_time)
        self._walk(_Level(fd, "", place, follower))

    def _walk(self, root: _Level) -> None:
        """Walks a directory and all that is below it. Python would allow no recursion as deep as the limit."""
        levels: list[_Level] = []
        try:
            self._enter(root, levels)
            while levels:
                level = levels[-1]
                below = self._next_directory(level)
                if below is not None:
                    self._enter(below, levels)
                    continue
                self._describe(level)
                if level.follower is not None:
                    level.follower.end(level.fd)
                levels.pop().opened.close()
        finally:
            for level in reversed(levels):
                level.opened.close()

    def _enter(self, level: _Level, levels: list[_Level]) -> None:
        """Begins with a directory, which is the next one of `levels` from then on."""
        levels.append(level)
        if len(levels) > self._limits.depth:
            raise TreeError(f"The directory is more than {self._limits.depth} levels deep.")
        if self._cancelled is not None and self._cancelled.is_set():
            return
        self._check_time()
        with os.scandir(level.fd) as entries:
            names = [entry.name for entry in entries]
        if self._listed is not None:
            names.sort(key=os.fsencode)
        level.names = names if level.follower is None else level.follower.choose(names)
        level.unseen = iter(level.names)

    def _next_directory(self, level: _Level) -> _Level | None:
        """Walks on in a directory, up to the next subdirectory; returns that, or None at the end."""
        for name in level.unseen:
            path = level.prefix + name
            found = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
            is_directory = stat.S_ISDIR(found.st_mode)
            if not (is_directory or stat.S_IFMT(found.st_mode) in _ARCHIVED):
                self._leave_out(path, found)
                level.left_out.append(name)
                continue
            standing = self._standing(path, name, is_directory, level.place)
            if standing is Standing.IGNORED:
                self.found.excluded.append(os.fsencode(path))
                level.left_out.append(name)
                continue
            self._check_length(path)
            is_known = not is_directory and level.follower is not None and level.follower.keep(level.fd, name, found)
            self._count(level.fd, name, found, is_known=is_known)
            self._list(level.fd, name, path, found)
            if is_directory:
                return self._below(level, name, standing)
        return None

    def _describe(self, level: _Level) -> None:
        """Looks for fewer patterns for what was left out of a directory."""
        if len(level.left_out) > FEW:
            gone = set(level.left_out)
            kept = [os.fsencode(name) for name in level.names if name not in gone]
            excluded = [os.fsencode(name) for name in level.left_out]
            self.found.exclusions[os.fsencode(level.prefix)] = find_exclusion(excluded, kept)

    def _below(self, above: _Level, name: str, standing: Standing) -> _Level:
        """Opens the subdirectory `name`."""
        with contextlib.ExitStack() as stack:
            child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above.fd)
            stack.callback(os.close, child)
            self._count_flags(child)
            is_ignored = standing is Standing.HOLDS_TRACKED
            place = None if above.place is None else above.place.below(child, name, is_ignored=is_ignored)
            follower = None if above.follower is None else above.follower.below(name)
            if follower is not None:
                stack.callback(follower.close)
            return _Level(child, f"{above.prefix}{name}/", place, follower, opened=stack.pop_all())
        raise AssertionError

    def _list(self, fd: int, name: str, path: str, found: os.stat_result) -> None:
        if self._listed is None:
            return
        # Reading a link changes its access time, by which its other names are recognised.
        is_read = stat.S_ISLNK(found.st_mode) and found.st_nlink == 1 and self._one_name_each
        self._listed(os.fsencode(path), found, os.fsencode(os.readlink(name, dir_fd=fd)) if is_read else b"")

    def _check_length(self, path: str) -> None:
        # A character takes at most four bytes.
        if self._path_bytes is not None and len(path) * 4 > self._path_bytes < len(os.fsencode(path)):
            raise TreeError(f"A path in the directory is longer than {self._path_bytes} bytes.")

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise TreeError("The directory could not be walked in the time that commands may be paused.")

    def _standing(self, path: str, name: str, is_directory: bool, place: Place | None) -> Standing:
        if TEMPORARY.fullmatch(name):
            return Standing.IGNORED
        asked = None
        if self._excludes is not None:
            asked = self._excludes.verdict(text_of(path), is_directory=is_directory)
        if asked:
            return Standing.IGNORED
        if place is None:
            return Standing.KEPT
        return place.standing(name, is_directory=is_directory, included=asked is False)

    def _leave_out(self, path: str, found: os.stat_result) -> None:
        """Leaves out a socket or a device.

        A socket is useless without its server. A device opens nowhere, and 0:0 hides its name in an overlay.
        """
        self.found.excluded.append(os.fsencode(path))
        if self._is_another_name(found):
            return
        if stat.S_ISSOCK(found.st_mode):
            self.found.sockets += 1
        else:
            self.found.devices += 1

    def _count(self, fd: int, name: str, found: os.stat_result, *, is_known: bool) -> None:
        limits, total = self._limits, self.found
        total.max_name_bytes = max(total.max_name_bytes, len(os.fsencode(name)))
        if self._is_another_name(found):
            return
        total.inodes += 1
        if total.inodes > limits.inodes:
            raise TreeError(f"The directory holds more than {limits.inodes} files.")
        if stat.S_ISREG(found.st_mode):
            total.files += 1
            total.source_bytes += found.st_size
            total.hole_bytes += max(0, found.st_size - found.st_blocks * 512)
            if total.hole_bytes > limits.hole_bytes:
                raise TreeError(f"The sparse files of the directory hold more than {limits.hole_bytes} bytes of holes.")
            if total.source_bytes > limits.source_bytes:
                raise TreeError(f"The directory holds more than {limits.source_bytes} bytes.")
        if is_known:
            return
        if stat.S_ISREG(found.st_mode):
            total.sizes.add(found.st_size)
            self._count_losses_of_file(fd, name, found)
        else:
            self._count_losses(f"/proc/self/fd/{fd}/{name}", found)

    def _is_another_name(self, found: os.stat_result) -> bool:
        """True if mksquashfs takes the file for a hard link to one that was seen before.

        mksquashfs compares all that lstat(2) returns, times included: on a file system that changes them meanwhile, or
        that shows two names of one inode with different content, it archives two files. It ignores the number of
        links; we use that number to remember fewer files, where no mount can show one file twice.
        """
        if stat.S_ISDIR(found.st_mode) or (found.st_nlink == 1 and self._one_name_each):
            return False
        times = (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns)
        key = hash((*found[:7], found.st_rdev, found.st_blocks, *times))  # a few bytes for each of up to millions
        if key in self._linked:
            return True
        self._linked.add(key)
        return False

    def _count_losses(self, place: int | str, found: os.stat_result) -> None:
        """Counts what an archive loses of an entry, given by its descriptor or its path."""
        self.found.far_times += found.st_mtime_ns // 1_000_000_000 not in _TIMES_S
        try:
            attributes = os.listxattr(place) if isinstance(place, int) else os.listxattr(place, follow_symlinks=False)
        except OSError as e:
            if e.errno == errno.ENOTSUP:  # an unchanged file of a restored archive that has no xattrs
                return
            raise
        for attribute in attributes:
            if attribute in _ACLS:
                self.found.acls += 1
            elif not attribute.startswith("user."):
                self.found.other_xattrs += 1

    def _count_losses_of_file(self, fd: int, name: str, found: os.stat_result) -> None:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
        try:
            self._count_flags(file)
            self._count_losses(file, found)
        finally:
            os.close(file)

    def _count_flags(self, fd: int) -> None:
        value = bytearray(8)
        try:
            fcntl.ioctl(fd, _GET_FLAGS, value)
        except OSError as e:
            if e.errno in _NO_FLAGS:
                return
            raise
        self.found.flags += int.from_bytes(value[:4], sys.byteorder) & _FLAGS != 0


def _shows_a_device_twice(fd: int) -> bool:
    """True if a mount below the directory may show files that another one, or the directory itself, shows too."""
    root = Path(os.readlink(f"/proc/self/fd/{fd}"))
    mounts = mountinfo.mounts()
    below = [mount for mount in mounts if mount.point != root and mount.point.is_relative_to(root)]
    around = max(
        (mount for mount in mounts if root.is_relative_to(mount.point)), key=lambda mount: len(mount.point.parts)
    )
    shown = Counter(mount.device for mount in (around, *below))
    return max(shown.values()) > 1
