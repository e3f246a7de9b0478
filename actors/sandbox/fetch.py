"""Fetches the archives of backups from the node's cache or the bucket, checked and safe to mount."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextvars import copy_context
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
from storage.store import Head, ObjectStore
from storage.transfer import download


class InBucket:
    """The question whether a backup's archive is in the bucket, asked in a thread while the caller goes on."""

    def __init__(self, store: ObjectStore, backup_id: str) -> None:
        self._store = store
        self._backup_id = backup_id
        self._answer = Future[Head]()
        try:
            threading.Thread(target=copy_context().run, args=(self._ask,), name="in-bucket", daemon=True).start()
        except RuntimeError:  # Python raises it where a thread's start fails with EAGAIN
            self._ask()

    def _ask(self) -> None:
        try:
            self._answer.set_result(self._store.head(keys.archive(self._backup_id)))
        except BaseException as e:
            self._answer.set_exception(e)

    def check(self) -> None:
        """Waits for the answer. Raises BackupNotFoundError, StorageError."""
        try:
            self._answer.result()
        except ObjectMissingError:
            raise _missing(self._backup_id) from None


@dataclass(frozen=True, slots=True)
class ArchiveFetch:
    """Fetches the archives for one sandbox."""

    uid: int
    catalog: BackupCatalog
    archiver: Archiver
    cache: ArchiveCache
    transfer: TransferConfig
    meter: Meter = UNMETERED

    def fetch(self, record: BackupRecord, link: Path, progress: Progress) -> tuple[CachedArchive, InBucket | None]:
        """Links a backup's archive to `link`.

        Returns:
            The archive, and the question whether it is in the bucket; None if it has just come from there.

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
        except ObjectMissingError:
            raise _missing(record.id) from None
        self.meter.add(CACHE_LOOKUPS, "hit" if was_cached else "miss")
        return archive, InBucket(self.catalog.store, record.id) if was_cached else None

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
