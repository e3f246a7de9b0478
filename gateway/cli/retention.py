"""`holdfast retention`: which backups of a sandbox are kept."""

from __future__ import annotations

from typing import Annotated

import typer

from actors.models import Retention, RetentionChange, RetentionReport, RetentionRun, validated
from gateway.cli.arguments import Box
from gateway.cli.session import Session, with_session


@with_session
def retention(
    session: Session,
    box: Box,
    keep_last: Annotated[
        int | None, typer.Option(metavar="N", help="Keep so many of the newest backups of each directory.")
    ] = None,
    keep_daily: Annotated[
        int | None, typer.Option(metavar="N", help="Keep the newest backup of each of so many days (UTC).")
    ] = None,
    pin: Annotated[list[str] | None, typer.Option(metavar="ID", help="Keep this backup. Repeatable.")] = None,
    unpin: Annotated[list[str] | None, typer.Option(metavar="ID", help="No longer pin it. Repeatable.")] = None,
    off: Annotated[bool, typer.Option("--off", help="Remove the policy and its pins: keep everything.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; say which backups would be deleted, and why not.")
    ] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Delete now what the policy does not keep.")] = False,
) -> None:
    """Show or change which backups of a sandbox are kept. Does not wake it. What is not given stays as it is."""
    given = {"keep_last": keep_last, "keep_daily": keep_daily, "pin": pin or [], "unpin": unpin or []}
    change = validated(RetentionChange, given)
    is_changed = change != RetentionChange()
    if (off and is_changed) or (dry_run and apply):
        raise typer.BadParameter("--off takes no other rule, and --dry-run no --apply")
    sandbox = session.sandbox(box)
    if dry_run:
        policy = Retention() if off else validated(Retention, change.made_to(sandbox.retention()))
        _say_report(session, sandbox.apply_retention(dry_run=True, policy=policy))
        return
    if off:
        policy = sandbox.set_retention()
    else:
        policy = sandbox.calls.change_retention(change).result() if is_changed else sandbox.retention()
    if apply:
        _say_report(session, sandbox.calls.apply_retention(RetentionRun()).result())
    else:
        session.output.result(policy, *_lines(policy))


def _lines(policy: Retention) -> list[str]:
    if policy == Retention():
        return ["all backups are kept until they expire"]
    numbers = (("keep last", policy.keep_last), ("keep daily", policy.keep_daily))
    return [f"{name}: {number}" for name, number in numbers if number] + [f"pinned: {each}" for each in policy.pinned]


def _say_report(session: Session, report: RetentionReport) -> None:
    verdict = "would be deleted" if report.dry_run else "deleted"
    rows = [(each.id, each.created_at, each.dir, ", ".join(each.reasons)) for each in report.kept]
    rows += [(each.id, each.created_at, each.dir, verdict) for each in report.deleted]
    session.output.rows(
        report,
        ("backup", "created", "dir", "kept because"),
        [(id, at.isoformat(timespec="seconds"), dir or "", why) for id, at, dir, why in rows],
    )
    for backup_id in report.missing_pins:
        session.output.note(f"pinned, but there is no such backup: {backup_id}")
    if report.interrupted:
        session.output.note("the policy was changed meanwhile; run it again")
