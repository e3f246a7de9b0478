"""`holdfast gc`, `lifecycle` and `doctor`: commands for the operator."""

from __future__ import annotations

from typing import Annotated

import typer

from actors.models import MAX_EXPIRE_DAYS
from gateway.cli.session import Session, with_session


@with_session
def collect(
    session: Session,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove expired and orphaned objects from the bucket."""
    report = session.service().collect(dry_run=dry_run).result()
    session.output.result(
        report,
        f"{'would remove' if report.dry_run else 'removed'}: {len(report.expired_backups)} expired backups, "
        f"{len(report.retired_backups)} backups that no policy keeps, "
        f"{len(report.orphaned_archives)} orphaned archives, {len(report.orphaned_layers)} layers, "
        f"{report.stale_uploads} unfinished uploads, {report.stale_index_entries} index entries; "
        f"{report.freed_bytes} bytes",
        *(f"tampered with, left alone: {backup_id}" for backup_id in report.tampered),
        *(f"unsigned, left alone: {backup_id}" for backup_id in report.unsigned),
        *(f"unreadable, left alone: {name}" for name in report.unreadable),
        *(f"retention failed, tried again next time: {name}" for name in report.retention_failed),
        *(f"without its archive, left alone: {backup_id}" for backup_id in report.without_archive),
    )


@with_session
def lifecycle(
    session: Session,
    expire_days: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=MAX_EXPIRE_DAYS, help="Install rules that remove backups after N days."),
    ] = None,
) -> None:
    """Show the bucket's lifecycle rules, or install them."""
    report = session.service().lifecycle(expire_days=expire_days).result()
    expiry = "none" if report.expire_days is None else f"after {report.expire_days} days"
    session.output.result(
        report,
        f"rules: {'installed' if report.installed else 'not installed'}",
        f"expiry of backups: {expiry}",
        *(f"would delete layers, so all backups are full: rule {name}" for name in report.over_layers),
    )


@with_session
def doctor(session: Session) -> None:
    """Check what this machine offers. Needs no cluster; exits with 1 if something required is missing."""
    from actors.service.doctor import bucket_checks, checks
    from actors.settings import read_settings

    configured = read_settings()
    found = checks(
        session.data_dir or configured.data_dir,
        uid=configured.sandbox_uid,
        network=configured.network,
        driver=configured.driver,
    )
    found += bucket_checks(configured.bucket() if configured.names_a_bucket else None)
    session.output.rows(
        {"checks": found},
        ("result", "check", "detail", "fix"),
        [("ok" if c.ok else "FAIL" if c.required else "missing", c.name, c.detail, c.fix or "") for c in found],
    )
    if any(c.required and not c.ok for c in found):
        raise typer.Exit(1)
