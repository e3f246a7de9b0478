"""Finds what was changed in a restored directory: where the upper of its layer has something, and nothing else.

The upper only tells where to look. All content is read from the merged directory, and compared with the archives below
(`Union`). So the marks of the drivers need no interpretation, except that a directory that bears one is staged whole.

An upper does not show a change of a file with several names under each of them. The kernel keeps those files in an
index; where that is not empty, or a name is missing, every file of the directory is looked at.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from actors.node.layers import Layer
from actors.node.staged import Key, Stage, StagedDirectory, identity_of
from actors.node.union import DIRECTORY_FLAGS, Union

_MARKS = (
    "trusted.overlay.opaque", "trusted.overlay.redirect",
    "user.overlay.opaque", "user.overlay.redirect", "user.fuseoverlayfs.opaque",
)  # fmt: skip
"""The xattrs of a directory in an upper that make it more than a part of the lower directory of the same path."""
_OPAQUE_FILES = frozenset({".wh..wh..opq", ".wh..opq"})


@dataclass(frozen=True, slots=True)
class _Look:
    """The settings of one walk. With `everywhere`, it also visits what the upper does not have."""

    stage: Stage
    everywhere: bool
    has_index: bool
    wanted: Collection[Key]


@dataclass(slots=True)
class OverlayChanges:
    """Goes along with a walk over a merged directory, and stages what it finds changed (`survey.Follower`)."""

    _look: _Look
    _staged: StagedDirectory
    _lower: Union | None
    _upper: int | None
    _is_whole: bool
    """True if everything in the directory is staged."""
    _open: ExitStack
    _lower_names: set[str] = field(default_factory=set)
    _upper_names: set[str] = field(default_factory=set)
    _kept: set[str] = field(default_factory=set)

    def choose(self, names: list[str]) -> list[str]:
        """The names of the directory's entries that the walk has to look at."""
        self._lower_names = set() if self._lower is None else self._lower.names()
        self._upper_names = set() if self._upper is None else set(os.listdir(self._upper))
        if self._look.everywhere or self._is_whole:
            return names
        self._kept = set(names) - self._upper_names
        return [name for name in names if name in self._upper_names]

    def keep(self, fd: int, name: str, found: os.stat_result) -> bool:
        """Notes an entry of the directory `fd` that belongs to the backup, and is no directory.

        Returns True if it is not staged.
        """
        self._kept.add(name)
        if self._is_whole or name in self._upper_names or self._has_changed_elsewhere(name, found):
            self._staged.add(fd, name, found)
            return False
        return True

    def _has_changed_elsewhere(self, name: str, found: os.stat_result) -> bool:
        """True if a file that is not in the upper was changed by another name of it, or needs to go with one."""
        if found.st_nlink > 1 and identity_of(found) in self._look.wanted:
            return True
        if not self._look.has_index or self._lower is None:
            return False
        before = self._lower.find(name)
        return before is None or (before.st_nlink > 1 and _state(before) != _state(found))

    def below(self, name: str) -> OverlayChanges:
        """The follower for the subdirectory `name`."""
        self._kept.add(name)
        with ExitStack() as stack:
            upper = None
            if self._upper is not None and name in self._upper_names:
                upper = os.open(name, DIRECTORY_FLAGS, dir_fd=self._upper)
                stack.callback(os.close, upper)
            lower = None if self._lower is None else stack.enter_context(self._lower.below(name))
            is_whole = self._is_whole or lower is None or (upper is not None and _is_marked(upper))
            staged = self._staged.below(name)
            return OverlayChanges(self._look, staged, lower, upper, is_whole, stack.pop_all())
        raise AssertionError

    def end(self, fd: int) -> None:
        """Stages the directory itself, after the walk over it."""
        for name in sorted(self._lower_names - self._kept):
            self._staged.hide(name)
        if self._is_whole or self._upper is not None:
            self._staged.make()
        self._staged.finish(fd)

    def close(self) -> None:
        """Closes what was opened for the directory."""
        self._open.close()


def changes_of(layer: Layer, stage: Stage, *, everywhere: bool, wanted: Collection[Key]) -> OverlayChanges:
    """The follower for the root of a mounted layer's merged directory.

    Args:
        everywhere: to visit every file, because of rules that may leave out what was not changed.
        wanted: files with several names that have to be staged under each of them, if such an attempt has found any.
    """
    has_index = _has_index_entries(layer.index)
    look = _Look(stage, everywhere or has_index or bool(wanted), has_index, wanted)
    with ExitStack() as stack:
        upper = os.open(layer.upper, DIRECTORY_FLAGS)
        stack.callback(os.close, upper)
        lower = stack.enter_context(Union.of(layer.lowers))
        return OverlayChanges(look, StagedDirectory(stage), lower, upper, _is_marked(upper), stack.pop_all())
    raise AssertionError


def _has_index_entries(index: Path) -> bool:
    """True if the kernel's index has an entry.

    The kernel also uses the folder for files on their way to another place. Their names begin with "#", while entries
    are named in hexadecimal. After the first deletion one such file stays: the whiteout that later ones are links to.
    Source: ovl_tempname, ovl_whiteout and ovl_get_index_name in the kernel's fs/overlayfs.
    """
    with contextlib.suppress(FileNotFoundError):
        return any(not name.startswith("#") for name in os.listdir(index))
    return False


def _state(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _is_marked(upper: int) -> bool:
    return any(_has(upper, mark) for mark in _MARKS) or not _OPAQUE_FILES.isdisjoint(os.listdir(upper))


def _has(fd: int, attribute: str) -> bool:
    try:
        os.getxattr(fd, attribute)
    except OSError as e:
        if e.errno in (errno.ENODATA, errno.ENOTSUP, errno.EPERM):  # EPERM: trusted.* in a user namespace
            return False
        raise
    return True
