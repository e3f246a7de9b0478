"""Reads the metadata of a backup that is to be restored, and checks that it may be."""

from __future__ import annotations

from actors.errors import BackupExpiredError, BackupNotFoundError, InvalidBackupConfigError
from storage import keys
from storage.catalog import BackupCatalog
from storage.errors import ObjectMissingError, UnsignedMetadataError
from storage.metadata import BackupRecord


def restorable(
    catalog: BackupCatalog, tenant: str, backup_id: str, *, into: str | None, restores_unsigned: bool
) -> BackupRecord:
    """The metadata of a backup that may be restored into the sandbox `into`; None for a sandbox that is to be made.

    Raises:
        BackupNotFoundError, BackupExpiredError: there is none, or no longer.
        InvalidBackupConfigError: the backup was made for another sandbox's sleep.
        UnsignedMetadataError: nobody has signed it, and unsigned backups may not be restored.
        StorageError: the bucket does not answer, or the metadata cannot be used.
    """
    try:
        record = catalog.get(tenant, backup_id)
    except ObjectMissingError:
        raise no_such_backup(backup_id) from None
    if not (record.is_signed or restores_unsigned):
        raise UnsignedMetadataError(
            "restore",
            key=keys.metadata(record.id),
            hint=f"Run `holdfast adopt {record.id}`, or set HOLDFAST_RESTORE_UNSIGNED=true.",
        )
    check_unexpired(catalog, record)
    if record.of_sleep and record.sandbox != into:
        raise InvalidBackupConfigError(
            "The backup was made to put another sandbox to sleep, and goes when that sandbox sleeps again.",
            hint=f"Back the directory up in sandbox {record.sandbox} first, and restore that backup.",
            context={"backup": backup_id, "sandbox": record.sandbox},
        )
    return record


def check_unexpired(catalog: BackupCatalog, record: BackupRecord) -> None:
    """Raises BackupExpiredError if a backup's time to live has elapsed, or will within moments."""
    if catalog.is_expired(record):
        raise BackupExpiredError(
            "The backup's time to live has elapsed.",
            context={"backup": record.id, "expired_at": record.expires_at.isoformat()},
        )


def no_such_backup(backup_id: str) -> BackupNotFoundError:
    """The error for a backup that does not exist, or is another tenant's."""
    return BackupNotFoundError("There is no such backup.", context={"backup": backup_id})
