"""The protocol of creating a backup: archive, upload, claim, commit. All or nothing.

    step         leaves                               undone by
    archive      a file in the sandbox's spool        removing the spool
    begin        the id among the pending backups     the next change of the state document; or settling it
    upload       backups/<id>/data.sqsh               the upload removes its parts; `abandon` removes the object
    claim        the backup id of an idempotency key  nothing: without the commit the claim does not count
    commit       backups/<id>/meta.json, index entry  nothing: from here on the backup exists
    checkpoint   the checkpoint of the directory      nothing; without it the id is still pending, and so found
    cache        the archive in the node's cache      nothing

While the archive is written, parts of a large one are uploaded already (`storage.growing`); then `begin` comes before
the first of them, within `archive`.

An archive without metadata can never be restored. If the bucket does not let the actor remove it, its id stays pending:
the next backup or the next actor settles it. An actor that was replaced during its upload finds a fence in place of the
metadata (`BackupCatalog.settle`), and commits nothing.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from actors.errors import BackupCreateError, InvalidBackupConfigError, SandboxUnavailableError
from actors.faults import failing_as, reason_of
from actors.logs import log
from actors.metrics import ARCHIVED_BYTES, UNMETERED, UPLOADED_BYTES, Meter
from actors.models import BackupOptions, Compression, DirectoryBackup, Phase
from actors.node.archive_cache import ArchiveCache
from actors.node.archiver import Archiver, PackedArchive
from actors.node.errors import NodeError, PathError
from actors.node.survey import Survey
from actors.node.verified import stamp_of
from actors.sandbox.listing_upload import ListingUpload
from actors.sandbox.operations import Progress
from actors.sandbox.steps import CreateStep, step
from storage import keys
from storage.catalog import BackupCatalog, StoredClaim
from storage.config import TransferConfig
from storage.errors import (
    DocumentError,
    NewerDocumentError,
    ObjectMissingError,
    PreconditionFailedError,
    StorageError,
    StoreUnavailableError,
    TransferCancelledError,
)
from storage.listing import ListingWriter
from storage.metadata import BackupRecord, ListingDigest, NotKept
from storage.transfer import GrowingUpload, SentParts, UploadedArchive, upload

_LISTING = "files.list"


class Ledger(Protocol):
    """The sandbox's list of pending and committed backups, written under the actor's epoch."""

    def begin(self, backup_id: str, *, of_sleep: bool) -> None:
        """Adds a pending backup, before any part of it is in the bucket. Settles what earlier calls could not remove.

        Raises StorageError, SandboxUnavailableError.
        """

    def check(self) -> None:
        """Checks that this actor may still commit. Raises SandboxUnavailableError if not; StorageError."""

    def committed(self, record: BackupRecord) -> None:
        """Notes that the backup exists. Raises nothing: a note that cannot be written now goes with the next one."""

    def left_behind(self, backup_id: str) -> None:
        """Notes that parts of the backup may be left in the bucket, and have to be removed later."""

    def abandoned(self, backup_id: str) -> None:
        """Notes that nothing of the backup is left. Raises SandboxUnavailableError if another actor has taken over."""


class _Begun:
    """The beginning of a backup in the ledger: once, before the first of its parts goes to the bucket.

    That is while the archive is written, if parts are sent ahead, or when it is complete.
    """

    def __init__(self, ledger: Ledger, backup_id: str, *, of_sleep: bool) -> None:
        self._ledger = ledger
        self._backup_id = backup_id
        self._of_sleep = of_sleep
        self.is_noted = False

    def ensure(self) -> None:
        """Begins the backup if it has not begun. The caller ensures that no other thread does the same."""
        if not self.is_noted:
            with step(CreateStep.BEGIN):
                self._ledger.begin(self._backup_id, of_sleep=self._of_sleep)
            self.is_noted = True


@dataclass(frozen=True, slots=True)
class BackupCreation:
    """Creates the backups of one sandbox."""

    tenant: str
    sandbox: str
    uid: int
    catalog: BackupCatalog
    archiver: Archiver
    cache: ArchiveCache
    spool: Path
    transfer: TransferConfig
    pause_s: float
    ledger: Ledger
    paused: Callable[[], AbstractContextManager[None]]
    """Pauses everything that could change the tree."""
    of_sleep: bool = False
    """True for backups that the service makes when the sandbox goes to sleep."""
    meter: Meter = UNMETERED

    def create(
        self, options: BackupOptions, progress: Progress, *, idempotency_key: str | None = None
    ) -> DirectoryBackup:
        """Creates one backup, or returns the one that an earlier call with the same key has created.

        Raises:
            InvalidBackupConfigError: the path does not exist, is not a directory, or leads out of the sandbox.
            BackupCreateError: it failed; nothing is left of it, unless the context says that the outcome is unknown.
            OperationCancelledError: nothing is left of it.
        """
        with failing_as(BackupCreateError, "created"):
            made_before = self._made_before(idempotency_key, options)
        if made_before is not None:
            progress.backup_id = made_before.id
            return made_before
        backup_id = progress.backup_id = str(uuid.uuid4())
        work = self.spool / backup_id
        begun = _Begun(self.ledger, backup_id, of_sleep=self.of_sleep)
        try:
            with failing_as(BackupCreateError, "created"):
                work.mkdir(parents=True, mode=0o711)
                created_at = datetime.now(UTC)
                try:
                    with (
                        self._sent_ahead(backup_id, begun, progress) as ahead,
                        step(CreateStep.ARCHIVE),
                        closing(ListingWriter(work / _LISTING)) as listing,
                    ):
                        made = self._archive(options, work, progress, listing, ahead)
                        listed = listing.finish()
                    self.meter.add(ARCHIVED_BYTES, amount=made.found.source_bytes)
                    stamp = stamp_of(made.path)
                    begun.ensure()
                    with step(CreateStep.UPLOAD), self._listing_upload(backup_id, work, listed, progress) as beside:
                        uploaded = self._upload(backup_id, made, progress, ahead.sent)
                    self.meter.add(UPLOADED_BYTES, amount=uploaded.size_bytes)
                    record = self._record(backup_id, options, created_at, made, uploaded, beside.kept)
                    made_meanwhile = self._commit(record, options, idempotency_key, progress)
                except BaseException as e:
                    if not begun.is_noted or self._abandon(backup_id, e):
                        raise
                    made_meanwhile = None
            if made_meanwhile is not None:
                self.ledger.abandoned(backup_id)
                progress.backup_id = made_meanwhile.id
                return made_meanwhile
            with step(CreateStep.CHECKPOINT):
                self.ledger.committed(record)
            with step(CreateStep.CACHE), contextlib.suppress(OSError, NodeError):
                self.cache.adopt(backup_id, made.path, uploaded.sha256, as_of=stamp)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        lost = {name: count for name, count in _not_kept(made.found).model_dump().items() if count}
        (log.warning if lost else log.info)(
            "backup_created", backup=backup_id, dir=options.dir, bytes=uploaded.size_bytes, not_kept=lost
        )
        return DirectoryBackup(id=backup_id, dir=options.dir)

    def _made_before(self, idempotency_key: str | None, options: BackupOptions) -> DirectoryBackup | None:
        """The backup that an earlier call made with the same key, if it can be restored."""
        if idempotency_key is None:
            return None
        claim = self.catalog.find_claim(self.tenant, self.sandbox, idempotency_key)
        return self._claimed(claim, options)

    def _claimed(self, claim: StoredClaim | None, options: BackupOptions) -> DirectoryBackup | None:
        if claim is None or claim.backup_id is None:
            return None
        try:
            found = self.catalog.read_signed(claim.backup_id)
        except ObjectMissingError:  # the call that claimed the key failed, or the backup was deleted since
            return None
        except NewerDocumentError:
            raise
        except DocumentError as e:  # the backup cannot be restored
            log.warning("claimed_backup_unusable", backup=claim.backup_id, detail=str(e))
            return None
        if (found.owner, found.sandbox) != (self.tenant, self.sandbox) or self.catalog.is_expired(found):
            return None
        if found.dir != options.dir:
            raise InvalidBackupConfigError(
                "The idempotency key was used for a backup of another directory.",
                hint="Use a new key for each backup that you intend.",
                context={"dir": found.dir},
            )
        return DirectoryBackup(id=found.id, dir=found.dir)

    def _sent_ahead(self, backup_id: str, begun: _Begun, progress: Progress) -> GrowingUpload:
        """The upload of the archive's parts while it is written. The backup begins with the first of them."""
        store, key = self.catalog.store, keys.archive(backup_id)
        return GrowingUpload(store, key, config=self.transfer, begin=begun.ensure, cancelled=progress.cancelled)

    def _archive(
        self, options: BackupOptions, work: Path, progress: Progress, listing: ListingWriter, ahead: GrowingUpload
    ) -> PackedArchive:
        files = 0

        def surveyed(found: Survey) -> None:
            nonlocal files
            files = found.files
            progress.enter(Phase.COMPRESSING, total=files)

        progress.enter(Phase.SCANNING)
        compression = options.compression
        try:
            with self.paused():
                made = self.archiver.create(
                    options.dir,
                    work,
                    compression=compression.format,
                    level=default_level(compression),
                    excludes=options.excludes,
                    gitignore=options.gitignore,
                    timeout_s=self.pause_s,
                    cancelled=progress.cancelled,
                    listed=listing.add,
                    on_survey=surveyed,
                    on_percent=lambda percent: progress.set_done(files * percent // 100),
                    on_writing=ahead.follow,
                )
        except PathError as e:
            raise InvalidBackupConfigError(
                f"The directory cannot be backed up: {e.message}", context={"dir": options.dir}
            ) from None
        progress.check()
        return made

    def _upload(
        self, backup_id: str, made: PackedArchive, progress: Progress, sent: SentParts | None
    ) -> UploadedArchive:
        progress.enter(Phase.UPLOADING, total=made.path.stat().st_size, unit="bytes")
        return upload(
            self.catalog.store,
            keys.archive(backup_id),
            made.path,
            config=self.transfer,
            progress=progress.advance,
            cancelled=progress.cancelled,
            sent=sent,
        )

    def _listing_upload(
        self, backup_id: str, work: Path, listed: ListingDigest | None, progress: Progress
    ) -> ListingUpload:
        return ListingUpload(
            self.catalog.store,
            backup_id,
            work / _LISTING,
            listed,
            config=self.transfer,
            cancelled=progress.cancelled,
        )

    def _record(
        self,
        backup_id: str,
        options: BackupOptions,
        created_at: datetime,
        made: PackedArchive,
        uploaded: UploadedArchive,
        listing: ListingDigest | None,
    ) -> BackupRecord:
        found = made.found
        return BackupRecord(
            id=backup_id,
            dir=options.dir,
            name=options.name,
            size_bytes=uploaded.size_bytes,
            ttl=options.ttl,
            created_at=created_at,
            version=1,
            tenant=self.tenant,
            sandbox=self.sandbox,
            sha256=uploaded.sha256,
            part_bytes=uploaded.part_bytes,
            parts=[part.sha256 for part in uploaded.parts],
            etag=uploaded.etag,
            files=found.files,
            inodes=found.inodes,
            source_bytes=found.source_bytes,
            compression=options.compression.format,
            not_kept=_not_kept(found),
            max_name_bytes=found.max_name_bytes,
            uid=self.uid,
            partial=bool(options.excludes or options.gitignore) or None,
            of_sleep=self.of_sleep or None,
            place=None if made.place == options.dir else made.place,
            listing=listing,
        )

    def _commit(
        self, record: BackupRecord, options: BackupOptions, idempotency_key: str | None, progress: Progress
    ) -> DirectoryBackup | None:
        """Commits the backup. If another call has made one with the same key, discards ours and returns that one.

        The key is claimed before the commit, and a claim without a commit does not count. After a crash between the
        two, the next call makes the backup; after a crash behind both, the next call finds it.
        """
        progress.point_of_no_return(Phase.COMMITTING)
        with step(CreateStep.CLAIM):
            made = self._claim(record, options, idempotency_key) if idempotency_key is not None else None
        if made is not None:
            self.catalog.discard(record)
            return made
        with step(CreateStep.COMMIT):
            self._write_metadata(record)
        return None

    def _abandon(self, backup_id: str, error: BaseException) -> bool:
        """Removes what is left of a failed backup. If that fails too, the ledger keeps it, to be settled later.

        Returns:
            False if the backup was committed after all, and exists.

        Raises:
            SandboxUnavailableError: another actor has taken over, and settles it; that is why the bucket failed us.
            BackupCreateError: the bucket could not be asked whether the backup was committed, nor was it removed.
        """
        may_exist = isinstance(error, StoreUnavailableError) and error.key == keys.metadata(backup_id)
        try:
            if not self._remove(backup_id, may_exist=may_exist):
                return False
            self.ledger.abandoned(backup_id)
        except StorageError as e:
            log.warning("backup_left_behind", backup=backup_id, detail=str(e))
            self.ledger.left_behind(backup_id)
            if may_exist:
                reason, sentence = reason_of(e)
                raise BackupCreateError(
                    f"The backup may have been created, or not: {sentence}.",
                    hint="Look at the list of backups; with an idempotency key, repeat the call.",
                    context={"reason": reason, "outcome": "unknown"},
                ) from None
        except SandboxUnavailableError:
            if isinstance(error, StorageError) and not isinstance(error, TransferCancelledError):
                raise
        return True

    def _remove(self, backup_id: str, *, may_exist: bool) -> bool:
        """Removes what is left of a backup. Returns False, and removes nothing, if it was committed.

        Metadata that may exist is deleted only where the store has no conditional writes: a late deletion could remove
        metadata that our successor has found.

        Raises:
            SandboxUnavailableError: another actor has taken over; nothing is left of the backup.
            StorageError: something may be left.
        """
        replaced: SandboxUnavailableError | None = None
        try:
            self.ledger.check()
        except SandboxUnavailableError as e:
            replaced = e
        if replaced is None and not (may_exist and self.catalog.store.supports_conditional_writes()):
            self.catalog.abandon(backup_id)
        elif self.catalog.settle(backup_id) is not None:
            return False
        if replaced is not None:
            raise replaced
        return True

    def _claim(self, record: BackupRecord, options: BackupOptions, idempotency_key: str) -> DirectoryBackup | None:
        claim = self.catalog.find_claim(self.tenant, self.sandbox, idempotency_key)
        made = self._claimed(claim, options)
        if made is None:
            replaced = claim.etag if claim else None
            self.catalog.write_claim(self.tenant, self.sandbox, idempotency_key, record.id, replacing=replaced)
        return made

    def _write_metadata(self, record: BackupRecord) -> None:
        if not self.catalog.store.supports_conditional_writes():
            self.ledger.check()
        try:
            self.catalog.commit(record)
        except PreconditionFailedError:  # a fence, if another actor has taken over
            self.ledger.check()
            raise


def _not_kept(found: Survey) -> NotKept:
    return NotKept(
        sockets=found.sockets,
        acls=found.acls,
        other_xattrs=found.other_xattrs,
        devices=found.devices or None,
        far_times=found.far_times or None,
        flags=found.flags or None,
    )


def default_level(compression: Compression) -> int | None:
    """The compression level for the tool: by default 1 for zstd, whose own default of 15 takes twenty times as long."""
    if compression.level is None and compression.format == "zstd":
        return 1
    return compression.level
