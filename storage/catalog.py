"""The catalog of the bucket: commits, lists and deletes backups. The sandboxes' documents are its `sandboxes`.

Metadata is the commit point: written last, deleted first. So a reader of metadata finds a whole archive; an archive
without metadata belongs to nobody, and the collector removes it. The index entry is written after the metadata, and
serves the listing only.

Metadata is believed as far as its signature goes. Metadata whose signature is wrong or lost is an error wherever it is
read. Metadata that was never signed is another program's, and `BackupRecord.is_signed` says so. The owner of a backup
without a valid signature is known from the index alone, which lists the backup for its sandbox.

A backup that was begun by an actor which may or may not be alive is settled: `settle` writes a fence in the place of
its metadata. Only the first writer can create that object, so the backup either was committed before, or never will be.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from pydantic import SecretStr

from storage import documents, keys
from storage.errors import (
    CorruptMetadataError,
    DocumentError,
    InvalidCursorError,
    NewerDocumentError,
    ObjectMissingError,
    PreconditionFailedError,
    StorageError,
    StoreUnavailableError,
    TamperedMetadataError,
    UnsignedMetadataError,
)
from storage.metadata import BackupRecord, load
from storage.sandbox_documents import SandboxDocuments
from storage.signing import sign, verify
from storage.store import ObjectStore, list_all

logger = logging.getLogger(__name__)

_FENCE = b'{"fenced":true}'
"""The content in the place of the metadata of a backup that must not be committed any more."""
_READERS = 8
_PAGE = 1000
_AT_ONCE = 100
"""Backups read at once: the metadata of each can have a megabyte."""
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Committed:
    """A committed backup. `indexed` is False if it is missing from its sandbox's list until a collection runs."""

    record: BackupRecord
    indexed: bool


@dataclass(frozen=True, slots=True)
class UnusableBackup:
    """A backup that a sandbox's index lists, but whose metadata cannot be used. Only its key can be believed."""

    entry: keys.IndexEntry
    error: DocumentError


@dataclass(frozen=True, slots=True)
class RecordPage:
    """One page of a sandbox's backups, newest first. `cursor` is None on the last page."""

    rows: tuple[BackupRecord | UnusableBackup, ...]
    cursor: str | None

    @property
    def records(self) -> tuple[BackupRecord, ...]:
        """The backups whose metadata can be used."""
        return tuple(row for row in self.rows if isinstance(row, BackupRecord))


