"""The upload of a backup's listing, in a thread beside the upload of its archive."""

from __future__ import annotations

import threading
from contextvars import copy_context
from pathlib import Path
from typing import Self

from actors.logs import log
from storage import keys
from storage.config import TransferConfig
from storage.errors import StorageError
from storage.metadata import ListingDigest
from storage.store import SMALL_OBJECT_BYTES, ObjectStore
from storage.transfer import upload


class ListingUpload:
    """Uploads a listing while the block runs, and has ended when the block is left.

    A failure is logged, and costs the backup its listing only: `kept` is what the metadata has to say of a listing that
    is in the bucket, and None without one.
    """

    def __init__(
        self,
        store: ObjectStore,
        backup_id: str,
        path: Path,
        digest: ListingDigest | None,
        *,
        config: TransferConfig,
        cancelled: threading.Event,
    ) -> None:
        """`digest` is what `ListingWriter.finish` returned for the file at `path`; None if there is no listing."""
        self.kept: ListingDigest | None = None
        self._store = store
        self._backup_id = backup_id
        self._path = path
        self._digest = digest
        self._config = config
        self._cancelled = cancelled
        self._thread = threading.Thread(target=copy_context().run, args=(self._run,), name="listing")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _run(self) -> None:
        if self._digest is None:
            return
        try:
            self._send(keys.listing(self._backup_id), self._digest.size_bytes)
        except (StorageError, OSError) as e:
            log.warning("backup_without_listing", backup=self._backup_id, error=type(e).__name__)
            return
        self.kept = self._digest

    def _send(self, key: str, size_bytes: int) -> None:
        if size_bytes <= SMALL_OBJECT_BYTES:
            self._store.put(key, self._path.read_bytes())
            return
        upload(
            self._store,
            key,
            self._path,
            config=self._config,
            progress=lambda moved: None,
            cancelled=self._cancelled,
        )
