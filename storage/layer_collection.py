"""The collector's side of layers: removes references of dead backups, then layers that have no reference.

The protocol is in `storage.layers`. A run deletes a layer within minutes of its mark, or not at all. So a mark that is
older than a day is that of a run which has died, and only keeps incremental backups from being made on the layer.
References that a live backup lacks are written anew, before any layer is deleted.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Self

from storage import keys
from storage.layers import seconds
from storage.metadata import BackupRecord
from storage.store import Listed, ObjectStore, exists

_MARKS_LAST = timedelta(days=1)
_DELETE_WITHIN_S = 300.0

_Name = tuple[str, str]
"""A tenant and a SHA-256."""


@dataclass(frozen=True, slots=True)
class LiveBackup:
    """A backup that stays, as a collection has to know it."""

    id: str
    owner: str
    layers: tuple[str, ...]
    """The digests of its layers; empty for a full backup."""
    index_key: str | None
    """The key of its index entry; None if it belongs to no sandbox."""

    @classmethod
    def of(cls, record: BackupRecord) -> Self:
        """Takes what is needed from the metadata of a backup."""
        layers = tuple(layer.sha256 for layer in record.layers or ())
        if record.sandbox is None:
            return cls(record.id, record.owner, layers, None)
        key = keys.index_entry(record.owner, record.sandbox, record.created_at, record.id)
        return cls(record.id, record.owner, layers, key)


@dataclass(slots=True)
class _Layer:
    archive: Listed | None = None
    references: dict[str, datetime] = field(default_factory=dict)
    """The times of the last change of its references, by the ids of the backups."""
    marks: list[Listed] = field(default_factory=list)


@dataclass(slots=True)
class LayerCollection:
    """The part of one collection that is about layers. `note` each object of a listing first, then `collect`."""

    store: ObjectStore
    now: datetime
    grace: timedelta
    dry_run: bool
    clock: Callable[[], float] = seconds
    orphaned: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    """References of backups that are gone, and marks of runs that have died."""
    rebuilt: list[str] = field(default_factory=list)
    """References that a live backup lacked."""
    incomplete: list[str] = field(default_factory=list)
    """The ids of live backups that lack a layer."""
    freed_bytes: int = 0
    _layers: dict[_Name, _Layer] = field(default_factory=dict)
    _run: str = field(default_factory=lambda: str(uuid.uuid4()))

    def note(self, row: Listed) -> None:
        """Takes in one object of a listing of the whole bucket; ignores what is no part of a layer."""
        found = keys.find_layer_object(row.key)
        if found is None:
            return
        layer = self._layers.setdefault((found.tenant, found.sha256), _Layer())
        if found.backup_id is not None:
            layer.references[found.backup_id] = row.last_modified
        elif found.run is not None:
            layer.marks.append(row)
        else:
            layer.archive = row

    def collect(self, live: Mapping[str, LiveBackup], *, dropped: Collection[str] = frozenset()) -> None:
        """Removes what no backup needs. Every step may be repeated.

        Args:
            live: the backups that stay, by id; they were read before the listing began.
            dropped: the ids of backups that this collection has deleted, or in a dry run would; a set, if there can be
                many.

        Raises:
            StorageError: from the store; what was removed until then stays removed.
        """
        for backup in live.values():
            self._rebuild(backup)
        for name, layer in self._layers.items():
            for backup_id, at in list(layer.references.items()):
                if self._is_stale(name, at, backup_id, live, dropped):
                    del layer.references[backup_id]
                    self._drop(keys.layer_reference(*name, backup_id))
            for mark in layer.marks:
                if self.now - mark.last_modified >= _MARKS_LAST:
                    self._drop(mark.key)
            if layer.archive is not None and not layer.references:
                self._collect_archive(name, layer.archive)

    def _rebuild(self, backup: LiveBackup) -> None:
        is_incomplete = False
        for sha256 in backup.layers:
            layer = self._layers.setdefault((backup.owner, sha256), _Layer())
            if backup.id not in layer.references and exists(self.store, keys.metadata(backup.id)):
                self._write_reference(layer, backup, sha256)
            is_incomplete = is_incomplete or (layer.archive is None and exists(self.store, keys.metadata(backup.id)))
        if is_incomplete:
            self.incomplete.append(backup.id)

    def _write_reference(self, layer: _Layer, backup: LiveBackup, sha256: str) -> None:
        key = keys.layer_reference(backup.owner, sha256, backup.id)
        if not self.dry_run:
            self.store.put(key, b"")
        layer.references[backup.id] = self.now
        self.rebuilt.append(key)

    def _is_stale(
        self, name: _Name, at: datetime, backup_id: str, live: Mapping[str, LiveBackup], dropped: Collection[str]
    ) -> bool:
        if backup_id in dropped:
            return True
        if self.now - at < self.grace:
            return False
        backup = live.get(backup_id)
        if backup is not None:
            return name[0] != backup.owner or name[1] not in backup.layers
        return not exists(self.store, keys.metadata(backup_id))

    def _drop(self, key: str) -> None:
        if not self.dry_run:
            self.store.delete(key)
        self.stale.append(key)

    def _collect_archive(self, name: _Name, archive: Listed) -> None:
        if not self.dry_run and not self._delete_archive(name, archive.key):
            return
        self.orphaned.append(archive.key)
        self.freed_bytes += archive.size_bytes

    def _delete_archive(self, name: _Name, key: str) -> bool:
        """Deletes an archive that had no reference. Returns False if it has one by now.

        The mark stays if the deletion fails: its request may still take effect, and until it surely does no more,
        nobody may build on the layer.
        """
        mark = keys.layer_mark(*name, self._run)
        began = self.clock()
        self.store.put(mark, b"")
        unwanted = not self.store.list(keys.layer_references(*name), limit=1).objects
        if unwanted and self.clock() - began < _DELETE_WITHIN_S:
            self.store.delete(key)
        else:
            unwanted = False
        self.store.delete(mark)
        return unwanted
