"""Opens the backup bucket's catalog from the actors' configuration."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import SecretStr

from actors.config import SandboxConfig
from actors.errors import InvalidBackupConfigError
from actors.faults import reading
from storage.catalog import BackupCatalog
from storage.config import BucketConfig
from storage.s3 import S3ObjectStore
from storage.signers import Signed, signed_backups


def open_catalog(config: SandboxConfig) -> BackupCatalog | None:
    """The bucket's catalog, or None while the bucket is not configured."""
    if config.bucket is None:
        return None
    store = S3ObjectStore(config.bucket, transfer=config.transfer, conditional_writes=config.conditional_writes)
    return BackupCatalog(store, config.signing_key, old_keys=config.old_signing_keys)


def signed_in(bucket: BucketConfig, signing_key: SecretStr, old_keys: Sequence[SecretStr] = ()) -> Signed:
    """Counts the backups signed by these keys, and by others, in a sample of the bucket. Raises as `faults.reading`."""
    with reading("bucket"):
        return signed_backups(BackupCatalog(S3ObjectStore(bucket), signing_key, old_keys=old_keys))


def configured(catalog: BackupCatalog | None, config: SandboxConfig) -> BackupCatalog:
    """Returns the catalog. If there is none, raises InvalidBackupConfigError, naming the missing settings."""
    if catalog is not None:
        return catalog
    missing = config.missing_settings
    raise InvalidBackupConfigError(
        f"The backup bucket is not configured: {', '.join(missing)} missing.",
        hint="Set the missing settings in the environment of `holdfast serve` and start it again.",
        context={"missing": list(missing)},
    )
