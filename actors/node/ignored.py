"""Tells for each path in a tree whether git would keep it, ignore it, or ignore it except for tracked files below.

A place is one directory, as its repository sees it; the survey walks from place to place. Below the root of a nested
repository only that repository's rules apply. Outside of any repository only the tree's .gitignore files apply. Git's
own directory, `.git`, is kept unless it lies in an ignored directory.

A user's or a machine's patterns (core.excludesFile, by default ~/.config/git/ignore) are not used, nor is git's other
configuration, except for the kind of a repository's hashes. So a backup has the same content for every caller.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import PurePosixPath

from actors.node.errors import TreeError
from actors.node.git_index import MAX_BYTES, Tracked
from actors.node.ignore_rules import MAX_FILE_BYTES, Rules, Size, lines_of, text_of
from actors.node.repositories import DOT_GIT, Repository, find_repository, read_regular
from actors.node.tree import Tree

GITIGNORE = ".gitignore"
_MAX_PATH_BYTES = 4096


class Standing(Enum):
    """Git's verdict on a path."""

    KEPT = auto()
    IGNORED = auto()
    HOLDS_TRACKED = auto()
    """An ignored directory with tracked files in it; all else in it is ignored."""


@dataclass(frozen=True, slots=True)
class _Level:
    """The rules of one file, and the directory in the repository to which they are relative."""

    prefix: int
    """The length of the directory's path, with the slash at its end."""
    rules: Rules


@dataclass(frozen=True, slots=True)
class Place:
    """A directory, as its repository sees it."""

    tree: Tree
    check: Callable[[], None]
    """Called often; raises when the time is up."""
    directory: str
    """Its path in the sandbox."""
    path: str = ""
    """Its path in its work tree, in Latin-1, with a slash at its end; "" is the work tree's root."""
    tracked: Tracked = field(default_factory=Tracked)
    levels: tuple[_Level, ...] = ()
    """The rules that apply here, those of the innermost directory last."""
    size: Size = field(default_factory=Size)
    """The size of all rules that apply here."""
    is_ignored: bool = False
    held_bytes: int = 0
    """The memory that the indexes of this and the surrounding repositories take."""

    def standing(self, name: str, *, is_directory: bool, included: bool = False) -> Standing:
        """Git's verdict on an entry of the directory.

        Args:
            included: True if a pattern of the caller includes the entry again, against the repository's rules.

        Raises:
            TreeError: the index does not tell, or the time is up.
        """
        if name == DOT_GIT and not self.is_ignored:
            return Standing.KEPT
        path = self.path + text_of(name)
        is_tracked = self.tracked.has_below(path + "/") if is_directory else self.tracked.has_file(path)
        if is_tracked and not is_directory:
            return Standing.KEPT
        if not self.is_ignored and (included or not self._is_excluded(path, is_directory)):
            return Standing.KEPT
        return Standing.HOLDS_TRACKED if is_tracked else Standing.IGNORED

    def below(self, fd: int, name: str, *, is_ignored: bool) -> Place | None:
        """The place of the subdirectory `name`, whose descriptor is `fd`; None for `.git`."""
        if name == DOT_GIT:
            return None
        directory = f"{self.directory}/{name}"
        path = f"{self.path}{text_of(name)}/"
        is_submodule = path[:-1] in self.tracked.submodules
        if is_submodule or (not is_ignored and _has(fd, DOT_GIT)):
            other = find_repository(self.tree, directory, check=self.check)
            if other is not None or is_submodule:
                return _root(self.tree, directory, other, self.held_bytes, self.check).with_file(fd)
        place = replace(self, directory=directory, path=path, is_ignored=is_ignored)
        return place if is_ignored else place.with_file(fd)

    def with_file(self, fd: int) -> Place:
        """This place with the rules of its own .gitignore added, if that is a regular file; git reads no other."""
        try:
            file = os.open(GITIGNORE, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        except FileNotFoundError:
            return self
        try:
            content = read_regular(file, f"{self.directory}/{GITIGNORE}", MAX_FILE_BYTES)
        finally:
            os.close(file)
        return self if content is None else self.with_rules(Rules(lines_of(content), self.check))

    def with_rules(self, rules: Rules) -> Place:
        """This place with rules added that are relative to it.

        Raises:
            TreeError: there are too many.
        """
        if not rules.size.patterns:
            return self
        return replace(self, levels=(*self.levels, _Level(len(self.path), rules)), size=self.size + rules.size)

    def _is_excluded(self, path: str, is_directory: bool) -> bool:
        """Tells whether rules exclude a path. As in git, the innermost file with a matching pattern decides."""
        if self.levels and len(path) > _MAX_PATH_BYTES:
            raise TreeError(f"A path that rules of .gitignore files are about is longer than {_MAX_PATH_BYTES} bytes.")
        for level in reversed(self.levels):
            found = level.rules.verdict(path[level.prefix :], is_directory=is_directory)
            if found is not None:
                return found
        return False


def place_of(tree: Tree, directory: str, *, check: Callable[[], None]) -> Place | None:
    """Returns the place of a directory of the sandbox, given by its canonical path; None inside a `.git`.

    Its repository is that of the directory itself or of the nearest one above. The rules in between apply: if they
    ignore the directory itself, its whole content is ignored, except for tracked files.

    Raises:
        TreeError: git's verdict cannot be determined.
        PathError: the directory is gone.
    """
    parts = PurePosixPath(directory).parts
    if DOT_GIT in parts:
        return None
    for depth in range(len(parts), 1, -1):
        root = str(PurePosixPath(*parts[:depth]))
        found = find_repository(tree, root, check=check)
        if found is not None:
            return _descend(tree, _root(tree, root, found, 0, check), parts[depth:])
    return _descend(tree, _root(tree, directory, None, 0, check), ())


def _descend(tree: Tree, place: Place, parts: tuple[str, ...]) -> Place | None:
    with tree.open(place.directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
        here: Place | None = place.with_file(fd)
    for name in parts:
        if here is None:
            break
        is_ignored = here.standing(name, is_directory=True) is not Standing.KEPT
        with tree.open(f"{here.directory}/{name}", os.O_RDONLY | os.O_DIRECTORY) as fd:
            here = here.below(fd, name, is_ignored=is_ignored)
    return here


def _has(fd: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _root(
    tree: Tree, directory: str, repository: Repository | None, held_bytes: int, check: Callable[[], None]
) -> Place:
    if repository is None:
        return Place(tree, check, directory, held_bytes=held_bytes)
    held_bytes += repository.tracked.size_bytes
    if held_bytes > 2 * MAX_BYTES:
        raise TreeError(f"The indexes of git repositories within each other hold more than {2 * MAX_BYTES} bytes.")
    place = Place(tree, check, directory, tracked=repository.tracked, held_bytes=held_bytes)
    return place.with_rules(repository.exclude)
