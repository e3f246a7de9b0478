"""Reading of a bucket's documents in tests."""

from __future__ import annotations

from collections.abc import Iterable

from storage.catalog import BackupCatalog
from storage.errors import ObjectMissingError
from storage.metadata import BackupRecord


def committed(catalog: BackupCatalog, backup_ids: Iterable[str]) -> list[BackupRecord]:
    """Records of those backups that were committed. Raises DocumentError if one of them cannot be used."""
    found = []
    for backup_id in backup_ids:
        try:
            found.append(catalog.read_signed(backup_id))
        except ObjectMissingError:
            continue
    return found
