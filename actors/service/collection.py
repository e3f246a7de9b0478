"""The collection of the bucket (`gc`): expired backups, objects that nobody owns, and each sandbox's retention."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from actors.errors import HoldfastError
from actors.faults import reading
from actors.logs import log
from actors.metrics import DELETED_BACKUPS, UNMETERED, Meter
from actors.models import GcReport, RetentionRun
from actors.service.retention import SandboxRetention
from storage.catalog import BackupCatalog
from storage.collect import CollectionReport, collect

GRACE_S = 86_400.0
"""Minimum age of an archive without metadata that counts as abandoned: longer than the longest upload."""


@dataclass(frozen=True, slots=True)
class BucketCollection:
    """Collects one bucket. Its collections come one at a time; each may be cut off, and run again."""

    catalog: Callable[[], BackupCatalog]
    """Returns the catalog. Raises InvalidBackupConfigError while no bucket is configured."""
    retention: SandboxRetention
    meter: Meter = UNMETERED
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def collect(self, *, dry_run: bool) -> GcReport:
        """Deletes expired backups, objects that nobody owns, and the backups that no policy keeps.

        Waits for a collection that runs already. A sandbox whose policy could not be applied is named in the report,
        and the next collection tries again.
        """
        catalog = self.catalog()
        with self._turn:
            with reading("bucket"):
                found = collect(catalog, now=datetime.now(UTC), grace_s=GRACE_S, dry_run=dry_run)
            if not dry_run and found.expired_backups:
                self.meter.add(DELETED_BACKUPS, "expired", amount=len(found.expired_backups))
            retired: list[str] = []
            failed: list[str] = []
            for tenant, sandbox in found.with_retention:
                try:
                    report = self.retention.run(tenant, sandbox, RetentionRun(dry_run=dry_run))
                except HoldfastError as e:
                    log.warning("retention_failed", tenant=tenant, sandbox=sandbox, error=e.code, detail=e.message)
                    failed.append(f"{tenant}/{sandbox}")
                else:
                    retired += [each.id for each in report.deleted]
            return _report(found, retired, failed)


def _report(found: CollectionReport, retired: list[str], failed: list[str]) -> GcReport:
    return GcReport(
        dry_run=found.dry_run,
        expired_backups=list(found.expired_backups),
        retired_backups=retired,
        retention_failed=failed,
        orphaned_archives=list(found.orphaned_archives),
        orphaned_layers=list(found.orphaned_layers),
        stale_uploads=len(found.stale_uploads),
        stale_index_entries=len(found.stale_index_entries),
        rebuilt_index_entries=len(found.rebuilt_index_entries),
        tampered=list(found.tampered),
        unsigned=list(found.unsigned),
        unreadable=list(found.unreadable),
        without_archive=list(found.without_archive),
        freed_bytes=found.freed_bytes,
    )
