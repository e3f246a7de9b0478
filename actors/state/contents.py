"""The API's views of the contents of trees: pages of the files of a backup, and of changes."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from typing import Any

from actors.errors import FileNotFoundInSandboxError
from actors.models import (
    BackupFile,
    BackupFilePage,
    BackupFilesOptions,
    ChangeKind,
    ChangesPage,
    ContentsSource,
    FileChange,
    FileKind,
    FileState,
    PageOptions,
)
from storage.comparison import Change, change_page
from storage.contents import OpenedContents
from storage.listing import Contents, Entry
from storage.paging import entry_page, find_entry

_KINDS = {stat.S_IFREG: FileKind.FILE, stat.S_IFDIR: FileKind.DIRECTORY, stat.S_IFLNK: FileKind.SYMLINK}


def file_page(opened: OpenedContents, wanted: BackupFilesOptions) -> BackupFilePage:
    """One page of the files in a directory of a backup; of a path that is no directory, its own entry.

    Raises:
        FileNotFoundInSandboxError: the backup has no such path.
        InvalidCursorError, StorageError: from the bucket.
    """
    source = ContentsSource.LISTING if opened.is_listing else ContentsSource.ARCHIVE
    path = wanted.path[1:].encode("utf-8", "surrogateescape")
    found = find_entry(opened.contents, path)
    if found is None:
        raise FileNotFoundInSandboxError("The path does not exist in the backup.", context={"path": wanted.path})
    if not found.is_directory:
        return BackupFilePage(files=[_file(found)], source=source)
    page = entry_page(opened.contents, path, recursive=wanted.recursive, limit=wanted.limit, cursor=wanted.cursor)
    return BackupFilePage(files=[_file(entry) for entry in page.entries], source=source, cursor=page.cursor)


def changes_page(before: Contents, after: Contents, wanted: PageOptions, *, partial: bool) -> ChangesPage:
    """One page of the changes from one tree to another. Raises InvalidCursorError, StorageError."""
    page = change_page(before, after, limit=wanted.limit, cursor=wanted.cursor)
    return ChangesPage(
        changes=[_public(change) for change in page.changes],
        partial=partial,
        cursor=page.cursor,
    )


def _public(change: Change) -> FileChange:
    return FileChange(
        path="/" + _text(change.path),
        change=_kind(change),
        differs=[fact.value for fact in change.differs],
        before=change.before and FileState(**_state(change.before)),
        after=change.after and FileState(**_state(change.after)),
    )


def _kind(change: Change) -> ChangeKind:
    if change.after is None:
        return ChangeKind.REMOVED
    return ChangeKind.CHANGED if change.before else ChangeKind.ADDED


def _file(entry: Entry) -> BackupFile:
    return BackupFile(path="/" + _text(entry.path), **_state(entry))


def _state(entry: Entry) -> dict[str, Any]:
    return {
        "kind": _KINDS.get(stat.S_IFMT(entry.mode), FileKind.OTHER),
        "size_bytes": entry.size_bytes,
        "mode": stat.S_IMODE(entry.mode),
        "modified_at": _instant(entry),
        "target": _text(entry.target) or None,
    }


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _instant(entry: Entry) -> datetime:
    """The time of the last change, as near as a datetime comes to it."""
    try:
        at = datetime.fromtimestamp(entry.modified_s, UTC)
    except (ValueError, OverflowError, OSError):
        return (datetime.max if entry.modified_s > 0 else datetime.min).replace(tzinfo=UTC)
    return at.replace(microsecond=entry.modified_ns // 1000)
