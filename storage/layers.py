"""The layers of incremental backups: how a new backup takes hold of those it needs, and stores its own.

A layer is an archive that several backups of a tenant may need. Each of them has a reference to it, an empty object
named for the backup. So a backup can be deleted without regard to any other, and a layer goes when it has no reference
(`storage.layer_collection`). Nobody counts, and no conditional write is needed. The protocol rests on a store whose
reads and listings see every completed write:

    the creation of a backup                          the collector
    1. writes its reference                           1. lists the references: none
    2. lists the marks: none                          2. writes a mark of its own
    3. finds the archive, or stores it                3. lists the references again: none
    4. commits the metadata                           4. deletes the archive, then its mark

If step 3 of the collector misses the reference, then the mark was there before it. So step 2 of the creation sees the
mark, or the archive is gone already, and step 3 sees that. Each run has a mark of its own: with a common one, a run
that backs off would take away the warning of another that is about to delete.

References without metadata are removed once they are older than the grace period. So a creation that lasts too long
does not commit (`NewLayers.check`).

The archive of a full backup is no layer, and goes with that backup. It is promoted when the first incremental backup is
made on it: the store copies it to the key of a layer. `hold` only begins the copy, and `add` waits for it. That changes
nothing in the order above, which is one of requests about one layer: the copy is part of step 3, and the commit still
comes after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from storage import keys
from storage.beside import in_a_thread
from storage.config import TransferConfig
from storage.digests import part_count
from storage.errors import IntegrityError, LayersUnusableError, ObjectMissingError, StorageError
from storage.metadata import MAX_LAYERS, MAX_PARTS, BackupRecord, StoredLayer
from storage.store import Head, ObjectStore
from storage.upload import upload
from storage.wire import CHUNK_BYTES, Progress

logger = logging.getLogger(__name__)

MAX_COPY_BYTES = 5 * 10**9
"""The largest archive that a store copies in one request. Source: Amazon S3 API reference, "CopyObject"."""
LONGEST_CREATION_S = 12 * 3600.0
"""A creation that holds layers for longer does not commit. Half the grace period of the collector."""
_THREADS = 8
T = TypeVar("T")
R = TypeVar("R")
Beside = Callable[[Callable[[], object]], Callable[[], object]]
"""Runs a task beside what follows. Returns the function that waits for its end, and raises its error."""


def seconds() -> float:
    """A clock that nobody sets, and that goes on while the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class NewLayers:
    """The layers of one incremental backup that is being made. Not thread-safe.

    `hold`, `add`, `check`, then the commit of the metadata with `layers`. After every error, and if the backup is not
    committed for another reason, `release` it; but only once it is certain that it never will be. What a process that
    died has left is removed by the collector.
    """

    def __init__(
        self,
        store: ObjectStore,
        tenant: str,
        backup_id: str,
        base: BackupRecord,
        *,
        clock: Callable[[], float] = seconds,
        threads: int = _THREADS,
        beside: Beside = in_a_thread,
    ) -> None:
        """`base` is the signed metadata of the backup that the new one is made on; `beside` runs the promotion."""
        self._store = store
        self._tenant = tenant
        self._backup_id = backup_id
        self._base = base
        self._clock = clock
        self._threads = threads
        self._beside = beside
        self._wait_for_promotion: Callable[[], object] | None = None
        self._began = clock()
        self._began_at: datetime | None = None
        self._layers = list(base.stack)
        self._referenced: list[str] = []

    @property
    def layers(self) -> list[StoredLayer]:
        """The layers that are held, oldest first, as the metadata names them."""
        return list(self._layers)

    def hold(self) -> None:
        """Takes hold of all layers of the base; begins to promote its archive if that is no layer yet.

        Raises:
            LayersUnusableError: a full backup has to be made instead.
            StorageError: the store failed.
        """
        if self._base.owner != self._tenant or not self._base.is_signed:
            raise self._unusable("the backup is not one that this service has made for this tenant")
        if not 1 <= len(self._layers) < MAX_LAYERS:
            raise self._unusable("the backup cannot be laid on")
        if rules := self._store.rules_over_layers():
            raise self._unusable(f"lifecycle rules of the bucket would delete its layers: {', '.join(rules)}")
        requests: list[Callable[[], object]] = [partial(self._reference, layer) for layer in self._layers]
        self._each(lambda request: request(), [self._note_time, *requests])
        found = self._each(self._find_unmarked, self._layers)
        missing = [layer for layer, is_there in zip(self._layers, found, strict=True) if not is_there]
        if not missing:
            return
        if self._base.is_incremental:
            raise self._unusable("the layer is missing", missing[0])
        self._wait_for_promotion = self._beside(partial(self._promote, missing[0]))

    def add(self, layer: StoredLayer, send: Callable[[str], object]) -> None:
        """Stores the backup's own layer, unless the tenant has it already. On return all layers are held.

        `send` stores the archive under the key that it is called with, and returns once the store has confirmed it.

        Raises:
            LayersUnusableError, StorageError: as `hold`; and what `send` raises.
        """
        if len(self._layers) > 1 and layer.sha256 == self._layers[-1].sha256:
            return  # nothing has changed since: laid over itself, a layer shows what it shows
        known = {held.sha256 for held in self._layers}
        if layer.sha256 in known or sum(len(held.parts) for held in self._layers) + len(layer.parts) > MAX_PARTS:
            raise self._unusable("the layer cannot be laid on these", layer)
        self._reference(layer)
        if not self._find_unmarked(layer):
            send(keys.layer(self._tenant, layer.sha256))
        self._end_promotion()
        self._layers.append(layer)

    def check(self) -> None:
        """Checks right before the commit that the collector has taken none of the references for a dead backup's.

        The store's clock counts, too: that of a virtual machine stands still while the machine is paused.

        Raises:
            LayersUnusableError: it may have.
            StorageError: the store failed.
        """
        self._end_promotion()
        lasted_s, now = self._clock() - self._began, self._store.find_now()
        if now is not None and self._began_at is not None:
            lasted_s = max(lasted_s, (now - self._began_at).total_seconds())
        if lasted_s > LONGEST_CREATION_S:
            raise self._unusable("the creation has lasted too long")

    def release(self) -> None:
        """Removes the references. Raises nothing: the collector removes those that are left.

        If a promotion is under way, they are removed after it, beside what follows.
        """
        wait, self._wait_for_promotion = self._wait_for_promotion, None
        if wait is None:
            self._remove_references()
        else:
            self._beside(partial(self._remove_references, after=wait))

    def _remove_references(self, *, after: Callable[[], object] = lambda: None) -> None:
        with contextlib.suppress(StorageError):
            after()
        try:
            self._each(self._store.delete, self._referenced)
        except StorageError as e:
            logger.warning("a failed backup may have left references to layers behind: %s", e)

    def _note_time(self) -> None:
        """Notes the store's time. The references are written within seconds of it, which do not matter."""
        self._began_at = self._store.find_now()

    def _reference(self, layer: StoredLayer) -> None:
        key = keys.layer_reference(self._tenant, layer.sha256, self._backup_id)
        self._referenced.append(key)
        self._store.put(key, b"")

    def _end_promotion(self) -> None:
        """Waits for the promotion, if one was begun. Raises LayersUnusableError, and only once."""
        wait, self._wait_for_promotion = self._wait_for_promotion, None
        if wait is not None:
            wait()

    def _find_unmarked(self, layer: StoredLayer) -> bool:
        """Tells whether a layer is there, after its reference was written.

        Raises LayersUnusableError if a collector may be about to delete it.
        """
        if self._store.list(keys.layer_marks(self._tenant, layer.sha256), limit=1).objects:
            raise self._unusable("a collector may be about to delete the layer", layer)
        return self._find(layer)

    def _find(self, layer: StoredLayer) -> bool:
        try:
            self._check_size(layer, self._store.size_of(keys.layer(self._tenant, layer.sha256)))
        except ObjectMissingError:
            return False
        return True

    def _check_size(self, layer: StoredLayer, size_bytes: int) -> None:
        if size_bytes != layer.size_bytes:
            raise self._unusable(f"the layer has {size_bytes} bytes instead of {layer.size_bytes}", layer)

    def _promote(self, layer: StoredLayer) -> None:
        source, target = keys.archive(self._base.id), keys.layer(self._tenant, layer.sha256)
        if layer.size_bytes > MAX_COPY_BYTES:
            raise self._unusable(f"the store copies no more than {MAX_COPY_BYTES} bytes", layer)
        try:
            before = self._store.head(source)
            if before.size_bytes != layer.size_bytes or _differ(before.etag, self._base.etag or before.etag):
                raise self._unusable("the backup's archive is not the one that was uploaded", layer)
            self._store.copy(source, target, if_match=before.etag)
            after = self._store.head(target)
            self._check_size(layer, after.size_bytes)
        except LayersUnusableError:
            raise
        except StorageError as e:
            raise self._unusable(f"the backup's archive could not be copied: {e}", layer) from None
        if not _is_copy(before, after):
            raise self._unusable("the store has not copied the backup's archive as it is", layer)

    def _unusable(self, why: str, layer: StoredLayer | None = None) -> LayersUnusableError:
        key = keys.layer(self._tenant, layer.sha256) if layer else keys.metadata(self._base.id)
        return LayersUnusableError("build on", bucket=self._store.bucket, key=key, detail=why)

    def _each(self, task: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Runs the task for all items side by side, waits for all, and raises the first error."""
        if min(self._threads, len(items)) <= 1:
            return [task(item) for item in items]
        with ThreadPoolExecutor(min(self._threads, len(items)), thread_name_prefix="layers") as pool:
            futures = [pool.submit(copy_context().run, task, item) for item in items]
        return [future.result() for future in futures]


def _differ(etag: str, recorded: str) -> bool:
    """True if the ETags are those of two objects. rclone's is of another form once an upload in parts is complete."""
    return etag != recorded and ("-" in etag) == ("-" in recorded)


def _is_copy(before: Head, after: Head) -> bool:
    """False if the ETags show that the copy is another object; those of an upload in parts show nothing."""
    plain = "-" not in before.etag and "-" not in after.etag
    return not (plain and before.etag_is_digest and after.etag_is_digest) or before.etag == after.etag


def layer_at(path: Path, config: TransferConfig) -> StoredLayer:
    """The digests of the archive at `path`, in the parts in which it is uploaded. Raises OSError."""
    size_bytes = path.stat().st_size
    part_bytes = config.part_bytes_for(size_bytes)
    whole, parts = hashlib.sha256(), []
    with path.open("rb") as file:
        for _ in range(part_count(size_bytes, part_bytes)):
            part, left = hashlib.sha256(), part_bytes
            while left and (chunk := file.read(min(CHUNK_BYTES, left))):
                part.update(chunk)
                whole.update(chunk)
                left -= len(chunk)
            parts.append(part.hexdigest())
    return StoredLayer(sha256=whole.hexdigest(), size_bytes=size_bytes, part_bytes=part_bytes, parts=parts)


def add_file(
    layers: NewLayers,
    store: ObjectStore,
    path: Path,
    *,
    config: TransferConfig,
    progress: Progress,
    cancelled: threading.Event,
) -> StoredLayer:
    """Uploads the archive at `path` as the own layer of a backup that is being made, and returns its digests.

    Raises:
        LayersUnusableError: as `NewLayers.hold`.
        StorageError, OSError: as `storage.upload.upload`.
    """
    layer = layer_at(path, config)

    def send(key: str) -> None:
        sent = upload(store, key, path, config=config, progress=progress, cancelled=cancelled, shared=True)
        if sent.sha256 != layer.sha256:
            raise IntegrityError("upload", bucket=store.bucket, key=key, detail="the file changed before it was sent")

    layers.add(layer, send)
    return layer
