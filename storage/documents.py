"""Reads and writes small documents of the bucket. Writes are conditional where the store can do that."""

from __future__ import annotations

from storage.errors import (
    CorruptMetadataError,
    IntegrityError,
    ObjectMissingError,
    PreconditionFailedError,
    StoreUnavailableError,
)
from storage.metadata import Document
from storage.store import SMALL_OBJECT_BYTES, ObjectStore, Stored

MAX_BYTES = 16 * 2**20
"""Size limit of the largest documents, the states of sandboxes."""


def find(store: ObjectStore, key: str, *, max_bytes: int = SMALL_OBJECT_BYTES) -> Stored | None:
    """A document as it is stored; None if there is none. Raises StorageError."""
    try:
        return store.get(key, max_bytes=max_bytes)
    except ObjectMissingError:
        return None


def read(store: ObjectStore, key: str, *, max_bytes: int = SMALL_OBJECT_BYTES) -> Stored:
    """A document as it is stored. Raises ObjectMissingError; CorruptMetadataError if it is too large."""
    try:
        return store.get(key, max_bytes=max_bytes)
    except IntegrityError as e:
        raise CorruptMetadataError("read", bucket=store.bucket, key=key, detail=e.detail) from None


def write(store: ObjectStore, key: str, document: Document, *, replacing: str | None) -> str:
    """Writes a document and returns its ETag.

    Args:
        replacing: the ETag of the document that this one was made from, or None if there was none. A store with
            conditional writes refuses a second writer whose document was made from the same one.

    Raises:
        PreconditionFailedError: somebody else has written it since; permanent.
        StoreUnavailableError: it is unknown whether it was written.
    """
    data, conditional = document.to_json(), store.supports_conditional_writes()
    try:
        return store.put(
            key,
            data,
            if_none_match=conditional and replacing is None,
            if_match=replacing if conditional else None,
        )
    except (PreconditionFailedError, StoreUnavailableError):
        # A retry inside the store may have found its own earlier write.
        stored = find(store, key, max_bytes=MAX_BYTES)
        if stored is None or stored.data != data:
            raise
        return stored.etag
