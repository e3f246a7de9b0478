"""A sandbox's file tree on the node, reached only through descriptors that cannot leave it.

The node's process is root, and the owner of the tree may be hostile. So no path is checked first and used later.
Each path is resolved by openat2(2) with RESOLVE_IN_ROOT, which treats the tree's root as "/", for symbolic links too,
and everything after that goes through the descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import re
import secrets
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from actors.node.errors import MountError, NoSpaceLeftError, PathError, PathMissingError, PathTypeError
from actors.node.idmapped import View
from actors.node.system_calls import libc

_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_AGAIN = 32
_MAX_LINKS = 40
"""Number of links that one path may lead through. Source: path_resolution(7)."""
_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
TEMPORARY = re.compile(r"\.holdfast-[0-9a-f]{16}")
"""Names that this service gives to files that it is still writing; no archive contains them."""
DEAD_MOUNT = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ESTALE, errno.EIO})
"""The error numbers of a file system that does not answer any more. A request that was under way when its FUSE daemon
died fails with ECONNABORTED, later ones with ENOTCONN. Source: fs/fuse/dev.c."""
AS_COPY = 'Restored with "mode": "copy" it is a directory like any other.'
"""The hint for a caller that has to remove or rename a mounted directory."""


def openat2(root_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """Opens `path` (absolute, as the sandbox sees it) below `root_fd`, never outside of it.

    Raises:
        OSError: as open(2); ELOOP also for the magic links of /proc.
    """
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, _RESOLVE_NO_MAGICLINKS | _RESOLVE_IN_ROOT)
    for _ in range(_AGAIN):
        fd: int = libc.syscall(_SYS_OPENAT2, root_fd, os.fsencode(path), how, len(how))
        if fd >= 0:
            return fd
        error = ctypes.get_errno()
        if error != errno.EAGAIN:  # a rename elsewhere raced with the resolution of ".."
            break
    raise OSError(error, os.strerror(error), path)


def temporary_name() -> str:
    """A fresh name that matches TEMPORARY."""
    return f".holdfast-{secrets.token_hex(8)}"


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of a directory. `kind` is file, directory, symlink or other."""

    name: str
    kind: str
    size_bytes: int
    mode: int
    modified_s: float


