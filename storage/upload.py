"""Uploads an archive to the bucket: in one piece if it is small, in parallel parts otherwise, or not at all.

The bytes go through presigned URLs only. Every part carries a signed Content-MD5, and its ETag is compared. A
completion is trusted if its answer has the ETag that follows from the parts' MD5s; else a HEAD of the object decides
the outcome, so a lost or wrong answer changes nothing.

Each byte is hashed once for its part (MD5 for the store, SHA-256 for the metadata), and once for the whole's SHA-256.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from storage.config import TransferConfig
from storage.digests import PartDigest, UploadedArchive, multipart_etag, part_count
from storage.errors import IntegrityError, ObjectMissingError, StorageError, TransferCancelledError
from storage.parts import PartSender, SentPart, SentParts, Source, abort_uploads
from storage.room import full_told
from storage.store import Head, ObjectStore
from storage.wire import Meter, Progress, Wire

logger = logging.getLogger(__name__)

# rclone drops a whole multipart upload when one part arrives damaged: NoSuchUpload from then on.
_ROUNDS = 2


class _ChangedError(Exception):
    """A part that was sent while the file was written is not what the file holds there now."""


def upload(
    store: ObjectStore,
    key: str,
    path: Path,
    *,
    config: TransferConfig,
    progress: Progress,
    cancelled: threading.Event,
    shared: bool = False,
    sent: SentParts | None = None,
) -> UploadedArchive:
    """Uploads the file at `path` to `key`, which must be a new one: on failure the object is deleted.

    Args:
        shared: others may store the same content under the same key, so a failure leaves the object alone.
        progress: called from many threads with the number of bytes moved; negative if a part has to be sent again.
        cancelled: when set, the transfer ends within a fraction of a second.
        sent: the parts that `storage.growing` has sent. Each is compared with the file as it is now; if one differs,
            all parts are sent anew.

    Raises:
        TransferCancelledError: as after every error here, nothing is left in the bucket, or the collector removes it.
        IntegrityError: the store does not hold what was sent, or the file changed while it was read.
        StoreUnavailableError: retryable, after all attempts; a StoreFullError where there is no room for it.
        StorageError: any other; permanent.
        OSError: the file cannot be read.
    """
    with Source.opened(path) as source:
        job = _Upload(store, key, source, config, progress, cancelled)
        try:
            with full_told(store, "upload", key, source.size_bytes):
                return job.run(sent)
        except BaseException:
            if not shared:
                job.discard()
            raise


class _Upload:
    def __init__(
        self,
        store: ObjectStore,
        key: str,
        source: Source,
        config: TransferConfig,
        progress: Progress,
        cancelled: threading.Event,
    ) -> None:
        self._store = store
        self._key = key
        self._source = source
        self._config = config
        self._progress = progress
        self._cancelled = cancelled
        self._sender = PartSender(store, key, source, config)
        self._part_bytes = config.part_bytes_for(source.size_bytes)
        self._count = part_count(source.size_bytes, self._part_bytes)
        self._digests: dict[int, PartDigest] = {}
        self._sha256: str | None = None

    def run(self, sent: SentParts | None) -> UploadedArchive:
        if sent is not None and (self._count == 1 or sent.part_bytes != self._part_bytes):
            self._abort(sent.upload_id)
            sent = None
        etag = self._in_one_piece() if self._count == 1 else self._in_parts(sent)
        if self._source.has_changed():
            raise self._damaged("upload", "the file changed while it was uploaded")
        if self._cancelled.is_set():
            raise TransferCancelledError("upload", bucket=self._store.bucket, key=self._key)
        parts = self._known_digests()
        return UploadedArchive(self._source.size_bytes, self._sha256 or parts[0].sha256, parts, self._part_bytes, etag)

    def discard(self) -> None:
        """Removes whatever the upload may have left. Best effort: the collector removes what is left here."""
        try:
            abort_uploads(self._store, self._key)
            self._store.delete(self._key)
        except StorageError as e:
            logger.warning("a failed upload may have left something behind: %s", e)

    def _in_one_piece(self) -> str:
        with Wire(self._store.bucket, self._key, self._config, self._cancelled) as wire:
            (part,) = wire.run("upload", [partial(self._send, wire, 0, None, Meter(self._progress))], threads=1)
        if part.etag != part.digest.md5:  # it is no digest: see `PartSender.send`
            head = self._store.head(self._key)
            if head.size_bytes != self._source.size_bytes or head.etag_is_digest:
                raise self._damaged("head", "the stored object has another size or ETag")
        return part.etag

    def _in_parts(self, sent: SentParts | None) -> str:
        if sent is not None:
            try:
                return self._round(sent)
            except (_ChangedError, ObjectMissingError) as e:
                logger.info("parts that were sent ahead are of no use (%s); beginning anew", e)
        for _ in range(_ROUNDS - 1):
            try:
                return self._round()
            except ObjectMissingError:
                logger.info("the store has dropped a multipart upload in bucket %s; beginning anew", self._store.bucket)
        return self._round()

    def _round(self, sent: SentParts | None = None) -> str:
        """Does one multipart upload to its end. Raises ObjectMissingError if the store has dropped it.

        Raises _ChangedError if a part that was sent before is outdated.
        """
        upload_id = sent.upload_id if sent is not None else self._store.create_upload(self._key)
        etags: dict[int, str] = {}
        meters = [Meter(self._progress) for _ in range(self._count)]
        try:
            with Wire(self._store.bucket, self._key, self._config, self._cancelled) as wire:
                early = sent.parts if sent is not None else {}

                def send(index: int) -> None:
                    etags[index] = self._send(wire, index, upload_id, meters[index]).etag

                def take(wanted: dict[int, SentPart]) -> None:
                    for index, part in wanted.items():
                        self._compare(wire, index, part)
                        meters[index].add(part.digest.size_bytes)
                        etags[index] = part.etag

                tasks: list[Callable[[], None]] = [partial(send, n) for n in range(self._count) if n not in early]
                # What only reads goes second, beside the sending, which begins at once.
                tasks[1:1] = [partial(self._hash_whole, wire), partial(take, dict(early))]
                wire.run("upload", tasks, threads=self._config.concurrency + 2)
            return self._complete(upload_id, [etags[index] for index in range(self._count)])
        except BaseException:
            for meter in meters:
                meter.undo()
            self._abort(upload_id)
            raise

    def _compare(self, wire: Wire, index: int, part: SentPart) -> None:
        """Compares a part that was sent while the file was written with the finished file. Raises _ChangedError."""
        start, size_bytes = self._stretch(index)
        if size_bytes != part.digest.size_bytes:
            raise _ChangedError(f"part {index + 1} has another size now")
        if self._source.hash(wire, "sha256", start, size_bytes) != part.digest.sha256:
            raise _ChangedError(f"part {index + 1} has other bytes now")
        self._digests[index] = part.digest

    def _abort(self, upload_id: str) -> None:
        try:
            self._store.abort_upload(self._key, upload_id)
        except StorageError as e:
            logger.warning("a multipart upload could not be aborted: %s", e)

    def _complete(self, upload_id: str, etags: list[str]) -> str:
        expected, failure = multipart_etag(self._known_digests()), None
        try:
            if self._store.complete_upload(self._key, upload_id, etags) == expected:
                return expected
        except StorageError as e:
            failure = e
        # The object decides, not the answer, which may be lost, or be an error after the effect.
        try:
            head = self._store.head(self._key)
        except ObjectMissingError as e:
            raise failure or e from None
        if self._is_ours(head, expected):
            return head.etag
        raise failure or self._damaged("complete_upload", "the stored object has another size or ETag")

    def _send(self, wire: Wire, index: int, upload_id: str | None, meter: Meter) -> SentPart:
        start, size_bytes = self._stretch(index)
        digest = self._digests.get(index) or self._source.digest(wire, start, size_bytes)
        self._digests[index] = digest
        return self._sender.send(wire, start, digest, meter, upload_id=upload_id, index=index)

    def _stretch(self, index: int) -> tuple[int, int]:
        start = index * self._part_bytes
        return start, min(self._part_bytes, self._source.size_bytes - start)

    def _hash_whole(self, wire: Wire) -> None:
        if self._sha256 is None:
            self._sha256 = self._source.hash(wire, "sha256", 0, self._source.size_bytes)

    def _is_ours(self, head: Head, expected: str) -> bool:
        if head.size_bytes != self._source.size_bytes:
            return False
        if not head.etag_is_digest or head.etag == expected:
            return True
        # rclone answers the completion with md5(md5s)-N, and from then on gives the MD5 of the whole as ETag.
        with Wire(self._store.bucket, self._key, self._config, self._cancelled) as wire:
            return head.etag == self._source.hash(wire, "md5", 0, self._source.size_bytes)

    def _known_digests(self) -> tuple[PartDigest, ...]:
        return tuple(self._digests[index] for index in range(self._count))

    def _damaged(self, operation: str, detail: str) -> IntegrityError:
        return IntegrityError(operation, bucket=self._store.bucket, key=self._key, detail=detail)
