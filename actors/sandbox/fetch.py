"""Fetches the archives of backups from the node's cache or the bucket, checked and safe to mount."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from actors.errors import BackupNotFoundError
from actors.metrics import CACHE_LOOKUPS, DOWNLOADED_BYTES, UNMETERED, Meter
from actors.models import Phase
from actors.node.archive_cache import ArchiveCache, CachedArchive, sha256_of
from actors.node.archiver import Archiver
from actors.sandbox.operations import Progress
from storage import keys
from storage.beside import in_a_thread
from storage.catalog import BackupCatalog
from storage.config import TransferConfig
from storage.digests import ArchiveDigest
from storage.errors import ObjectMissingError, UnsignedMetadataError
from storage.metadata import BackupRecord, StoredLayer
from storage.store import ObjectStore
from storage.transfer import download


class InBucket:
    """The question whether archives of a backup are in the bucket, asked in threads while the caller goes on."""

    def __init__(self, store: ObjectStore, backup_id: str, archives: Iterable[str]) -> None:
        """`archives` are keys; those of archives that have just come from the bucket need not be among them."""
        self._backup_id = backup_id
        self._answers = [in_a_thread(partial(store.size_of, key)) for key in archives]

    def check(self) -> None:
        """Waits for the answers. Raises BackupNotFoundError, StorageError."""
        try:
            for answer in self._answers:
                answer()
        except ObjectMissingError:
            raise _missing(self._backup_id) from None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """An archive that a restore needs: its entry in the cache, and its digest if that is known beforehand.

    `produce` makes it of the objects at `keys`.
    """

    name: str
    sha256: str | None
    produce: Callable[[Path], tuple[Path, str]]
    keys: Sequence[str]


@dataclass(frozen=True, slots=True)
class ArchiveFetch:
    """Fetches the archives for one sandbox."""

    uid: int
    catalog: BackupCatalog
    archiver: Archiver
    cache: ArchiveCache
    transfer: TransferConfig
    meter: Meter = UNMETERED

    def fetch(self, record: BackupRecord, folder: Path, progress: Progress) -> tuple[list[CachedArchive], InBucket]:
        """Links all archives of a backup into `folder`, oldest first: one, or the layers of an incremental backup.

        Returns:
            The archives, and the question whether those that were in the cache are in the bucket.

        Raises:
            BackupNotFoundError: an archive is not in the bucket.
            StorageError, NodeError, OSError: nothing is in `folder`.
            OperationCancelledError: likewise.
        """
        found: list[CachedArchive] = []
        to_ask: list[str] = []
        try:
            for number, wanted in enumerate(self._wanted(record, progress)):
                archive, was_cached = self.cache.obtain(
                    wanted.name,
                    folder / f"archive{number or ''}.sqsh",
                    wanted.produce,
                    sha256=wanted.sha256,
                    waiting=progress.check,
                )
                self.meter.add(CACHE_LOOKUPS, "hit" if was_cached else "miss")
                found.append(archive)
                to_ask += wanted.keys if was_cached else ()
        except BaseException as e:
            for link in found:
                self.cache.unlink(link)
            if isinstance(e, ObjectMissingError):
                raise _missing(record.id) from None
            raise
        return found, InBucket(self.catalog.store, record.id, to_ask)

    def _wanted(self, record: BackupRecord, progress: Progress) -> list[_Wanted]:
        is_ours = self._is_ours(record)
        if is_ours and record.is_incremental:
            return [self._wanted_layer(record, layer, progress) for layer in record.stack]
        sha256 = record.sha256 if is_ours else None
        if record.is_incremental:
            made_of = [keys.layer(record.owner, layer.sha256) for layer in record.stack]
        else:
            made_of = [keys.archive(record.id)]
        return [_Wanted(record.id, sha256, lambda work: self._produce(record, work, progress), made_of)]

    def _wanted_layer(self, record: BackupRecord, layer: StoredLayer, progress: Progress) -> _Wanted:
        key = keys.layer(record.owner, layer.sha256)

        def produce(work: Path) -> tuple[Path, str]:
            return self._download(key, layer.digest, work, progress), layer.sha256

        return _Wanted(layer.sha256, layer.sha256, produce, [key])

    def fetch_again(
        self, tenant: str, backup_id: str, sha256: str, link: Path, progress: Progress, *, is_layer: bool = False
    ) -> CachedArchive:
        """Links an archive that a directory was restored from to `link`; one of several with `is_layer`.

        Reads the bucket only if the cache does not have it. The backup's time to live does not matter: its content is
        in the sandbox already.

        Raises:
            BackupNotFoundError: the archive is no longer in the bucket, or has been replaced by another one.
            StorageError, NodeError, OSError: nothing is at `link`.
        """

        def produce(work: Path) -> tuple[Path, str]:
            record = self.catalog.get(tenant, backup_id)
            layer = next((layer for layer in record.stack if is_layer and layer.sha256 == sha256), None)
            if layer is None:
                return self._produce(record, work, progress)
            return self._download(keys.layer(record.owner, sha256), layer.digest, work, progress), sha256

        name = sha256 if is_layer else backup_id
        try:
            archive, _ = self.cache.obtain(name, link, produce, sha256=sha256, waiting=progress.check)
        except ObjectMissingError:
            raise _missing(backup_id) from None
        if archive.sha256 != sha256:
            raise BackupNotFoundError("The backup has another archive now.", context={"backup": backup_id})
        return archive

    def _is_ours(self, record: BackupRecord) -> bool:
        """True if the backup's archive can be mounted without conversion."""
        return self.catalog.trusted(record) and record.uid == self.uid and record.sha256 is not None

    def _produce(self, record: BackupRecord, work: Path, progress: Progress) -> tuple[Path, str]:
        if record.is_incremental:
            return self._flattened(record, work, progress)
        fetched = self._download(keys.archive(record.id), record.digest, work, progress)
        if self._is_ours(record) and record.sha256 is not None:
            return fetched, record.sha256
        progress.enter(Phase.CONVERTING)
        converted = self.archiver.convert(fetched, work, cancelled=progress.cancelled).path
        progress.check()
        return converted, sha256_of(converted)

    def _flattened(self, record: BackupRecord, work: Path, progress: Progress) -> tuple[Path, str]:
        """Makes one archive with this node's owner of the layers of a backup from nodes with another."""
        if not self.catalog.trusted(record):
            raise UnsignedMetadataError("restore", key=keys.metadata(record.id))
        archives = []
        for layer in record.stack:
            folder = work / layer.sha256
            folder.mkdir()
            archives.append(self._download(keys.layer(record.owner, layer.sha256), layer.digest, folder, progress))
        progress.enter(Phase.CONVERTING)
        made = self.archiver.flatten(archives, work, cancelled=progress.cancelled).path
        progress.check()
        return made, sha256_of(made)

    def _download(self, key: str, expected: ArchiveDigest, folder: Path, progress: Progress) -> Path:
        fetched = folder / "fetched.sqsh"
        progress.enter(Phase.DOWNLOADING, total=expected.size_bytes, unit="bytes")
        download(
            self.catalog.store,
            key,
            fetched,
            expected=expected,
            config=self.transfer,
            progress=progress.advance,
            cancelled=progress.cancelled,
        )
        self.meter.add(DOWNLOADED_BYTES, amount=expected.size_bytes)
        return fetched


def _missing(backup_id: str) -> BackupNotFoundError:
    return BackupNotFoundError("The backup's archive is not in the bucket.", context={"backup": backup_id})
