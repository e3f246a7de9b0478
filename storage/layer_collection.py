"""The collector's side of layers: removes references of dead backups, then layers that have no reference.

The protocol is in `storage.layers`. A run deletes a layer within minutes of its mark, or not at all. So a mark that is
older than a day is that of a run which has died, and only keeps incremental backups from being made on the layer.
References that a live backup lacks are written anew, before any layer is deleted.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from storage import keys
from storage.errors import ObjectMissingError
from storage.layers import seconds
from storage.metadata import BackupRecord
from storage.store import Listed, ObjectStore

_MARKS_LAST = timedelta(days=1)
_DELETE_WITHIN_S = 300.0

_Name = tuple[str, str]
"""A tenant and a SHA-256."""


@dataclass(slots=True)
class _Layer:
    archive: Listed | None = None
    references: dict[str, Listed] = field(default_factory=dict)
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
            layer.references[found.backup_id] = row
        elif found.run is not None:
            layer.marks.append(row)
        else:
            layer.archive = row

    def collect(self, live: Sequence[BackupRecord], *, dropped: Sequence[str] = ()) -> None:
        """Removes what no backup needs. Every step may be repeated.

        Args:
            live: the backups that stay; they were read before the listing began.
            dropped: the ids of backups that this collection has deleted, or in a dry run would.

        Raises:
            StorageError: from the store; what was removed until then stays removed.
        """
        wanted = {record.id: {(record.owner, layer.sha256) for layer in record.layers or ()} for record in live}
        self._rebuild(live)
        for name, layer in self._layers.items():
            for backup_id in list(layer.references):
                if self._is_stale(name, layer.references[backup_id], backup_id, wanted, dropped):
                    self._drop(layer.references.pop(backup_id).key)
            for mark in layer.marks:
                if self.now - mark.last_modified >= _MARKS_LAST:
                    self._drop(mark.key)
            if layer.archive is not None and not layer.references:
                self._collect_archive(name, layer.archive)

    def _rebuild(self, live: Sequence[BackupRecord]) -> None:
        for record in live:
            for stored in record.layers or ():
                layer = self._layers.setdefault((record.owner, stored.sha256), _Layer())
                if record.id not in layer.references and self._is_committed(record.id):
                    self._write_reference(layer, record, stored.sha256)
                if layer.archive is None and record.id not in self.incomplete and self._is_committed(record.id):
                    self.incomplete.append(record.id)

    def _write_reference(self, layer: _Layer, record: BackupRecord, sha256: str) -> None:
        key = keys.layer_reference(record.owner, sha256, record.id)
        if not self.dry_run:
            self.store.put(key, b"")
        layer.references[record.id] = Listed(key, 0, self.now)
        self.rebuilt.append(key)

    def _is_stale(
        self, name: _Name, row: Listed, backup_id: str, wanted: dict[str, set[_Name]], dropped: Sequence[str]
    ) -> bool:
        if backup_id in dropped:
            return True
        if self.now - row.last_modified < self.grace:
            return False
        if backup_id in wanted:
            return name not in wanted[backup_id]
        return not self._is_committed(backup_id)

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

    def _is_committed(self, backup_id: str) -> bool:
        try:
            self.store.head(keys.metadata(backup_id))
        except ObjectMissingError:
            return False
        return True
