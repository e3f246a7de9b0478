"""The documents of sandboxes in the bucket: their states, and the claims of their idempotency keys."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from storage import documents, keys
from storage.errors import CorruptMetadataError, InvalidCursorError, ObjectMissingError, PreconditionFailedError
from storage.metadata import Claim, SandboxState, load
from storage.store import ObjectStore, list_all

logger = logging.getLogger(__name__)

STATE_BYTES = documents.MAX_BYTES
_ASIDE_BYTES = 256 * 2**20
"""Size limit of a damaged document that is kept for a person."""


@dataclass(frozen=True, slots=True)
class NamePage:
    """One page of a tenant's sandboxes, in the order of their names. `cursor` is None on the last page."""

    names: tuple[str, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class StoredState:
    """A sandbox's state document, and the ETag to pass when it is written again."""

    state: SandboxState
    etag: str


@dataclass(frozen=True, slots=True)
class StoredClaim:
    """The backup that an idempotency key stands for, and the ETag to pass when the claim is written again.

    `backup_id` is None where the claim is damaged: it stands for nothing, and may be replaced.
    """

    backup_id: str | None
    etag: str


class SandboxDocuments:
    """Reads and writes the documents of the sandboxes of one bucket. Thread-safe, without state of its own."""

    def __init__(self, store: ObjectStore, clock: Callable[[], datetime]) -> None:
        self.store = store
        self._clock = clock

    def find_claim(self, tenant: str, sandbox: str, idempotency_key: str) -> StoredClaim | None:
        """The backup that the key stands for, which need not be committed or exist; None if the key was never used.

        Raises:
            NewerDocumentError: permanent.
        """
        key = keys.claim(tenant, sandbox, idempotency_key)
        stored = documents.find(self.store, key, max_bytes=_ASIDE_BYTES)
        if stored is None:
            return None
        try:
            return StoredClaim(load(Claim, stored.data, bucket=self.store.bucket, key=key).backup_id, stored.etag)
        except CorruptMetadataError as e:
            logger.warning("%s", e)
            return StoredClaim(None, stored.etag)

    def write_claim(
        self, tenant: str, sandbox: str, idempotency_key: str, backup_id: str, *, replacing: str | None
    ) -> None:
        """Makes the key stand for a backup about to be committed. `replacing`, errors: see `documents.write`."""
        documents.write(
            self.store, keys.claim(tenant, sandbox, idempotency_key), Claim(backup_id=backup_id), replacing=replacing
        )

    def find_state(self, tenant: str, sandbox: str) -> StoredState | None:
        """A sandbox's state document; None if it was never written.

        Raises:
            CorruptMetadataError: it is damaged, or another sandbox's; permanent.
            NewerDocumentError: permanent.
        """
        key = keys.state(tenant, sandbox)
        try:
            stored = documents.read(self.store, key, max_bytes=STATE_BYTES)
        except ObjectMissingError:
            return None
        return StoredState(self._state(tenant, sandbox, stored.data), stored.etag)

    def _state(self, tenant: str, sandbox: str, data: bytes) -> SandboxState:
        key = keys.state(tenant, sandbox)
        state = load(SandboxState, data, bucket=self.store.bucket, key=key)
        if (state.tenant, state.id) != (tenant, sandbox):
            raise CorruptMetadataError("read", bucket=self.store.bucket, key=key, detail="it names another sandbox")
        return state

    def set_aside_state(self, tenant: str, sandbox: str) -> str:
        """Copies a sandbox's damaged state document for a person. Returns its ETag, to pass when it is replaced.

        Raises:
            ObjectMissingError, PreconditionFailedError: it was deleted or written anew meanwhile.
            StorageError: no copy could be kept, so it must not be replaced.
        """
        key = keys.state(tenant, sandbox)
        stored = self.store.get(key, max_bytes=_ASIDE_BYTES)
        if len(stored.data) <= STATE_BYTES:
            with contextlib.suppress(CorruptMetadataError):
                self._state(tenant, sandbox, stored.data)
                raise PreconditionFailedError("set aside", bucket=self.store.bucket, key=key, detail="it is sound now")
        aside = keys.aside(key, self._clock())
        self.store.put(aside, stored.data)
        logger.error("the damaged document %s is kept as %s", key, aside)
        return stored.etag

    def write_state(self, state: SandboxState, *, replacing: str | None) -> str:
        """Writes a sandbox's state document and returns its ETag. `replacing`, errors: see `documents.write`."""
        return documents.write(self.store, keys.state(state.tenant, state.id), state, replacing=replacing)

    def delete_state(self, tenant: str, sandbox: str) -> None:
        """Deletes a sandbox's state document; its backups stay. Idempotent."""
        self.store.delete(keys.state(tenant, sandbox))

    def count_states(self) -> int:
        """Number of sandboxes, of all tenants, with a state. Takes one request per 1000 objects beside the archives."""
        return sum(
            keys.find_state(row.key) is not None for root in keys.INDEX_ROOTS for row in list_all(self.store, root)
        )

    def page(self, tenant: str, *, limit: int = 100, cursor: str | None = None) -> NamePage:
        """One page of the tenant's sandboxes that have a state, an index entry or a claim.

        Raises:
            InvalidCursorError: permanent.
        """
        prefix = keys.sandboxes_prefix(tenant)
        if cursor is not None and not keys.is_name(cursor):
            raise InvalidCursorError("sandboxes", bucket=self.store.bucket)
        after = None if cursor is None else f"{prefix}{cursor}/"
        listed = self.store.list(prefix, after=after, limit=limit, delimiter="/")
        names = tuple(row.removeprefix(prefix).rstrip("/") for row in listed.prefixes)
        return NamePage(names, names[-1] if names and listed.after is not None else None)
