"""Begins incremental backups: chooses the backup that one is laid on, and takes hold of its layers in the bucket.

Where there is any doubt, no incremental backup is begun, the log says why, and the caller makes a full one.

The requests that take hold of the layers are made while the changes are found and archived. If they fail, that has
cost time, and nothing else: no part of the backup is in the bucket before `held` has returned.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from actors.config import BackupLimits
from actors.logs import log
from actors.models import BackupOptions
from actors.node.changes import Base, OverlaidArchives, Since
from actors.node.errors import NoLayerError
from actors.node.fingerprints import Fingerprints
from actors.node.plain_changes import RecordedFiles, Recording
from actors.sandbox.restored_directories import RestoredDirectories
from storage.beside import in_a_thread
from storage.catalog import BackupCatalog
from storage.errors import StorageError
from storage.layers import NewLayers
from storage.metadata import BackupRecord

_MAX_FINGERPRINTS = 16
"""The most directories of a sandbox whose fingerprints are kept; the latest."""
MAX_DEPTH = 8
"""The most archives that an incremental backup consists of. Each makes its restore a little slower."""


@dataclass(frozen=True, slots=True)
class Increment:
    """An incremental backup that was begun on `parent`.

    Its layers are taken hold of beside what follows: `held` waits for that, and raises LayersUnusableError or another
    StorageError.
    """

    parent: BackupRecord
    since: Since
    layers: NewLayers
    held: Callable[[], object]

    def give_up(self, directory: str, why: str) -> None:
        """Releases the layers, because a full backup is made instead."""
        _say(directory, why)
        self.release()

    def release(self) -> None:
        """Releases the layers, of a backup that will never be committed. Raises nothing."""
        with contextlib.suppress(StorageError):
            self.held()
        self.layers.release()


@dataclass(frozen=True, slots=True)
class Increments:
    """Begins the incremental backups of one sandbox."""

    tenant: str
    uid: int
    catalog: BackupCatalog
    restored: RestoredDirectories
    limits: BackupLimits
    fingerprints: Path
    """The folder with the fingerprints of the directories of plain files, on the disk of the spool."""

    def begin(self, options: BackupOptions, backup_id: str, recording: Recording) -> Increment | None:
        """Begins an incremental backup of a directory; None if it has to be a full one. Raises nothing else.

        `recording` records the fingerprints of plain files, for the backup after this one.
        """
        if options.full or not self.limits.incremental:
            return None
        try:
            return self._begin_on_layer(options, backup_id) or self._begin_on_files(options, backup_id, recording)
        except NoLayerError as e:
            _say(options.dir, e.message)
        except StorageError as e:
            _say(options.dir, str(e))
        return None

    def _begin_on_layer(self, options: BackupOptions, backup_id: str) -> Increment | None:
        found = self.restored.layer_at(options.dir)
        if found is None:
            return None
        entry, layer = found
        parent = self.catalog.get(self.tenant, entry.backup_id)
        if tuple(each.sha256 for each in parent.stack) != entry.digests:
            raise NoLayerError("the directory does not lie over that backup's archives")
        return self._hold(parent, OverlaidArchives(layer), backup_id)

    def _begin_on_files(self, options: BackupOptions, backup_id: str, recording: Recording) -> Increment | None:
        before = Fingerprints.find(self._fingerprints(self.restored.real_path(options.dir)))
        if before is None:
            return None
        parent = self.catalog.get(self.tenant, before.header.backup_id)
        return self._hold(parent, RecordedFiles(before, recording), backup_id)

    def keep(self, recording: Recording, place: str, backup_id: str) -> None:
        """Keeps the fingerprints that were recorded for a backup of the directory `place`, which exists now.

        Raises nothing: without them the next backup is a full one.
        """
        with contextlib.suppress(OSError):
            recording.commit(backup_id, self._fingerprints(place))
            kept = sorted(self.fingerprints.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
            for path in kept[_MAX_FINGERPRINTS:]:
                path.unlink()

    def _fingerprints(self, place: str) -> Path:
        return self.fingerprints / hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()

    def _check(self, parent: BackupRecord) -> None:
        """Raises NoLayerError if no layer should be laid on a backup."""
        if not self.catalog.trusted(parent):
            raise NoLayerError("no key of this service has signed the backup below")
        if parent.uid != self.uid:
            raise NoLayerError("the files of the backup below have another owner")
        if self.catalog.is_expired(parent):
            raise NoLayerError("the backup below has expired")
        if not parent.stack:
            raise NoLayerError("the backup below has no digests of its parts")
        base, *deltas = parent.stack
        if base.size_bytes < self.limits.incremental_min_bytes:
            raise NoLayerError(f"the whole archive has only {base.size_bytes} bytes")
        if len(parent.stack) >= MAX_DEPTH:
            raise NoLayerError(f"the backup below consists of {len(parent.stack)} archives already")
        if sum(delta.size_bytes for delta in deltas) * 2 > base.size_bytes:
            raise NoLayerError("the changes take more than half of the first archive")

    def _hold(self, parent: BackupRecord, base: Base, backup_id: str) -> Increment:
        self._check(parent)
        layers = NewLayers(self.catalog.store, self.tenant, backup_id, parent)
        # With more than this, a full backup costs hardly more.
        since = Since(base, max_bytes=parent.stack[0].size_bytes)
        return Increment(parent, since, layers, held=in_a_thread(layers.hold))


def _say(directory: str, why: str) -> None:
    log.info("backup_in_full", dir=directory, why=why)
