"""`holdfast forget`: drops directories of a sandbox that cannot be recovered."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gateway.cli.arguments import Box
from gateway.cli.session import Session, with_session


@with_session
def forget(
    session: Session,
    box: Box,
    dirs: Annotated[list[str], typer.Argument(metavar="DIR...", help="Directories that are missing, absolute.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Give up directories of a sandbox that cannot be brought back, so that it serves calls again without them."""
    if not yes and not session.output.as_json and sys.stdin.isatty():
        typer.confirm(f"Give up {', '.join(dirs)} of sandbox {box}?", abort=True, err=True)
    result = session.sandbox(box).forget(*dirs)
    session.output.result(
        result, *(f"gave up {row.dir}: backup {row.backup_id} ({row.error})" for row in result.forgotten)
    )
