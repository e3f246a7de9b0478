"""Fetches the archives of backups from the node's cache or the bucket, checked and safe to mount."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from actors.errors import BackupNotFoundError
from actors.metrics import CACHE_LOOKUPS, DOWNLOADED_BYTES, UNMETERED, Meter
from actors.models import Phase
from actors.node.archive_cache import ArchiveCache, CachedArchive, sha256_of
from actors.node.archiver import Archiver
from actors.sandbox.operations import Progress
from storage import keys
from storage.catalog import BackupCatalog
from storage.config import TransferConfig
from storage.errors import ObjectMissingError
from storage.metadata import BackupRecord
from storage.transfer import download


@dataclass(frozen=True, slots=True)
class ArchiveFetch:
    """Fetches the archives for one sandbox."""

    uid: int
    catalog: BackupCatalog
    archiver: Archiver
    cache: ArchiveCache
    transfer: TransferConfig
    meter: Meter = UNMETERED

    def fetch(self, record: BackupRecord, link: Path, progress: Progress) -> CachedArchive:
        """Links a backup's archive to `link`.

        Raises:
            BackupNotFoundError: the archive is not in the bucket.
            StorageError, NodeError, OSError: nothing is at `link`.
            OperationCancelledError: likewise.
        """
        sha256 = record.sha256 if self._is_ours(record) else None
        try:
            archive, was_cached = self.cache.obtain(
                record.id,
                link,
                lambda work: self._produce(record, work, progress),
                sha256=sha256,
                waiting=progress.check,
            )
            self.meter.add(CACHE_LOOKUPS, "hit" if was_cached else "miss")
            if was_cached:
                self.catalog.store.head(keys.archive(record.id))
        except ObjectMissingError:
            raise _missing(record.id) from None
        return archive

    def fetch_again(self, tenant: str, backup_id: str, sha256: str, link: Path, progress: Progress) -> CachedArchive:
        """Links the archive that a layer was made with to `link`. Reads the bucket only if the cache does not have it.

        The backup's time to live does not matter: its content is in the sandbox already.

        Raises:
            BackupNotFoundError: the archive is no longer in the bucket, or has been replaced by another one.
            StorageError, NodeError, OSError: nothing is at `link`.
        """

        def produce(work: Path) -> tuple[Path, str]:
            return self._produce(self.catalog.get(tenant, backup_id), work, progress)

        try:
            archive, _ = self.cache.obtain(backup_id, link, produce, sha256=sha256, waiting=progress.check)
        except ObjectMissingError:
            raise _missing(backup_id) from None
        if archive.sha256 != sha256:
            raise BackupNotFoundError("The backup has another archive now.", context={"backup": backup_id})
        return archive

    def _is_ours(self, record: BackupRecord) -> bool:
        """True if the backup's archive can be mounted without conversion."""
        return self.catalog.trusted(record) and record.uid == self.uid and record.sha256 is not None

    def _produce(self, record: BackupRecord, work: Path, progress: Progress) -> tuple[Path, str]:
        fetched = work / "fetched.sqsh"
        progress.enter(Phase.DOWNLOADING, total=record.size_bytes, unit="bytes")
        download(
            self.catalog.store,
            keys.archive(record.id),
            fetched,
            expected=record.digest,
            config=self.transfer,
            progress=progress.advance,
            cancelled=progress.cancelled,
        )
        self.meter.add(DOWNLOADED_BYTES, amount=record.size_bytes)
        if self._is_ours(record) and record.sha256 is not None:
            return fetched, record.sha256
        progress.enter(Phase.CONVERTING)
        converted = self.archiver.convert(fetched, work, cancelled=progress.cancelled).path
        progress.check()
        return converted, sha256_of(converted)


def _missing(backup_id: str) -> BackupNotFoundError:
    return BackupNotFoundError("The backup's archive is not in the bucket.", context={"backup": backup_id})
