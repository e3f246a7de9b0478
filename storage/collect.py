"""The collector: removes what has expired and what nobody owns, and writes index entries that are missing.

This module decides by listings, and never trusts one alone. Before it deletes what a listing suggests, it looks once
more, except at stale uploads. It touches nothing younger than the grace period, because that may belong to a
transfer that is not committed yet. The grace period must be longer than the longest upload. No document that we have
not signed makes it delete a backup: an unsigned backup is another program's, and one that was tampered with is for a
person to look at. Every step may be repeated, so an interrupted collection is simply run again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from storage import keys
from storage.catalog import BackupCatalog
from storage.errors import (
    CorruptMetadataError,
    DocumentError,
    IntegrityError,
    NewerDocumentError,
    ObjectMissingError,
    TamperedMetadataError,
    UnsignedMetadataError,
)
from storage.layer_collection import LayerCollection
from storage.metadata import BackupRecord, Claim, load
from storage.store import Listed, ObjectStore, list_all

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CollectionReport:
    """The result of a collection: what it removed and repaired, or in a dry run would. Backups by id, the rest by key.

    `orphaned_archives` are the backups of which an archive, a listing or both were left without metadata.
    `stale_index_entries` include idempotency keys whose backups are gone, or whose claims are damaged, references to
    layers of backups that are gone, and marks of collectors that have died; `rebuilt_index_entries` include references.
    `orphaned_layers` are layers that no backup needs. `without_archive` includes backups that lack a layer. `tampered`,
    `unreadable` (backups, states and claims that are damaged, or of a later release) and `without_archive` need a
    person: nothing of them was touched. Nor was anything of `unsigned`, the backups of other programs.
    `with_retention` are the sandboxes that have a retention policy, each with its tenant.
    """

    dry_run: bool
    expired_backups: tuple[str, ...] = ()
    orphaned_archives: tuple[str, ...] = ()
    orphaned_layers: tuple[str, ...] = ()
    stale_uploads: tuple[str, ...] = ()
    stale_index_entries: tuple[str, ...] = ()
    rebuilt_index_entries: tuple[str, ...] = ()
    tampered: tuple[str, ...] = ()
    unsigned: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    without_archive: tuple[str, ...] = ()
    with_retention: tuple[tuple[str, str], ...] = ()
    freed_bytes: int = 0


@dataclass(slots=True)
class _Backup:
    metadata: Listed | None = None
    archive: Listed | None = None
    listing: Listed | None = None

    @property
    def parts(self) -> list[Listed]:
        """The objects that belong to nobody if there is no metadata."""
        return [part for part in (self.archive, self.listing) if part is not None]


@dataclass(slots=True)
class _Collection:
    catalog: BackupCatalog
    now: datetime
    grace: timedelta
    dry_run: bool
    expired: list[str] = field(default_factory=list)
    orphaned: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    stale_entries: list[str] = field(default_factory=list)
    rebuilt: list[str] = field(default_factory=list)
    tampered: list[str] = field(default_factory=list)
    unsigned: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    without_archive: list[str] = field(default_factory=list)
    with_retention: list[tuple[str, str]] = field(default_factory=list)
    live: list[BackupRecord] = field(default_factory=list)
    fenced: dict[str, tuple[Listed, list[Listed]]] = field(default_factory=dict)
    listed: set[str] = field(default_factory=set)
    """The ids of the backups that the index lists."""
    freed_bytes: int = 0
    layers: LayerCollection = field(init=False)

    def __post_init__(self) -> None:
        self.layers = LayerCollection(self.store, self.now, self.grace, self.dry_run)

    @property
    def store(self) -> ObjectStore:
        return self.catalog.store

    def is_old(self, at: datetime) -> bool:
        return self.now - at >= self.grace

    def collect_backups(self) -> None:
        backups: dict[str, _Backup] = {}
        for row in list_all(self.store, keys.BACKUPS_PREFIX):
            if found := keys.find_backup_object(row.key):
                backup = backups.setdefault(found.backup_id, _Backup())
                if found.is_metadata:
                    backup.metadata = row
                elif found.is_listing:
                    backup.listing = row
                else:
                    backup.archive = row
        for backup_id, backup in backups.items():
            if backup.metadata is not None:
                self._collect_committed(backup_id, backup.metadata, backup)
            else:
                self._collect_orphan(backup_id, backup.parts)

    def _collect_committed(self, backup_id: str, metadata: Listed, backup: _Backup) -> None:
        try:
            record = self.catalog.read_signed(backup_id)
        except ObjectMissingError:  # deleted since the listing, or fenced off
            self.fenced[backup_id] = (metadata, backup.parts)
            return
        except UnsignedMetadataError:
            self.unsigned.append(backup_id)
            return
        except DocumentError as e:
            logger.warning("%s", e)
            (self.tampered if isinstance(e, TamperedMetadataError) else self.unreadable).append(backup_id)
            return
        if not (record.is_expired(self.now, buffer_s=0) and self.is_old(metadata.last_modified)):
            self.live.append(record)
            if backup.archive is None and not record.is_incremental and self.is_old(metadata.last_modified):
                self.without_archive.append(backup_id)
            return
        if not self.dry_run:
            self.catalog.discard(record)
        self.expired.append(backup_id)
        self.freed_bytes += metadata.size_bytes + sum(part.size_bytes for part in backup.parts)

    def collect_fenced(self) -> None:
        """Removes old fences and what is left of their backups.

        A backup that the index lists was committed, so the object in its metadata's place is not our fence.
        """
        for backup_id, (metadata, parts) in self.fenced.items():
            if backup_id in self.listed:
                self.unreadable.append(backup_id)
            else:
                self._collect_fenced(backup_id, metadata, parts)

    def _collect_fenced(self, backup_id: str, metadata: Listed, parts: list[Listed]) -> None:
        if not self.is_old(metadata.last_modified):
            return
        self._collect_parts(backup_id, parts)
        if not self.dry_run:  # the fence goes last: as long as it is there, nobody can commit the backup
            self.store.delete(metadata.key)
        self.freed_bytes += metadata.size_bytes

    def _collect_orphan(self, backup_id: str, parts: list[Listed]) -> None:
        old = [part for part in parts if self.is_old(part.last_modified)]
        if old and not self._is_committed(backup_id):
            self._collect_parts(backup_id, old)

    def _collect_parts(self, backup_id: str, parts: list[Listed]) -> None:
        """Removes the archive and the listing, or one of them, of a backup that is not committed."""
        for part in parts:
            if not self.dry_run:
                self.store.delete(part.key)
            self.freed_bytes += part.size_bytes
        if parts:
            self.orphaned.append(backup_id)

    def _is_committed(self, backup_id: str) -> bool:
        try:
            self.store.head(keys.metadata(backup_id))
        except ObjectMissingError:
            return False
        return True

    def collect_uploads(self) -> None:
        uploads = list(self.store.list_uploads(keys.BACKUPS_PREFIX))
        uploads += [found for found in self.store.list_uploads(keys.LAYERS_ROOT) if keys.find_layer_object(found.key)]
        for upload in uploads:
            if self.is_old(upload.initiated_at):
                if not self.dry_run:
                    self.store.abort_upload(upload.key, upload.upload_id)
                self.uploads.append(upload.key)

    def collect_index(self) -> None:
        wanted = {
            keys.index_entry(record.owner, record.sandbox, record.created_at, record.id): record
            for record in self.live
            if record.sandbox is not None
        }
        unlisted = dict(wanted)
        for root in keys.INDEX_ROOTS:
            for row in list_all(self.store, root):
                self.layers.note(row)
                if keys.is_claim(row.key) and self.is_old(row.last_modified):
                    self._collect_claim(row.key)
                if sandbox := keys.find_state(row.key):
                    self._look_at_state(row.key, *sandbox)
                entry = keys.find_index_entry(row.key)
                if entry is None:
                    continue
                self.listed.add(entry.backup_id)
                if unlisted.pop(row.key, None) is not None:
                    continue
                gone = row.key not in wanted and not self._is_committed(entry.backup_id)
                if gone and self.is_old(row.last_modified):
                    self._drop_entry(row.key)
        for key, record in unlisted.items():
            if self.dry_run or self.catalog.write_index_entry(record):
                self.rebuilt.append(key)

    def _look_at_state(self, key: str, tenant: str, sandbox: str) -> None:
        """Reports a state that cannot be read. The node with the sandbox's files writes it anew at the next call."""
        try:
            found = self.catalog.find_state(tenant, sandbox)
            if found is not None and found.state.retention is not None:
                self.with_retention.append((tenant, sandbox))
        except DocumentError as e:
            logger.warning("%s", e)
            self.unreadable.append(key)

    def _collect_claim(self, key: str) -> None:
        """Removes an old claim that is damaged, or whose backup does not exist.

        It first checks that the claim was not written anew meanwhile.
        """
        if self._claims_a_backup(key):
            return
        try:
            if self.is_old(self.store.head(key).last_modified):
                self._drop_entry(key)
        except ObjectMissingError:
            pass

    def _claims_a_backup(self, key: str) -> bool:
        """True if the claim's backup exists, or if only a later release can read the claim."""
        try:
            return self._is_committed(load(Claim, self.store.get(key).data, key=key).backup_id)
        except ObjectMissingError:
            return False
        except NewerDocumentError as e:
            logger.warning("%s", e)
            self.unreadable.append(key)
            return True
        except (CorruptMetadataError, IntegrityError):  # it stands for nothing, and its next use replaces it
            return False

    def _drop_entry(self, key: str) -> None:
        if not self.dry_run:
            self.store.delete(key)
        self.stale_entries.append(key)

    def collect_layers(self) -> None:
        """Removes layers that no backup needs; after `collect_index`, which has listed them."""
        self.layers.collect(self.live, dropped=self.expired)

    def report(self) -> CollectionReport:
        layers = self.layers
        return CollectionReport(
            dry_run=self.dry_run,
            expired_backups=tuple(self.expired),
            orphaned_archives=tuple(self.orphaned),
            orphaned_layers=tuple(layers.orphaned),
            stale_uploads=tuple(self.uploads),
            stale_index_entries=(*self.stale_entries, *layers.stale),
            rebuilt_index_entries=(*self.rebuilt, *layers.rebuilt),
            tampered=tuple(self.tampered),
            unsigned=tuple(self.unsigned),
            unreadable=tuple(self.unreadable),
            without_archive=(*self.without_archive, *layers.incomplete),
            with_retention=tuple(self.with_retention),
            freed_bytes=self.freed_bytes + layers.freed_bytes,
        )


def collect(catalog: BackupCatalog, *, now: datetime, grace_s: float, dry_run: bool = False) -> CollectionReport:
    """Runs one collection over the whole bucket.

    Args:
        now: aware; an object's age is the difference to the store's own time of its last change.
        grace_s: younger objects are left alone.
        dry_run: report only.

    Raises:
        StorageError: from the store; what was removed until then stays removed.
    """
    run = _Collection(catalog, now, timedelta(seconds=grace_s), dry_run)
    run.collect_backups()
    run.collect_uploads()
    run.collect_index()
    run.collect_fenced()
    run.collect_layers()
    return run.report()
