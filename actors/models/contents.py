"""The files in a backup, and the changes between two trees."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Literal

from actors.models.backups import BackupId
from actors.models.base import Count, Model
from actors.models.files import FileKind
from actors.models.names import PageOptions
from actors.models.paths import BackupDir, SandboxPath


class BackupFilesOptions(PageOptions):
    """The files of a backup to list. The path is absolute within the backup, whose own directory is "/"."""

    path: SandboxPath = "/"
    recursive: bool = False


class LiveChangesOptions(PageOptions):
    """The changes of a sandbox's directory since a backup. Without `dir`, of the directory that was backed up."""

    backup_id: BackupId
    dir: BackupDir | None = None


class FileState(Model):
    """A name in a tree. `target` is that of a symbolic link, where it is known; bytes that are not UTF-8 are escaped.

    A time is at whole seconds if it was read from an archive.
    """

    kind: FileKind
    size_bytes: Count
    mode: int
    modified_at: datetime
    target: str | None = None


class BackupFile(FileState):
    """One file of a backup. Its path is absolute within the backup; bytes that are not UTF-8 are escaped."""

    path: str


class ContentsSource(StrEnum):
    """The origin of what is known of a backup's files.

    `listing`: the listing that the service made with the backup, and signed. `archive`: the tables of its archive, or
    of all archives of an incremental backup, which were not compared with the signed digests.
    """

    LISTING = "listing"
    ARCHIVE = "archive"


class BackupFilePage(Model):
    """One page of a backup's files, in the order of their paths; `cursor` is absent on the last page."""

    files: list[BackupFile]
    source: ContentsSource
    cursor: str | None = None


class ChangeKind(StrEnum):
    """The kinds of a change."""

    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


class FileChange(Model):
    """A path whose file was added, changed or removed. `differs` names the facts in which a changed file differs."""

    path: str
    change: ChangeKind
    differs: list[str] = []
    before: FileState | None = None
    after: FileState | None = None


class ChangesPage(Model):
    """One page of changes, in the order of their paths; `cursor` is absent on the last page, and only there.

    A page may have fewer changes than were asked for, even none. `compared_by` is the evidence: a file of the same size
    and time of change was taken for unchanged, and its content was not read. `partial` means that a backup left files
    out on purpose: they count as added or removed.
    """

    changes: list[FileChange]
    compared_by: Literal["size_and_time"] = "size_and_time"
    partial: bool = False
    cursor: str | None = None
