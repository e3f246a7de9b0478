"""A tree that holds only what was changed in a directory since a backup, and becomes an archive of its own: a layer.

Everything in it is a copy with all attributes, made while the directory cannot change. A name that is gone since is a
whiteout, a character device 0:0. A hard link of several names is staged with all of them, or the stage is of no use.
The stage knows nothing of how the changes were found.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from actors.node.errors import NoLayerError

Key = int
"""The identity of a file with several names, as `identity_of` makes it."""
_CHUNK_BYTES = 1024 * 1024
_NO_ACLS = frozenset({"system.posix_acl_access", "system.posix_acl_default"})


def identity_of(found: os.stat_result) -> Key:
    """A key that two names share if mksquashfs takes them for one file: all that lstat(2) returns is equal.

    Only the time of access may differ, because staging a file may change it.
    """
    return hash((*found[:7], found.st_rdev, found.st_blocks, found.st_mtime_ns, found.st_ctime_ns))


@dataclass(slots=True)
class Stage:
    """The tree, and what is counted in it. `check` is called often, and raises when the time is up."""

    root: Path | str
    uid: int
    max_bytes: float
    check: Callable[[], None]
    inodes: int = 0
    copied_bytes: int = 0
    whiteouts: int = 0
    links: dict[Key, _Link] = field(default_factory=dict)

    def incomplete(self) -> set[Key]:
        """The files of which not every name was staged."""
        return {key for key, link in self.links.items() if link.names < link.wanted}

    def count(self, size: int) -> None:
        """Counts bytes before they are copied. Raises NoLayerError."""
        self.check()
        self.copied_bytes += size
        if self.copied_bytes > self.max_bytes:
            raise NoLayerError(f"more than {self.max_bytes} bytes have changed")


@dataclass(slots=True)
class _Link:
    path: str
    wanted: int
    names: int = 1


@contextmanager
def _staging() -> Iterator[None]:
    """Raises NoLayerError for an OSError, which is its cause: perhaps the whole directory can be archived."""
    try:
        yield
    except OSError as e:
        name = errno.errorcode.get(e.errno or 0, "unknown error")
        raise NoLayerError(f"what was changed could not be staged ({name})") from e


class StagedDirectory:
    """A directory of the stage. It is made, with those above it, once something in it is staged.

    Its methods raise NoLayerError.
    """

    def __init__(self, stage: Stage, above: StagedDirectory | None = None, name: str = "") -> None:
        self._stage = stage
        self._above = above
        self.path: str = os.path.join(above.path, name) if above is not None else str(stage.root)
        self._is_made = False

    @_staging()
    def make(self) -> None:
        """Makes the directory. Repeatable."""
        if self._is_made:
            return
        if self._above is not None:
            self._above.make()
        os.mkdir(self.path, 0o700)
        self._stage.inodes += 1
        self._is_made = True

    def adopt(self) -> None:
        """Takes the directory that is there already for its own."""
        self._is_made = True

    def below(self, name: str) -> StagedDirectory:
        """The subdirectory `name`, which is not made yet."""
        return StagedDirectory(self._stage, self, name)

    @_staging()
    def add(self, fd: int, name: str, found: os.stat_result) -> None:
        """Stages a file, a symbolic link or a FIFO of the directory `fd`, with its status `found`."""
        self.make()
        target = os.path.join(self.path, name)
        if found.st_nlink > 1:
            key = identity_of(found)
            link = self._stage.links.get(key)
            if link is not None:
                os.link(link.path, target, follow_symlinks=False)
                link.names += 1
                return
            self._stage.links[key] = _Link(target, found.st_nlink)
        self._stage.inodes += 1
        if stat.S_ISREG(found.st_mode):
            self._stage.count(found.st_size)
            _copy_file(fd, name, found, target, self._stage.check)
        elif stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=fd), target)
        else:
            os.mkfifo(target, 0o600)
        self._copy_attributes(f"/proc/self/fd/{fd}/{name}", found, target)

    @_staging()
    def hide(self, name: str) -> None:
        """Stages a whiteout."""
        self.make()
        target = os.path.join(self.path, name)
        os.mknod(target, 0o600 | stat.S_IFCHR, os.makedev(0, 0))
        os.utime(target, (0, 0))  # so that equal changes give equal archives
        self._stage.inodes += 1
        self._stage.whiteouts += 1

    @_staging()
    def finish(self, fd: int) -> None:
        """Gives the directory the attributes of `fd`, if it was made. Nothing may be added afterwards."""
        if self._is_made:
            self._copy_attributes(f"/proc/self/fd/{fd}/.", os.fstat(fd), self.path)

    def _copy_attributes(self, source: str, found: os.stat_result, target: str) -> None:
        os.chown(target, self._stage.uid, self._stage.uid, follow_symlinks=False)
        for attribute in _listed(source):
            if attribute not in _NO_ACLS and not attribute.startswith("trusted."):
                value = os.getxattr(source, attribute, follow_symlinks=False)
                try:
                    os.setxattr(target, attribute, value, follow_symlinks=False)
                except OSError as e:
                    raise NoLayerError(f"an attribute {attribute.partition('.')[0]}.* cannot be copied") from e
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(target, stat.S_IMODE(found.st_mode))
        os.utime(target, ns=(found.st_mtime_ns, found.st_mtime_ns), follow_symlinks=False)


def _listed(source: str) -> list[str]:
    try:
        return os.listxattr(source, follow_symlinks=False)
    except OSError as e:
        if e.errno == errno.ENOTSUP:
            return []
        raise


def _copy_file(fd: int, name: str, found: os.stat_result, target: str, check: Callable[[], None]) -> None:
    """Copies a regular file, without its holes. Does not change its time of access."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
    source = os.open(name, flags, dir_fd=fd)
    try:
        now = os.fstat(source)
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (found.st_ino, found.st_size, found.st_mtime_ns):
            raise NoLayerError("a file changed while it was read")
        out = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(out, found.st_size)
            _copy_data(source, out, found.st_size, check)
        finally:
            os.close(out)
    finally:
        os.close(source)


def _copy_data(source: int, out: int, size: int, check: Callable[[], None]) -> None:
    position = 0
    while position < size:
        try:
            position = os.lseek(source, position, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = min(os.lseek(source, position, os.SEEK_HOLE), size)
        while position < end:
            check()
            data = os.pread(source, min(_CHUNK_BYTES, end - position), position)
            if not data:
                raise NoLayerError("a file became shorter while it was read")
            view = memoryview(data)
            while view:
                written = os.pwrite(out, view, position)
                position += written
                view = view[written:]
