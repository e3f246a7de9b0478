"""Lookup of the entry at a path of a sandbox, by its listings and stat(1)."""

from __future__ import annotations

import posixpath
import stat
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from actors.errors import HoldfastError
from actors.models import WRITABLE_ROOTS, FileEntry, FileKind

if TYPE_CHECKING:
    from actors.client import Sandbox

_STAT = ("stat", "--dereference", "--printf=%s %f %Y", "--")
_KINDS = {stat.S_IFREG: FileKind.FILE, stat.S_IFDIR: FileKind.DIRECTORY}


def find_entry(sandbox: Sandbox, path: str) -> FileEntry | None:
    """The entry of a path, with symbolic links followed; a link that leads nowhere is its own entry.

    None if there is no entry, or if asking fails: using the path gives the reason.
    """
    parent, name = posixpath.split(str(PurePosixPath(path)))
    try:
        found = next((entry for entry in sandbox.list_files(parent) if entry.name == name), None)
    except HoldfastError:
        return _asked(sandbox, path)
    return (_asked(sandbox, path) or found) if found is not None and found.kind is FileKind.SYMLINK else found


def is_directory(sandbox: Sandbox, path: str) -> bool:
    """Tells whether a path is a directory, or a link to one."""
    if str(PurePosixPath(path)) in WRITABLE_ROOTS:
        return True
    found = find_entry(sandbox, path)
    return found is not None and found.kind is FileKind.DIRECTORY


def _asked(sandbox: Sandbox, path: str) -> FileEntry | None:
    """The entry by stat(1) in the sandbox: for links, and in directories that are too large to be listed."""
    try:
        ended = sandbox.exec([*_STAT, path])
    except HoldfastError:
        return None
    if ended.exit_code != 0:
        return None
    size, mode, modified = ended.stdout.split()
    bits = int(mode, 16)
    return FileEntry(
        name=posixpath.basename(path),
        kind=_KINDS.get(stat.S_IFMT(bits), FileKind.OTHER),
        size_bytes=int(size),
        mode=stat.S_IMODE(bits),
        modified_at=datetime.fromtimestamp(int(modified), UTC),
    )
