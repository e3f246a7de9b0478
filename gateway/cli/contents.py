"""`holdfast diff`, and `holdfast ls` for backups."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Annotated

import typer

from actors.errors import InvalidRequestError
from actors.models import MAX_PAGE, BackupFile, ChangesPage, FileChange, FileKind
from actors.pages import pages
from gateway.cli.arguments import is_uuid, remote
from gateway.cli.session import Session, with_session

if TYPE_CHECKING:
    from actors.rpc.calls import Call

_MARKS = {FileKind.DIRECTORY: stat.S_IFDIR, FileKind.SYMLINK: stat.S_IFLNK, FileKind.FILE: stat.S_IFREG}
_ASSUMPTION = "files of the same size and time of change were taken for unchanged"


def mode_of(kind: FileKind, mode: int) -> str:
    """The type and the permissions as ls(1) shows them."""
    return stat.filemode(_MARKS.get(kind, 0) | stat.S_IMODE(mode))


def list_backup(session: Session, backup_id: str, path: str, *, recursive: bool) -> None:
    """Lists a directory of a backup. Raises BackupNotFoundError before anything is printed."""
    files: list[BackupFile] = []
    service = session.service()
    for page in pages(
        lambda cursor: service.backup_files(
            backup_id, path, recursive=recursive, limit=MAX_PAGE, cursor=cursor
        ).result()
    ):
        files += page.files
    session.output.rows(
        {"files": files, "source": page.source},
        ("mode", "bytes", "modified", "name"),
        [
            (
                mode_of(file.kind, file.mode),
                str(file.size_bytes),
                file.modified_at.isoformat(timespec="seconds"),
                (file.path if recursive else file.path.rpartition("/")[2])
                + (f" -> {file.target}" if file.target is not None else ""),
            )
            for file in files
        ],
    )


@with_session
def diff(
    session: Session,
    before: Annotated[str, typer.Argument(metavar="BACKUP_ID", help="The earlier state.")],
    after: Annotated[
        str, typer.Argument(metavar="BACKUP_ID|BOX[:DIR]", help="The later state: a backup, or a sandbox as it is now.")
    ],
) -> None:
    """Show what was added, changed and removed from a backup to another one, or to a sandbox as it is now.

    Without DIR, the sandbox's directory is the one that was backed up.
    """
    if not is_uuid(before):
        raise InvalidRequestError("The earlier state must be a backup's id.")
    changes: list[FileChange] = []
    for page in pages(lambda cursor: _page(session, before, after, cursor).result()):
        changes += page.changes
    whole = ChangesPage(changes=changes, partial=page.partial)
    session.output.rows(
        whole, ("change", "path", "differs"), [(row.change.value, row.path, ",".join(row.differs)) for row in changes]
    )
    session.output.note(_ASSUMPTION)
    if page.partial:
        session.output.note("a backup left files out on purpose: they count as added or removed")


def _page(session: Session, before: str, after: str, cursor: str | None) -> Call[ChangesPage]:
    if is_uuid(after):
        return session.service().backup_changes(before, after, limit=MAX_PAGE, cursor=cursor)
    at = remote(after)
    box, directory = (after, None) if at is None else (at.box, at.path)
    return session.sandbox(box).calls.changes_since(before, dir=directory, limit=MAX_PAGE, cursor=cursor)
