"""The collector: removes what has expired and what nobody owns, and writes index entries that are missing.

This module decides by listings, and never trusts one alone. Before it deletes what a listing suggests, it looks once
more, except at stale uploads. It touches nothing younger than the grace period, because that may belong to a
transfer that is not committed yet. The grace period must be longer than the longest upload. No document that we have
not signed makes it delete a backup: an unsigned backup is another program's, and one that was tampered with is for a
person to look at. Every step may be repeated, so an interrupted collection is simply run again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto
from itertools import groupby, islice
from typing import TypeVar

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
from storage.layer_collection import LayerCollection, LiveBackup
from storage.metadata import Claim, load
from storage.store import Listed, ObjectStore, exists, list_all

logger = logging.getLogger(__name__)

_AHEAD = 256
"""So many backups at most are read before the first of them is noted."""
_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


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
    """The objects of one backup."""

    id: str
    metadata: Listed | None = None
    archive: Listed | None = None
    listing: Listed | None = None

    @property
    def parts(self) -> list[Listed]:
        """The objects that belong to nobody if there is no metadata."""
        return [part for part in (self.archive, self.listing) if part is not None]


class _Fate(Enum):
    """The result of looking at a backup."""

    LIVE = auto()
    EXPIRED = auto()
    FENCED = auto()
    """Deleted since the listing, or fenced off."""
    UNSIGNED = auto()
    TAMPERED = auto()
    UNREADABLE = auto()


@dataclass(slots=True)
class _Collection:
    catalog: BackupCatalog
    now: datetime
    grace: timedelta
    dry_run: bool
    workers: int
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
    live: dict[str, LiveBackup] = field(default_factory=dict)
    """The backups that stay, by id. Their records are not kept: one can have a megabyte."""
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

    def _each(self, work: Callable[[_Item], _Found], items: Iterable[_Item]) -> Iterator[tuple[_Item, _Found]]:
        """Does some work for each item, for as many at a time as there are workers; yields the results in order."""
        if self.workers == 1:
            yield from ((item, work(item)) for item in items)
            return
        rest = iter(items)
        with ThreadPoolExecutor(self.workers, thread_name_prefix="collection") as pool:
            while batch := list(islice(rest, _AHEAD)):
                futures = [pool.submit(copy_context().run, work, item) for item in batch]
                try:
                    yield from ((item, future.result()) for item, future in zip(batch, futures, strict=True))
                finally:
                    for future in futures:
                        future.cancel()

    def collect_backups(self) -> None:
        lists = {
            _Fate.EXPIRED: self.expired,
            _Fate.UNSIGNED: self.unsigned,
            _Fate.TAMPERED: self.tampered,
            _Fate.UNREADABLE: self.unreadable,
        }
        for backup, (fate, found) in self._each(self._look_at, self._backups()):
            if backup.metadata is None:
                self._collect_orphan(backup.id, backup.parts)
            elif found is not None:
                self.live[backup.id] = found
                is_whole = backup.archive is not None or bool(found.layers)
                if not is_whole and self.is_old(backup.metadata.last_modified):
                    self.without_archive.append(backup.id)
            elif fate is _Fate.FENCED:
                self.fenced[backup.id] = (backup.metadata, backup.parts)
            else:
                lists[fate].append(backup.id)
                if fate is _Fate.EXPIRED:
                    self.freed_bytes += backup.metadata.size_bytes + sum(part.size_bytes for part in backup.parts)

    def _backups(self) -> Iterator[_Backup]:
        """All backups of the bucket. The objects of each are next to each other in the listing."""
        rows = ((keys.find_backup_object(row.key), row) for row in list_all(self.store, keys.BACKUPS_PREFIX))
        known = ((found, row) for found, row in rows if found is not None)
        for backup_id, objects in groupby(known, key=lambda pair: pair[0].backup_id):
            backup = _Backup(backup_id)
            for found, row in objects:
                if found.is_metadata:
                    backup.metadata = row
                elif found.is_listing:
                    backup.listing = row
                else:
                    backup.archive = row
            yield backup

    def _look_at(self, backup: _Backup) -> tuple[_Fate, LiveBackup | None]:
        """Reads the metadata of a backup, and deletes the backup if it has expired. Runs in several threads."""
        if backup.metadata is None:
            return _Fate.FENCED, None
        try:
            record = self.catalog.read_signed(backup.id)
        except ObjectMissingError:
            return _Fate.FENCED, None
        except UnsignedMetadataError:
            return _Fate.UNSIGNED, None
        except DocumentError as e:
            logger.warning("%s", e)
            return _Fate.TAMPERED if isinstance(e, TamperedMetadataError) else _Fate.UNREADABLE, None
        if not (record.is_expired(self.now, buffer_s=0) and self.is_old(backup.metadata.last_modified)):
            return _Fate.LIVE, LiveBackup.of(record)
        if not self.dry_run:
            self.catalog.discard(record)
        return _Fate.EXPIRED, None

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
        if old and not exists(self.store, keys.metadata(backup_id)):
            self._collect_parts(backup_id, old)

    def _collect_parts(self, backup_id: str, parts: list[Listed]) -> None:
        """Removes the archive and the listing, or one of them, of a backup that is not committed."""
        for part in parts:
            if not self.dry_run:
                self.store.delete(part.key)
            self.freed_bytes += part.size_bytes
        if parts:
            self.orphaned.append(backup_id)

    def collect_uploads(self) -> None:
        uploads = list(self.store.list_uploads(keys.BACKUPS_PREFIX))
        uploads += [found for found in self.store.list_uploads(keys.LAYERS_ROOT) if keys.find_layer_object(found.key)]
        for upload in uploads:
            if self.is_old(upload.initiated_at):
                if not self.dry_run:
                    self.store.abort_upload(upload.key, upload.upload_id)
                self.uploads.append(upload.key)

    def collect_index(self) -> None:
        claims: list[str] = []
        states: list[tuple[str, tuple[str, str]]] = []
        rightly: set[str] = set()
        for root in keys.INDEX_ROOTS:
            for row in list_all(self.store, root):
                self.layers.note(row)
                if keys.is_claim(row.key) and self.is_old(row.last_modified):
                    claims.append(row.key)
                if sandbox := keys.find_state(row.key):
                    states.append((row.key, sandbox))
                entry = keys.find_index_entry(row.key)
                if entry is None:
                    continue
                self.listed.add(entry.backup_id)
                live = self.live.get(entry.backup_id)
                if live is not None and live.index_key == row.key:
                    rightly.add(entry.backup_id)
                elif self.is_old(row.last_modified) and not exists(self.store, keys.metadata(entry.backup_id)):
                    self._drop_entry(row.key)
        self._collect_claims(claims)
        self._look_at_states(states)
        self._rebuild_index(rightly)

    def _rebuild_index(self, listed: set[str]) -> None:
        """Writes the index entries of the backups that are not `listed` as they should be."""
        for backup in self.live.values():
            if backup.id in listed or backup.index_key is None:
                continue
            try:
                is_written = self.dry_run or self.catalog.write_index_entry(self.catalog.read_signed(backup.id))
            except (ObjectMissingError, DocumentError):  # deleted meanwhile, or changed by someone
                continue
            if is_written:
                self.rebuilt.append(backup.index_key)

    def _look_at_states(self, states: Iterable[tuple[str, tuple[str, str]]]) -> None:
        """Reports states that cannot be read. The node with the sandbox's files writes one anew at the next call."""
        for (key, sandbox), has_retention in self._each(lambda row: self._find_retention(row[1]), states):
            if has_retention is None:
                self.unreadable.append(key)
            elif has_retention:
                self.with_retention.append(sandbox)

    def _find_retention(self, sandbox: tuple[str, str]) -> bool | None:
        """Tells whether a sandbox has a retention policy; None if its state cannot be read."""
        try:
            found = self.catalog.sandboxes.find_state(*sandbox)
        except DocumentError as e:
            logger.warning("%s", e)
            return None
        return found is not None and found.state.retention is not None

    def _collect_claims(self, claims: Iterable[str]) -> None:
        """Removes old claims that are damaged, or whose backups do not exist.

        It first checks that a claim was not written anew meanwhile.
        """
        for key, claims_a_backup in self._each(self._claims_a_backup, claims):
            if claims_a_backup is None:
                self.unreadable.append(key)
            if claims_a_backup is not False:
                continue
            try:
                if self.is_old(self.store.head(key).last_modified):
                    self._drop_entry(key)
            except ObjectMissingError:
                pass

    def _claims_a_backup(self, key: str) -> bool | None:
        """Tells whether the claim's backup exists; None if only a later release can read the claim."""
        try:
            backup_id = load(Claim, self.store.get(key).data, key=key).backup_id
        except ObjectMissingError:
            return False
        except NewerDocumentError as e:
            logger.warning("%s", e)
            return None
        except (CorruptMetadataError, IntegrityError):  # it stands for nothing, and its next use replaces it
            return False
        return backup_id in self.live or exists(self.store, keys.metadata(backup_id))

    def _drop_entry(self, key: str) -> None:
        if not self.dry_run:
            self.store.delete(key)
        self.stale_entries.append(key)

    def collect_layers(self) -> None:
        """Removes layers that no backup needs; after `collect_index`, which has listed them."""
        self.layers.collect(self.live, dropped=frozenset(self.expired))

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


def collect(
    catalog: BackupCatalog, *, now: datetime, grace_s: float, dry_run: bool = False, workers: int = 1
) -> CollectionReport:
    """Runs one collection over the whole bucket. Takes some hundred bytes of memory for each backup.

    Args:
        now: aware; an object's age is the difference to the store's own time of its last change.
        grace_s: younger objects are left alone.
        dry_run: report only.
        workers: number of threads that read documents, and delete expired backups. The rest is done in turn.

    Raises:
        StorageError: from the store; what was removed until then stays removed.
    """
    run = _Collection(catalog, now, timedelta(seconds=grace_s), dry_run, workers)
    run.collect_backups()
    run.collect_uploads()
    run.collect_index()
    run.collect_fenced()
    run.collect_layers()
    return run.report()