class Tree:
    """The root of one sandbox, with its writable top folders."""

    def __init__(self, root: Path, *, tops: tuple[str, ...], uid: int, view: View | None = None) -> None:
        """`tops` are absolute paths inside the sandbox ("/workspace"); `uid` owns what is made in them.

        With a view, what is made belongs to its owner there, and to `uid` on the disk.
        """
        self.root = root
        self._tops = tops
        self._own = uid
        self._view = view

    @property
    def _uid(self) -> int:
        return self._own if self._view is None else self._view.owner

    def prepare(self) -> None:
        """Mounts the view, and makes the top folders. Repeatable; changes nothing that belongs to the sandbox."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._view is not None:
            self._view.mount()
        for top in self._tops:
            path = self.root / top.lstrip("/")
            path.mkdir(parents=True, exist_ok=True, mode=0o755)
            if path.stat().st_uid != self._uid:  # new, or its maker was killed before this step
                path.chmod(0o1777 if top in ("/tmp", "/var/tmp") else 0o755)
                os.chown(path, self._uid, self._uid)

    def release(self) -> None:
        """Unmounts the view. Raises MountBusyError if something in it is in use, MountError."""
        if self._view is not None:
            self._view.unmount()

    @contextmanager
    def open(self, path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
        """Yields a descriptor of `path`, closed after the block. Raises PathError and its kinds."""
        with _translated(path), self._root() as root:
            fd = openat2(root, path, flags)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def directory(self, path: str) -> Iterator[int]:
        """Yields an O_PATH descriptor of a directory, closed after the block. Raises PathError and its kinds."""
        with self.open(path, os.O_PATH | os.O_DIRECTORY) as fd:
            yield fd

    def place(self, path: str) -> Path:
        """The node's path of `path`, whose symbolic links are not resolved."""
        return Path(os.path.realpath(self.root)) / path.lstrip("/")

    def canonical(self, fd: int) -> str:
        """The path of an open file, as the sandbox sees it, with every symbolic link resolved.

        Raises:
            PathError: it lies outside the tree's top folders.
        """
        inside = self._inside(fd)
        if inside is None:
            raise PathError("The path leads outside the sandbox's writable roots.")
        return inside

    def find_canonical(self, path: str) -> str | None:
        """The path of a directory with every symbolic link resolved; None if it leads to no directory of the tree."""
        try:
            with self.directory(path) as fd:
                return self.canonical(fd)
        except PathError:
            return None

    def nameable(self, fd: int) -> str:
        """As `canonical`, for a path that documents have to name. Raises PathError also if it is not UTF-8."""
        place = self.canonical(fd)
        try:
            place.encode()
        except UnicodeEncodeError:
            raise PathError("It leads to a directory whose name is not UTF-8.") from None
        return place

    def _inside(self, fd: int) -> str | None:
        real = os.readlink(f"/proc/self/fd/{fd}")
        root = os.path.realpath(self.root)
        inside = real.removeprefix(root) if real.startswith(root + "/") else ""
        return inside if self._is_inside(inside) else None

    def _is_inside(self, path: str) -> bool:
        return any(path == top or path.startswith(top + "/") for top in self._tops)

    def make_directory(self, path: str) -> list[str]:
        """Makes a directory and its parents; returns those that were made, outermost first.

        Raises:
            PathTypeError: something on the way is not a directory.
            PathError: the way leads outside the top folders.
        """
        made: list[str] = []
        parts = PurePosixPath(path).parts
        for depth in range(2, len(parts) + 1):
            step = str(PurePosixPath(*parts[:depth]))
            try:
                with self.directory(step):
                    pass
            except PathMissingError:
                with _translated(step), self.directory(str(PurePosixPath(step).parent)) as parent:
                    self.canonical(parent)
                    name = PurePosixPath(step).name
                    os.mkdir(name, 0o755, dir_fd=parent)
                    os.chown(name, self._uid, self._uid, dir_fd=parent, follow_symlinks=False)
                made.append(step)
        return made

    def remove_directories(self, made: list[str]) -> None:
        """Removes the directories that `make_directory` made, innermost first, until one is not empty."""
        for path in reversed(made):
            try:
                with self.directory(str(PurePosixPath(path).parent)) as parent:
                    os.rmdir(PurePosixPath(path).name, dir_fd=parent)
            except (OSError, PathError):
                return

    @contextmanager
    def regular_file(self, path: str) -> Iterator[int]:
        """Yields a readable descriptor of a regular file. Refuses a FIFO or a device without waiting for it."""
        with self.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY) as fd:
            with _translated(path):
                self.canonical(fd)
                is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
            if not is_regular:
                raise PathTypeError("The path is not a regular file.")
            yield fd

    def entries(self, path: str, *, limit: int) -> list[Row]:
        """The entries of a directory, by name. Raises PathTypeError if there are more than `limit`."""
        with _translated(path), self.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK) as fd:
            self.canonical(fd)
            rows = []
            with os.scandir(fd) as entries:
                names = [entry.name for entry in itertools.islice(entries, limit + 1)]
            if len(names) > limit:
                raise PathTypeError(f"The directory holds more than {limit} entries; list it by a command.")
            for name in sorted(names):
                try:
                    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                kind = _KINDS.get(stat.S_IFMT(found.st_mode), "other")
                rows.append(Row(name, kind, found.st_size, stat.S_IMODE(found.st_mode), found.st_mtime))
            return rows

    def some_names(self, path: str, *, at_most: int) -> list[str]:
        """The names of at most `at_most` entries of a directory."""
        with _translated(path), self.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK) as fd:
            self.canonical(fd)
            with os.scandir(fd) as entries:
                return [entry.name for entry in itertools.islice(entries, at_most)]

    def new_file(self, path: str, mode: int | None) -> NewFile:
        """Begins to write the file that `path` names, and makes its parents.

        A symbolic link is followed, and kept. A link that leads outside the top folders, or into a directory that does
        not exist, is replaced.

        Raises:
            PathTypeError: something on the way is not a directory; or the link's target is one, or ends with a slash.
            PathError: too many links follow each other, or the way leads outside the top folders.
        """
        place = PurePosixPath(self._followed(path))
        self.make_directory(str(place.parent))
        with _translated(path), self.directory(str(place.parent)) as parent:
            self.canonical(parent)
            return NewFile(parent, place.name, mode, self._uid)

    def _followed(self, path: str) -> str:
        """The path that a symbolic link at `path` leads to; `path` itself if there is no link, or it leads nowhere."""
        end = path
        for _ in range(_MAX_LINKS):
            try:
                with self.directory(str(PurePosixPath(end).parent)) as parent:
                    target = os.path.join(self.canonical(parent), os.readlink(PurePosixPath(end).name, dir_fd=parent))
            except (PathMissingError, OSError):  # nothing is there, or it is no link
                return end
            found = self._place(target)
            if found is None:
                return path
            end = found
        raise PathError("Too many symbolic links on the path.")

    def _place(self, target: str) -> str | None:
        """The place that a link's absolute target names; the last part of the target is not followed.

        None if that is outside the top folders, or in a directory that does not exist.
        """
        if "/" + os.path.normpath(target).lstrip("/") in self._tops:
            raise PathTypeError("The path is a directory.")
        directory, name = os.path.split(target.rstrip("/"))
        is_dots = name in (".", "..")
        try:
            with self.directory(target if is_dots else directory) as fd:
                inside = self._inside(fd)
        except PathMissingError:
            return None
        if inside is not None and (is_dots or target.endswith("/")):
            raise PathTypeError("The path is a directory.")
        return f"{inside}/{name}" if inside is not None else None

    def remove(self, path: str) -> None:
        """Removes a file, a symbolic link or an empty directory."""
        place = PurePosixPath(path)
        with _translated(path), self.directory(str(place.parent)) as parent:
            self.canonical(parent)
            if path in self._tops:
                raise PathTypeError("The sandbox's own folders cannot be removed.")
            found = os.stat(place.name, dir_fd=parent, follow_symlinks=False)
            remove = os.rmdir if stat.S_ISDIR(found.st_mode) else os.unlink
            remove(place.name, dir_fd=parent)

    @contextmanager
    def _root(self) -> Iterator[int]:
        fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)


