"""The bucket as the actors have it: opened from settings, or known to be missing some."""

from __future__ import annotations

from actors.config import SandboxConfig
from actors.errors import InvalidBackupConfigError
from storage.catalog import BackupCatalog
from storage.s3 import S3ObjectStore


def open_catalog(config: SandboxConfig) -> BackupCatalog | None:
    """The bucket's catalog, or None while the bucket is not configured."""
    if config.bucket is None:
        return None
    store = S3ObjectStore(config.bucket, transfer=config.transfer, conditional_writes=config.conditional_writes)
    return BackupCatalog(store, config.signing_key)


def configured(catalog: BackupCatalog | None, config: SandboxConfig) -> BackupCatalog:
    """The catalog. Raises InvalidBackupConfigError, naming the missing settings, where there is none."""
    if catalog is not None:
        return catalog
    missing = config.missing_settings
    raise InvalidBackupConfigError(
        f"The backup bucket is not configured: {', '.join(missing)} missing.",
        hint="Set the missing settings in the environment of `holdfast serve` and start it again.",
        context={"missing": list(missing)},
    )
