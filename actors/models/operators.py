"""Reports and options for the operator: collection, lifecycle rules, `doctor`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from actors.models.base import Count, Model

MAX_EXPIRE_DAYS = 100 * 366


class LifecycleOptions(Model):
    """After how many days the bucket itself deletes; None changes nothing."""

    expire_days: Annotated[int, Field(ge=1, le=MAX_EXPIRE_DAYS)] | None


class LifecycleReport(Model):
    """The bucket's lifecycle rules, as far as they are Holdfast's."""

    installed: bool
    expire_days: int | None
    applied: bool
    over_layers: list[str] = Field(
        [], description="rules of others that would delete layers of incremental backups, so that all backups are full"
    )


class GcReport(Model):
    """The things that a collection removed (or, in a dry run, would remove)."""

    dry_run: bool
    expired_backups: list[str] = []
    retired_backups: list[str] = Field([], description="backups that the retention policy of their sandbox let go")
    retention_failed: list[str] = Field(
        [],
        description="sandboxes (`tenant/sandbox`) whose policy could not be applied to the end; tried again next time",
    )
    orphaned_archives: list[str] = []
    orphaned_layers: list[str] = Field([], description="layers, by key, that no incremental backup needs")
    stale_uploads: Count = 0
    stale_index_entries: Count = 0
    rebuilt_index_entries: Count = 0
    tampered: list[str] = Field([], description="backups whose signature is wrong; left alone")
    unsigned: list[str] = Field([], description="backups that nobody has signed, another program's; left alone")
    unreadable: list[str] = Field(
        [], description="backups (by id) and other documents (by key) that are damaged or a later release's; left alone"
    )
    without_archive: list[str] = Field([], description="backups whose archive is missing; left alone")
    freed_bytes: Count = 0


class Check(Model):
    """One line of `doctor`."""

    name: str
    ok: bool
    required: bool
    detail: str
    fix: str | None = None
