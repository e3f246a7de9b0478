"""Git repositories in a sandbox's tree: the files that they track, and the rules of what they ignore.

It reads what git would read and does not run git, which is not installed everywhere and would obey the repository's
configuration. Everything is opened below the tree's root.

Source: gitrepository-layout(5), gitignore(5), setup.c of git 2.39.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from actors.node.errors import PathError, PathMissingError, TreeError
from actors.node.git_index import MAX_BYTES, Tracked, read_index
from actors.node.ignore_rules import MAX_FILE_BYTES, Rules, lines_of
from actors.node.tree import Tree

DOT_GIT = ".git"
_MAX_POINTER_BYTES = 8192
_MAX_CONFIG_BYTES = 1024 * 1024
_HEAD = re.compile(rb"ref:\s*refs/.*|[0-9a-f]{40}.*", re.DOTALL)
_SHA256 = re.compile(rb'^\s*objectformat\s*=\s*"?sha256', re.IGNORECASE | re.MULTILINE)
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME
"""O_NOATIME: reading would change the access time, by which mksquashfs also recognises hard links."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository with a work tree: the files that it tracks, and the rules of its `info/exclude`."""

    tracked: Tracked
    exclude: Rules


def find_repository(tree: Tree, directory: str, *, check: Callable[[], None]) -> Repository | None:
    """Returns the repository whose work tree begins at a directory of the sandbox; None if git would see none there.

    The `.git` of a worktree or a submodule is a file that names another directory; that must be in the tree, too.

    Raises:
        TreeError: there is a repository, and its tracked files or its rules cannot be read.
    """
    try:
        place = _git_directory(tree, directory)
        if place is None:
            return None
        common = _common_directory(tree, place)
        if not _is_repository(tree, place, common):
            return None
    except PathError:  # something is missing, or leads out of the tree
        return None
    try:
        return Repository(
            _tracked(tree, place, 32 if _has_sha256(tree, common) else 20, check),
            Rules(lines_of(_find(tree, f"{common}/info/exclude", MAX_FILE_BYTES) or b""), check),
        )
    except PathError as e:
        raise TreeError(f"The index or the rules of a git repository cannot be read. {e.message}") from None


def _tracked(tree: Tree, place: str, hash_bytes: int, check: Callable[[], None]) -> Tracked:
    index = _find(tree, f"{place}/index", MAX_BYTES)
    if index is None:
        return Tracked()

    def shared(name: str) -> bytes:
        content = _find(tree, f"{place}/sharedindex.{name}", MAX_BYTES)
        if content is None:
            raise TreeError("Git's index rests on a shared index that is not there.")
        return content

    return read_index(index, hash_bytes=hash_bytes, shared=shared, check=check)


def _has_sha256(tree: Tree, common: str) -> bool:
    return _SHA256.search(_find(tree, f"{common}/config", _MAX_CONFIG_BYTES) or b"") is not None


def _git_directory(tree: Tree, directory: str) -> str | None:
    with tree.open(f"{directory}/{DOT_GIT}", os.O_PATH) as fd:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            return tree.canonical(fd)
    pointer = _find(tree, f"{directory}/{DOT_GIT}", _MAX_POINTER_BYTES) or b""
    if not pointer.startswith(b"gitdir: "):
        return None
    return _directory(tree, directory, pointer.removeprefix(b"gitdir: "))


def _common_directory(tree: Tree, place: str) -> str:
    pointer = _find(tree, f"{place}/commondir", _MAX_POINTER_BYTES)
    return place if pointer is None else _directory(tree, place, pointer)


def _directory(tree: Tree, base: str, pointer: bytes) -> str:
    path = os.fsdecode(pointer.rstrip(b"\r\n"))
    with tree.directory(str(PurePosixPath(base, path)) if "\0" not in path else "") as fd:
        return tree.canonical(fd)


def _is_repository(tree: Tree, place: str, common: str) -> bool:
    for name in ("objects", "refs"):
        with tree.directory(f"{common}/{name}"):
            pass
    head = _find(tree, f"{place}/HEAD", _MAX_POINTER_BYTES)
    return head is not None and _HEAD.match(head) is not None


def _find(tree: Tree, path: str, limit: int) -> bytes | None:
    try:
        with tree.open(path, os.O_PATH) as fd:
            tree.canonical(fd)
            return read_regular(fd, path, limit)
    except PathMissingError:
        return None


def read_regular(fd: int, name: str, limit: int) -> bytes | None:
    """Returns the content of the file of an O_PATH descriptor; None if it is not a regular file.

    Raises:
        TreeError: it is larger than the limit.
    """
    if not stat.S_ISREG(os.fstat(fd).st_mode):  # opening a FIFO would wait, and opening a device may do anything
        return None
    with open(os.open(f"/proc/self/fd/{fd}", _READ), "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise TreeError(
            f"The file {name[-200:]!r} is larger than {limit} bytes.",
            hint="Make it smaller, or back the directory up without `gitignore`.",
        )
    return content
