"""A walk over a tree that is about to be archived: what it holds, what to leave out, and whether it may be.

mksquashfs's exit status proves nothing about what it read, so the tree is counted here, by other means, and
the count is compared with the archive's own afterwards. The same walk refuses what would fill the disk or
never end, applies the exclude patterns, and counts what an archive cannot keep.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actors.node.errors import TreeError
from actors.node.tree import TEMPORARY

if TYPE_CHECKING:
    from pathspec import RegexPattern

GITIGNORE = ".gitignore"
Rules = tuple[str, tuple["RegexPattern", ...]]
"""The directory that patterns are relative to, with a slash; and the patterns, the last one first."""
_MAX_IGNORE_FILE_BYTES = 1024 * 1024
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest tree that may be archived. `hole_bytes` bounds what sparse files pretend to hold."""

    inodes: int
    source_bytes: int
    hole_bytes: int
    depth: int


@dataclass(slots=True)
class Survey:
    """What a tree holds. `inodes` counts hard-linked files once, and the root; as squashfs does."""

    inodes: int = 0
    files: int = 0
    source_bytes: int = 0
    hole_bytes: int = 0
    max_name_bytes: int = 0
    sockets: int = 0
    acls: int = 0
    other_xattrs: int = 0
    excluded: list[bytes] = field(default_factory=list)
    """Paths to leave out, relative to the root; everything below an excluded directory is left out with it."""


def survey(
    root_fd: int,
    *,
    limits: Limits,
    excludes: Sequence[str] = (),
    gitignore: bool = False,
    cancelled: threading.Event | None = None,
    timeout_s: float = math.inf,
) -> Survey:
    """Walks the tree below `root_fd` without leaving it.

    Args:
        excludes: patterns as in a .gitignore file that lies in the root.
        gitignore: also obey the .gitignore files of the tree.

    Raises:
        TreeError: a limit is exceeded (that of time, too), a directory cannot be read, or the tree changed meanwhile.
    """
    walk = _Walk(limits, excludes, gitignore, cancelled, time.monotonic() + timeout_s)
    root = os.open(f"/proc/self/fd/{root_fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        walk.found.inodes = 1
        walk.count_xattrs(root)
        walk.directory(root, "", 1, walk.patterns)
    except OSError as e:
        name = errno.errorcode.get(e.errno or 0, "unknown error")
        raise TreeError(f"The directory could not be read completely ({name}).") from None
    finally:
        os.close(root)
    return walk.found


class _Walk:
    def __init__(
        self,
        limits: Limits,
        excludes: Sequence[str],
        gitignore: bool,
        cancelled: threading.Event | None,
        deadline: float,
    ) -> None:
        self._deadline = deadline
        self.found = Survey()
        self.patterns: tuple[Rules, ...] = ()
        if excludes:
            self.patterns = (("", _patterns(excludes)),)
        self._limits = limits
        self._gitignore = gitignore
        self._cancelled = cancelled
        self._linked: set[tuple[int, int]] = set()

    def directory(self, fd: int, prefix: str, depth: int, patterns: tuple[Rules, ...]) -> None:
        if depth > self._limits.depth:
            raise TreeError(f"The directory is more than {self._limits.depth} levels deep.")
        if self._cancelled is not None and self._cancelled.is_set():
            return
        if time.monotonic() > self._deadline:
            raise TreeError("The directory could not be walked in the time that commands may be paused.")
        with os.scandir(fd) as entries:
            names = [entry.name for entry in entries]
        if self._gitignore and GITIGNORE in names:
            patterns = (*patterns, *_ignore_file(fd, prefix))
        for name in names:
            path = prefix + name
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            is_directory = stat.S_ISDIR(found.st_mode)
            if stat.S_ISSOCK(found.st_mode):
                self.found.sockets += 1
                self.found.excluded.append(os.fsencode(path))
                continue
            if TEMPORARY.fullmatch(name) or (patterns and _is_excluded(path, is_directory, patterns)):
                self.found.excluded.append(os.fsencode(path))
                continue
            self._count(fd, name, found)
            if is_directory:
                child = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                try:
                    self.directory(child, path + "/", depth + 1, patterns)
                finally:
                    os.close(child)

    def _count(self, fd: int, name: str, found: os.stat_result) -> None:
        limits, total = self._limits, self.found
        total.max_name_bytes = max(total.max_name_bytes, len(os.fsencode(name)))
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            key = (found.st_dev, found.st_ino)
            if key in self._linked:
                return
            self._linked.add(key)
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
        if not stat.S_ISLNK(found.st_mode):
            self.count_xattrs(fd, name)

    def count_xattrs(self, fd: int, name: str = ".") -> None:
        try:
            attributes = os.listxattr(f"/proc/self/fd/{fd}/{name}", follow_symlinks=False)
        except OSError as e:
            if e.errno == errno.ENOTSUP:  # an unchanged file of a restored archive without any
                return
            raise
        for attribute in attributes:
            if attribute in _ACLS:
                self.found.acls += 1
            elif not attribute.startswith("user."):
                self.found.other_xattrs += 1


def _ignore_file(fd: int, prefix: str) -> tuple[Rules, ...]:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(GITIGNORE, flags, dir_fd=fd)
    except OSError:
        return ()
    with open(file, "rb") as content:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return ()
        text = content.read(_MAX_IGNORE_FILE_BYTES + 1)
    if len(text) > _MAX_IGNORE_FILE_BYTES:
        raise TreeError("A .gitignore file is larger than 1 MiB.")
    return ((prefix, _patterns(os.fsdecode(text).splitlines())),)


def _patterns(lines: Sequence[str]) -> tuple[RegexPattern, ...]:
    """The patterns, last one first. Compiled by RE2, whose matching takes linear time: the sandbox may have made them.

    pathspec is loaded by whoever has patterns; most backups have none.
    """
    from pathspec import GitIgnoreSpec, RegexPattern

    made = GitIgnoreSpec.from_lines([_text(line) for line in lines], backend="re2").patterns
    return tuple(row for row in reversed(list(made)) if isinstance(row, RegexPattern) and row.include is not None)


def _text(path: str) -> str:
    """A path as text of one character for each of its bytes, which RE2 takes and git means."""
    return os.fsencode(path).decode("latin-1")


def _is_excluded(path: str, is_directory: bool, patterns: tuple[Rules, ...]) -> bool:
    """As git decides: the innermost file with a matching pattern wins, and there the last pattern."""
    for prefix, rules in reversed(patterns):
        text = _text(path[len(prefix) :]) + ("/" if is_directory else "")
        for pattern in rules:
            if _names(pattern, text):
                return bool(pattern.include)
    return False


def _names(pattern: RegexPattern, text: str) -> bool:
    """Whether a pattern is about this very path.

    pathspec also lets it match all that lies below a directory it names, and marks where that one ends. The walk
    prunes directories by itself; a re-included directory does not re-include what other patterns say of its files.
    """
    if pattern.regex is None:
        return False
    if "ps_d" not in pattern.regex.groupindex:  # "*", or a pattern that ends with "/**" or, for directories, "/**/"
        only_directories = str(pattern.pattern).endswith("/")
        return (text.endswith("/") or not only_directories) and pattern.regex.search(text.rstrip("/")) is not None
    return any(found["ps_d"] is None or found.end("ps_d") == len(text) for found in pattern.regex.finditer(text))
