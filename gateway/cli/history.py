"""`holdfast events` and `label`: a sandbox's latest events, and its labels."""

from __future__ import annotations

from typing import Annotated

import typer

from actors.models import MAX_PAGE, SandboxEvent
from gateway.cli.arguments import Box
from gateway.cli.session import Session, with_session


@with_session
def events(
    session: Session,
    box: Box,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=MAX_PAGE, help="The most events to show.")] = 100,
) -> None:
    """Show what happened to a sandbox lately, newest first. Does not wake it."""
    found = session.sandbox(box).events(limit=limit)
    session.output.rows({"events": found}, ("at", "event", "dir", "backup", "node"), [_row(event) for event in found])


@with_session
def label(
    session: Session,
    box: Box,
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE|KEY-]...", help="Sets a label, or removes it.")
    ] = None,
) -> None:
    """Set and remove labels of a sandbox. Shows those that it has then; does not wake it."""
    labels: dict[str, str] = {}
    removed: list[str] = []
    for change in changes or []:
        key, separator, value = change.partition("=")
        if separator:
            labels[key] = value
        elif key.endswith("-"):
            removed.append(key[:-1])
        else:
            raise typer.BadParameter(f"{change!r} is neither KEY=VALUE nor KEY-")
    sandbox = session.sandbox(box)
    have = sandbox.change_labels(labels, removed=removed) if changes else sandbox.info().labels
    session.output.rows({"labels": have}, ("label", "value"), sorted(have.items()))


def _row(event: SandboxEvent) -> tuple[str, ...]:
    at = event.at.isoformat(timespec="seconds")
    return (at, event.kind, event.dir or "", event.backup_id or "", event.node or "")
