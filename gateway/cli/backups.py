"""`holdfast backup`, `restore`, `adopt`, `flatten` and `cancel`."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from actors.errors import HoldfastError, InvalidBackupConfigError
from actors.models import (
    DEFAULT_TTL_S,
    BackupOptions,
    DirectoryBackup,
    OperationKind,
    RestoreMode,
    RestoreOptions,
    validated,
)
from gateway.cli.arguments import Box
from gateway.cli.session import Session, with_session

_DIGITS = 4
"""Maximum number of digits of a level, more than any level has; int() refuses very long numbers."""
_NOT_KEPT = {
    "sockets": "sockets",
    "acls": "ACLs",
    "other_xattrs": "other extended attributes",
    "devices": "devices",
    "far_times": "times before 1970 or after 2106",
    "flags": "files with flags of chattr",
}


@with_session
def backup(
    session: Session,
    box: Box,
    dir: Annotated[str, typer.Argument(metavar="DIR", help="The directory, absolute.")],
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    ttl: Annotated[float, typer.Option(metavar="SECONDS", help="How long it can be restored.")] = DEFAULT_TTL_S,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Leave this out, as .gitignore would. Repeatable.")
    ] = None,
    gitignore: Annotated[bool, typer.Option("--gitignore", help="Leave out what git ignores.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Archive everything, not only what was changed.")] = False,
    compression: Annotated[str | None, typer.Option(metavar="FORMAT[:LEVEL]", help="zstd, lz4 or gzip.")] = None,
) -> None:
    """Back a directory up; prints the backup's id."""
    from gateway.cli.progress import supervised

    values: dict[str, Any] = {
        "dir": dir,
        "name": name,
        "ttl": ttl,
        "excludes": exclude or [],
        "gitignore": gitignore,
        "full": full,
    }
    if compression is not None:
        values["compression"] = _compression(compression)
    options = validated(BackupOptions, values, InvalidBackupConfigError)
    calls = session.sandbox(box).calls
    handle = supervised(
        calls.create_backup(options),
        calls,
        kind=OperationKind.BACKUP,
        dir=options.dir,
        visible=session.output.shows_progress,
    )
    session.output.result(handle, handle.id)
    _say_what_was_not_kept(session, handle)


@with_session
def restore(
    session: Session,
    box: Box,
    backup_id: Annotated[str, typer.Argument(metavar="BACKUP_ID", help="The backup.")],
    dir: Annotated[
        str | None, typer.Argument(metavar="[DIR]", help="Where to; where it came from if not given.")
    ] = None,
    mode: Annotated[
        RestoreMode | None,
        typer.Option(help="A writable layer over the archive, or plain files; if not given, what the node can."),
    ] = None,
) -> None:
    """Restore a backup. What the directory holds now is replaced; commands in the sandbox are stopped."""
    from gateway.cli.progress import supervised

    placeholder = dir if dir is not None else "/workspace"
    options = validated(
        RestoreOptions,
        {"id": backup_id, "dir": placeholder} | ({"mode": mode} if mode else {}),
        InvalidBackupConfigError,
    )
    if dir is None:
        options = options.model_copy(update={"dir": session.service().backup(options.id).result().dir})
    calls = session.sandbox(box).calls
    result = supervised(
        calls.restore_backup(options),
        calls,
        kind=OperationKind.RESTORE,
        dir=options.dir,
        visible=session.output.shows_progress,
    )
    session.output.result(result, f"restored {result.id} to {result.dir}")


@with_session
def adopt(
    session: Session,
    backup_ids: Annotated[list[str], typer.Argument(metavar="BACKUP_ID...", help="The backups.")],
    owner: Annotated[str | None, typer.Option(metavar="TENANT", help="Whose they become, if not --tenant's.")] = None,
) -> None:
    """Check and sign backups that nobody has signed, such as Cloudflare's, so that they can be restored."""
    service = session.service()
    adopted = [service.adopt(backup_id, owner=owner).result() for backup_id in backup_ids]
    session.output.result({"adopted": adopted}, *(f"adopted {info.id}" for info in adopted))


@with_session
def flatten(
    session: Session,
    backup_ids: Annotated[list[str], typer.Argument(metavar="BACKUP_ID...", help="The backups.")],
) -> None:
    """Make full backups of what incremental ones hold, for programs that know no layers. Prints the new ids."""
    service = session.service()
    made = [service.flatten(backup_id).result() for backup_id in backup_ids]
    session.output.result({"flattened": made}, *(info.id for info in made))


@with_session
def cancel(session: Session, box: Box) -> None:
    """Cancel the backup or restore that a sandbox is busy with."""
    cancelled = session.sandbox(box).cancel()
    session.output.result({"cancelled": cancelled}, "cancelled" if cancelled else "nothing to cancel")


def _say_what_was_not_kept(session: Session, handle: DirectoryBackup) -> None:
    """Tells people what the archive does not hold; machines find it in the metadata. Ignores errors of the lookup."""
    if session.output.as_json:
        return
    with contextlib.suppress(HoldfastError):
        kept = session.service().backup(handle.id).result().not_kept
        counts = {_NOT_KEPT[name]: count for name, count in kept.model_dump().items()} if kept else {}
        lost = [f"{count} {name}" for name, count in counts.items() if count]
        if lost:
            session.output.note(f"an archive cannot hold, so left out: {', '.join(lost)}")


def _compression(text: str) -> dict[str, Any]:
    name, separator, level = text.partition(":")
    if not separator:
        return {"format": name}
    if not (level.isascii() and level.isdigit() and len(level) <= _DIGITS):
        raise InvalidBackupConfigError("The level of a compression is a number, as in zstd:3.")
    return {"format": name, "level": int(level)}
