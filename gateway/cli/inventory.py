"""The commands `holdfast list`, `inspect` and `delete`, for sandboxes and backups."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from actors.errors import BackupNotFoundError, InvalidRequestError
from actors.models import BackupInfo, BackupStatus, Model, SandboxRef
from actors.pages import pages
from gateway.cli.arguments import is_uuid
from gateway.cli.session import Session, with_session

if TYPE_CHECKING:
    from actors.client import ServiceCalls


@with_session
def list_all(
    session: Session,
    box: Annotated[str | None, typer.Argument(metavar="[BOX]", help="List this sandbox's backups.")] = None,
) -> None:
    """List the sandboxes, or the backups of one."""
    if box is None:
        refs = list(_sandboxes(session.service()))
        session.output.rows(
            {"sandboxes": refs}, ("sandbox", "state"), [(r.id, "running" if r.running else "asleep") for r in refs]
        )
        return
    backups = list(session.sandbox(box).backups())
    header = ("backup", "created", "dir", "bytes", "expires", "name", "total", "archives")
    session.output.rows({"backups": backups}, header, [_row(b) for b in backups])


@with_session
def inspect(
    session: Session,
    subject: Annotated[str, typer.Argument(metavar="BOX|BACKUP_ID", help="A sandbox or a backup.")],
) -> None:
    """Show everything that is known of a sandbox or a backup."""
    info: Model
    try:
        info = session.service().backup(subject).result() if is_uuid(subject) else session.sandbox(subject).info()
    except BackupNotFoundError as missing:
        try:
            info = session.sandbox(subject).info()
        except InvalidRequestError:
            raise missing from None
    session.output.result(info, *json.dumps(info.model_dump(mode="json", exclude_none=True), indent=2).splitlines())


@with_session
def delete(
    session: Session,
    box: Annotated[str | None, typer.Argument(metavar="[BOX]", help="The sandbox; its backups stay.")] = None,
    backup: Annotated[str | None, typer.Option(metavar="ID", help="Delete this backup instead.")] = None,
    damaged: Annotated[
        bool, typer.Option("--damaged", help="`gc` reports the backup, of any tenant, as tampered or unreadable.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a sandbox with its files, or a backup."""
    if (box is None) == (backup is None):
        raise typer.BadParameter("name either a sandbox or --backup ID")
    if damaged and backup is None:
        raise typer.BadParameter("--damaged needs --backup ID")
    what = f"backup {backup}" if box is None else f"sandbox {box} and all its files"
    if not yes and not session.output.as_json and sys.stdin.isatty():
        typer.confirm(f"Delete {what}?", abort=True, err=True)
    if box is not None:
        session.sandbox(box).destroy()
    elif backup is not None:
        service = session.service()
        (service.delete_damaged_backup(backup) if damaged else service.delete_backup(backup)).result()
    session.output.result({"deleted": box if box is not None else backup}, f"deleted {what}")


def _sandboxes(service: ServiceCalls) -> Iterator[SandboxRef]:
    for page in pages(lambda cursor: service.sandboxes(cursor=cursor).result()):
        yield from page.sandboxes


def _row(b: BackupInfo) -> tuple[str, ...]:
    created = b.created_at.isoformat(timespec="seconds")
    if b.status is not BackupStatus.OK:
        return (b.id, created, b.dir or "", "", b.status.value, "", "", "")
    expires = "expired" if b.expired or b.expires_at is None else b.expires_at.isoformat(timespec="seconds")
    whole = ("" if number is None else str(number) for number in (b.total_bytes, b.depth))
    return (b.id, created, b.dir or "", str(b.size_bytes), expires, b.name or "", *whole)
