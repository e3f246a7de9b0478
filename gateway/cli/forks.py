"""`holdfast fork`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from actors.errors import InvalidBackupConfigError
from actors.models import ForkOptions, RestoreMode, validated
from gateway.cli.session import Session, with_session


@with_session
def fork(
    session: Session,
    backup_id: Annotated[str, typer.Argument(metavar="BACKUP_ID", help="The backup.")],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[SANDBOX...]", help="The names of the sandboxes to make.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="How many to make, if they are not named.")] = None,
    dir: Annotated[str | None, typer.Option(help="Where to; where it came from if not given.")] = None,
    mode: Annotated[RestoreMode | None, typer.Option(help="As for restore.")] = None,
    key: Annotated[
        str | None, typer.Option(help="With --count: the same key makes no second set.", metavar="KEY")
    ] = None,
) -> None:
    """Make many sandboxes from one backup; prints their names. Those that are there already stay as they are."""
    values: dict[str, Any] = {"count": count, "sandboxes": names or None, "dir": dir, "mode": mode}
    options = validated(ForkOptions, values, InvalidBackupConfigError)
    result = session.service().fork(backup_id, options, idempotency_key=key).result()
    session.output.result(result, *(row.id for row in result.forks if row.success))
    for row in result.forks:
        if row.error is not None:
            session.output.note(f"{row.id} was not made: {row.error.error}")
    if not result.success:
        raise typer.Exit(1)
