"""The collection of the bucket (`gc`): expired backups, objects that nobody owns, and each sandbox's retention.

It runs in the service's one actor, by itself and when it is asked for, one at a time. Every step of it may be repeated,
so a collection that dies with its process, or beside one of an actor that was cut off, does no harm.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from actors.errors import HoldfastError
from actors.faults import reading
from actors.logs import log
from actors.metrics import COLLECTIONS, DELETED_BACKUPS, FREED_BYTES, UNMETERED, Meter
from actors.models import GcReport
from actors.service.retention import SandboxRetention
from storage.catalog import BackupCatalog
from storage.collect import CollectionReport, collect
from storage.store import ObjectStore

GRACE_S = 86_400.0
"""Minimum age of an archive without metadata that counts as abandoned: longer than the longest upload."""


_FIRST_S = 600.0
"""The pause before the first collection of an actor, and after a failed one, if they are not more frequent."""
_LONGEST_PAUSE_S = 3600.0
_WORKERS = 8
"""Requests of a collection that are under way at once: each takes a while, and there are some for each backup."""


@dataclass(slots=True)
class BucketCollection:
    """Collects one bucket. Its collections come one at a time; each may be cut off, and run again."""

    catalog: Callable[[], BackupCatalog]
    """Returns the catalog. Raises InvalidBackupConfigError while no bucket is configured."""
    retention: SandboxRetention
    meter: Meter = UNMETERED
    collected_at: datetime | None = None
    """The end of the last collection that succeeded; dry runs do not count."""
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def collect(self, *, dry_run: bool) -> GcReport:
        """Deletes expired backups, objects that nobody owns, and the backups that no policy keeps.

        Waits for a collection that runs already. A sandbox whose policy could not be applied is named in the report,
        and the next collection tries again.
        """
        catalog = self.catalog()
        with self._turn:
            try:
                report = self._collect(catalog, dry_run=dry_run)
            except HoldfastError as e:
                if not dry_run:
                    self.meter.add(COLLECTIONS, e.code)
                raise
            if not dry_run:
                self.collected_at = datetime.now(UTC)
                self.meter.add(COLLECTIONS, "ok")
                self.meter.add(FREED_BYTES, amount=report.freed_bytes)
            return report

    def _collect(self, catalog: BackupCatalog, *, dry_run: bool) -> GcReport:
        with reading("bucket"):
            found = collect(catalog, now=_now(catalog.store), grace_s=GRACE_S, dry_run=dry_run, workers=_WORKERS)
        if not dry_run and found.expired_backups:
            self.meter.add(DELETED_BACKUPS, "expired", amount=len(found.expired_backups))
        retired: list[str] = []
        failed: list[str] = []
        for tenant, sandbox in found.with_retention:
            try:
                retired += self.retention.apply(tenant, sandbox, dry_run=dry_run)
            except HoldfastError as e:
                log.warning("retention_failed", tenant=tenant, sandbox=sandbox, error=e.code, detail=e.message)
                failed.append(f"{tenant}/{sandbox}")
        return _report(found, retired, failed)


class CollectionTimer:
    """Collects the bucket by itself, some minutes after the service's actor began, and regularly from then on."""

    def __init__(
        self, collection: BucketCollection, every_s: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`every_s` is the pause between two collections."""
        self._collection = collection
        self._every_s = every_s
        self._clock = clock
        self._due_at = clock() + min(every_s, _FIRST_S)
        self._seen = collection.collected_at

    def step(self) -> float:
        """Collects if it is time to; returns the pause until the next step. Logs a failure, and tries again later.

        A collection that somebody has asked for puts the next one off, too.
        """
        if self._collection.collected_at != self._seen:
            self._put_off(self._every_s)
        if self._clock() >= self._due_at:
            self._put_off(min(self._every_s, _FIRST_S))
            self._run()
        return min(max(0.0, self._due_at - self._clock()), _LONGEST_PAUSE_S)

    def _run(self) -> None:
        try:
            report = self._collection.collect(dry_run=False)
        except HoldfastError as e:
            log.warning("gc_failed", error=e.code, detail=e.message)
        else:
            self._put_off(self._every_s)
            log.info("gc_ran", **{name: len(v) if isinstance(v, list) else v for name, v in report})

    def _put_off(self, pause_s: float) -> None:
        self._seen = self._collection.collected_at
        self._due_at = self._clock() + pause_s


def _now(store: ObjectStore) -> datetime:
    """This node's time, or the store's if that is earlier. By a clock that is ahead, what was just written is old."""
    now, theirs = datetime.now(UTC), store.find_now()
    return now if theirs is None else min(now, theirs)


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
