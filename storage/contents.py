"""The contents of a backup, read without its archive where the backup has a listing."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from storage import keys
from storage.archive_contents import ArchiveContents, StoredArchive
from storage.catalog import BackupCatalog
from storage.errors import ObjectMissingError
from storage.listing import Contents, Listing
from storage.metadata import BackupRecord
from storage.ranges import RangedObject
from storage.store import ObjectStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenedContents:
    """The contents of a backup. `is_listing` is False if they are read from its archives' own tables."""

    contents: Contents
    is_listing: bool


def record_of(catalog: BackupCatalog, tenant: str, backup_id: str) -> BackupRecord:
    """The metadata of a backup whose contents the tenant may see.

    Raises:
        ObjectMissingError: there is none, or it belongs to another tenant.
        DocumentError: it cannot be used, or has lost its signature and was another tenant's; permanent.
    """
    record = catalog.get(tenant, backup_id)
    if not record.is_signed:
        catalog.check_nobody_elses(tenant, backup_id)
    return record


def open_contents(store: ObjectStore, record: BackupRecord, *, hasty: bool = False) -> OpenedContents:
    """Opens the contents of a backup for reading. `hasty`: see `RangedObject`. A scan raises the same errors.

    Raises:
        ObjectMissingError: it has no listing, and its archive or one of its layers is missing; permanent.
        NotListedError: it has no listing, and an archive of it cannot be listed; permanent.
        CorruptMetadataError: its listing is not the one that was recorded; permanent.
    """
    if record.listing is not None:
        key = keys.listing(record.id)
        try:
            source = RangedObject(store, key, record.listing.size_bytes, hasty=hasty)
            return OpenedContents(Listing(source, record.listing), True)
        except ObjectMissingError:
            logger.warning("backup %s has lost its listing", record.id)
    return OpenedContents(ArchiveContents(store, _archives(record), hasty=hasty), False)


def _archives(record: BackupRecord) -> list[StoredArchive]:
    """The archives that its content consists of, the oldest first."""
    if record.layers is None:
        return [StoredArchive(keys.archive(record.id), record.size_bytes)]
    return [StoredArchive(keys.layer(record.owner, layer.sha256), layer.size_bytes) for layer in record.layers]
