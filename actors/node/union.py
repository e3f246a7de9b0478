"""The content of several archives laid over each other, read without an overlay.

A newer archive hides what has its name in the older ones, except that directories of one name are merged. A character
device 0:0, a whiteout, hides a name and shows nothing. The archives hold no other sign of an overlay.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
"""The flags of open(2) for a directory that must not be a symbolic link."""


class Union:
    """One directory of the content."""

    def __init__(self, fds: Sequence[int]) -> None:
        """`fds` are the directory's descriptors in the archives that have it, the newest first."""
        self._fds = fds

    @classmethod
    @contextmanager
    def of(cls, roots: Sequence[Path]) -> Iterator[Self]:
        """The root directory of mounted archives, the oldest first, for the block."""
        with ExitStack() as stack:
            yield cls([_opened(stack, root) for root in reversed(roots)])

    def names(self) -> set[str]:
        """The names of the directory's entries."""
        seen, found = set[str](), set[str]()
        for fd in self._fds:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if entry.name not in seen and not _is_hidden_by(entry):
                        found.add(entry.name)
                    seen.add(entry.name)
        return found

    def find(self, name: str) -> os.stat_result | None:
        """The status of an entry; None if there is none."""
        for fd in self._fds:
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                return None if is_whiteout(found) else found
        return None

    @contextmanager
    def below(self, name: str) -> Iterator[Self | None]:
        """The subdirectory `name` for the block; None if there is none."""
        with ExitStack() as stack:
            fds = []
            for fd in self._fds:
                with contextlib.suppress(FileNotFoundError):
                    if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                        break
                    fds.append(_opened(stack, name, dir_fd=fd))
            yield type(self)(fds) if fds else None


def is_whiteout(found: os.stat_result) -> bool:
    """True for the status of a whiteout."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def _is_hidden_by(entry: os.DirEntry[str]) -> bool:
    is_plain = entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False) or entry.is_symlink()
    return not is_plain and is_whiteout(entry.stat(follow_symlinks=False))


def _opened(stack: ExitStack, path: str | Path, *, dir_fd: int | None = None) -> int:
    # The roots of archives may be symbolic links to their shared mounts.
    flags = DIRECTORY_FLAGS if dir_fd is not None else DIRECTORY_FLAGS & ~os.O_NOFOLLOW
    fd = os.open(path, flags, dir_fd=dir_fd)
    stack.callback(os.close, fd)
    return fd
