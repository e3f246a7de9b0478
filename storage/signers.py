"""Counts who has signed the bucket's backups, before a service takes a key for its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice

from storage import keys
from storage.catalog import BackupCatalog
from storage.errors import DocumentError, ObjectMissingError, TamperedMetadataError
from storage.store import list_all

_LOOKED_AT = 100
"""Number of backups to read: enough to conclude from, and read within a few seconds."""


@dataclass(frozen=True, slots=True)
class Signed:
    """Numbers of backups signed by one of the catalog's keys, and by other keys."""

    known: int = 0
    unknown: int = 0


def signed_backups(catalog: BackupCatalog) -> Signed:
    """Counts the signers of the first backups in the bucket. Raises StorageError."""
    found = Signed()
    rows = (keys.find_backup_object(row.key) for row in list_all(catalog.store, keys.BACKUPS_PREFIX))
    for row in islice((row for row in rows if row is not None and row.is_metadata), _LOOKED_AT):
        try:
            found = replace(found, known=found.known + catalog.read(row.backup_id).is_signed)
        except TamperedMetadataError:
            found = replace(found, unknown=found.unknown + 1)
        except (DocumentError, ObjectMissingError):
            continue
    return found