class BackupCatalog:
    """The backups of one bucket, and in `sandboxes` its sandboxes. Thread-safe, without state of its own."""

    def __init__(
        self,
        store: ObjectStore,
        signing_key: SecretStr,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        old_keys: Sequence[SecretStr] = (),
    ) -> None:
        """`signing_key` signs and verifies; `old_keys` only verify."""
        self.store = store
        self._signing_key = signing_key
        self._verifying_keys = (signing_key, *old_keys)
        self._clock = clock
        self.sandboxes = SandboxDocuments(store, clock)

    def commit(self, record: BackupRecord) -> Committed:
        """Signs and writes the metadata of a backup whose archive is stored, then its index entry.

        On return the backup exists. A failure to write the index entry is logged and returned, not raised.

        Raises:
            PreconditionFailedError: there is another backup with this id; permanent, nothing was changed.
            StoreUnavailableError: it is unknown whether the metadata was written: `discard` the backup or read again.
            StorageError: nothing was written.
        """
        signed = sign(record, self._signing_key)
        key, data = keys.metadata(record.id), signed.to_json()
        conditional = self.store.supports_conditional_writes()
        for last in [False] * (_TRIES - 1) + [True]:
            try:
                self.store.put(key, data, if_none_match=conditional)
                break
            except (PreconditionFailedError, StoreUnavailableError) as e:
                # Either error may come after our own write took effect: only reading tells.
                found = documents.find(self.store, key)
                if found is not None and found.data == data:
                    break
                if found is not None:
                    raise PreconditionFailedError(e.operation, bucket=e.bucket, key=key, detail=e.detail) from None
                if last:
                    raise
        return Committed(signed, self.write_index_entry(signed))

    def sign_in_place(self, record: BackupRecord, *, replacing: str) -> None:
        """Signs metadata that is in the bucket already, and unsigned. `replacing`, errors: see `documents.write`."""
        documents.write(self.store, keys.metadata(record.id), sign(record, self._signing_key), replacing=replacing)

    def write_index_entry(self, record: BackupRecord) -> bool:
        """Writes the index entry of a committed backup of ours. Idempotent; logs a failure, and returns False."""
        if record.sandbox is None:
            return True
        key = keys.index_entry(record.owner, record.sandbox, record.created_at, record.id)
        try:
            self.store.put(key, b"")
        except StorageError as e:
            logger.warning("backup %s is committed but missing from its sandbox's list: %s", record.id, e)
            return False
        return True

    def read(self, backup_id: str) -> BackupRecord:
        """The metadata of a backup of any tenant: signed by us, or by nobody (`BackupRecord.is_signed`).

        For the service's own use; `get` serves callers.

        Raises:
            ObjectMissingError: permanent.
            DocumentError: it is damaged, tampered with or of a later release; permanent.
        """
        key = keys.metadata(backup_id)
        data = documents.read(self.store, key).data
        bucket = self.store.bucket
        if data == _FENCE:
            raise ObjectMissingError("read", bucket=bucket, key=key, detail="the backup was fenced off")
        record = load(BackupRecord, data, bucket=bucket, key=key)
        if record.has_lost_its_signature:
            raise TamperedMetadataError("read", bucket=bucket, key=key, detail="it has lost its signature")
        if record.is_signed and not self.trusted(record):
            raise TamperedMetadataError("read", bucket=bucket, key=key, detail="none of the keys has signed it")
        if record.id != backup_id:
            raise CorruptMetadataError("read", bucket=bucket, key=key, detail="it names another backup")
        return record

    def read_signed(self, backup_id: str) -> BackupRecord:
        """Does what `read` does, for decisions that need a record signed by us.

        Raises:
            UnsignedMetadataError: it has no signature; permanent.
        """
        record = self.read(backup_id)
        if not record.is_signed:
            raise UnsignedMetadataError("read", bucket=self.store.bucket, key=keys.metadata(backup_id))
        return record

    def get(self, tenant: str, backup_id: str) -> BackupRecord:
        """The metadata of one of the tenant's backups.

        Raises:
            ObjectMissingError: there is none, or it belongs to another tenant: callers cannot tell which.
            DocumentError: it is damaged, tampered with or of a later release; permanent. Every tenant gets this error.
        """
        record = self.read(backup_id)
        if record.owner != tenant:
            raise ObjectMissingError(
                "get", bucket=self.store.bucket, key=keys.metadata(backup_id), detail="HTTP 404 NoSuchKey"
            )
        return record

    def trusted(self, record: BackupRecord) -> bool:
        """True if this service wrote the record, so that its digests prove where the archive comes from."""
        return verify(record, self._verifying_keys)

    def is_expired(self, record: BackupRecord, *, buffer_s: float = 60) -> bool:
        """True if the record expires within `buffer_s` from now, or has expired."""
        return record.is_expired(self._clock(), buffer_s)

    def page(self, tenant: str, sandbox: str, *, limit: int = 100, cursor: str | None = None) -> RecordPage:
        """One page of a sandbox's backups, newest first, expired ones included.

        Entries without metadata, and those whose metadata names another sandbox, are left out. A backup whose metadata
        cannot be used is an `UnusableBackup`. A page ends once it has looked at a thousand entries: where nearly all
        are left out, it has fewer than `limit` backups, or none, and yet a cursor.

        Raises:
            InvalidCursorError: permanent.
        """
        prefix = keys.index_prefix(tenant, sandbox)
        if cursor is not None and not keys.is_entry_name(cursor):
            raise InvalidCursorError("page", bucket=self.store.bucket)
        after = None if cursor is None else prefix + cursor
        rows: list[BackupRecord | UnusableBackup] = []
        looked_at = 0
        while True:
            # Where much is left out, each round looks at as many entries as all before it, to need few rounds.
            listed = self.store.list(prefix, after=after, limit=min(_PAGE, max(limit - len(rows), looked_at)))
            looked_at += len(listed.objects)
            entries = [entry for row in listed.objects if (entry := keys.find_index_entry(row.key))]
            after = listed.after
            for entry, row in zip(entries, self._rows(entries), strict=True):
                if row is not None:
                    rows.append(row)
                    if len(rows) == limit and entry is not entries[-1]:
                        after = entry.key
                        break
            if after is None or len(rows) == limit or looked_at >= _PAGE:
                return RecordPage(tuple(rows), after and after.removeprefix(prefix))

    def _rows(self, entries: Sequence[keys.IndexEntry]) -> list[BackupRecord | UnusableBackup | None]:
        with ThreadPoolExecutor(_READERS, thread_name_prefix="catalog") as pool:
            futures = [pool.submit(copy_context().run, self._row, entry) for entry in entries]
        return [future.result() for future in futures]

    def has_more_backups(self, tenant: str, sandbox: str, than: int) -> bool:
        """Tells whether a sandbox's index has more entries than that. Reads no metadata."""
        rows = list_all(self.store, keys.index_prefix(tenant, sandbox))
        return next(islice(rows, than, None), None) is not None

    def _row(self, entry: keys.IndexEntry) -> BackupRecord | UnusableBackup | None:
        try:
            record = self.read_signed(entry.backup_id)
        except ObjectMissingError:
            return None
        except DocumentError as e:
            logger.warning("%s", e)
            return UnusableBackup(entry, e)
        return record if (record.owner, record.sandbox) == (entry.tenant, entry.sandbox) else None

    def all_records(self, tenant: str, sandbox: str) -> Iterator[BackupRecord]:
        """Yields all usable backups of a sandbox, newest first."""
        return (row for row in self.all_rows(tenant, sandbox) if isinstance(row, BackupRecord))

    def all_rows(
        self, tenant: str, sandbox: str, *, at_once: int = _AT_ONCE
    ) -> Iterator[BackupRecord | UnusableBackup]:
        """Yields all backups of a sandbox, newest first, as `page` does. Holds `at_once` of them in memory."""
        cursor: str | None = None
        while True:
            page = self.page(tenant, sandbox, limit=at_once, cursor=cursor)
            yield from page.rows
            cursor = page.cursor
            if cursor is None:
                return

    def entries_of(self, backup_id: str) -> Sequence[keys.IndexEntry]:
        """The index entries of a backup, for any tenant. Takes one request per 1000 objects beside the archives."""
        listed = (keys.find_index_entry(row.key) for root in keys.INDEX_ROOTS for row in list_all(self.store, root))
        return [entry for entry in listed if entry is not None and entry.backup_id == backup_id]

    def delete(self, tenant: str, backup_id: str, *, record: BackupRecord | None = None) -> bool:
        """Deletes one of the tenant's backups. Idempotent: returns False if there is none (any more).

        Args:
            record: its metadata, if it was read by `get` just now, to save a read.

        A backup whose metadata cannot be believed is the tenant's if the index lists it for this tenant and no other.
        If the deletion fails halfway, the backup is gone, and the collector removes what is left of it.

        Raises:
            DocumentError: its owner is unknown, or a later release has written it; nothing was deleted.
        """
        try:
            record = record or self.get(tenant, backup_id)
        except ObjectMissingError:
            return False
        except NewerDocumentError:
            raise
        except DocumentError:
            if {entry.tenant for entry in self.entries_of(backup_id)} != {tenant}:
                raise
            self.delete_unusable(backup_id)
            return True
        if not record.is_signed:
            self.check_nobody_elses(tenant, backup_id)
        self.discard(record)
        return True

    def check_nobody_elses(self, tenant: str, backup_id: str) -> Sequence[keys.IndexEntry]:
        """The index entries of an unsigned backup: none, unless it was the tenant's and had a signature.

        Raises:
            TamperedMetadataError: the index lists it for another tenant, so it was that tenant's.
        """
        entries = self.entries_of(backup_id)
        if any(entry.tenant != tenant for entry in entries):
            key = keys.metadata(backup_id)
            raise TamperedMetadataError("read", bucket=self.store.bucket, key=key, detail="it has lost its signature")
        return entries

    def delete_unusable(self, backup_id: str) -> bool:
        """Deletes everything of one backup of any tenant whose metadata cannot be used; for the operator.

        Returns False if there is no such backup, or if its metadata is in order. Nothing that the metadata says counts.

        Raises:
            NewerDocumentError: a later release has written it; nothing was deleted.
        """
        try:
            self.read(backup_id)
            return False
        except ObjectMissingError:
            return False
        except NewerDocumentError:
            raise
        except DocumentError:
            entries = self.entries_of(backup_id)
        self.store.delete(keys.metadata(backup_id))
        self.store.delete(keys.archive(backup_id))
        self.store.delete(keys.listing(backup_id))
        for entry in entries:
            self.store.delete(entry.key)
        return True

    def delete_of_sleep(self, tenant: str, sandbox: str, backup_id: str) -> None:
        """Deletes a backup if the service made it to put this sandbox to sleep; no other, whatever the state says.

        Raises:
            DocumentError: its metadata cannot be used; nothing was deleted.
        """
        try:
            record = self.read_signed(backup_id)
        except ObjectMissingError:
            return
        if record.of_sleep and (record.owner, record.sandbox) == (tenant, sandbox):
            self.discard(record)
        else:
            logger.warning("backup %s is not of the sleep of sandbox %s, and stays", backup_id, sandbox)

    def discard(self, record: BackupRecord) -> None:
        """Removes everything of one backup, in the order that keeps "metadata means archive" true. Idempotent.

        Of an incremental backup the references to its layers: the collector removes layers that nobody needs any more.
        """
        self.store.delete(keys.metadata(record.id))
        for layer in record.layers or ():
            self.store.delete(keys.layer_reference(record.owner, layer.sha256, record.id))
        self.store.delete(keys.archive(record.id))
        self.store.delete(keys.listing(record.id))
        if record.sandbox is not None:
            self.store.delete(keys.index_entry(record.owner, record.sandbox, record.created_at, record.id))

    def settle(self, backup_id: str) -> BackupRecord | None:
        """Finds out whether a backup that an actor began was committed; if not, it never will be. Idempotent.

        Returns the record of a committed backup, which is listed from then on. Otherwise returns None, and removes what
        there is of the archive and the listing. Where the store has no conditional writes, an actor that is still alive
        and about to write the metadata can still commit.

        Raises:
            DocumentError: there is metadata that cannot be used; permanent, and nothing was removed.
            StorageError: not settled yet; try again.
        """
        try:
            if self.store.supports_conditional_writes():
                self.store.put(keys.metadata(backup_id), _FENCE, if_none_match=True)
        except PreconditionFailedError:
            pass  # it is committed, or there is a fence already
        try:
            record = self.read_signed(backup_id)
        except ObjectMissingError:
            self._remove_uncommitted(backup_id)
            return None
        self.write_index_entry(record)  # its actor may have died right before it wrote the entry
        return record

    def abandon(self, backup_id: str) -> None:
        """Removes whatever there may be of a backup whose creation has failed. Idempotent.

        Raises:
            StorageError: something may be left; `settle` it later.
        """
        self.store.delete(keys.metadata(backup_id))
        self._remove_uncommitted(backup_id)

    def _remove_uncommitted(self, backup_id: str) -> None:
        for key in (keys.archive(backup_id), keys.listing(backup_id)):
            for upload in self.store.list_uploads(key):
                self.store.abort_upload(upload.key, upload.upload_id)
            self.store.delete(key)
