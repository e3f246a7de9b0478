"""The protocol of creating a backup: archive, upload, claim, commit. All or nothing.

    step         leaves                               undone by
    hold         references to the layers below       releasing them; `gc` removes those of a process that died
    archive      a file in the sandbox's spool        removing the spool
    begin        the id among the pending backups     the next change of the state document; or settling it
    upload       backups/<id>/data.sqsh, or a layer   the upload removes its parts; `abandon` removes the object; a
                                                      layer without a reference is removed by `gc`
    claim        the backup id of an idempotency key  nothing: without the commit the claim does not count
    commit       backups/<id>/meta.json, index entry  nothing: from here on the backup exists
    checkpoint   the checkpoint of the directory      nothing; without it the id is still pending, and so found
    cache        the archive in the node's cache      nothing

While the archive is written, parts of a large one are uploaded already (`storage.growing`); then `begin` comes before
the first of them, within `archive`.

An archive without metadata can never be restored. If the bucket does not let the actor remove it, its id stays pending:
the next backup or the next actor settles it. An actor that was replaced during its upload finds a fence in place of the
metadata (`BackupCatalog.settle`), and commits nothing.

A backup of a restored directory is incremental where that is possible (`actors.sandbox.increments`): it holds the
layers of the earlier backup in the bucket (`storage.layers`), and its own archive is the layer above them.
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

from actors.errors import BackupCreateError, InvalidBackupConfigError, SandboxUnavailableError
from actors.faults import failing_as, reason_of
from actors.logs import log
from actors.metrics import ARCHIVED_BYTES, UNMETERED, UPLOADED_BYTES, Meter
from actors.models import BackupOptions, DirectoryBackup, Phase
from actors.node.archive_cache import ArchiveCache
from actors.node.archiver import Archiver
from actors.node.errors import NodeError
from actors.node.plain_changes import Recording
from actors.sandbox.archiving import Archiving
from actors.sandbox.beginning import Begun, Ledger
from actors.sandbox.increments import Increment, Increments
from actors.sandbox.listing_upload import ListingUpload
from actors.sandbox.operations import Progress
from actors.sandbox.steps import CreateStep, step
from actors.sandbox.stored import Stored
from storage import keys
from storage.catalog import BackupCatalog
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
from storage.metadata import BackupRecord, ListingDigest
from storage.sandbox_documents import StoredClaim

_LISTING = "files.list"


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
    increments: Increments
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
        begun = Begun(self.ledger, backup_id, of_sleep=self.of_sleep)
        increment: Increment | None = None
        recording = Recording(work / "fingerprints", self.archiver.user)
        try:
            with failing_as(BackupCreateError, "created"):
                work.mkdir(parents=True, mode=0o711)
                created_at = datetime.now(UTC)
                try:
                    with step(CreateStep.HOLD):
                        increment = self.increments.begin(options, backup_id, recording)
                    archiving = self._archiving(options, backup_id, work, progress, increment, recording)
                    with (
                        archiving.sent_ahead(begun) as ahead,
                        step(CreateStep.ARCHIVE),
                        closing(ListingWriter(work / _LISTING)) as listing,
                    ):
                        made = archiving.archive(listing, ahead)
                        listed = _finished(listing, backup_id) if made.is_listed else None
                    self.meter.add(ARCHIVED_BYTES, amount=made.found.source_bytes)
                    begun.ensure()
                    with step(CreateStep.UPLOAD), self._listing_upload(backup_id, work, listed, progress) as beside:
                        stored = archiving.store(made, ahead.sent)
                    self.meter.add(UPLOADED_BYTES, amount=stored.uploaded.size_bytes)
                    kept = beside.kept if stored.made is made else None
                    record = self._record(backup_id, options, created_at, stored, kept)
                    made_meanwhile = self._commit(record, options, idempotency_key, progress, stored.increment)
                except BaseException as e:
                    if not begun.is_noted or self._abandon(backup_id, e):
                        if increment is not None:
                            increment.release()
                        raise
                    made_meanwhile = None
            if made_meanwhile is not None:
                self.ledger.abandoned(backup_id)
                progress.backup_id = made_meanwhile.id
                return made_meanwhile
            with step(CreateStep.CHECKPOINT):
                self.ledger.committed(record)
            with step(CreateStep.CACHE), contextlib.suppress(OSError, NodeError):
                sha256 = stored.uploaded.sha256
                name = backup_id if stored.increment is None else sha256
                self.cache.adopt(name, stored.made.path, sha256, as_of=stored.stamp)
            self.increments.keep(recording, stored.made.place or options.dir, backup_id)
        finally:
            recording.close()
            shutil.rmtree(work, ignore_errors=True)
        lost = {name: count for name, count in stored.not_kept.model_dump().items() if count}
        (log.warning if lost else log.info)(
            "backup_created",
            backup=backup_id,
            dir=options.dir,
            bytes=record.size_bytes,
            depth=record.depth,
            not_kept=lost,
        )
        return DirectoryBackup(id=backup_id, dir=options.dir)

    def _made_before(self, idempotency_key: str | None, options: BackupOptions) -> DirectoryBackup | None:
        """The backup that an earlier call made with the same key, if it can be restored."""
        if idempotency_key is None:
            return None
        claim = self.catalog.sandboxes.find_claim(self.tenant, self.sandbox, idempotency_key)
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

    def _archiving(
        self,
        options: BackupOptions,
        backup_id: str,
        work: Path,
        progress: Progress,
        increment: Increment | None,
        recording: Recording,
    ) -> Archiving:
        return Archiving(
            backup_id=backup_id,
            options=options,
            work=work,
            progress=progress,
            increment=increment,
            recording=recording if self.increments.limits.incremental else None,
            archiver=self.archiver,
            bucket=self.catalog.store,
            transfer=self.transfer,
            pause_s=self.pause_s,
            paused=self.paused,
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
        stored: Stored,
        listing: ListingDigest | None,
    ) -> BackupRecord:
        return BackupRecord(
            id=backup_id,
            dir=options.dir,
            name=options.name,
            ttl=options.ttl,
            created_at=created_at,
            tenant=self.tenant,
            sandbox=self.sandbox,
            compression=options.compression.format,
            uid=self.uid,
            partial=bool(options.excludes or options.gitignore) or None,
            of_sleep=self.of_sleep or None,
            place=None if stored.made.place == options.dir else stored.made.place,
            listing=listing,
            **stored.fields(),
        )

    def _commit(
        self,
        record: BackupRecord,
        options: BackupOptions,
        idempotency_key: str | None,
        progress: Progress,
        increment: Increment | None,
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
            if increment is not None:
                increment.layers.check()
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
        claim = self.catalog.sandboxes.find_claim(self.tenant, self.sandbox, idempotency_key)
        made = self._claimed(claim, options)
        if made is None:
            replaced = claim.etag if claim else None
            self.catalog.sandboxes.write_claim(
                self.tenant, self.sandbox, idempotency_key, record.id, replacing=replaced
            )
        return made

    def _write_metadata(self, record: BackupRecord) -> None:
        if not self.catalog.store.supports_conditional_writes():
            self.ledger.check()
        try:
            self.catalog.commit(record)
        except PreconditionFailedError:  # a fence, if another actor has taken over
            self.ledger.check()
            raise


def _finished(listing: ListingWriter, backup_id: str) -> ListingDigest | None:
    """Completes the listing of a backup; None if there is none, which the log says."""
    digest = listing.finish()
    if digest is None:
        log.warning("backup_without_listing", backup=backup_id, detail="too large, or no room for it")
    return digest