class NewFile:
    """A file that is being written beside its place. `commit` puts it there whole; nobody sees a part of it."""

    def __init__(self, parent_fd: int, name: str, mode: int | None, uid: int) -> None:
        self._name = name
        self._mode = mode
        self._uid = uid
        self._temporary = temporary_name()
        with _translated(name):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._temporary, flags, 0o600, dir_fd=parent_fd)
            self._parent = os.dup(parent_fd)

    def write(self, data: bytes) -> None:
        """Appends bytes. Raises NoSpaceLeftError."""
        view = memoryview(data)
        with _translated(self._name):
            while view:
                view = view[os.write(self._fd, view) :]

    def commit(self) -> None:
        """Syncs the file and renames it into its place. Without a given mode, an existing file keeps its mode."""
        try:
            with _translated(self._name):
                os.fchown(self._fd, self._uid, self._uid)
                os.fchmod(self._fd, self._final_mode())
                os.fsync(self._fd)
                os.rename(self._temporary, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        except BaseException:
            self.abort()
            raise
        self._close()

    def finish(self) -> None:
        """Does nothing: `commit` has done it all."""

    def abort(self) -> None:
        """Deletes what was written. Repeatable."""
        if self._fd >= 0:
            with suppress(OSError):  # it is gone, or its file system does not answer
                os.unlink(self._temporary, dir_fd=self._parent)
            self._close()

    def _final_mode(self) -> int:
        try:
            found = os.stat(self._name, dir_fd=self._parent, follow_symlinks=False)
        except FileNotFoundError:
            found = None
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise PathTypeError("The path is a directory.")
        if self._mode is not None:
            return self._mode & 0o777
        return stat.S_IMODE(found.st_mode) & 0o777 if found is not None and stat.S_ISREG(found.st_mode) else 0o644

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        for each in (fd, self._parent):
            with suppress(OSError):  # from a file system that does not answer; close(2) has closed it even so
                os.close(each)


@contextmanager
def _translated(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        match e.errno:
            case errno.ENOENT:
                raise PathMissingError("The path does not exist.") from None
            case errno.ENOTDIR | errno.EEXIST:  # EEXIST: a symbolic link that leads nowhere
                raise PathTypeError("Something on the path is not a directory.") from None
            case errno.EISDIR:
                raise PathTypeError("The path is a directory.") from None
            case errno.ENXIO:
                raise PathTypeError("The path is not a regular file.") from None
            case errno.ENOTEMPTY:
                raise PathTypeError("The directory is not empty.") from None
            case errno.EBUSY:
                raise PathTypeError(
                    "The path is a directory that was restored, which can be emptied, but not removed or replaced.",
                    hint=AS_COPY,
                ) from None
            case errno.ELOOP:
                raise PathError("Too many symbolic links on the path.") from None
            case errno.ENAMETOOLONG:
                raise PathError("A name on the path is too long.") from None
            case errno.ENOSPC | errno.EDQUOT:
                raise NoSpaceLeftError("The disk is full.") from None
            case number if number in DEAD_MOUNT:
                raise MountError("A file system under the path does not answer.") from None
            case _:
                raise
